//! Elementary functions that the compiler can vectorise, accurate to a few units in the last place.

/// Results smaller than this are set to zero: denormal numbers are up to a hundred times slower.
pub const TINY: f32 = 1e-30;

/// Zero for anything smaller than [`TINY`] in magnitude; NaN stays NaN.
#[inline(always)]
pub fn flush(x: f32) -> f32 {
    if x.abs() < TINY { 0.0 } else { x }
}

/// eˣ; 0 below −87 rather than a denormal number, infinity above 88.7.
///
/// x = n·ln 2 + r with |r| ≤ ln 2 / 2, a polynomial for eʳ, and 2ⁿ put together from its bits.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2²³: adding it leaves the nearest integer in the low bits.
    let clamped = if x > 89.0 { 89.0 } else { x };
    let clamped = if clamped < -87.0 { -87.0 } else { clamped };
    let shifted = clamped.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    // ln 2 in two parts, the first exact in few bits so that n times it is exact.
    let r = n.mul_add(-0.693_359_4, clamped);
    let r = n.mul_add(2.121_944_4e-4, r);
    let mut p = 1.987_569_1e-4f32;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_66, 0.5] {
        p = p.mul_add(r, c);
    }
    let e = (p * r).mul_add(r, r) + 1.0;
    // 2ⁿ in two factors: n can be 128.
    // Wrapping, because the overflow checks of a test build would forbid vector instructions.
    let bits = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = bits >> 1;
    let scale = power_of_two(half) * power_of_two(bits.wrapping_sub(half));
    let y = e * scale;
    if x < -87.0 { 0.0 } else { y }
}

/// 2ⁿ for −127 < n < 128.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) << 23) as u32)
}

/// The logistic function σ(x) = 1 / (1 + e⁻ˣ).
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The error function, absolute error below 5e-7: an odd rational approximation on [−4, 4].
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    let x = if x > 4.0 { 4.0 } else { x };
    let x = if x < -4.0 { -4.0 } else { x };
    let z = x * x;
    let mut p = -2.726_142_3e-10f32;
    for c in [2.770_681_4e-8, -2.101_024e-6, -5.692_506_4e-5, -7.349_906_3e-4, -2.954_6e-3, -1.609_603_3e-2] {
        p = p.mul_add(z, c);
    }
    let mut q = -1.456_607_2e-5f32;
    for c in [-2.133_740_6e-4, -1.682_827e-3, -7.373_329e-3, -1.426_473_9e-2] {
        q = q.mul_add(z, c);
    }
    x * p / q
}

/// GELU(x) = x·Φ(x), exact (by erf, not by tanh).
#[inline(always)]
pub fn gelu(x: f32) -> f32 {
    flush(0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2)))
}

/// GELU′(x) = Φ(x) + x·φ(x).
#[inline(always)]
pub fn gelu_derivative(x: f32) -> f32 {
    const INV_SQRT_2PI: f32 = 0.398_942_3;
    let cdf = 0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2));
    (x * INV_SQRT_2PI).mul_add(exp(-0.5 * x * x), cdf)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// erf by its Maclaurin series in f64, good for |x| ≤ 4.
    fn erf_series(x: f64) -> f64 {
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= -x * x / n as f64;
            sum += term / (2 * n + 1) as f64;
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    }

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        for i in -8600..8800 {
            let x = i as f32 * 0.01;
            let want = (x as f64).exp();
            let error = (exp(x) as f64 - want).abs() / want;
            assert!(error < 2.4e-7, "exp({x}) is off by {error:e}");
        }
        assert_eq!(exp(-88.0), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(100.0), f32::INFINITY);
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn erf_and_gelu_match_the_series() {
        for i in -4000..4000 {
            let x = i as f32 * 0.001;
            let want = erf_series(x as f64);
            assert!((erf(x) as f64 - want).abs() < 5e-7, "erf({x})");
        }
        let h = 1e-3;
        for i in -50..50 {
            let x = i as f32 * 0.1 + 0.03;
            let numeric = (gelu(x + h) as f64 - gelu(x - h) as f64) / ((x + h) as f64 - (x - h) as f64);
            assert!((gelu_derivative(x) as f64 - numeric).abs() < 1e-3, "gelu'({x})");
        }
        assert!(gelu(f32::NAN).is_nan());
    }
}
