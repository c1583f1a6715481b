//! Convolution as a product of gathered patches and the weight, forward and backward.
//!
//! Patches are gathered for a few hundred output pixels at a time, by each task into its own scratch, so the full
//! matrix of patches (nine times the input for a 3×3 kernel) never exists.

use rayon::prelude::*;

use super::matmul::{Matrix, Write, product};
use super::{linear, reduce};
use crate::{Result, Tensor};

/// Distance between the windows and zero padding around the input, the same for rows and columns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Window {
    /// Distance between neighbouring windows.
    pub stride: usize,
    /// Zeros assumed on each side.
    pub padding: usize,
}

impl Window {
    /// Length of the output along an axis of length `n` under a kernel of length `kernel`; the rest is cut off.
    pub fn output(self, n: usize, kernel: usize) -> usize {
        let room = (n + 2 * self.padding).checked_sub(kernel);
        room.and_then(|room| room.checked_div(self.stride)).map_or(0, |steps| steps + 1)
    }
}

/// All lengths of one convolution.
#[derive(Clone, Copy)]
pub(crate) struct Lengths {
    pub streams: usize,
    pub batch: usize,
    pub height: usize,
    pub width: usize,
    pub inputs: usize,
    pub outputs: usize,
    pub kernel: (usize, usize),
    pub out_height: usize,
    pub out_width: usize,
    pub window: Window,
}

impl Lengths {
    pub fn of(x: crate::Shape, weight: crate::Shape, window: Window) -> Self {
        Self {
            streams: x[0],
            batch: x[1],
            height: x[2],
            width: x[3],
            inputs: x[4],
            outputs: weight[1],
            kernel: (weight[2], weight[3]),
            out_height: window.output(x[2], weight[2]),
            out_width: window.output(x[3], weight[3]),
            window,
        }
    }

    /// Numbers in one patch.
    pub fn patch(self) -> usize {
        self.kernel.0 * self.kernel.1 * self.inputs
    }

    /// Output pixels of one stream.
    pub fn pixels(self) -> usize {
        self.batch * self.out_height * self.out_width
    }

    /// Output pixels of one task.
    fn pixels_per_task(self) -> usize {
        (self.pixels() / 8).clamp(32, 256)
    }

    /// Numbers in the input of one stream.
    fn input_len(self) -> usize {
        self.batch * self.height * self.width * self.inputs
    }

    /// Copies the patches of output pixels `first..` of the stream `x` into `patches`, zeros for the padding.
    fn gather(self, x: &[f32], first: usize, patches: &mut [f32]) {
        let (c, kw, Window { stride, padding }) = (self.inputs, self.kernel.1, self.window);
        for (i, patch) in patches.chunks_exact_mut(self.patch()).enumerate() {
            let pixel = first + i;
            let (ox, rest) = (pixel % self.out_width, pixel / self.out_width);
            let (oy, sample) = (rest % self.out_height, rest / self.out_height);
            // Columns of the window that lie within the input.
            let left = padding.saturating_sub(ox * stride).min(kw);
            let right = (self.width + padding).saturating_sub(ox * stride).min(kw).max(left);
            for (ky, row) in patch.chunks_exact_mut(kw * c).enumerate() {
                let iy = (oy * stride + ky).wrapping_sub(padding);
                if iy >= self.height || left == right {
                    row.fill(0.0);
                    continue;
                }
                let from = ((sample * self.height + iy) * self.width + ox * stride + left - padding) * c;
                row[..left * c].fill(0.0);
                row[left * c..right * c].copy_from_slice(&x[from..from + (right - left) * c]);
                row[right * c..].fill(0.0);
            }
        }
    }
}

/// x `(S, B, H, W, I)`, weight `(S, O, kh, kw, I)`, bias `(S, O)` -> `(S, B, H', W', O)`.
pub fn forward(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, window: Window) -> Tensor {
    let l = Lengths::of(x.shape(), weight.shape(), window);
    let (o, k, per_task) = (l.outputs, l.patch(), l.pixels_per_task());
    let mut y = Tensor::scratch([l.streams, l.batch, l.out_height, l.out_width, o]);
    let streams = y.f32_mut().par_chunks_exact_mut(l.pixels() * o).enumerate();
    streams.for_each(|(s, y)| {
        let x = &x.f32()[s * l.input_len()..][..l.input_len()];
        let w = Matrix::rows(&weight.f32()[s * o * k..][..o * k], k).t();
        let bias = bias.map(|b| &b.f32()[s * o..][..o]);
        y.par_chunks_mut(per_task * o).enumerate().for_each_init(
            || vec![0.0; per_task * k],
            |patches, (task, y)| {
                let rows = y.len() / o;
                let patches = &mut patches[..rows * k];
                l.gather(x, task * per_task, patches);
                let write = match bias {
                    Some(bias) => {
                        y.chunks_exact_mut(o).for_each(|row| row.copy_from_slice(bias));
                        Write::Add
                    }
                    None => Write::Assign,
                };
                product(y, o, (rows, o, k), Matrix::rows(patches, k), w, 1.0, write);
            },
        );
    });
    y
}

/// The gradient of the weight.
pub fn backward_weight(dy: &Tensor, x: &Tensor, weight: crate::Shape, window: Window) -> Result<Tensor> {
    let l = Lengths::of(x.shape(), weight, window);
    let (o, k, pixels) = (l.outputs, l.patch(), l.pixels());
    // Few large parts: each holds a whole gradient of the weight.
    let parts = pixels.div_ceil(256).clamp(1, if o * k > 1 << 18 { 4 } else { 16 });
    let per_part = pixels.div_ceil(parts);
    let mut dw = Vec::with_capacity(weight.len());
    for s in 0..l.streams {
        let x = &x.f32()[s * l.input_len()..][..l.input_len()];
        let dy = &dy.f32()[s * pixels * o..][..pixels * o];
        dw.extend(reduce::sum_blocks(parts, o * k, |part, sums| {
            let end = pixels.min((part + 1) * per_part);
            let mut patches = vec![0.0; 256 * k];
            for first in (part * per_part..end).step_by(256) {
                let rows = 256.min(end - first);
                let patches = &mut patches[..rows * k];
                l.gather(x, first, patches);
                let dy = Matrix::rows(&dy[first * o..], o).t();
                product(sums, k, (o, k, rows), dy, Matrix::rows(patches, k), 1.0, Write::Add);
            }
        }));
    }
    Tensor::from_slice(weight, &dw)
}

/// The gradient of the input, of shape `x`.
pub fn backward_input(dy: &Tensor, weight: &Tensor, x: crate::Shape, window: Window) -> Result<Tensor> {
    let l = Lengths::of(x, weight.shape(), window);
    let (kh, kw) = l.kernel;
    if window.stride == 1 && kh == kw && window.padding < kh {
        let window = Window { stride: 1, padding: kh - 1 - window.padding };
        return Ok(forward(dy, &transposed(weight)?, None, window));
    }
    let (o, k, pixels) = (l.outputs, l.patch(), l.out_height * l.out_width);
    let mut dx = Tensor::scratch(x);
    let image = l.height * l.width * l.inputs;
    // One picture at a time: the gradients of its patches are as large as the patches.
    for (i, dx) in dx.f32_mut().chunks_exact_mut(image).enumerate() {
        let s = i / l.batch;
        let dy = Tensor::from_slice([1, pixels, o], &dy.f32()[i * pixels * o..][..pixels * o])?;
        let weight = weight.narrow(s..s + 1)?.reshape([1, o, k])?;
        let patches = linear::backward_input(&dy, &weight, None);
        scatter(l, patches.f32(), dx);
    }
    Ok(dx)
}

/// Adds each patch to the pixels it was gathered from, for one picture; written as a gather, so that every input
/// pixel is one task's and the order of its sum is fixed.
fn scatter(l: Lengths, patches: &[f32], dx: &mut [f32]) {
    let (c, (kh, kw), Window { stride, padding }) = (l.inputs, l.kernel, l.window);
    // The windows that cover position `i`, as pairs (window, offset in it).
    let covering = |i: usize, kernel: usize, count: usize| {
        (0..kernel).filter_map(move |offset| {
            let at = (i + padding).checked_sub(offset)?;
            (at % stride == 0 && at / stride < count).then_some((at / stride, offset))
        })
    };
    dx.par_chunks_exact_mut(l.width * c).enumerate().for_each(|(iy, row)| {
        row.fill(0.0);
        for (ix, sum) in row.chunks_exact_mut(c).enumerate() {
            for (oy, ky) in covering(iy, kh, l.out_height) {
                for (ox, kx) in covering(ix, kw, l.out_width) {
                    let from = ((oy * l.out_width + ox) * kh * kw + ky * kw + kx) * c;
                    for (s, &p) in sum.iter_mut().zip(&patches[from..from + c]) {
                        *s += p;
                    }
                }
            }
        }
    });
}

/// `(S, O, kh, kw, I)` -> `(S, I, kh, kw, O)` with the kernel turned by 180°.
fn transposed(weight: &Tensor) -> Result<Tensor> {
    let [s, o, kh, kw, i] = [0, 1, 2, 3, 4].map(|axis| weight.dim(axis));
    let w = weight.f32();
    let mut out = Vec::with_capacity(w.len());
    for stream in 0..s {
        for input in 0..i {
            for tap in (0..kh * kw).rev() {
                out.extend((0..o).map(|output| w[((stream * o + output) * kh * kw + tap) * i + input]));
            }
        }
    }
    Tensor::from_slice([s, i, kh, kw, o], &out)
}

/// The gradient of the bias.
pub fn backward_bias(dy: &Tensor) -> Result<Tensor> {
    linear::backward_bias(dy, dy.dim(0))
}
