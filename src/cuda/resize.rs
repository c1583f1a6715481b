//! Launches of `kernels/resize.cu`; see [`crate::cpu::resize`] for the equations.

use super::{Call, scratch_like};
use crate::{Result, Shape, Tensor};

/// Threads of a block.
const THREADS: usize = 256;

/// Threads that keep a device busy.
const MANY: usize = 1 << 17;

/// Starts `op` from `from` to `to`, of the shapes `x` and `y` or the other way round; a thread has 16 bytes of channels
/// (or one channel) of a strip of `to`.
fn resize(op: &str, from: &Tensor, to: &mut Tensor, x: Shape, y: Shape, strip: usize) -> Result<()> {
    let (target, c) = (to.shape(), x[4]);
    let lanes = 16 / from.dtype().size();
    let call = Call::new(op, from)?.input(from).output(to);
    let vector = call.is_aligned() && c.is_multiple_of(lanes);
    let groups = target[3] * if vector { c / lanes } else { c };
    let images = target[0] * target[1];
    // As many rows as leave enough threads.
    let strip = (groups * target[2] * images / MANY).clamp(1, strip);
    let call = call.int(x[2]).int(x[3]).int(y[2]).int(y[3]).int(c).int(strip).int(usize::from(vector));
    let call = call.operations(4 * x.len().max(y.len()));
    // SAFETY: a thread for each group of channels of a row and each strip of rows, guarded, of each image; what it
    // reads is clamped to the other tensor's images.
    unsafe { call.launch([groups.div_ceil(THREADS), target[2].div_ceil(strip), images], THREADS, 0) }
}

/// x `(S, B, h, w, C)` -> `(S, B, height, width, C)`.
pub fn forward(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let mut y = scratch_like(x, x.shape().with_dim(2, height).with_dim(3, width))?;
    let shape = y.shape();
    resize("resize", x, &mut y, x.shape(), shape, 16)?;
    Ok(y)
}

/// The gradient of x, of shape `shape`, from that of the output.
pub fn backward(dy: &Tensor, shape: Shape) -> Result<Tensor> {
    let mut dx = scratch_like(dy, shape)?;
    resize("resize_backward", dy, &mut dx, shape, dy.shape(), 8)?;
    Ok(dx)
}
