//! Bilinear resizing with half-pixel centres: `align_corners=False`, without antialiasing.

use crate::cpu::resize as cpu;
use crate::cuda::resize as cuda;
use crate::{Error, Result, Tape, Var};

/// Each image of x at another size. An output position i reads the input at max((i + ½)·input/output − ½, 0).
///
/// x `(S, B, h, w, C)` -> `(S, B, height, width, C)`; the same variable when that is its size already.
///
/// # Errors
/// When x does not have five axes, or a length is zero.
pub fn resize(tape: &mut Tape, x: &Var, height: usize, width: usize) -> Result<Var> {
    let xs = x.shape();
    if xs.rank() != 5 || xs.is_empty() || height == 0 || width == 0 {
        let why = format!(
            "x must be (S, B, h, w, C) without an empty axis, and so must its new size {height}x{width}"
        );
        return Err(Error::shape("resize", why, &[xs]));
    }
    if (xs[2], xs[3]) == (height, width) {
        return Ok(x.clone());
    }
    let y = on_device_of!(x.value(), forward(x.value(), height, width))?;
    Ok(tape.record([x], y, move |dy, _| Ok([Some(on_device_of!(dy, backward(&dy, xs))?)])))
}
