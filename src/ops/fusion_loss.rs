//! The loss of the fused image.

use super::loss::same_device;
use crate::cpu::fusion_loss as cpu;
use crate::cuda::fusion_loss as cuda;
use crate::{DType, Error, Result, Tape, Tensor, Var};

pub use crate::cpu::fusion_loss::FusionTarget;

/// How far the fused image is from its sources (eq. 15), a number of shape `(1)`.
///
/// image, visible, infrared `(1, B, H, W, 3)` in \[0, 1\]; valid U8 `(B, H, W)`, 1 inside the picture and 0 where a
/// crop padded. With p = image · valid, S = visible^0.8, ∇ the Sobel kernels with zero padding, for each channel:
///
/// - [`FusionTarget::LargerGradient`]: ½·mean|p − max(S, ir)| + ½·mean|∇x p − max(∇x S, ∇x ir)| + the same for y;
/// - [`FusionTarget::BrighterSource`]: ½·mean|∇x(p − max(S, ir))| + the same for y;
///
/// and for both mean|Cr(p) − Cr(S)| + mean|Cb(p) − Cb(S)|. Only `image` gets a gradient.
///
/// # Errors
/// When the shapes or types do not fit.
pub fn fusion_loss(
    tape: &mut Tape,
    image: &Var,
    visible: &Tensor,
    infrared: &Tensor,
    valid: &Tensor,
    target: FusionTarget,
) -> Result<Var> {
    let s = image.shape();
    let shapes = [s, visible.shape(), infrared.shape(), valid.shape()];
    let is_image = s.rank() == 5 && s[0] == 1 && s[4] == 3 && !s.is_empty();
    if !is_image || shapes[1] != s || shapes[2] != s || *shapes[3] != s[1..4] {
        let why = "image, visible and infrared must be (1, B, H, W, 3) and valid (B, H, W)";
        return Err(Error::shape("fusion_loss", why, &shapes));
    }
    if valid.dtype() != DType::U8 {
        let why = format!("valid must be u8, not {}", valid.dtype());
        return Err(Error::shape("fusion_loss", why, &[valid.shape()]));
    }
    let x = image.value();
    same_device("fusion_loss", x, &[visible, infrared, valid])?;
    let wants_gradient = tape.is_recording() && image.needs_grad();
    let (value, saved) = on_device_of!(x, fusion_loss(x, visible, infrared, valid, target, wants_gradient))?;
    let dtype = x.dtype();
    Ok(tape.record([image], value, move |dy, _| {
        let dx = saved.map(|saved| match saved.is_on_cpu() {
            true => Ok(cpu::scale(saved, dy.item())),
            false => cuda::backward(&dy, &saved, dtype),
        });
        Ok([dx.transpose()?])
    }))
}
