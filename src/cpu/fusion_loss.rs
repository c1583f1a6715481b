//! The loss of the fused image, and its gradient in the same pass.
//!
//! The gradient is computed with the value, a few rows at a time, because both need the same Sobel responses: what
//! is kept for backward is one tensor of the image's size, and no response of a whole picture is ever stored.

use rayon::prelude::*;

use super::simd;
use crate::Tensor;

/// What the fused image is compared with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FusionTarget {
    /// Both sources' larger response to each Sobel kernel, and their larger intensity: the published training.
    LargerGradient,
    /// The gradient of the brighter source (eq. 15 of the paper).
    BrighterSource,
}

/// Rows of one task. It reads two more on either side: one for the responses, one for their gradient.
const ROWS: usize = 16;
const HALO: usize = 2;

struct Inputs<'a> {
    image: &'a [f32],
    visible: &'a [f32],
    infrared: &'a [f32],
    valid: &'a [u8],
    target: FusionTarget,
    height: usize,
    width: usize,
    /// 1 / number of elements of the image.
    scale: f32,
}

/// image, visible, infrared `(1, B, H, W, 3)`, valid U8 `(B, H, W)` -> the loss and, if wanted, its gradient with
/// respect to the image.
pub fn fusion_loss(
    image: &Tensor,
    visible: &Tensor,
    infrared: &Tensor,
    valid: &Tensor,
    target: FusionTarget,
    wants_gradient: bool,
) -> (Tensor, Option<Tensor>) {
    let (batch, height, width) = (image.dim(1), image.dim(2), image.dim(3));
    let inputs = Inputs {
        image: image.f32(),
        visible: visible.f32(),
        infrared: infrared.f32(),
        valid: valid.as_slice(),
        target,
        height,
        width,
        scale: (1.0 / image.len() as f64) as f32,
    };
    let row = width * 3;
    let blocks = height.div_ceil(ROWS);
    let mut gradient = wants_gradient.then(|| Tensor::scratch(image.shape()));
    let tasks: Vec<Option<&mut [f32]>> = match &mut gradient {
        Some(g) => {
            g.f32_mut().chunks_mut(height * row).flat_map(|g| g.chunks_mut(ROWS * row)).map(Some).collect()
        }
        None => (0..batch * blocks).map(|_| None).collect(),
    };
    let sums: Vec<f64> = tasks
        .into_par_iter()
        .enumerate()
        .map(|(i, gradient)| {
            simd(
                #[inline(always)]
                || block(&inputs, i / blocks, i % blocks * ROWS, gradient),
            )
        })
        .collect();
    (Tensor::scalar(sums.iter().sum::<f64>() as f32), gradient)
}

/// gradient · dy, in place.
pub fn scale(mut gradient: Tensor, dy: f32) -> Tensor {
    if dy != 1.0 {
        gradient.f32_mut().par_chunks_mut(16_384).for_each(|g| g.iter_mut().for_each(|g| *g *= dy));
    }
    gradient
}

/// Rows of a picture with a black border of [`HALO`] rows above and below and one pixel left and right.
struct Plane {
    data: Vec<f32>,
    pitch: usize,
}

impl Plane {
    #[inline(always)]
    fn new(rows: usize, width: usize) -> Self {
        let pitch = (width + 2) * 3;
        Self { data: vec![0.0; (rows + 2 * HALO) * pitch], pitch }
    }

    /// Row `r` without its border.
    #[inline(always)]
    fn row(&self, r: usize) -> &[f32] {
        &self.data[r * self.pitch + 3..(r + 1) * self.pitch - 3]
    }

    #[inline(always)]
    fn row_mut(&mut self, r: usize) -> &mut [f32] {
        &mut self.data[r * self.pitch + 3..(r + 1) * self.pitch - 3]
    }

    #[inline(always)]
    fn sobel(&self, vertical: bool, r: usize, out: &mut [f32]) {
        if vertical { self.sobel_y(r, out) } else { self.sobel_x(r, out) }
    }

    /// The response of row `r` to [−1 0 1; −2 0 2; −1 0 1].
    #[inline(always)]
    fn sobel_x(&self, r: usize, out: &mut [f32]) {
        let [a, m, b] = [r - 1, r, r + 1].map(|r| &self.data[r * self.pitch..][..self.pitch]);
        let n = out.len();
        let (a0, a2, m0, m2, b0, b2) = (&a[..n], &a[6..], &m[..n], &m[6..], &b[..n], &b[6..]);
        for i in 0..n {
            out[i] = (a2[i] - a0[i]) + 2.0 * (m2[i] - m0[i]) + (b2[i] - b0[i]);
        }
    }

    /// The response of row `r` to [1 2 1; 0 0 0; −1 −2 −1].
    #[inline(always)]
    fn sobel_y(&self, r: usize, out: &mut [f32]) {
        let [a, b] = [r - 1, r + 1].map(|r| &self.data[r * self.pitch..][..self.pitch]);
        let n = out.len();
        let (a0, a1, a2) = (&a[..n], &a[3..n + 3], &a[6..]);
        let (b0, b1, b2) = (&b[..n], &b[3..n + 3], &b[6..]);
        for i in 0..n {
            out[i] = (a0[i] - b0[i]) + 2.0 * (a1[i] - b1[i]) + (a2[i] - b2[i]);
        }
    }
}

/// The part of the loss that belongs to rows `top`, … of sample `sample`, at most [`ROWS`] of them; their gradient
/// goes to `gradient`.
#[inline(always)]
fn block(inputs: &Inputs, sample: usize, top: usize, mut gradient: Option<&mut [f32]>) -> f64 {
    let Inputs { height, width, scale, target, .. } = *inputs;
    let rows = ROWS.min(height - top);
    let row = width * 3;
    let mut image = Plane::new(rows, width);
    let mut visible = Plane::new(rows, width);
    let mut infrared = Plane::new(rows, width);
    // Row r of a plane is row y = top + r − HALO of the picture; those outside the picture stay black.
    let inside = |r: usize| (top + r).checked_sub(HALO).filter(|&y| y < height);
    for r in 0..rows + 2 * HALO {
        let Some(y) = inside(r) else { continue };
        let at = (sample * height + y) * width;
        let valid = &inputs.valid[at..at + width];
        let pixels = inputs.image[at * 3..][..row].chunks_exact(3).zip(valid);
        for (out, (pixel, &valid)) in image.row_mut(r).chunks_exact_mut(3).zip(pixels) {
            for c in 0..3 {
                out[c] = pixel[c] * f32::from(valid);
            }
        }
        for (out, &v) in visible.row_mut(r).iter_mut().zip(&inputs.visible[at * 3..][..row]) {
            *out = gamma(v);
        }
        infrared.row_mut(r).copy_from_slice(&inputs.infrared[at * 3..][..row]);
    }

    // The Sobel term: the responses, and the signs of their differences for the gradient.
    let mut total = 0.0;
    let [mut response, mut other, mut third] = [vec![0.0; row], vec![0.0; row], vec![0.0; row]];
    let sign_planes = if gradient.is_some() { rows } else { 0 };
    let mut signs = [Plane::new(sign_planes, width), Plane::new(sign_planes, width)];
    if target == FusionTarget::BrighterSource {
        // In place of the infrared picture, which only the brighter source needs.
        for ((d, &p), &s) in infrared.data.iter_mut().zip(&image.data).zip(&visible.data) {
            *d = p - max(s, *d);
        }
    }
    for r in HALO - 1..rows + HALO + 1 {
        if inside(r).is_none() {
            continue;
        }
        for (vertical, signs) in [false, true].into_iter().zip(&mut signs) {
            match target {
                FusionTarget::BrighterSource => infrared.sobel(vertical, r, &mut response),
                FusionTarget::LargerGradient => {
                    image.sobel(vertical, r, &mut response);
                    visible.sobel(vertical, r, &mut other);
                    infrared.sobel(vertical, r, &mut third);
                    for ((p, &s), &i) in response.iter_mut().zip(&other).zip(&third) {
                        *p -= max(s, i);
                    }
                }
            }
            if (HALO..rows + HALO).contains(&r) {
                total += f64::from(0.5 * scale) * sum_abs(&response);
            }
            if gradient.is_some() {
                for (s, &d) in signs.row_mut(r).iter_mut().zip(&response) {
                    *s = sign(d);
                }
            }
        }
    }

    for r in HALO..rows + HALO {
        let (p, s, i) = (image.row(r), visible.row(r), infrared.row(r));
        // `other` collects the gradient of the row.
        other.fill(0.0);
        if target == FusionTarget::LargerGradient {
            for ((((e, g), &p), &s), &i) in response.iter_mut().zip(&mut other).zip(p).zip(s).zip(i) {
                *e = p - max(s, i);
                *g = 0.5 * sign(*e);
            }
            total += f64::from(0.5 * scale) * sum_abs(&response);
        }
        // The chroma term has a third of the image's elements, so three times the weight for each.
        let weight = 3.0 * scale;
        let mut sum = 0.0;
        for ((g, p), s) in other.chunks_exact_mut(3).zip(p.chunks_exact(3)).zip(s.chunks_exact(3)) {
            let ((cr, cb), (to_cr, to_cb)) = (chroma(p), chroma(s));
            let (red, blue) = (cr - to_cr, cb - to_cb);
            sum += red.abs() + blue.abs();
            let (red, blue) = (3.0 * CR * sign(red), 3.0 * CB * sign(blue));
            let both = red + blue;
            g[0] += red - LUMA[0] * both;
            g[1] -= LUMA[1] * both;
            g[2] += blue - LUMA[2] * both;
        }
        total += f64::from(weight * sum);
        let Some(gradient) = &mut gradient else { continue };
        let out = &mut gradient[(r - HALO) * row..][..row];
        // Turned by half a circle, both kernels change sign: the transposed response is the negative response.
        for (vertical, signs) in [false, true].into_iter().zip(&signs) {
            signs.sobel(vertical, r, &mut response);
            for (g, &d) in other.iter_mut().zip(&response) {
                *g -= 0.5 * d;
            }
        }
        let at = (sample * height + top + r - HALO) * width;
        let valid = &inputs.valid[at..at + width];
        for ((out, g), &valid) in out.chunks_exact_mut(3).zip(other.chunks_exact(3)).zip(valid) {
            for c in 0..3 {
                out[c] = g[c] * scale * f32::from(valid);
            }
        }
    }
    total
}

const LUMA: [f32; 3] = [0.299, 0.587, 0.114];
const CR: f32 = 0.713;
const CB: f32 = 0.564;

/// Cr and Cb of an RGB pixel, in the order of operations of the published code: equal colours give equal values.
#[inline(always)]
fn chroma(p: &[f32]) -> (f32, f32) {
    let y = LUMA[0] * p[0] + LUMA[1] * p[1] + LUMA[2] * p[2];
    ((p[0] - y) * CR + 0.5, (p[2] - y) * CB + 0.5)
}

/// S(x) = x^0.8 on [0, 1], to a few units in the last place: x · x^(−1/5), by Newton's method on r⁻⁵ = x, which
/// needs no division, so the loop over a row is vectorised, which one over `powf` is not.
#[inline(always)]
fn gamma(x: f32) -> f32 {
    let x = if x > 1.0 { 1.0 } else { x };
    // The exponent divided by −5 and the mantissa with it: within 3.3 % of x^(−1/5).
    let guess = 1_277_920_000.0 - (x.to_bits() as i32) as f32 * 0.2;
    let mut r = f32::from_bits(guess as i32 as u32);
    for _ in 0..3 {
        let square = r * r;
        r *= 1.2 - 0.2 * x * (square * square * r);
    }
    // Zero, what is below it, and numbers so small that r⁵ would overflow.
    if x < 1e-30 { 0.0 } else { x * r }
}

#[inline(always)]
fn max(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// The derivative of |x|, with 0 at 0 as in PyTorch.
#[inline(always)]
fn sign(x: f32) -> f32 {
    let positive = if x > 0.0 { 1.0 } else { 0.0 };
    if x < 0.0 { -1.0 } else { positive }
}

/// Σ |x|, in eight running sums that fit one vector register.
#[inline(always)]
fn sum_abs(x: &[f32]) -> f64 {
    let mut lanes = [0.0f32; 8];
    let chunks = x.chunks_exact(8);
    for (lane, v) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane = v.abs();
    }
    for chunk in chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane += v.abs();
        }
    }
    lanes.iter().map(|&v| f64::from(v)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gamma_is_the_power() {
        for i in 0..=100_000 {
            let x = i as f32 * 1e-5;
            let want = f64::from(x).powf(0.8);
            assert!((f64::from(gamma(x)) - want).abs() <= 4e-7 * want, "{x}: {} but {want}", gamma(x));
        }
        for x in [1e-29f32, 3.3e-20, 7e-10] {
            let want = f64::from(x).powf(0.8);
            assert!((f64::from(gamma(x)) - want).abs() <= 4e-7 * want, "{x}");
        }
        assert_eq!([gamma(-0.5), gamma(0.0), gamma(1e-40), gamma(-1e30)], [0.0; 4]);
        assert_eq!([gamma(1.0), gamma(7.0)], [gamma(1.0); 2]);
        assert!((gamma(1.0) - 1.0).abs() < 2e-7 && gamma(f32::NAN).is_nan());
    }
}
