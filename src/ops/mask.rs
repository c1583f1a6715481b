//! Dropping features at random: feature masks, drop path, channel dropout.

use crate::cpu::mask as cpu;
use crate::cuda::mask as cuda;
use crate::{DType, Device, Error, Result, Shape, Tape, Tensor, Var};

/// A U8 mask of `shape` on `device`: 1 with probability `keep`, else 0.
///
/// Element i depends on (`seed`, `stream`, i) alone: it is lane i mod 4 of the Philox counter i / 4.
///
/// # Errors
/// When a device reports one.
pub fn feature_mask(
    device: &Device,
    shape: impl Into<Shape>,
    keep: f32,
    seed: u64,
    stream: u64,
) -> Result<Tensor> {
    match device {
        Device::Cpu => Ok(cpu::feature_mask(shape.into(), keep, seed, stream)),
        Device::Cuda(driver) => cuda::feature_mask(driver, shape.into(), keep, seed, stream),
    }
}

/// The factors of drop path: for each of `b` samples of both streams, 0 with probability `rates[stream]`, else
/// 1/(1 − rate). Shape `(2, B)`.
///
/// # Errors
/// When a device reports one.
pub fn drop_path_factors(
    device: &Device,
    b: usize,
    rates: [f32; 2],
    seed: u64,
    stream: u64,
) -> Result<Tensor> {
    drop_factors(device, [2, b].into(), rates, seed, stream)
}

/// The factors of channel dropout: for each channel of each sample, 0 with probability `rate`, else 1/(1 − rate), of
/// shape `(S, B, C)`.
///
/// # Errors
/// When a device reports one.
pub fn channel_dropout_factors(
    device: &Device,
    shape: [usize; 3],
    rate: f32,
    seed: u64,
    stream: u64,
) -> Result<Tensor> {
    drop_factors(device, shape.into(), [rate; 2], seed, stream)
}

fn drop_factors(device: &Device, shape: Shape, rates: [f32; 2], seed: u64, stream: u64) -> Result<Tensor> {
    match device {
        Device::Cpu => Ok(cpu::drop_factors(shape, rates, seed, stream)),
        Device::Cuda(driver) => cuda::drop_factors(driver, shape, rates, seed, stream),
    }
}

/// x where `mask` (U8, of its shape) is not 0, elsewhere 0. Kept values are not rescaled.
///
/// # Errors
/// When the shapes differ or the mask is not U8.
pub fn apply_mask(tape: &mut Tape, x: &Var, mask: &Tensor) -> Result<Var> {
    if x.shape() != mask.shape() || mask.dtype() != DType::U8 {
        let why = format!("the mask, of type {}, must be u8 and of the shape of x", mask.dtype());
        return Err(Error::shape("apply_mask", why, &[x.shape(), mask.shape()]));
    }
    let y = on_device_of!(x.value(), apply(x.value(), mask))?;
    let mask = mask.clone();
    Ok(tape.record([x], y, move |dy, _| Ok([Some(on_device_of!(dy, apply(&dy, &mask))?)])))
}

/// x + factor·branch for each sample of x and `branch` `(S, B, …)`, factors `(S, B)`: the end of a residual branch with
/// drop path. No gradient flows to the factors.
///
/// # Errors
/// When the shapes do not fit.
pub fn drop_path(tape: &mut Tape, x: &Var, branch: &Var, factors: &Tensor) -> Result<Var> {
    let (s, f) = (x.shape(), factors.shape());
    if s != branch.shape() || s.rank() < 2 || s[..2] != *f || s.is_empty() {
        let why = "x and the branch must be (S, B, ...) and the factors (S, B)";
        return Err(Error::shape("drop_path", why, &[s, branch.shape(), f]));
    }
    let y = on_device_of!(x.value(), scale_rows(branch.value(), factors, Some(x.value())))?;
    let factors = factors.clone();
    Ok(tape.record([x, branch], y, move |dy, _| {
        let branch = on_device_of!(dy, scale_rows(&dy, &factors, None))?;
        Ok([Some(dy), Some(branch)])
    }))
}

/// Each channel of each sample of x `(S, B, H, W, C)` times its factor, `(S, B, C)`: channel dropout. No gradient
/// flows to the factors.
///
/// # Errors
/// When the shapes do not fit.
pub fn scale_channels(tape: &mut Tape, x: &Var, factors: &Tensor) -> Result<Var> {
    let (s, f) = (x.shape(), factors.shape());
    if s.rank() != 5 || *f != [s[0], s[1], s[4]] || s.is_empty() {
        let why = "x must be (S, B, H, W, C) and the factors (S, B, C)";
        return Err(Error::shape("scale_channels", why, &[s, f]));
    }
    let y = on_device_of!(x.value(), scale_channels(x.value(), factors))?;
    let factors = factors.clone();
    Ok(tape.record([x], y, move |dy, _| Ok([Some(on_device_of!(dy, scale_channels(&dy, &factors))?)])))
}
