//! From logits to classes and to probabilities.

use rayon::prelude::*;

use super::{math, simd};
use crate::{DType, Tensor};

/// Rows for one task of a parallel loop.
pub(super) const ROWS: usize = 512;

/// Turns each row of `k` numbers into e^(x − max): `row` is told the row's index, its maximum and its sum.
#[inline(always)]
pub(super) fn exponentials(x: &mut [f32], k: usize, mut row: impl FnMut(usize, f32, f32, &mut [f32])) {
    // The maxima of a few rows at a time, so that one long loop of exponentials follows.
    const GROUP: usize = 64;
    let mut max = [0.0f32; GROUP];
    for (group, x) in x.chunks_mut(GROUP * k).enumerate() {
        for (x, max) in x.chunks_exact_mut(k).zip(&mut max) {
            *max = f32::NEG_INFINITY;
            for &v in &*x {
                *max = if v > *max { v } else { *max };
            }
            for v in x {
                *v -= *max;
            }
        }
        for v in &mut *x {
            *v = math::exp(*v);
        }
        for (i, (x, &max)) in x.chunks_exact_mut(k).zip(&max).enumerate() {
            let mut sum = 0.0;
            for &v in &*x {
                sum += v;
            }
            row(group * GROUP + i, max, sum, x);
        }
    }
}

/// Turns each row of `k` logits into probabilities.
#[inline(always)]
pub(super) fn softmax(x: &mut [f32], k: usize) {
    exponentials(
        x,
        k,
        #[inline(always)]
        |_, _, sum, x| {
            let scale = 1.0 / sum;
            for p in x {
                *p = math::flush(*p * scale);
            }
        },
    );
}

/// logits `(1, B, H, W, K)` -> the first class of largest value, U8 `(B, H, W)`. NaN is never the largest.
pub fn argmax(logits: &Tensor) -> Tensor {
    let k = logits.shape().last();
    let mut out = Tensor::scratch_of([logits.dim(1), logits.dim(2), logits.dim(3)], DType::U8);
    let x = logits.f32().par_chunks(ROWS * k);
    out.as_mut_slice::<u8>().par_chunks_mut(ROWS).zip(x).for_each(|(out, x)| {
        for (class, x) in out.iter_mut().zip(x.chunks_exact(k)) {
            let (mut best, mut max) = (0, f32::NEG_INFINITY);
            for (i, &v) in x.iter().enumerate() {
                (best, max) = if v > max { (i as u8, v) } else { (best, max) };
            }
            *class = best;
        }
    });
    out
}

/// Softmax over the last axis.
pub fn probabilities(logits: &Tensor) -> Tensor {
    let k = logits.shape().last();
    let mut out = Tensor::scratch(logits.shape());
    let x = logits.f32().par_chunks(ROWS * k);
    out.f32_mut().par_chunks_mut(ROWS * k).zip(x).for_each(|(p, x)| {
        p.copy_from_slice(x);
        simd(
            #[inline(always)]
            || softmax(p, k),
        );
    });
    out
}
