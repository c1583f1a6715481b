//! Convolution as a product of patches and the weight; see [`crate::cpu::conv`] for the equations.
//!
//! Patches are gathered into a matrix (windows × kh·kw·I), its rows filled up with zeros to a multiple of 16 bytes, for
//! a bounded number of rows of windows at a time. Where windows lie side by side and cover whole rows of the input,
//! its numbers already are that matrix.

use std::ops::Range;

use super::driver::{Matrix, Product};
use super::linear::{WeightGradient, matrix, same_type, sum_parts};
use super::reduce::column_sums;
use super::{Call, driver_of, scratch_f32, scratch_like};
use crate::cpu::conv::{Lengths, Window};
use crate::{DType, Error, Result, Shape, Tensor};

/// Bytes of patches at a time, unless one row of windows has more: what the product reads is still in the cache then.
pub(crate) const MOST_BYTES: usize = 32 << 20;

/// Threads of a block, and numbers that it moves for each of them, in units of 16 bytes.
const THREADS: usize = 256;
const STEPS: usize = 4;

/// The patches of one convolution: how long their rows are, and how many are gathered at once.
#[derive(Clone, Copy)]
struct Patches {
    l: Lengths,
    /// Numbers of a row of the matrix.
    row: usize,
    /// Whether the numbers of x are the matrix.
    reshaped: bool,
    /// Bytes of a number of the matrix.
    size: usize,
    /// The type of the matrix.
    dtype: DType,
}

impl Patches {
    fn of(x: Shape, weight: Shape, window: Window, dtype: DType) -> Self {
        let size = dtype.size();
        let l = Lengths::of(x, weight, window);
        let (kh, kw) = l.kernel;
        // Windows that touch, as wide as the input or a single pixel.
        let touch = window.padding == 0 && window.stride == kh && l.height.is_multiple_of(kh);
        let reshaped = touch && (kw == l.width || (kh == 1 && kw == 1));
        let row = if reshaped { l.patch() } else { l.patch().next_multiple_of(16 / size) };
        Self { l, row, reshaped, size, dtype }
    }

    /// Rows of windows of one stream.
    fn lines(self) -> usize {
        self.l.batch * self.l.out_height
    }

    /// The ranges of rows of windows whose patches are gathered together.
    fn chunks(self) -> impl ExactSizeIterator<Item = Range<usize>> {
        let line = self.l.streams * self.l.out_width * self.row * self.size;
        let most = if self.reshaped { self.lines() } else { (MOST_BYTES / line).clamp(1, self.lines()) };
        // Equal parts, as near as can be.
        let chunks = self.lines().div_ceil(most);
        let each = self.lines().div_ceil(chunks);
        (0..self.lines().div_ceil(each)).map(move |i| i * each..self.lines().min((i + 1) * each))
    }

    /// The lengths that the kernels take.
    fn arguments<'a>(&self, call: Call<'a>) -> Call<'a> {
        let l = self.l;
        let call = call.int(l.height).int(l.width).int(l.inputs).int(l.kernel.0).int(l.kernel.1);
        call.int(l.out_height).int(l.out_width).int(l.window.stride).int(l.window.padding).int(self.row)
    }

    /// The matrix of the patches of some rows of windows of each stream, `(windows, row)`; where it has to be gathered,
    /// `scratch` keeps it.
    fn matrix(self, x: &Tensor, lines: Range<usize>, scratch: &mut Option<Tensor>) -> Result<Matrix> {
        let (l, rows) = (self.l, lines.len() * self.l.out_width);
        if self.reshaped {
            return matrix(x, self.row, rows * self.row);
        }
        let mut patches = match scratch.take() {
            Some(patches) => patches,
            None => Tensor::scratch_on(&x.device(), [l.streams, rows, self.row], self.dtype)?,
        };
        let kernel = match x.dtype() {
            dtype if dtype == self.dtype => "conv_gather",
            DType::U8 => "conv_gather_bytes",
            _ => "conv_gather_floats",
        };
        let call = Call::untyped(&format!("{kernel}_{}", self.dtype), x)?.input(x);
        let call = call.output_of(&mut patches, self.dtype).int(l.batch).int(lines.start);
        let part = x.bytes() / self.lines() * lines.len();
        let call = self.arguments(call).bytes(part + l.streams * rows * self.row * self.size);
        let share = (l.out_width * self.row * self.size / 16).div_ceil(THREADS * STEPS);
        // SAFETY: a block for each row of windows of each stream, or some that share one; `patches` was made for as
        // many rows of windows or more, and positions outside of the images are not read.
        unsafe { call.launch([lines.len(), share, l.streams], THREADS, 0)? };
        let matrix = matrix(&patches, self.row, rows * self.row);
        *scratch = Some(patches);
        matrix
    }

    /// The product of the patches with a weight `(S, O, row)`.
    fn product(self, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let (l, k, o) = (self.l, self.row, self.l.outputs);
        let y = scratch_like(weight, [l.streams, l.batch, l.out_height, l.out_width, o])?;
        let mut scratch = None;
        for lines in self.chunks() {
            let (first, rows) = (lines.start * l.out_width, lines.len() * l.out_width);
            let product = Product {
                dtype: self.dtype,
                c_dtype: self.dtype,
                count: l.streams,
                shape: (rows, o, k),
                a: self.matrix(x, lines, &mut scratch)?,
                a_transposed: false,
                b: matrix(weight, k, o * k)?,
                b_transposed: true,
                c: at(matrix(&y, o, l.pixels() * o)?, first * o, self.size),
                bias: bias.map(|b| matrix(b, o, o)).transpose()?.map(|b| b.address),
                residual: None,
                relu: false,
            };
            // SAFETY: the rows of these patches and of y, all of one type and on one device.
            unsafe { driver_of(x)?.product(&product)? };
        }
        Ok(y)
    }
}

/// The rows `(…, from)` of `x`, cut off or filled up with zeros: `(s, rows / s, to)`.
fn with_row(x: &Tensor, s: usize, from: usize, to: usize) -> Result<Tensor> {
    let rows = x.len() / from;
    let shape = [s, rows / s, to];
    if from == to {
        return x.reshape(shape);
    }
    let mut y = scratch_like(x, shape)?;
    let call = Call::new("conv_resize_rows", x)?.input(x).output(&mut y).int(rows * to).int(from).int(to);
    // SAFETY: a thread for each number of y, guarded; it reads x where the row has such a number.
    unsafe { call.launch([(rows * to).div_ceil(THREADS), 1, 1], THREADS, 0)? };
    Ok(y)
}

/// A matrix that begins `numbers` numbers later.
fn at(matrix: Matrix, numbers: usize, size: usize) -> Matrix {
    Matrix { address: matrix.address + (numbers * size) as u64, ..matrix }
}

/// x `(S, B, H, W, I)`, weight `(S, O, kh, kw, I)`, bias `(S, O)` -> `(S, B, H', W', O)`.
pub fn forward(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, window: Window) -> Result<Tensor> {
    same_type(x, [Some(weight), bias, None])?;
    let patches = Patches::of(x.shape(), weight.shape(), window, x.dtype());
    let weight = with_row(weight, patches.l.streams, patches.l.patch(), patches.row)?;
    patches.product(x, &weight, bias)
}

/// As [`forward`], with a square kernel whose weight is `(S, O, row)`: each output's numbers (kh, kw, I), then zeros up to
/// a multiple of 16 bytes. x may be pictures of bytes, of which 255 is 1, or of floats.
///
/// # Errors
/// When the weight's rows have another length, or the device reports an error.
pub fn infer(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    kernel: usize,
    window: Window,
) -> Result<Tensor> {
    same_type(weight, [bias, None, None])?;
    let shape = Shape::from([weight.dim(0), weight.dim(1), kernel, kernel, x.shape().last()]);
    let mut patches = Patches::of(x.shape(), shape, window, weight.dtype());
    patches.row = patches.l.patch().next_multiple_of(16 / patches.size);
    patches.reshaped &= x.dtype() == weight.dtype() && patches.row == patches.l.patch();
    if patches.row != weight.dim(2) {
        let shapes = [x.shape(), weight.shape()];
        return Err(Error::shape("convolution", "the rows of the weight do not fit", &shapes));
    }
    patches.product(x, weight, bias)
}

/// The gradient of the weight, f32.
pub fn backward_weight(dy: &Tensor, x: &Tensor, weight: Shape, window: Window) -> Result<Tensor> {
    same_type(x, [Some(dy), None, None])?;
    let patches = Patches::of(x.shape(), weight, window, x.dtype());
    let (l, k) = (patches.l, patches.row);
    let (s, o) = (l.streams, l.outputs);
    // Of several chunks the streams are done one by one, because their matrices do not lie one after another.
    let chunks = patches.chunks().len();
    let (streams, alone) = if chunks == 1 { (1, s) } else { (s, 1) };
    let gradient = |lines: &Range<usize>| {
        let rows = lines.len() * l.out_width;
        WeightGradient { count: alone, o, i: k, rows }
    };
    let parts: usize = patches.chunks().map(|lines| gradient(&lines).parts()).sum();
    let partial = scratch_f32(x, [s, parts, o * k])?;
    let (mut scratch, mut part) = (None, 0);
    for lines in patches.chunks() {
        let gradient = gradient(&lines);
        let dy = at(matrix(dy, o, l.pixels() * o)?, lines.start * l.out_width * o, patches.size);
        let dw = at(matrix(&partial, k, parts * o * k)?, part * o * k, DType::F32.size());
        let rows = patches.matrix(x, lines, &mut scratch)?;
        for stream in 0..streams {
            let of_stream = |m: Matrix, size| at(m, stream * m.batch, size).address;
            let [dy, rows] = [dy, rows].map(|m| of_stream(m, patches.size));
            // SAFETY: these rows of dy and of the patches; each chunk has its part of `partial`.
            unsafe { gradient.queue(x, dy, rows, of_stream(dw, DType::F32.size()))? };
        }
        part += gradient.parts();
    }
    let dw = sum_parts(partial, s, parts)?;
    with_row(&dw.reshape([s * o, k])?, s, k, l.patch())?.reshape(weight)
}

/// The gradient of the input, of shape `x`.
pub fn backward_input(dy: &Tensor, weight: &Tensor, x: Shape, window: Window) -> Result<Tensor> {
    same_type(dy, [Some(weight), None, None])?;
    let patches = Patches::of(x, weight.shape(), window, dy.dtype());
    let l = patches.l;
    let (kh, kw) = l.kernel;
    if !patches.reshaped && window.stride == 1 && kh == kw && window.padding < kh {
        let window = Window { stride: 1, padding: kh - 1 - window.padding };
        return forward(dy, &turned(weight)?, None, window);
    }
    let (s, o, k) = (l.streams, l.outputs, patches.row);
    let weight = with_row(weight, s, l.patch(), k)?;
    let mut dx = scratch_like(dy, x)?;
    // Whole images, because windows of two chunks could share a pixel.
    let window_rows = l.out_height * l.out_width;
    let samples = if patches.reshaped {
        l.batch
    } else {
        (MOST_BYTES / (s * window_rows * k * patches.size)).clamp(1, l.batch)
    };
    let mut scratch = None;
    for sample in (0..l.batch).step_by(samples) {
        let samples = samples.min(l.batch - sample);
        let rows = samples * window_rows;
        let target = match &scratch {
            _ if patches.reshaped => &dx,
            Some(scratch) => scratch,
            None => scratch.insert(scratch_like(dy, [s, rows, k])?),
        };
        let product = Product {
            dtype: dy.dtype(),
            c_dtype: dy.dtype(),
            count: s,
            shape: (rows, k, o),
            a: at(matrix(dy, o, l.pixels() * o)?, sample * window_rows * o, patches.size),
            a_transposed: false,
            b: matrix(&weight, k, o * k)?,
            b_transposed: false,
            c: matrix(target, k, rows * k)?,
            bias: None,
            residual: None,
            relu: false,
        };
        // SAFETY: as in `forward`; the target was made for as many rows or more.
        unsafe { driver_of(dy)?.product(&product)? };
        let Some(gradients) = &scratch else { continue };
        let call = Call::new("conv_scatter", dy)?.input(gradients).output(&mut dx).int(l.batch).int(sample);
        let part = dx.bytes() / l.batch * samples;
        let call = patches.arguments(call).operations(s * rows * k).bytes(part + s * rows * k * patches.size);
        let share = (l.width * l.inputs * patches.size).div_ceil(16 * THREADS * STEPS);
        // SAFETY: a block for each row of these images of each stream, or some that share one; windows outside of the
        // output are not read.
        unsafe { call.launch([samples * l.height, share, s], THREADS, 0)? };
    }
    Ok(dx)
}

/// `(S, O, kh, kw, I)` -> `(S, I, kh, kw, O)` with the kernel turned by 180°.
fn turned(weight: &Tensor) -> Result<Tensor> {
    let [s, o, kh, kw, i] = [0, 1, 2, 3, 4].map(|axis| weight.dim(axis));
    let mut y = scratch_like(weight, [s, i, kh, kw, o])?;
    let call = Call::new("conv_turn", weight)?.input(weight).output(&mut y);
    let call = call.int(weight.len()).int(o).int(kh * kw).int(i);
    // SAFETY: a thread for each number, guarded.
    unsafe { call.launch([weight.len().div_ceil(THREADS), 1, 1], THREADS, 0)? };
    Ok(y)
}

/// The gradient of the bias, f32.
pub fn backward_bias(dy: &Tensor) -> Result<Tensor> {
    column_sums(dy, dy.dim(0))
}
