//! What is done to rows of numbers between two products, in vector instructions.

use crate::cpu::{math, reduce, simd};

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
                for (x, out) in x.chunks_exact(c).zip(out.chunks_mut(stride)) {
                    let (mean, rstd) = statistics(x, self.eps);
                    let (out, w, b) = (&mut out[..c], &self.weight[..c], &self.bias[..c]);
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
                for x in x.chunks_exact_mut(c) {
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

/// The mean of x and 1/√(σ² + eps), by two passes.
#[inline(always)]
fn statistics(x: &[f32], eps: f32) -> (f32, f32) {
    let mean = reduce::sum(
        [x],
        #[inline(always)]
        |[x]| x,
    ) / x.len() as f32;
    let variance = reduce::sum(
        [x],
        #[inline(always)]
        |[x]| (x - mean) * (x - mean),
    ) / x.len() as f32;
    (mean, 1.0 / (variance + eps).sqrt())
}

/// Turns the first `n` numbers of each row of `stride` into e^(x − max), the rest into 0; `sums` are theirs.
pub fn exponentials(scores: &mut [f32], stride: usize, n: usize, sums: &mut [f32]) {
    simd(
        #[inline(always)]
        || {
            for (row, sum) in scores.chunks_exact_mut(stride).zip(sums) {
                let row = &mut row[..n];
                let most = reduce::max(row);
                let mut lanes = [0.0f32; 16];
                let (chunks, tail) = row.as_chunks_mut::<16>();
                for chunk in chunks {
                    for (s, v) in lanes.iter_mut().zip(chunk) {
                        *v = math::exp(*v - most);
                        *s += *v;
                    }
                }
                *sum = lanes.iter().sum();
                for v in tail {
                    *v = math::exp(*v - most);
                    *sum += *v;
                }
            }
        },
    );
}

/// σ of every number.
pub fn sigmoid(x: &mut [f32]) {
    simd(
        #[inline(always)]
        || {
            for x in x {
                *x = math::sigmoid(*x);
            }
        },
    );
}

/// x += y.
pub fn add(x: &mut [f32], y: &[f32]) {
    simd(
        #[inline(always)]
        || {
            for (x, y) in x.iter_mut().zip(y) {
                *x += y;
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
