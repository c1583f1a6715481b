//! Launches of `kernels/scores.cu`: both sides of the segmentation head's last layer; see [`crate::infer`].

use super::{Call, scratch_like};
use crate::{DType, Result, Tensor};

/// Threads of a block.
const THREADS: usize = 128;

/// ReLU(fine + Σ maps resized to it): fine `(1, B, H, W, C)`, maps `(1, B, h, w, C)`.
pub fn sum(fine: &Tensor, maps: [&Tensor; 3]) -> Result<Tensor> {
    let [batch, height, width, c] = [1, 2, 3, 4].map(|axis| fine.dim(axis));
    let mut y = scratch_like(fine, fine.shape())?;
    let mut call = Call::new("scores_sum", fine)?.input(fine);
    for map in maps {
        call = call.input(map);
    }
    call = call.output(&mut y);
    let lanes = 16 / fine.dtype().size();
    let groups = if call.is_aligned() && c.is_multiple_of(lanes) { c / lanes } else { c };
    for map in maps {
        call = call.int(map.dim(2)).int(map.dim(3));
    }
    let call = call.int(height).int(width).int(c).operations(3 * 7 * fine.len());
    // SAFETY: a thread for each group of channels of a row, guarded; rows; images. Positions in the maps are clamped.
    unsafe { call.launch([(width * groups).div_ceil(THREADS), height, batch], THREADS, 0)? };
    Ok(y)
}

/// What [`labels`] writes, at the size of the picture.
pub struct Resized<'a> {
    /// The first class of largest score, U8 `(B, H, W)`.
    pub labels: &'a mut Tensor,
    /// The scores, f32 `(B, H, W, classes)`.
    pub logits: Option<&'a mut Tensor>,
    /// Their softmax.
    pub probabilities: Option<&'a mut Tensor>,
}

/// Resizes scores `(1, B, h, w, stride)`, of which `classes` count; the stride is a multiple of 16 bytes.
pub fn labels(scores: &Tensor, classes: usize, out: Resized) -> Result<()> {
    let Resized { labels, logits, probabilities } = out;
    let [h, w, stride] = [2, 3, 4].map(|axis| scores.dim(axis));
    let [batch, height, width] = [0, 1, 2].map(|axis| labels.dim(axis));
    let pixels = labels.len();
    let call = Call::new("scores_labels", scores)?.input(scores).output_of(labels, DType::U8);
    let call = call.maybe_output_of(logits, DType::F32).maybe_output_of(probabilities, DType::F32);
    let call = call.int(h).int(w).int(height).int(width).int(classes).int(stride);
    let call = call.operations(7 * classes * pixels);
    // SAFETY: a thread for each pixel of a row, guarded; rows; images. Positions in the scores are clamped, and the
    // classes that are read with 16 bytes lie within the stride.
    unsafe { call.launch([width.div_ceil(THREADS), height, batch], THREADS, 0) }
}
