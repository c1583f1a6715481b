//! Launches of `kernels/batch_norm.cu`; see [`crate::cpu::batch_norm`] for the equations.

use super::reduce::{parts, sum_partials};
use super::{Call, WARP, scratch_f32, scratch_like};
use crate::cpu::batch_norm::Normalization;
use crate::{DType, Result, Tensor};

/// Threads of a block.
const THREADS: usize = 256;

/// Rows that a thread of an element-wise kernel walks: enough to make up for reading its channels' numbers.
const ROWS: usize = 8;

/// How the threads lie over the channels: numbers that each takes at once, threads over a row, tiles of channels, and
/// rows that a block walks side by side.
struct Lanes {
    lanes: usize,
    tiles: usize,
    down: usize,
}

impl Lanes {
    /// For rows of `c` channels of type `dtype`; `aligned` when all addresses are multiples of 16.
    fn new(c: usize, dtype: DType, aligned: bool) -> Self {
        let most = 16 / dtype.size();
        let lanes = if aligned && c.is_multiple_of(most) { most } else { 1 };
        let across = (c / lanes).min(THREADS);
        Self { lanes, tiles: (c / lanes).div_ceil(across), down: THREADS / across }
    }
}

/// The mean, the biased and the unbiased variance of each channel of x `(S, …, C)`: each f32 `(S, C)`.
///
/// This is the one place where the numbers of several devices would be brought together.
pub fn statistics(x: &Tensor, s: usize) -> Result<(Tensor, Tensor, Tensor)> {
    let c = x.shape().last();
    let rows = x.len() / (s * c);
    let call = Call::new("batch_norm_statistics", x)?.input(x);
    let Lanes { lanes, tiles, down } = Lanes::new(c, x.dtype(), call.is_aligned());
    let (parts, per_part) = parts(rows, 4 * down);
    let mut partial = scratch_f32(x, [s, parts, 2, c])?;
    let call = call.output_of(&mut partial, DType::F32);
    let call = call.int(rows).int(per_part).int(c).int(lanes).operations(6 * x.len());
    // SAFETY: the blocks of rows, tiles of channels and streams cover x (S, rows, C) and the partial statistics, and
    // ends are guarded; the shared memory holds 2·lanes + 1 floats for each thread.
    unsafe { call.launch([parts, tiles, s], THREADS, (2 * lanes + 1) * THREADS * 4)? };
    let [mut mean, mut variance, mut unbiased] =
        [scratch_f32(x, [s, c])?, scratch_f32(x, [s, c])?, scratch_f32(x, [s, c])?];
    let call = Call::new("batch_norm_merge", x)?
        .input(x)
        .input_of(&partial, DType::F32)
        .output_of(&mut mean, DType::F32)
        .output_of(&mut variance, DType::F32)
        .output_of(&mut unbiased, DType::F32)
        .int(s * c)
        .int(rows)
        .int(per_part)
        .int(parts)
        .int(c)
        .bytes(partial.bytes() + s * c * (x.dtype().size() + 3 * 4))
        .operations(7 * partial.len());
    // SAFETY: a warp for each stream and channel, guarded; it reads their parts of `partial` and the first row of x.
    unsafe { call.launch([(s * c).div_ceil(THREADS / WARP), 1, 1], THREADS, 0)? };
    Ok((mean, variance, unbiased))
}

/// y, of the shape of x `(S, …, C)`.
pub fn forward(x: &Tensor, n: &Normalization) -> Result<Tensor> {
    let (s, c) = (n.mean.dim(0), n.mean.dim(1));
    let rows = x.len() / (s * c);
    let mut y = scratch_like(x, x.shape())?;
    let call = with_channels(Call::new("batch_norm", x)?.input(x), n).output(&mut y);
    let Lanes { lanes, tiles, down } = Lanes::new(c, x.dtype(), call.is_aligned());
    let per_part = ROWS * down;
    let call = call.float(n.eps).int(rows).int(per_part).int(c).int(lanes).operations(4 * x.len());
    // SAFETY: the blocks of rows, tiles of channels and streams cover x and y (S, rows, C), and ends are guarded; mean,
    // variance, weight and bias are (S, C).
    unsafe { call.launch([rows.div_ceil(per_part), tiles, s], THREADS, 0)? };
    Ok(y)
}

/// The gradients of x, weight and bias.
pub fn backward(dy: Tensor, x: &Tensor, n: &Normalization) -> Result<(Tensor, Tensor, Tensor)> {
    let (s, c) = (n.mean.dim(0), n.mean.dim(1));
    let rows = x.len() / (s * c);
    let call = with_channels(Call::new("batch_norm_sums", x)?.input(&dy).input(x), n);
    let Lanes { lanes, tiles, down } = Lanes::new(c, x.dtype(), call.is_aligned());
    let (parts, per_part) = parts(rows, 4 * down);
    let mut partial = scratch_f32(x, [2, s, parts, c])?;
    let call = call.output_of(&mut partial, DType::F32);
    let call = call.float(n.eps).int(rows).int(per_part).int(c).int(lanes).operations(6 * x.len());
    // SAFETY: as in `forward`; the partial sums have a row for each block of rows, and the shared memory holds 2·lanes
    // floats for each thread.
    unsafe { call.launch([parts, tiles, s], THREADS, 2 * lanes * THREADS * 4)? };
    let mut sums = scratch_f32(x, [2, s, c])?;
    sum_partials(&partial, &mut sums, 2 * s, parts, 1.0)?;

    let mut dx = scratch_like(x, x.shape())?;
    let call = with_channels(Call::new("batch_norm_backward", x)?.input(&dy).input(x), n);
    let call = call.input_of(&sums, DType::F32).output(&mut dx);
    let Lanes { lanes, tiles, down } = Lanes::new(c, x.dtype(), call.is_aligned());
    let (per_part, per_row) = (ROWS * down, if n.of_batch { 1.0 / rows as f32 } else { 0.0 });
    let call = call.float(n.eps).float(per_row).int(rows).int(per_part).int(c).int(lanes);
    // SAFETY: as in `forward`; the sums are (2, S, C).
    unsafe { call.operations(9 * x.len()).launch([rows.div_ceil(per_part), tiles, s], THREADS, 0)? };
    let [dw, db] = [0, 1].map(|i| sums.narrow(i..i + 1).and_then(|half| half.reshape([s, c])));
    Ok((dx, dw?, db?))
}

/// running += momentum·(batch − running), in place unless the buffer is shared.
pub fn update_running(running: &mut Tensor, batch: &Tensor, momentum: f32) -> Result<()> {
    running.make_unique()?;
    let call = Call::untyped("batch_norm_running", batch)?.output_of(running, DType::F32);
    let call = call.input_of(batch, DType::F32).float(momentum).int(batch.len()).operations(3 * batch.len());
    // SAFETY: a thread for each number, guarded; both tensors have as many.
    unsafe { call.launch([batch.len().div_ceil(THREADS), 1, 1], THREADS, 0) }
}

/// The arguments mean, variance, weight and bias.
fn with_channels<'a>(call: Call<'a>, n: &Normalization) -> Call<'a> {
    [&n.mean, &n.variance, &n.weight, &n.bias].into_iter().fold(call, |call, x| call.input_of(x, DType::F32))
}
