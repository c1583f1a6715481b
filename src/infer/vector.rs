//! What is done to rows of numbers between two products, in vector instructions.
#![allow(clippy::needless_range_loop, clippy::manual_memcpy)] // An iterator's calls, where they are not inlined, forbid vector instructions.

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
pub fn sum(x: &[f32], shift: f32, square: bool) -> f32 {
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

/// Turns the first `n` numbers of each row of `stride` into 2^(x − max); `sums` are theirs.
pub fn powers(scores: &mut [f32], stride: usize, n: usize, sums: &mut [f32]) {
    simd(
        #[inline(always)]
        || {
            for row in 0..sums.len() {
                sums[row] = power_row(&mut scores[row * stride..][..n]);
            }
        },
    );
}

#[inline(always)]
fn power_row(x: &mut [f32]) -> f32 {
    let (whole, most) = (x.len() / 16 * 16, max(x));
    // The tail is padded, so that it too is done in vector instructions.
    let rest = x.len() - whole;
    let mut tail = [f32::NEG_INFINITY; 16];
    tail[..rest].copy_from_slice(&x[whole..]);
    let mut sums = [0.0f32; 16];
    for start in (0..whole).step_by(16) {
        let block = &mut x[start..start + 16];
        for i in 0..16 {
            block[i] = power(block[i] - most);
            sums[i] += block[i];
        }
    }
    for i in 0..16 {
        tail[i] = power(tail[i] - most);
        sums[i] += tail[i];
    }
    x[whole..].copy_from_slice(&tail[..rest]);
    let mut half = 8;
    while half > 0 {
        for i in 0..half {
            sums[i] += sums[i + half];
        }
        half /= 2;
    }
    sums[0]
}

/// The largest of x, −∞ of nothing; NaN is passed over.
#[inline(always)]
fn max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let whole = x.len() / LANES * LANES;
    let mut start = 0;
    while start < whole {
        let block = &x[start..start + LANES];
        for i in 0..LANES {
            lanes[i] = if block[i] > lanes[i] { block[i] } else { lanes[i] };
        }
        start += LANES;
    }
    for (i, &x) in x[whole..].iter().enumerate() {
        lanes[i] = if x > lanes[i] { x } else { lanes[i] };
    }
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = if lanes[i + half] > lanes[i] { lanes[i + half] } else { lanes[i] };
        }
        half /= 2;
    }
    lanes[0]
}

/// 2ˣ for x ≤ 0; 0 below −126.5 rather than a denormal number.
///
/// x = n + f with |f| ≤ 1/2, the series of 2ᶠ, and 2ⁿ put together from its bits, which are those of 0 for n = −127.
#[inline(always)]
fn power(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2²³: adding it leaves the nearest integer in the low bits.
    let clamped = if x < -127.0 { -127.0 } else { x };
    let shifted = clamped + ROUND;
    let f = clamped - (shifted - ROUND);
    let mut p = 1.540_353e-4f32;
    p = p.mul_add(f, 1.333_355_8e-3);
    p = p.mul_add(f, 9.618_129e-3);
    p = p.mul_add(f, 5.550_411e-2);
    p = p.mul_add(f, 0.240_226_5);
    p = p.mul_add(f, std::f32::consts::LN_2);
    p = p.mul_add(f, 1.0);
    // Wrapping, because the overflow checks of a test build would forbid vector instructions.
    p * f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23))
}

/// GELU of every number; inlined into the caller's vector instructions.
#[inline(always)]
pub fn gelu(x: &mut [f32]) {
    for i in 0..x.len() {
        x[i] = math::gelu(x[i]);
    }
}

/// 16 numbers.
#[inline(always)]
pub fn load(x: &[f32], at: usize) -> [f32; 16] {
    let x = &x[at..at + 16];
    let mut v = [0.0; 16];
    for i in 0..16 {
        v[i] = x[i];
    }
    v
}

/// The reverse of [`load`].
#[inline(always)]
pub fn store(x: &mut [f32], at: usize, v: [f32; 16]) {
    let x = &mut x[at..at + 16];
    for i in 0..16 {
        x[i] = v[i];
    }
}

/// a·b + c.
#[inline(always)]
pub fn multiply_add(a: [f32; 16], b: [f32; 16], mut c: [f32; 16]) -> [f32; 16] {
    for i in 0..16 {
        c[i] = a[i].mul_add(b[i], c[i]);
    }
    c
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_of_two_are_those_of_the_library() {
        for i in 0..12_600 {
            let x = -0.01 * i as f32;
            let want = f64::from(x).exp2();
            let error = (f64::from(power(x)) - want).abs() / want;
            assert!(error < 3e-7, "2^{x} is off by {error:e}");
        }
        assert_eq!(power(0.0), 1.0);
        assert_eq!(power(-127.0), 0.0);
        assert_eq!(power(f32::NEG_INFINITY), 0.0);
        assert!(power(f32::NAN).is_nan());
    }

    #[test]
    fn a_row_of_powers_sums_to_its_sum() {
        for n in [1, 31, 32, 33, 75] {
            let mut x: Vec<f32> = (0..n).map(|i| (i * 7 % 11) as f32 - 3.0).collect();
            let want: Vec<f32> =
                x.iter().map(|v| (v - x.iter().fold(-9.0f32, |m, &v| m.max(v))).exp2()).collect();
            let mut sum = [0.0];
            powers(&mut x, n, n, &mut sum);
            for (got, want) in x.iter().zip(&want) {
                assert!((got - want).abs() < 1e-6, "{n}");
            }
            assert!((sum[0] - want.iter().sum::<f32>()).abs() < 1e-4 * sum[0]);
        }
    }
}
