//! Launches of `kernels/spatial.cu`: the weights of pixels in local alignment; see [`crate::infer`].

use super::{Call, scratch_like};
use crate::{DType, Result, Tensor};

/// Threads of a block.
const THREADS: usize = 128;

/// σ of two layers 4 -> hidden -> 2 with ReLU between them: x `(1, B, H, W, 4)` -> `(1, B, H, W, 2)`. weights, f32: the
/// first layer `(hidden, 4)`, its bias, the second `(2, hidden)`, its bias.
pub fn pointwise(x: &Tensor, weights: &Tensor) -> Result<Tensor> {
    let (pixels, hidden) = (x.len() / 4, (weights.len() - 2) / 7);
    let mut y = scratch_like(x, x.shape().with_last(2))?;
    let call = Call::new("spatial_pointwise", x)?.input(x).input_of(weights, DType::F32).output(&mut y);
    let call = call.int(pixels).int(hidden).operations(12 * hidden * pixels);
    // SAFETY: a thread for each pixel, guarded; the weights have 4·hidden + hidden + 2·hidden + 2 numbers.
    unsafe { call.launch([pixels.div_ceil(THREADS), 1, 1], THREADS, 0)? };
    Ok(y)
}

/// σ of a 7×7 convolution: x `(1, B, H, W, 4)` -> `(1, B, H, W, 2)`. weights, f32: `(2, 7, 7, 4)`, then the bias.
pub fn wide(x: &Tensor, weights: &Tensor) -> Result<Tensor> {
    let [batch, height, width] = [1, 2, 3].map(|axis| x.dim(axis));
    let mut y = scratch_like(x, x.shape().with_last(2))?;
    let call = Call::new("spatial_wide", x)?.input(x).input_of(weights, DType::F32).output(&mut y);
    let call = call.int(height).int(width).operations(2 * 7 * 7 * 2 * x.len());
    // SAFETY: a thread for each pixel of an image, guarded, and the images; what lies outside of an image is not read.
    unsafe { call.launch([(height * width).div_ceil(THREADS), batch, 1], THREADS, 0)? };
    Ok(y)
}
