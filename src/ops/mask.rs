//! Dropping features at random: feature masks, drop path, channel dropout.

use crate::cpu::mask as cpu;
use crate::{DType, Error, Result, Shape, Tape, Tensor, Var};

/// A U8 mask of `shape`: 1 with probability `keep`, else 0.
///
/// Element i depends on (`seed`, `stream`, i) alone: it is lane i mod 4 of the Philox counter i / 4.
pub fn feature_mask(shape: impl Into<Shape>, keep: f32, seed: u64, stream: u64) -> Tensor {
    cpu::feature_mask(shape.into(), keep, seed, stream)
}

/// Drop path: for each of `b` samples of each stream, 0 with probability `rates[stream]`, else 1/(1 − rate).
/// Shape `(S, B)`, with S the number of rates.
pub fn drop_path_factors(b: usize, rates: &[f32], seed: u64, stream: u64) -> Tensor {
    cpu::drop_factors([rates.len(), b].into(), |i| rates[i / b], seed, stream)
}

/// Channel dropout: for each channel of each sample, 0 with probability `rate`, else 1/(1 − rate).
/// Shape `(S, B, C)`.
pub fn channel_dropout_factors(s: usize, b: usize, c: usize, rate: f32, seed: u64, stream: u64) -> Tensor {
    cpu::drop_factors([s, b, c].into(), |_| rate, seed, stream)
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
    let y = cpu::apply(x.value(), mask);
    let mask = mask.clone();
    Ok(tape.record([x], y, move |dy, _| Ok([Some(cpu::apply(&dy, &mask))])))
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
    let y = cpu::scale_rows(x.value(), factors);
    let factors = factors.clone();
    Ok(tape.record([x], y, move |dy, _| Ok([Some(cpu::scale_rows(&dy, &factors))])))
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
    let y = cpu::scale_channels(x.value(), factors);
    let factors = factors.clone();
    Ok(tape.record([x], y, move |dy, _| Ok([Some(cpu::scale_channels(&dy, &factors))])))
}
