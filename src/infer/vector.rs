//! What is done to rows of numbers between two products, in vector instructions.
#![allow(clippy::needless_range_loop)] // An iterator's calls, where they are not inlined, forbid vector instructions.

use crate::cpu::{math, simd};

/// A layer norm of one stream.
pub struct Norm {
    /// Factor of each channel.
    pub weight: Vec<f32>,
    /// Offset of each channel.
    pub bias: Vec<f32>,
    /// ε under the root.
    pub eps: f32,
}

impl Norm {
    /// Normalises rows of x into `out`, whose rows are `stride` apart.
    pub fn rows(&self, x: &[f32], out: &mut [f32], stride: usize) {
        let c = self.weight.len();
        simd(
            #[inline(always)]
            || {
                for row in 0..x.len() / c {
                    let (x, out) = (&x[row * c..][..c], &mut out[row * stride..][..c]);
                    let (mean, rstd) = statistics(x, self.eps);
                    let (w, b) = (&self.weight[..c], &self.bias[..c]);
                    for i in 0..c {
                        out[i] = ((x[i] - mean) * rstd).mul_add(w[i], b[i]);
                    }
                }
            },
        );
    }

    /// Normalises rows in place.
    pub fn in_place(&self, x: &mut [f32]) {
        let c = self.weight.len();
        simd(
            #[inline(always)]
            || {
                for row in 0..x.len() / c {
                    let x = &mut x[row * c..][..c];
                    let (mean, rstd) = statistics(x, self.eps);
                    let (w, b) = (&self.weight[..c], &self.bias[..c]);
                    for i in 0..c {
                        x[i] = ((x[i] - mean) * rstd).mul_add(w[i], b[i]);
                    }
                }
            },
        );
    }
}

/// Numbers that are worked on side by side: indices rather than iterators, so that no call remains in the loops.
const LANES: usize = 32;

/// The mean of x and 1/√(σ² + eps), by two passes.
#[inline(always)]
fn statistics(x: &[f32], eps: f32) -> (f32, f32) {
    let mean = sum(x, 0.0, false) / x.len() as f32;
    let variance = sum(x, mean, true) / x.len() as f32;
    (mean, 1.0 / (variance + eps).sqrt())
}

/// Σ x − shift, or Σ (x − shift)², in interleaved sums.
#[inline(always)]
fn sum(x: &[f32], shift: f32, square: bool) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let whole = x.len() / LANES * LANES;
    let mut start = 0;
    while start < whole {
        let block = &x[start..start + LANES];
        for i in 0..LANES {
            let v = block[i] - shift;
            lanes[i] += if square { v * v } else { v };
        }
        start += LANES;
    }
    for (i, &x) in x[whole..].iter().enumerate() {
        let v = x - shift;
        lanes[i] += if square { v * v } else { v };
    }
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// Turns the first `n` numbers of each row of `stride` into e^(x − max); `sums` are theirs.
pub fn exponentials(scores: &mut [f32], stride: usize, n: usize, sums: &mut [f32]) {
    simd(
        #[inline(always)]
        || {
            for row in 0..sums.len() {
                sums[row] = exponential_row(&mut scores[row * stride..][..n]);
            }
        },
    );
}

#[inline(always)]
fn exponential_row(x: &mut [f32]) -> f32 {
    let whole = x.len() / LANES * LANES;
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut start = 0;
    while start < whole {
        let block = &x[start..start + LANES];
        for i in 0..LANES {
            lanes[i] = if block[i] > lanes[i] { block[i] } else { lanes[i] };
        }
        start += LANES;
    }
    let mut most = f32::NEG_INFINITY;
    for &v in lanes.iter().chain(&x[whole..]) {
        most = if v > most { v } else { most };
    }
    let mut sums = [0.0f32; LANES];
    start = 0;
    while start < whole {
        let block = &mut x[start..start + LANES];
        for i in 0..LANES {
            block[i] = math::exp(block[i] - most);
            sums[i] += block[i];
        }
        start += LANES;
    }
    // The tail is padded, so that it too is done in vector instructions.
    let mut tail = [f32::NEG_INFINITY; LANES];
    let rest = x.len() - whole;
    tail[..rest].copy_from_slice(&x[whole..]);
    for v in &mut tail {
        *v = math::exp(*v - most);
    }
    x[whole..].copy_from_slice(&tail[..rest]);
    for i in 0..rest {
        sums[i] += tail[i];
    }
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            sums[i] += sums[i + half];
        }
        half /= 2;
    }
    sums[0]
}

/// σ of every number.
pub fn sigmoid(x: &mut [f32]) {
    simd(
        #[inline(always)]
        || {
            for i in 0..x.len() {
                x[i] = math::sigmoid(x[i]);
            }
        },
    );
}

/// x += y.
pub fn add(x: &mut [f32], y: &[f32]) {
    simd(
        #[inline(always)]
        || {
            let y = &y[..x.len()];
            for i in 0..x.len() {
                x[i] += y[i];
            }
        },
    );
}

/// out = (1 − weight)·near + weight·far.
#[inline(always)]
pub fn blend(out: &mut [f32], near: &[f32], far: &[f32], weight: f32) {
    let n = out.len();
    let (near, far, keep) = (&near[..n], &far[..n], 1.0 - weight);
    for i in 0..n {
        out[i] = keep.mul_add(near[i], weight * far[i]);
    }
}

/// out += (1 − weight)·near + weight·far.
#[inline(always)]
pub fn add_blend(out: &mut [f32], near: &[f32], far: &[f32], weight: f32) {
    let n = out.len();
    let (near, far, keep) = (&near[..n], &far[..n], 1.0 - weight);
    for i in 0..n {
        out[i] = keep.mul_add(near[i], weight.mul_add(far[i], out[i]));
    }
}
