//! Launches of `kernels/resized_taps.cu`; see [`crate::cpu::resized_taps`] for the equations.

use super::{Call, scratch_like};
use crate::{Result, Shape, Tensor};

/// Threads of a block.
const THREADS: usize = 128;
/// Channels of a thread of the forward where addresses allow it.
const GROUP: usize = 4;
/// Rows of a strip of the forward: the longer, the fewer rows of the maps are read twice.
const STRIP: usize = 32;
/// Threads of the forward that keep a device busy.
const MANY: usize = 1 << 16;
/// Rows that a thread of the backward sums.
const ROWS: usize = 4;

/// Adds to `base` `(1, B, H, W, O)`, for every map `(2, B, h, w, 9·O)`, both streams and all taps (ky, kx), the group
/// 3·ky + kx resized to H×W and read at (y + ky − 1, x + kx − 1); outside the picture there is nothing. The buffer of
/// `base` is reused when nobody else holds it.
pub fn forward(mut base: Tensor, maps: [&Tensor; 4]) -> Result<Tensor> {
    let shape = base.shape();
    let (batch, height, width, o) = (shape[1], shape[2], shape[3], shape[4]);
    let mut call = Call::new("resized_taps", maps[0])?.input(&base);
    let in_place = base.is_unique();
    let mut y = if in_place { base } else { scratch_like(&base, shape)? };
    call = call.output(&mut y);
    for map in maps {
        call = call.input(map);
    }
    let vector = call.is_aligned() && o.is_multiple_of(GROUP);
    for map in maps {
        call = call.int(map.dim(2)).int(map.dim(3));
    }
    let groups = width * if vector { o / GROUP } else { o };
    let strip = (groups * height * batch / MANY).clamp(1, STRIP);
    let call = call.int(height).int(width).int(o).int(strip).int(usize::from(vector));
    // For each map and tap: two rows blended, of which each is a sum over streams and two columns.
    let call = call.operations(4 * 9 * 8 * shape.len());
    let columns = (THREADS * width).div_ceil(groups) + 3;
    let shared = 4 * 16 * (strip + 2 + columns);
    // SAFETY: a thread for each group of channels of a row, guarded, and each strip of rows of each image; a number of
    // the base is read and written by one thread alone; positions in the maps are clamped to them. The shared memory
    // holds 16 bytes for each map and each row of a strip and column of a block, and one more on either side.
    unsafe { call.launch([groups.div_ceil(THREADS), height.div_ceil(strip), batch], THREADS, shared)? };
    Ok(y)
}

/// The gradients of the maps, of shapes `shapes`; that of the base is `dy` itself.
pub fn backward(dy: &Tensor, shapes: [Shape; 4]) -> Result<[Tensor; 4]> {
    let (batch, height, width, o) = (dy.dim(1), dy.dim(2), dy.dim(3), dy.dim(4));
    let lanes = 16 / dy.dtype().size();
    let gradient = |shape: Shape| {
        let (h, w) = (shape[2], shape[3]);
        let mut dx = scratch_like(dy, shape)?;
        let call = Call::new("resized_taps_backward", dy)?.input(dy).output(&mut dx);
        let vector = call.is_aligned() && o.is_multiple_of(lanes);
        let group = if vector { lanes } else { 1 };
        // A pixel is read by about 2·H/h rows, and one on either side.
        let parts = ((2 * height / h + 2) / ROWS).clamp(1, 32).next_power_of_two();
        let call = call.int(h).int(w).int(height).int(width).int(o).int(parts).int(usize::from(vector));
        let call = call.operations(4 * 9 * 2 * dy.len());
        let blocks = (w * o / group).div_ceil(THREADS / parts);
        // SAFETY: `parts` threads for each pixel and group of channels of a row of dx, guarded, its rows and images;
        // what they read is clamped to dy. The shared memory holds nine floats for each channel of each thread.
        unsafe { call.launch([blocks, h, batch], THREADS, THREADS * 9 * group * 4)? };
        Ok(dx)
    };
    let [a, b, c, d] = shapes.map(gradient);
    Ok([a?, b?, c?, d?])
}
