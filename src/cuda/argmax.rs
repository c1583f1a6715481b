//! Launches of `kernels/argmax.cu`; see [`crate::cpu::argmax`].

use super::{Call, scratch_f32};
use crate::{DType, Result, Tensor};

/// Threads of a block.
pub(super) const THREADS: usize = 256;

/// Shared memory that leaves room for enough blocks on a multiprocessor.
const TILE: usize = 24 * 1024;

/// Rows of a tile, a power of two of at most [`THREADS`], where one takes `bytes` bytes of shared memory.
pub(super) fn tile_rows(bytes: usize) -> usize {
    1 << (TILE / bytes).clamp(1, THREADS).ilog2()
}

/// Bytes of shared memory of a tile of `n` numbers of `size` bytes: the kernels' `tile_bytes`.
pub(super) fn tile_bytes(n: usize, size: usize) -> usize {
    (n * size).next_multiple_of(16)
}

/// logits `(1, B, H, W, K)` -> the first class of largest value, U8 `(B, H, W)`. NaN is never the largest.
pub fn argmax(logits: &Tensor) -> Result<Tensor> {
    let (k, size) = (logits.shape().last(), logits.dtype().size());
    let (rows, tile) = (logits.len() / k, tile_rows(k * size));
    let shape = [logits.dim(1), logits.dim(2), logits.dim(3)];
    let mut classes = Tensor::scratch_on(&logits.device(), shape, DType::U8)?;
    let call = Call::new("argmax", logits)?.input(logits).output_of(&mut classes, DType::U8);
    let call = call.int(rows).int(k).int(tile).operations(logits.len());
    // SAFETY: the blocks' tiles cover the rows, and the last is guarded; a tile fits into the shared memory.
    unsafe { call.launch([rows.div_ceil(tile), 1, 1], THREADS, tile_bytes(tile * k, size))? };
    Ok(classes)
}

/// Softmax over the last axis, f32.
pub fn probabilities(logits: &Tensor) -> Result<Tensor> {
    let (k, size) = (logits.shape().last(), logits.dtype().size());
    let (rows, tile) = (logits.len() / k, tile_rows(k * (size + 4)));
    let mut y = scratch_f32(logits, logits.shape())?;
    let call = Call::new("probabilities", logits)?.input(logits).output_of(&mut y, DType::F32);
    let call = call.int(rows).int(k).int(tile).operations(5 * logits.len());
    let shared = tile_bytes(tile * k, size) + tile_bytes(tile * k, 4);
    // SAFETY: as in `argmax`, with a tile of floats beside the first.
    unsafe { call.launch([rows.div_ceil(tile), 1, 1], THREADS, shared)? };
    Ok(y)
}
