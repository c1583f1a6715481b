//! Sums over rows, in an order that the shape alone decides.

use super::{Call, scratch_f32};
use crate::{DType, Result, Tensor};

/// Blocks of rows that fill a device without making many partial sums.
const MOST_PARTS: usize = 256;

/// Into how many parts of how many rows `rows` rows are divided, at least `least` rows each.
pub(crate) fn parts(rows: usize, least: usize) -> (usize, usize) {
    let per_part = rows.div_ceil(MOST_PARTS).max(least);
    (rows.div_ceil(per_part), per_part)
}

/// The sums over rows of each stream: x `(s, rows, C)` of any type -> f32 `(s, C)`.
pub(crate) fn column_sums(x: &Tensor, s: usize) -> Result<Tensor> {
    let c = x.shape().last();
    let rows = x.len() / (s * c);
    let (parts, per_part) = parts(rows, 64);
    let mut partial = scratch_f32(x, [s, parts, c])?;
    let call = Call::new("column_sums", x)?.input(x).output_of(&mut partial, DType::F32);
    let call = call.int(rows).int(per_part).int(c).operations(x.len());
    // SAFETY: the grid's tiles of 32 channels, parts and streams cover x (s, rows, C) and the partial sums; a tile's
    // last channels are guarded. The shared memory is a float for each thread.
    unsafe { call.launch([c.div_ceil(32), parts, s], 256, 256 * 4)? };
    let mut y = scratch_f32(x, [s, c])?;
    sum_partials(&partial, &mut y, s, parts, 1.0)?;
    Ok(y)
}

/// y `(groups, width)` = scale · the sum over the parts of `partial`, f32 `(groups, parts, width)`.
pub(crate) fn sum_partials(
    partial: &Tensor,
    y: &mut Tensor,
    groups: usize,
    parts: usize,
    scale: f32,
) -> Result<()> {
    let width = partial.len() / (groups * parts);
    let len = groups * width;
    let target = y.dtype();
    let call = Call::untyped(&format!("sum_partials_{target}"), partial)?;
    let call = call.input_of(partial, DType::F32).output_of(y, target);
    let call = call.int(groups).int(parts).int(width).float(scale).operations(partial.len());
    // SAFETY: a thread for each of the sums, guarded; it reads its column of `partial`.
    unsafe { call.launch([len.div_ceil(256), 1, 1], 256, 0) }
}
