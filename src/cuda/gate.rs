//! Launches of `kernels/gate.cu`; see [`crate::cpu::gate`] for the equations.

use super::pool::THREADS;
use super::{Call, WARP, scratch_f32, scratch_like};
use crate::{DType, Result, Tensor};

/// Blocks that fill a device; each takes many pixels then, and leaves one partial sum.
const MOST_BLOCKS: usize = 1024;

/// Blocks for maps of `pixels` pixels, of which a group of lanes takes one at a time.
fn blocks(x: &Tensor, pixels: usize) -> usize {
    let lanes = x.shape().last().div_ceil(16 / x.dtype().size()).next_power_of_two().min(WARP);
    pixels.div_ceil(THREADS / lanes).min(MOST_BLOCKS)
}

/// x `(2, …, C)`, m one number for each pixel, λ one number -> `(2, …, C)`; see [`crate::ops::gate`].
pub fn forward(x: &Tensor, m: &Tensor, lambda: &Tensor, tau: Option<f32>) -> Result<Tensor> {
    let (c, pixels) = (x.shape().last(), m.len());
    let mut y = scratch_like(x, x.shape())?;
    let call = Call::new("gate", x)?
        .input(x)
        .input(m)
        .input_of(lambda, DType::F32)
        .output(&mut y)
        .int(pixels)
        .int(c)
        .int(tau.is_some().into())
        .float(tau.unwrap_or_default())
        .operations(5 * x.len());
    // SAFETY: the kernel covers the pixels with any grid; x and y have two maps of C numbers for each number of m.
    unsafe { call.launch([blocks(x, pixels), 1, 1], THREADS, 0)? };
    Ok(y)
}

/// As [`forward`] with m = σ(hidden·weight + bias): hidden `(1, …, C)`, weight f32 `(C)`.
pub fn scored(
    x: &Tensor,
    hidden: &Tensor,
    (weight, bias): (&Tensor, f32),
    lambda: f32,
    tau: Option<f32>,
) -> Result<Tensor> {
    let (c, pixels) = (x.shape().last(), x.len() / (2 * x.shape().last()));
    let mut y = scratch_like(x, x.shape())?;
    let call = Call::new("gate_scored", x)?
        .input(x)
        .input(hidden)
        .input_of(weight, DType::F32)
        .float(bias)
        .float(lambda)
        .output(&mut y)
        .int(pixels)
        .int(c)
        .int(tau.is_some().into())
        .float(tau.unwrap_or_default())
        .operations(6 * x.len());
    // SAFETY: as in `forward`, with C numbers of `hidden` for each pixel.
    unsafe { call.launch([blocks(x, pixels), 1, 1], THREADS, 0)? };
    Ok(y)
}

/// The gradients of x, m and λ.
pub fn backward(
    dy: Tensor,
    x: &Tensor,
    m: &Tensor,
    lambda: &Tensor,
    tau: Option<f32>,
) -> Result<(Tensor, Tensor, Tensor)> {
    let (c, pixels) = (x.shape().last(), m.len());
    let blocks = blocks(x, pixels);
    let (mut dx, mut dm) = (scratch_like(x, x.shape())?, scratch_like(m, m.shape())?);
    let mut partial = scratch_f32(x, [blocks])?;
    let call = Call::new("gate_backward", x)?
        .input(&dy)
        .input(x)
        .input(m)
        .input_of(lambda, DType::F32)
        .output(&mut dx)
        .output(&mut dm)
        .output_of(&mut partial, DType::F32)
        .int(pixels)
        .int(c)
        .int(tau.is_some().into())
        .float(tau.unwrap_or_default())
        .operations(8 * x.len());
    // SAFETY: as in `forward`, with a number of `partial` for each block and shared memory of 32 floats.
    unsafe { call.launch([blocks, 1, 1], THREADS, 32 * 4)? };
    let mut d_lambda = scratch_f32(x, lambda.shape())?;
    let call = Call::untyped("gate_sum", x)?;
    let call = call.input_of(&partial, DType::F32).output_of(&mut d_lambda, DType::F32).int(blocks);
    // SAFETY: one block of whole warps adds up `partial`; λ is one number, and the shared memory has 32 floats.
    unsafe { call.operations(blocks).launch([1, 1, 1], 1024, 32 * 4)? };
    Ok((dx, dm, d_lambda))
}
