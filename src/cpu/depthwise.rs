//! Depthwise 3×3 convolution with bias, padding 1, then GELU; forward and backward.

use rayon::prelude::*;

use super::{math, reduce, simd};
use crate::{Result, Shape, Tensor};

/// Channels that are summed in registers at once.
const LANES: usize = 32;

/// The taps of the kernel that fall into the picture around one pixel.
struct Taps {
    /// Offset of the input pixel within its picture, and of the tap within the weight.
    list: [(usize, usize); 9],
    count: usize,
}

impl Taps {
    /// Around pixel (y, x) of an H×W picture with C channels.
    #[inline(always)]
    fn around((y, x): (usize, usize), (h, w, c): (usize, usize, usize)) -> Self {
        let mut taps = Self { list: [(0, 0); 9], count: 0 };
        for ky in 0..3 {
            for kx in 0..3 {
                let (iy, ix) = (y + ky, x + kx);
                if (1..=h).contains(&iy) && (1..=w).contains(&ix) {
                    taps.list[taps.count] = (((iy - 1) * w + ix - 1) * c, (ky * 3 + kx) * c);
                    taps.count += 1;
                }
            }
        }
        taps
    }

    #[inline(always)]
    fn as_slice(&self) -> &[(usize, usize)] {
        &self.list[..self.count]
    }
}

/// y = f(y, bias + Σ taps x·w) for each channel of one pixel.
#[inline(always)]
fn pixel(
    y: &mut [f32],
    x: &[f32],
    w: &[f32],
    bias: Option<&[f32]>,
    taps: &[(usize, usize)],
    f: impl Fn(f32, f32) -> f32,
) {
    let channels = y.len();
    let mut c = 0;
    while c + LANES <= channels {
        let mut sum = [0.0f32; LANES];
        if let Some(b) = bias {
            sum.copy_from_slice(&b[c..c + LANES]);
        }
        for &(at, tap) in taps {
            let (x, w) = (&x[at + c..at + c + LANES], &w[tap + c..tap + c + LANES]);
            for i in 0..LANES {
                sum[i] = x[i].mul_add(w[i], sum[i]);
            }
        }
        for (y, s) in y[c..c + LANES].iter_mut().zip(sum) {
            *y = f(*y, s);
        }
        c += LANES;
    }
    while c < channels {
        let start = bias.map_or(0.0, |b| b[c]);
        let sum = taps.iter().fold(start, |s, &(at, tap)| x[at + c].mul_add(w[tap + c], s));
        y[c] = f(y[c], sum);
        c += 1;
    }
}

/// Calls [`pixel`] for every pixel: `out` becomes `f(out, sum)`. `weight` is `(S, 9·C)`.
fn convolve(
    out: &mut Tensor,
    x: &Tensor,
    weight: &[f32],
    bias: Option<&[f32]>,
    f: impl Fn(f32, f32) -> f32 + Sync,
) {
    let [_, b, h, w, c] = dims(x.shape());
    let image = h * w * c;
    out.f32_mut().par_chunks_exact_mut(w * c).enumerate().for_each(|(row, out)| {
        let (sample, y) = (row / h, row % h);
        let s = sample / b;
        let x = &x.f32()[sample * image..][..image];
        let weight = &weight[s * 9 * c..][..9 * c];
        let bias = bias.map(|b| &b[s * c..][..c]);
        simd(
            #[inline(always)]
            || {
                for (column, out) in out.chunks_exact_mut(c).enumerate() {
                    let taps = Taps::around((y, column), (h, w, c));
                    pixel(out, x, weight, bias, taps.as_slice(), &f);
                }
            },
        );
    });
}

fn dims(shape: Shape) -> [usize; 5] {
    [0, 1, 2, 3, 4].map(|axis| shape[axis])
}

/// x `(S, B, H, W, C)`, weight `(S, 3, 3, C)`, bias `(S, C)` -> GELU(conv(x)), of the shape of x.
pub fn forward(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Tensor {
    let mut y = Tensor::scratch(x.shape());
    convolve(
        &mut y,
        x,
        weight.f32(),
        Some(bias.f32()),
        #[inline(always)]
        |_, sum| math::gelu(sum),
    );
    y
}

/// The gradients of x, weight and bias. The sum before GELU is computed again rather than saved.
pub fn backward(mut dy: Tensor, x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<[Tensor; 3]> {
    convolve(
        &mut dy,
        x,
        weight.f32(),
        Some(bias.f32()),
        #[inline(always)]
        |dy, sum| math::flush(dy * math::gelu_derivative(sum)),
    );
    let dz = dy;
    let (dw, db) = backward_weight(&dz, x)?;
    let [s, _, _, _, c] = dims(x.shape());
    // The transpose of a convolution is the convolution with the kernel turned by 180°.
    let turned: Vec<f32> =
        (0..s * 9).flat_map(|i| weight.f32()[((i / 9) * 9 + 8 - i % 9) * c..][..c].iter().copied()).collect();
    let mut dx = Tensor::scratch(x.shape());
    convolve(
        &mut dx,
        &dz,
        &turned,
        None,
        #[inline(always)]
        |_, sum| sum,
    );
    Ok([dx, dw, db])
}

fn backward_weight(dz: &Tensor, x: &Tensor) -> Result<(Tensor, Tensor)> {
    let [s, b, h, w, c] = dims(x.shape());
    let image = h * w * c;
    let rows = 8;
    let blocks = h.div_ceil(rows);
    let (mut dw, mut db) = (Vec::with_capacity(s * 9 * c), Vec::with_capacity(s * c));
    for stream in 0..s {
        // The nine taps, then the bias.
        let sums = reduce::sum_blocks(b * blocks, 10 * c, |block, sums| {
            let (sample, first) = (stream * b + block / blocks, block % blocks * rows);
            let (x, dz) = (&x.f32()[sample * image..][..image], &dz.f32()[sample * image..][..image]);
            let (taps_sum, bias_sum) = sums.split_at_mut(9 * c);
            simd(
                #[inline(always)]
                || {
                    for (y, column) in (first..h.min(first + rows)).flat_map(|y| (0..w).map(move |x| (y, x)))
                    {
                        let dz = &dz[(y * w + column) * c..][..c];
                        for (s, &g) in bias_sum.iter_mut().zip(dz) {
                            *s += g;
                        }
                        for &(at, tap) in Taps::around((y, column), (h, w, c)).as_slice() {
                            let (sum, x) = (&mut taps_sum[tap..tap + c], &x[at..at + c]);
                            for ((s, &g), &x) in sum.iter_mut().zip(dz).zip(x) {
                                *s = g.mul_add(x, *s);
                            }
                        }
                    }
                },
            );
        });
        dw.extend_from_slice(&sums[..9 * c]);
        db.extend_from_slice(&sums[9 * c..]);
    }
    Ok((Tensor::from_slice([s, 3, 3, c], &dw)?, Tensor::from_slice([s, c], &db)?))
}
