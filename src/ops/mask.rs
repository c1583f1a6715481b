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

/// Drop path: for each of `b` samples of each stream, 0 with probability `rates[stream]`, else 1/(1 − rate).
/// Shape `(S, B)`, with S the number of rates.
///
/// # Errors
/// When a device reports one.
pub fn drop_path_factors(device: &Device, b: usize, rates: &[f32], seed: u64, stream: u64) -> Result<Tensor> {
    cpu::drop_factors([rates.len(), b].into(), |i| rates[i / b], seed, stream).to(device)
}

/// Channel dropout: for each channel of each sample, 0 with probability `rate`, else 1/(1 − rate), of shape
/// `(S, B, C)`.
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
    cpu::drop_factors(shape.into(), |_| rate, seed, stream).to(device)
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

/// Each sample of x `(S, B, …)` times its factor, `(S, B)`: drop path. No gradient flows to the factors.
///
/// # Errors
/// When the shapes do not fit.
pub fn scale_rows(tape: &mut Tape, x: &Var, factors: &Tensor) -> Result<Var> {
    let (s, f) = (x.shape(), factors.shape());
    if s.rank() < 2 || s[..2] != *f || s.is_empty() {
        return Err(Error::shape("scale_rows", "x must be (S, B, ...) and the factors (S, B)", &[s, f]));
    }
    let y = on_device_of!(x.value(), scale_rows(x.value(), factors))?;
    let factors = factors.clone();
    Ok(tape.record([x], y, move |dy, _| Ok([Some(on_device_of!(dy, scale_rows(&dy, &factors))?)])))
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
