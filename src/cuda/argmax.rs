//! Launches of `kernels/argmax.cu`; see [`crate::cpu::argmax`].

use super::{Call, scratch_f32};
use crate::{DType, Result, Tensor};

/// Threads of a block.
pub(super) const THREADS: usize = 256;

/// Shared memory that leaves room for enough blocks on a multiprocessor.
const TILE: usize = 24 * 1024;

/// Bytes of shared memory of a tile of `n` numbers of `size` bytes: the kernels' `tile_bytes`.
fn tile_bytes(n: usize, size: usize) -> usize {
    (n * size).next_multiple_of(16)
}

/// How the rows of logits are divided.
pub(super) struct Tiles {
    rows: usize,
    /// Classes.
    pub k: usize,
    /// Rows of a tile, a power of two of at most [`THREADS`].
    pub tile: usize,
    /// Bytes of shared memory of a tile of the logits.
    pub bytes: usize,
}

impl Tiles {
    /// Where a row takes `extra` bytes of shared memory for each class, besides the logits.
    pub fn new(logits: &Tensor, extra: usize) -> Self {
        let (k, size) = (logits.shape().last(), logits.dtype().size());
        let tile = 1 << (TILE / (k * (size + extra))).clamp(1, THREADS).ilog2();
        Self { rows: logits.len() / k, k, tile, bytes: tile_bytes(tile * k, size) }
    }

    /// Blocks that each take a tile.
    pub fn blocks(&self) -> usize {
        self.rows.div_ceil(self.tile)
    }

    /// Starts a kernel that takes these tiles, with `blocks` blocks and `shared` bytes of shared memory.
    ///
    /// # Safety
    /// As for [`Call::launch`]; the rows and columns are those of the arguments.
    pub unsafe fn launch(&self, call: Call, blocks: usize, shared: usize) -> Result<()> {
        let call = call.int(self.rows).int(self.k).int(self.tile);
        // SAFETY: the caller vouches for it.
        unsafe { call.launch([blocks, 1, 1], THREADS, shared) }
    }
}

/// logits `(1, B, H, W, K)` -> the first class of largest value, U8 `(B, H, W)`. NaN is never the largest.
pub fn argmax(logits: &Tensor) -> Result<Tensor> {
    let tiles = Tiles::new(logits, 0);
    let shape = [logits.dim(1), logits.dim(2), logits.dim(3)];
    let mut classes = Tensor::scratch_on(&logits.device(), shape, DType::U8)?;
    let call = Call::new("argmax", logits)?.input(logits).output_of(&mut classes, DType::U8);
    let call = call.operations(logits.len());
    // SAFETY: the blocks' tiles cover the rows, and the last is guarded; a tile fits into the shared memory.
    unsafe { tiles.launch(call, tiles.blocks(), tiles.bytes)? };
    Ok(classes)
}

/// Softmax over the last axis, f32.
pub fn probabilities(logits: &Tensor) -> Result<Tensor> {
    let tiles = Tiles::new(logits, 4);
    let mut y = scratch_f32(logits, logits.shape())?;
    let call = Call::new("probabilities", logits)?.input(logits).output_of(&mut y, DType::F32);
    let call = call.operations(5 * logits.len());
    let shared = tiles.bytes + tile_bytes(tiles.tile * tiles.k, 4);
    // SAFETY: as in `argmax`, with a tile of floats beside the first.
    unsafe { tiles.launch(call, tiles.blocks(), shared)? };
    Ok(y)
}
