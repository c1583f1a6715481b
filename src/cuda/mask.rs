//! Launches of `kernels/mask.cu`; see [`crate::cpu::mask`] for the equations.

use std::sync::Arc;

use super::driver::Driver;
use super::{Call, scratch_like};
use crate::{DType, Device, Result, Shape, Tensor};

/// Threads of a block.
const THREADS: usize = 256;

/// U8, 1 where element i is kept: the same bits as on the CPU.
pub fn feature_mask(
    driver: &Arc<dyn Driver>,
    shape: Shape,
    keep: f32,
    seed: u64,
    stream: u64,
) -> Result<Tensor> {
    /// Elements of a thread: the kernel's `kElements`.
    const ELEMENTS: usize = 16;
    let mut mask = Tensor::scratch_on(&Device::Cuda(driver.clone()), shape, DType::U8)?;
    let len = mask.len();
    let call = Call::on("feature_mask", driver, DType::U8).output(&mut mask);
    let call = call.float(keep).u64(seed).u64(stream).u64(len as u64).operations(len);
    // SAFETY: a thread for each 16 elements, the last ones guarded; new memory begins at a multiple of 16.
    unsafe { call.launch([len.div_ceil(ELEMENTS * THREADS), 1, 1], THREADS, 0)? };
    Ok(mask)
}

/// Factors, f32, 0 with probability `rate` and otherwise 1/(1 − rate): the first half of them with the first rate. The
/// same bits as on the CPU.
pub fn drop_factors(
    driver: &Arc<dyn Driver>,
    shape: Shape,
    rates: [f32; 2],
    seed: u64,
    stream: u64,
) -> Result<Tensor> {
    let mut factors = Tensor::scratch_on(&Device::Cuda(driver.clone()), shape, DType::F32)?;
    let len = factors.len();
    let [first, second] = rates;
    let call = Call::on("drop_factors", driver, DType::F32).output(&mut factors);
    let call = call.float(first).float(1.0 / (1.0 - first)).float(second).float(1.0 / (1.0 - second));
    let call = call.u64(seed).u64(stream).int(len).operations(len);
    // SAFETY: a thread for each factor, guarded.
    unsafe { call.launch([len.div_ceil(THREADS), 1, 1], THREADS, 0)? };
    Ok(factors)
}

/// x where the mask, U8, is not 0, elsewhere 0.
pub fn apply(x: &Tensor, mask: &Tensor) -> Result<Tensor> {
    let mut y = scratch_like(x, x.shape())?;
    let call = Call::new("apply_mask", x)?.input(x).input_of(mask, DType::U8).output(&mut y);
    let (call, threads) = call.groups(x.len(), 16 / x.dtype().size());
    // SAFETY: a thread for each group of `lanes` numbers at aligned addresses, then one for each of the other numbers,
    // guarded; mask and y have as many numbers as x.
    unsafe { call.launch([threads.div_ceil(THREADS), 1, 1], THREADS, 0)? };
    Ok(y)
}

/// Row r of x, of `x.len() / factors.len()` numbers, times `factors[r]`, f32; `sum`, of the shape of x, is added.
pub fn scale_rows(x: &Tensor, factors: &Tensor, sum: Option<&Tensor>) -> Result<Tensor> {
    scale(x, factors, sum, factors.len(), 1)
}

/// Channel c of sample n of x `(S, B, H, W, C)` times `factors[n, c]`, f32, for the S·B samples.
pub fn scale_channels(x: &Tensor, factors: &Tensor) -> Result<Tensor> {
    let c = x.shape().last();
    scale(x, factors, None, factors.len() / c, c)
}

/// x `(samples, …, C)` times the factors `(samples, C)`, plus `sum`.
fn scale(x: &Tensor, factors: &Tensor, sum: Option<&Tensor>, samples: usize, c: usize) -> Result<Tensor> {
    let mut y = scratch_like(x, x.shape())?;
    let call = Call::new("scale", x)?.input(x).maybe_input_of(sum, x.dtype()).output(&mut y);
    let (len, most) = (x.len() / samples, 16 / x.dtype().size());
    let fits = call.is_aligned() && len.is_multiple_of(most) && (c == 1 || c.is_multiple_of(most));
    let lanes = if fits { most } else { 1 };
    let call = call.input_of(factors, DType::F32).int(len).int(c).int(lanes);
    let call = call.operations(x.len() * if sum.is_some() { 2 } else { 1 });
    // SAFETY: a thread for each group of `lanes` numbers of a sample, guarded, and each sample; x, the sum and y have `len`
    // numbers for each of them, and the factors C.
    unsafe { call.launch([len.div_ceil(lanes * THREADS), samples, 1], THREADS, 0)? };
    Ok(y)
}
