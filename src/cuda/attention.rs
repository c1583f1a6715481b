//! Launches of `kernels/attention.cu`; see [`crate::cpu::attention`] for the equations.

use super::reduce::sum_partials;
use super::windows::Windows;
use super::{Call, scratch_f32, scratch_like};
use crate::{DType, Error, Result, Tensor};

/// Threads of a block of every kernel.
const THREADS: usize = 128;
/// Blocks that fill a large device.
const BLOCKS: usize = 528;
/// Queries that are worth a block of partial sums.
const LEAST_PART: usize = 256;

/// The sizes of a problem, and how the kernels divide it.
struct Problem {
    samples: usize,
    heads: usize,
    queries: usize,
    keys: usize,
    channels: usize,
    /// Channels of a head, as the kernels pad them.
    dim: usize,
    /// Whether the kernels use the tensor cores.
    tensor: bool,
    /// Factor of the scores before the softmax.
    scale: f32,
}

impl Problem {
    fn of(q: &Tensor, kv: &Tensor, heads: usize) -> Result<Self> {
        let d = q.dim(3) / heads;
        let dim = [16, 32, 64, 128].into_iter().find(|&dim| d <= dim).ok_or_else(|| {
            let why = "the kernels take at most 128 channels to a head";
            Error::shape("attention", why, &[q.shape(), kv.shape()])
        })?;
        Ok(Self {
            samples: q.dim(0) * q.dim(1),
            heads,
            queries: q.dim(2),
            keys: kv.dim(2),
            channels: q.dim(3),
            dim,
            tensor: q.dtype().size() == 2 && dim <= 64,
            scale: (d as f32).powf(-0.5),
        })
    }

    /// Multiply-adds of one product of all queries with all keys.
    fn product(&self) -> usize {
        self.samples * self.queries * self.keys * self.channels
    }

    /// Rows of which the kernels without tensor cores take one to a thread, or to a few.
    fn plain_rows(&self) -> usize {
        THREADS / (self.dim / 32).max(1)
    }

    /// Bytes of two tiles of 32 rows for the same kernels.
    fn plain_shared(&self) -> usize {
        2 * 32 * self.dim * 4
    }

    /// The last arguments of every kernel, and its launch.
    ///
    /// # Safety
    /// As of [`Call::launch`], with blocks that cover the queries or the keys of each head of each sample.
    unsafe fn launch(&self, call: Call, blocks: usize, shared: usize) -> Result<()> {
        let d = self.channels / self.heads;
        let call = call.int(self.queries).int(self.keys).int(self.channels).int(d);
        let call = call.float(self.scale);
        // SAFETY: the caller vouches for it.
        unsafe { call.launch([blocks, self.heads, self.samples], THREADS, shared) }
    }

    /// The output of [`forward`], and its statistics where there is a place for them.
    fn attend(
        &self,
        q: &Tensor,
        kv: &Tensor,
        statistics: Option<&mut Tensor>,
        windows: Option<Windows>,
    ) -> Result<Tensor> {
        let (dim, blocks) = (self.dim, self.queries.div_ceil(128) * self.heads * self.samples);
        let large = blocks >= BLOCKS / 2;
        let (rows, shared) = match self.tensor {
            true if large => (128, (128 + 4 * 64) * dim * 2),
            true => (64, (64 + 4 * 64) * dim * 2),
            false => (2 * self.plain_rows(), self.plain_shared()),
        };
        let kernel = if self.tensor && !large { "attention_small" } else { "attention" };
        let mut y = scratch_like(q, q.shape())?;
        let call = Call::new(&format!("{kernel}_{dim}"), q)?.input(q).input(kv).output(&mut y);
        let call = call.maybe_output_of(statistics, DType::F32).operations(4 * self.product());
        let call = Windows::arguments(windows, call);
        // SAFETY: blocks of `rows` queries cover N, ends are guarded; the shared memory is the block's queries and two
        // stages of 64 keys and values, or a tile of each. Windows cover the map, so each query has a place.
        unsafe { self.launch(call, self.queries.div_ceil(rows), shared)? };
        Ok(y)
    }
}

/// q `(S, B, N, C)`, kv `(S, B, M, 2C)` with the keys before the values -> `(S, B, N, C)`, and what [`backward`] needs
/// of each row of scores, f32 `(S·B, heads, N, 2)`: log₂e/√d times its maximum m, and 1/Σe^(s − m).
///
/// # Errors
/// When a head has more than 128 channels, or the device reports an error.
pub fn forward(q: &Tensor, kv: &Tensor, heads: usize) -> Result<(Tensor, Tensor)> {
    let problem = Problem::of(q, kv, heads)?;
    let mut statistics = scratch_f32(q, [problem.samples, heads, problem.queries, 2])?;
    Ok((problem.attend(q, kv, Some(&mut statistics), None)?, statistics))
}

/// As [`forward`], without what backward needs, with scores that are multiplied by `scale` instead of 1/√d, and with
/// queries in the order of `windows`, if there are any: the result is in that of the map.
///
/// # Errors
/// As [`forward`].
pub fn infer(q: &Tensor, kv: &Tensor, heads: usize, scale: f32, windows: Option<Windows>) -> Result<Tensor> {
    Problem { scale, ..Problem::of(q, kv, heads)? }.attend(q, kv, None, windows)
}

/// The gradients of q and kv from what [`forward`] gave.
///
/// # Errors
/// When a head has more than 128 channels, or the device reports an error.
pub fn backward(
    dy: &Tensor,
    q: &Tensor,
    kv: &Tensor,
    y: &Tensor,
    statistics: &Tensor,
    heads: usize,
) -> Result<(Tensor, Tensor)> {
    let problem = Problem::of(q, kv, heads)?;
    let (dim, queries) = (problem.dim, problem.queries);
    let mut dq = scratch_like(q, q.shape())?;
    let mut rows = scratch_f32(q, [problem.samples, heads, queries, 4])?;
    let (block, shared) = match problem.tensor {
        true => (128, (2 * 128 + 4 * 32) * dim * 2),
        false => (problem.plain_rows(), problem.plain_shared()),
    };
    let call = Call::new(&format!("attention_queries_{dim}"), q)?.input(dy).input(q).input(kv).input(y);
    let call = call.input_of(statistics, DType::F32).output(&mut dq).output_of(&mut rows, DType::F32);
    let call = call.operations(6 * problem.product());
    // SAFETY: as in `forward`; the shared memory is the block's queries and dy, and two stages of 32 keys and values.
    unsafe { problem.launch(call, queries.div_ceil(block), shared)? };

    let (block, shared) = match problem.tensor {
        true => (64, 2 * (2 * 64 * dim * 2 + 64 * 16)),
        false => (problem.plain_rows(), problem.plain_shared() + 32 * 16),
    };
    let blocks = problem.keys.div_ceil(block);
    // Alone these blocks are few where there are few keys, so the queries are divided as well.
    let parts = BLOCKS.div_ceil(blocks * heads * problem.samples).min(queries.div_ceil(LEAST_PART));
    let per_part = queries.div_ceil(parts).next_multiple_of(64);
    let parts = queries.div_ceil(per_part);
    let mut partial = scratch_f32(q, [parts, kv.len()])?;
    let call = Call::new(&format!("attention_keys_{dim}"), q)?.input(dy).input(q).input(kv);
    let call = call.input_of(&rows, DType::F32).output_of(&mut partial, DType::F32).int(per_part);
    let call = call.operations(8 * problem.product());
    // SAFETY: the blocks of keys cover M and the parts N, ends are guarded; each part has its own sums of the length of
    // kv. The shared memory is two stages of 64 queries, dy and their rows, or a tile of each.
    unsafe { problem.launch(call, parts * blocks, shared)? };
    let mut dkv = scratch_like(kv, kv.shape())?;
    sum_partials(&partial, &mut dkv, 1, parts, 1.0)?;
    Ok((dq, dkv))
}
