//! Launches of `kernels/fusion_loss.cu`; see [`crate::cpu::fusion_loss`].

use super::loss::{COMBINING, scratch_f64};
use super::{Call, scratch_f32};
use crate::cpu::fusion_loss::FusionTarget;
use crate::{DType, Result, Tensor};

/// Threads of a block.
const THREADS: usize = 256;
/// Columns and rows of a tile, and of what surrounds it: the kernel's.
const TILE: [usize; 2] = [32, 16];
const HALO: usize = 2;

/// image `(1, B, H, W, 3)`, visible and infrared f32 of that shape, valid U8 `(B, H, W)` -> the loss and, if a gradient
/// is wanted, the signs that it is made of: 32 bits for each pixel, U8 `(B, H, W, 4)`.
pub fn fusion_loss(
    image: &Tensor,
    visible: &Tensor,
    infrared: &Tensor,
    valid: &Tensor,
    target: FusionTarget,
    wants_gradient: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    let (batch, height, width) = (image.dim(1), image.dim(2), image.dim(3));
    let grid = [width.div_ceil(TILE[0]), height.div_ceil(TILE[1]), batch];
    let parts = grid.iter().product();
    let mut partial = scratch_f64(image, parts)?;
    let mut signs = match wants_gradient {
        true => Some(Tensor::scratch_on(&image.device(), [batch, height, width, 4], DType::U8)?),
        false => None,
    };
    let call = Call::new("fusion_loss", image)?
        .input(image)
        .input_of(visible, DType::F32)
        .input_of(infrared, DType::F32)
        .input_of(valid, DType::U8)
        .output_of(&mut partial, DType::F32)
        .maybe_output_of(signs.as_mut(), DType::U8)
        .int(height)
        .int(width)
        .int(usize::from(target == FusionTarget::BrighterSource))
        .operations(80 * image.len());
    let plane = (TILE[0] + 2 * HALO) * (TILE[1] + 2 * HALO) * 3;
    let sign_plane = (TILE[0] + 2) * (TILE[1] + 2) * 3;
    // SAFETY: the tiles cover the pictures, and what lies outside of them is not touched; each block has its partial
    // sum. The shared memory holds three planes of floats and two of bytes.
    unsafe { call.launch(grid, THREADS, 12 * plane + 2 * sign_plane)? };
    let mut loss = scratch_f32(image, [1])?;
    let call = Call::untyped("fusion_loss_combine", &partial)?
        .input_of(&partial, DType::F32)
        .output_of(&mut loss, DType::F32)
        .int(parts)
        .float(reciprocal(image.len()))
        .operations(parts);
    // SAFETY: a block walks over the parts; a double for each of its threads fits into the shared memory.
    unsafe { call.launch([1, 1, 1], COMBINING, 8 * COMBINING)? };
    Ok((loss, signs))
}

/// The gradient from its signs `(B, H, W, 4)`, times dy: `(1, B, H, W, 3)` of type `dtype`.
pub fn backward(dy: &Tensor, signs: &Tensor, dtype: DType) -> Result<Tensor> {
    let shape = [1, signs.dim(0), signs.dim(1), signs.dim(2), 3];
    let mut dx = Tensor::scratch_on(&signs.device(), shape, dtype)?;
    let len = dx.len();
    let call = Call::untyped(&format!("fusion_loss_backward_{dtype}"), signs)?
        .input_of(dy, DType::F32)
        .input_of(signs, DType::U8)
        .output_of(&mut dx, dtype)
        .operations(8 * len);
    let (call, threads) = call.groups(len, 16 / dtype.size());
    let call = call.float(reciprocal(len));
    // SAFETY: a thread for each group of numbers at aligned addresses, then one for each of the others, guarded; each
    // number has its pixel in `signs`.
    unsafe { call.launch([threads.div_ceil(THREADS), 1, 1], THREADS, 0)? };
    Ok(dx)
}

fn reciprocal(n: usize) -> f32 {
    (1.0 / n as f64) as f32
}
