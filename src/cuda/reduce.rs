//! Sums over rows, in an order that shape and alignment alone decide.

use super::{Call, scratch_f32};
use crate::{DType, Result, Tensor};

/// Blocks of rows that fill a device without making many partial sums.
const MOST_PARTS: usize = 256;

/// Into how many parts of how many rows `rows` rows are divided, at least `least` rows each.
pub(crate) fn parts(rows: usize, least: usize) -> (usize, usize) {
    let per_part = rows.div_ceil(MOST_PARTS).max(least);
    (rows.div_ceil(per_part), per_part)
}

/// Threads of a block.
const THREADS: usize = 256;

/// The sums over rows of each stream: x `(s, rows, C)` of any type -> f32 `(s, C)`.
pub(crate) fn column_sums(x: &Tensor, s: usize) -> Result<Tensor> {
    let c = x.shape().last();
    let rows = x.len() / (s * c);
    let call = Call::new("column_sums", x)?.input(x);
    let most = 16 / x.dtype().size();
    let lanes = if call.is_aligned() && c.is_multiple_of(most) { most } else { 1 };
    let tile = c.div_ceil(lanes).next_power_of_two().min(32);
    let tiles = c.div_ceil(lanes * tile);
    // At least four rows to a thread.
    let (parts, per_part) = parts(rows, 4 * THREADS / tile);
    let mut partial = scratch_f32(x, [s, parts, c])?;
    let call = call.output_of(&mut partial, DType::F32).int(rows).int(per_part).int(c).int(tile).int(lanes);
    // SAFETY: the grid's tiles of channels, parts and streams cover x (s, rows, C) and the partial sums; a tile's last
    // channels are guarded. The shared memory is a float for each thread.
    unsafe { call.operations(x.len()).launch([tiles, parts, s], THREADS, THREADS * 4)? };
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
    let target = y.dtype();
    // A thread for each sum, or some: about eight parts to each.
    let lanes = parts.div_ceil(8).next_power_of_two().min(THREADS / 8);
    let call = Call::untyped(&format!("sum_partials_{target}"), partial)?;
    let call = call.input_of(partial, DType::F32).output_of(y, target);
    let call = call.int(groups).int(parts).int(width).int(lanes).float(scale).operations(partial.len());
    let blocks = (groups * width).div_ceil(THREADS / lanes);
    // SAFETY: threads for each of the sums, guarded, which read its column of `partial`. The shared memory is a float for
    // each thread.
    unsafe { call.launch([blocks, 1, 1], THREADS, THREADS * 4) }
}
