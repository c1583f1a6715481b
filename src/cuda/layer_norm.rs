//! Launches of `kernels/layer_norm.cu`; see [`crate::cpu::layer_norm`] for the equations.

use super::reduce::{parts, sum_partials};
use super::{Call, WARP, scratch_f32, scratch_like};
use crate::{DType, Result, Tensor};

/// Channels that a warp holds in registers: the kernel's `kTile`.
const TILE: usize = 512;

/// x `(S, …, C)`, weight and bias f32 `(S, C)` -> y of the shape of x, and μ and 1/√(σ² + eps) of each row, f32
/// `(rows, 2)`.
pub fn forward(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<(Tensor, Tensor)> {
    let mut statistics = scratch_f32(x, [x.len() / weight.dim(1), 2])?;
    Ok((norm(x, weight, bias, eps, Some(&mut statistics))?, statistics))
}

/// As [`forward`], without what backward needs.
pub fn infer(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    norm(x, weight, bias, eps, None)
}

fn norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f32,
    statistics: Option<&mut Tensor>,
) -> Result<Tensor> {
    const WARPS: usize = 4;
    let (s, c) = (weight.dim(0), weight.dim(1));
    let rows = x.len() / c;
    let mut y = scratch_like(x, x.shape())?;
    let call = Call::new("layer_norm", x)?
        .input(x)
        .input_of(weight, DType::F32)
        .input_of(bias, DType::F32)
        .output(&mut y)
        .maybe_output_of(statistics, DType::F32)
        .int(rows)
        .int(rows / s)
        .int(c)
        .float(eps)
        .operations(7 * x.len());
    // SAFETY: a warp for each row of C numbers, guarded; weight and bias have a row for each of the S streams.
    unsafe { call.launch([rows.div_ceil(WARPS), 1, 1], WARPS * WARP, 0)? };
    Ok(y)
}

/// The gradients of x, weight and bias.
pub fn backward(
    dy: Tensor,
    x: &Tensor,
    weight: &Tensor,
    statistics: &Tensor,
) -> Result<(Tensor, Tensor, Tensor)> {
    const WARPS: usize = 8;
    let (s, c) = (weight.dim(0), weight.dim(1));
    let rows = x.len() / (s * c);
    let (parts, per_part) = parts(rows, 4 * WARPS);
    let mut dx = scratch_like(x, x.shape())?;
    let mut partial = scratch_f32(x, [2, s, parts, c])?;
    let call = Call::new("layer_norm_backward", x)?
        .input(&dy)
        .input(x)
        .input_of(weight, DType::F32)
        .input_of(statistics, DType::F32)
        .output(&mut dx)
        .output_of(&mut partial, DType::F32)
        .int(rows)
        .int(per_part)
        .int(c)
        .operations(14 * x.len());
    // SAFETY: the blocks of rows, tiles of channels and streams cover x (S, rows, C), and ends are guarded; the shared
    // memory holds a float for each warp and channel of a tile.
    unsafe { call.launch([parts, c.div_ceil(TILE), s], WARPS * WARP, WARPS * c.min(TILE) * 4)? };
    let mut sums = scratch_f32(x, [2, s, c])?;
    sum_partials(&partial, &mut sums, 2 * s, parts, 1.0)?;
    let [dw, db] = [0, 1].map(|i| sums.narrow(i..i + 1).and_then(|half| half.reshape([s, c])));
    Ok((dx, dw?, db?))
}
