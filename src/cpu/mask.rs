//! Random masks and factors, and what applies them.
//!
//! Which element is dropped depends on (seed, stream, index) alone: the same on any number of threads and device.

use rayon::prelude::*;

use super::simd;
use crate::random::{Stream, unit};
use crate::{DType, Shape, Tensor};

/// Elements for one task of a parallel loop, a multiple of 4.
const CHUNK: usize = 16_384;

/// U8, 1 where element i is kept: where the number in [0, 1) of word i is below `keep`.
pub fn feature_mask(shape: Shape, keep: f32, seed: u64, stream: u64) -> Tensor {
    let stream = Stream::new(seed, stream);
    let mut mask = Tensor::scratch_of(shape, DType::U8);
    mask.as_mut_slice::<u8>().par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, mask)| {
        simd(
            #[inline(always)]
            || {
                for (i, mask) in mask.chunks_mut(4).enumerate() {
                    let words = stream.block((chunk * (CHUNK / 4) + i) as u64);
                    for (m, word) in mask.iter_mut().zip(words) {
                        *m = u8::from(unit(word) < keep);
                    }
                }
            },
        );
    });
    mask
}

/// Factors, 0 with probability `rate` and otherwise 1/(1 − rate): the first half of them with the first rate.
pub fn drop_factors(shape: Shape, rates: [f32; 2], seed: u64, stream: u64) -> Tensor {
    let (stream, half) = (Stream::new(seed, stream), shape.len() / 2);
    let mut factors = Tensor::scratch(shape);
    for (i, f) in factors.f32_mut().iter_mut().enumerate() {
        let rate = rates[usize::from(i >= half)];
        *f = if stream.uniform(i as u64) < rate { 0.0 } else { 1.0 / (1.0 - rate) };
    }
    factors
}

/// x where the mask is not 0, elsewhere 0.
pub fn apply(x: &Tensor, mask: &Tensor) -> Tensor {
    let mut y = Tensor::scratch(x.shape());
    let inputs = x.f32().par_chunks(CHUNK).zip(mask.as_slice::<u8>().par_chunks(CHUNK));
    y.f32_mut().par_chunks_mut(CHUNK).zip(inputs).for_each(|(y, (x, mask))| {
        simd(
            #[inline(always)]
            || {
                for ((y, &x), &m) in y.iter_mut().zip(x).zip(mask) {
                    *y = if m == 0 { 0.0 } else { x };
                }
            },
        );
    });
    y
}

/// Row r of x, of `x.len() / factors.len()` numbers, times `factors[r]`; `sum`, of the shape of x, is added.
pub fn scale_rows(x: &Tensor, factors: &Tensor, sum: Option<&Tensor>) -> Tensor {
    let mut y = Tensor::scratch(x.shape());
    let (row, sum) = (x.len() / factors.len(), sum.map(Tensor::f32));
    let rows = y.f32_mut().par_chunks_mut(row).zip(x.f32().par_chunks(row));
    rows.zip(factors.f32()).enumerate().for_each(|(r, ((y, x), &factor))| {
        y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).enumerate().for_each(|(chunk, (y, x))| {
            simd(
                #[inline(always)]
                || match sum {
                    Some(sum) => {
                        for ((y, &x), &sum) in y.iter_mut().zip(x).zip(&sum[r * row + chunk * CHUNK..]) {
                            *y = sum + x * factor;
                        }
                    }
                    None => y.iter_mut().zip(x).for_each(|(y, &x)| *y = x * factor),
                },
            );
        });
    });
    y
}

/// Channel c of sample n of x `(S, B, H, W, C)` times `factors[n, c]`, for the S·B samples.
pub fn scale_channels(x: &Tensor, factors: &Tensor) -> Tensor {
    let mut y = Tensor::scratch(x.shape());
    let c = x.shape().last();
    let sample = x.len() / factors.len() * c;
    let samples = y.f32_mut().par_chunks_mut(sample).zip(x.f32().par_chunks(sample));
    let pixels = super::rows_per_task(sample / c, c) * c;
    samples.zip(factors.f32().par_chunks(c)).for_each(|((y, x), factors)| {
        y.par_chunks_mut(pixels).zip(x.par_chunks(pixels)).for_each(|(y, x)| {
            simd(
                #[inline(always)]
                || {
                    for (y, x) in y.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
                        for ((y, &x), &f) in y.iter_mut().zip(x).zip(factors) {
                            *y = x * f;
                        }
                    }
                },
            );
        });
    });
    y
}
