//! Launches of `kernels/structure.cu`, and copies; see [`crate::cpu::structure`] for what goes where.

use std::ops::Range;

use super::{Call, driver_of, scratch_like};
use crate::{Error, Result, Shape, Tensor};

/// Threads of a block.
const THREADS: usize = 256;

/// Numbers from the first one of a tensor to the first one that is meant, and from there along each axis: slow axis,
/// middle axis, rows.
#[derive(Clone, Copy)]
struct Layout {
    start: usize,
    steps: [usize; 3],
}

impl Layout {
    /// Rows of a tensor that has `width` numbers in each, of which those from `start` on are meant.
    fn rows(start: usize, width: usize) -> Self {
        Self { start, steps: [0, 0, width] }
    }

    /// Numbers up to the end of the last row.
    fn end(self, counts: [usize; 3], width: usize) -> usize {
        let last: usize = counts.iter().zip(self.steps).map(|(n, step)| n.saturating_sub(1) * step).sum();
        self.start + last + width
    }
}

/// Copies `counts` rows of `width` numbers.
fn copy_rows(
    from: (&Tensor, Layout),
    to: (&mut Tensor, Layout),
    counts: [usize; 3],
    width: usize,
) -> Result<()> {
    let ((x, source), (y, target)) = (from, to);
    if source.end(counts, width) > x.len() || target.end(counts, width) > y.len() {
        let shapes = [x.shape(), y.shape()];
        return Err(Error::shape("copy_rows", "the rows reach past the end", &shapes));
    }
    let call = Call::new("copy_rows", x)?.input(x).output(y);
    let most = 16 / x.dtype().size();
    let steps = source.steps.into_iter().chain(target.steps);
    let fits = steps.chain([source.start, target.start, width]).all(|n| n.is_multiple_of(most));
    let lanes = if fits && call.is_aligned() { most } else { 1 };
    let [a, b, rows] = counts;
    let threads = rows * width / lanes;
    let mut call = call.int(threads).int(width).int(lanes);
    for layout in [source, target] {
        call =
            layout.steps.into_iter().fold(call.u64(layout.start as u64), |call, step| call.u64(step as u64));
    }
    let call = call.bytes(2 * a * b * rows * width * x.dtype().size());
    // SAFETY: a thread for each group of `lanes` numbers of each row, guarded; the rows lie within both tensors, and
    // begin at multiples of `lanes`, which divides their width.
    unsafe { call.launch([threads.div_ceil(THREADS), b, a], THREADS, 0) }
}

/// The gradient of x of shape `shape`, of which entry `index` of the leading axis was selected.
pub fn select_backward(dy: &Tensor, shape: Shape, index: usize) -> Result<Tensor> {
    let dx = scratch_like(dy, shape)?;
    let (driver, no_tensor) = (driver_of(dy)?, || Error::cuda("select_backward", "a tensor is on the CPU"));
    let ((_, from), (_, to)) = (dy.address().ok_or_else(no_tensor)?, dx.address().ok_or_else(no_tensor)?);
    let (bytes, all) = (dy.bytes() as u64, dx.bytes() as u64);
    let (start, end) = (to + index as u64 * bytes, to + (index as u64 + 1) * bytes);
    // SAFETY: entry `index` of the new tensor is as long as dy; the others lie before and after it.
    unsafe {
        for (from, to) in [(to, start), (end, to + all)] {
            if from < to {
                driver.fill(from, 0, (to - from) as usize)?;
            }
        }
        driver.copy(from, start, bytes as usize)?;
    }
    Ok(dx)
}

/// The channels of both streams side by side: `(2, …, C)` -> `(1, …, 2C)`.
pub fn concat_streams(x: &Tensor) -> Result<Tensor> {
    let c = x.shape().last();
    let mut y = scratch_like(x, x.shape().with_dim(0, 1).with_last(2 * c))?;
    let (apart, beside, counts) = streams(x.len(), c);
    copy_rows((x, apart), (&mut y, beside), counts, c)?;
    Ok(y)
}

/// The gradient of x: the inverse of [`concat_streams`].
pub fn concat_streams_backward(dy: &Tensor) -> Result<Tensor> {
    let c = dy.shape().last() / 2;
    let mut dx = scratch_like(dy, dy.shape().with_dim(0, 2).with_last(c))?;
    let (apart, beside, counts) = streams(dy.len(), c);
    copy_rows((dy, beside), (&mut dx, apart), counts, c)?;
    Ok(dx)
}

/// Two streams of `c` channels apart and side by side, `len` numbers in all, and how many rows there are.
fn streams(len: usize, c: usize) -> (Layout, Layout, [usize; 3]) {
    let apart = Layout { start: 0, steps: [len / 2, 0, c] };
    (apart, Layout { start: 0, steps: [c, 0, 2 * c] }, [2, 1, len / (2 * c)])
}

/// Each stream's row of x `(S, C)` at every place of that stream of y `(S, …, C)`.
pub(super) fn repeat_row(x: &Tensor, y: &mut Tensor) -> Result<()> {
    let (s, c) = (x.dim(0), x.dim(1));
    let rows = y.len() / (s * c);
    let (one, all) = (Layout { start: 0, steps: [c, 0, 0] }, Layout { start: 0, steps: [rows * c, 0, c] });
    copy_rows((x, one), (y, all), [s, 1, rows], c)
}

/// The channels `range` of x `(…, C)`.
pub fn select_channels(x: &Tensor, range: Range<usize>) -> Result<Tensor> {
    let (c, width) = (x.shape().last(), range.len());
    let mut y = scratch_like(x, x.shape().with_last(width))?;
    let layouts = [Layout::rows(range.start, c), Layout::rows(0, width)];
    copy_rows((x, layouts[0]), (&mut y, layouts[1]), [1, 1, x.len() / c], width)?;
    Ok(y)
}

/// The gradient of x of shape `shape`, of which the channels `range` were selected.
pub fn select_channels_backward(dy: &Tensor, shape: Shape, range: Range<usize>) -> Result<Tensor> {
    let (c, width) = (shape.last(), range.len());
    let mut dx = Tensor::zeros_on(&dy.device(), shape, dy.dtype())?;
    let layouts = [Layout::rows(0, width), Layout::rows(range.start, c)];
    copy_rows((dy, layouts[0]), (&mut dx, layouts[1]), [1, 1, dy.len() / width], width)?;
    Ok(dx)
}

/// The input channels `from .. from + S·C` of weight `(1, O, 3, 3, I)` by stream and tap: `(S, 9·O, C)`.
pub fn tap_weights(weight: &Tensor, from: usize, s: usize, c: usize) -> Result<Tensor> {
    let o = weight.dim(1);
    let mut y = scratch_like(weight, [s, 9 * o, c])?;
    let (by_output, by_tap) = taps(weight.shape(), from, c);
    copy_rows((weight, by_output), (&mut y, by_tap), [s, 9, o], c)?;
    Ok(y)
}

/// The gradient of the weight of shape `shape`.
pub fn tap_weights_backward(dy: &Tensor, shape: Shape, from: usize) -> Result<Tensor> {
    let (s, c) = (dy.dim(0), dy.dim(2));
    let mut dw = Tensor::zeros_on(&dy.device(), shape, dy.dtype())?;
    let (by_output, by_tap) = taps(shape, from, c);
    copy_rows((dy, by_tap), (&mut dw, by_output), [s, 9, shape[1]], c)?;
    Ok(dw)
}

/// Rows (stream, tap, output) of `c` numbers in a weight `(1, O, 3, 3, I)`, and in the weights of the taps.
fn taps(weight: Shape, from: usize, c: usize) -> (Layout, Layout) {
    let (o, inputs) = (weight[1], weight[4]);
    let by_output = Layout { start: from, steps: [c, inputs, 9 * inputs] };
    (by_output, Layout { start: 0, steps: [9 * o * c, o * c, c] })
}
