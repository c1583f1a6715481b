//! Launches of `kernels/layer_norm.cu`; see [`crate::cpu::layer_norm`] for the equations.

use super::pool::THREADS;
use super::reduce::sum_partials;
use super::windows::Windows;
use super::{Call, WARP, scratch_f32, scratch_like};
use crate::{DType, Result, Tensor};

/// Numbers of a row that a lane holds: the kernel's `kHeld`.
const HELD: usize = 16;
/// Channels that a warp holds: the kernel's `kTile`.
const TILE: usize = HELD * WARP;

/// Blocks for `rows` rows of `c` numbers, at most `most`; a group of lanes takes a row at a time, and all groups about
/// as many rows.
fn blocks(rows: usize, c: usize, most: usize) -> usize {
    let lanes = c.div_ceil(HELD).next_power_of_two().min(WARP);
    let blocks = rows.div_ceil(THREADS / lanes);
    blocks.div_ceil(blocks.div_ceil(most))
}

/// x `(S, …, C)`, weight and bias f32 `(S, C)` -> y of the shape of x, and μ and 1/√(σ² + eps) of each row, f32
/// `(rows, 2)`.
pub fn forward(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<(Tensor, Tensor)> {
    let mut statistics = scratch_f32(x, [x.len() / weight.dim(1), 2])?;
    Ok((norm(x, weight, bias, eps, Some(&mut statistics), None)?, statistics))
}

/// As [`forward`], without what backward needs, and with the rows of y in the order of `windows`, if there are any.
pub fn infer(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f32,
    windows: Option<Windows>,
) -> Result<Tensor> {
    norm(x, weight, bias, eps, None, windows)
}

fn norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f32,
    statistics: Option<&mut Tensor>,
    windows: Option<Windows>,
) -> Result<Tensor> {
    const MOST_BLOCKS: usize = 1024;
    let (s, c) = (weight.dim(0), weight.dim(1));
    let rows = x.len() / (s * c);
    let mut y = scratch_like(x, x.shape())?;
    let call = Call::new("layer_norm", x)?
        .input(x)
        .input_of(weight, DType::F32)
        .input_of(bias, DType::F32)
        .output(&mut y)
        .maybe_output_of(statistics, DType::F32)
        .int(rows)
        .int(c)
        .float(eps)
        .operations(7 * x.len());
    let call = Windows::arguments(windows, call);
    // SAFETY: the kernel covers the rows of each of the S streams with any number of blocks; weight and bias have C
    // numbers for each stream, and the statistics two for each row. Windows cover the maps, so each row has a place.
    unsafe { call.launch([blocks(rows, c, MOST_BLOCKS), s, 1], THREADS, 0)? };
    Ok(y)
}

/// The gradients of x, weight and bias; that of x is added to `sum`.
pub fn backward(
    dy: Tensor,
    x: &Tensor,
    weight: &Tensor,
    statistics: &Tensor,
    sum: Option<&Tensor>,
) -> Result<(Tensor, Tensor, Tensor)> {
    // Each leaves a partial sum.
    const MOST_BLOCKS: usize = 256;
    let (s, c) = (weight.dim(0), weight.dim(1));
    let rows = x.len() / (s * c);
    let parts = blocks(rows, c, MOST_BLOCKS);
    let mut dx = scratch_like(x, x.shape())?;
    let mut partial = scratch_f32(x, [2, s, parts, c])?;
    let call = Call::new("layer_norm_backward", x)?
        .input(&dy)
        .input(x)
        .input_of(weight, DType::F32)
        .input_of(statistics, DType::F32)
        .maybe_input_of(sum, x.dtype())
        .output(&mut dx)
        .output_of(&mut partial, DType::F32)
        .int(rows)
        .int(c)
        .operations(14 * x.len());
    // SAFETY: the kernel covers the rows with any number of blocks, the tiles of channels and the streams cover the
    // rest of x (S, rows, C), and ends are guarded. The shared memory holds a float for each warp and channel of a
    // tile.
    unsafe { call.launch([parts, c.div_ceil(TILE), s], THREADS, THREADS / WARP * c.min(TILE) * 4)? };
    let mut sums = scratch_f32(x, [2, s, c])?;
    sum_partials(&partial, &mut sums, 2 * s, parts, 1.0)?;
    let [dw, db] = [0, 1].map(|i| sums.narrow(i..i + 1).and_then(|half| half.reshape([s, c])));
    Ok((dx, dw?, db?))
}
