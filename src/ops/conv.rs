//! Convolutions with a dense kernel: patch embeddings, spatial reductions, the fusion head's 3×3.

pub use crate::cpu::conv::Window;

use crate::cpu::conv as cpu;
use crate::cuda::conv as cuda;
use crate::{Error, Result, Tape, Var};

/// Cross-correlation with zero padding, as PyTorch's `conv2d`; sizes that the stride does not divide are cut off.
///
/// x `(S, B, H, W, I)`, weight `(S, O, kh, kw, I)`, bias `(S, O)` -> `(S, B, H', W', O)`.
///
/// # Errors
/// When the shapes do not fit or the kernel is larger than the padded input.
pub fn conv(tape: &mut Tape, x: &Var, weight: &Var, bias: &Var, window: Window) -> Result<Var> {
    let (xs, ws, bs) = (x.shape(), weight.shape(), bias.shape());
    if xs.rank() != 5 || ws.rank() != 5 || xs[0] != ws[0] || xs[4] != ws[4] || *bs != ws[..2] {
        let why = "x must be (S, B, H, W, I), the weight (S, O, kh, kw, I) and the bias (S, O)";
        return Err(Error::shape("conv", why, &[xs, ws, bs]));
    }
    let out = [window.output(xs[2], ws[2]), window.output(xs[3], ws[3])];
    if window.stride == 0 || out.contains(&0) || xs.is_empty() || ws.is_empty() {
        let why = format!("the kernel does not fit into the input, padded by {}", window.padding);
        return Err(Error::shape("conv", why, &[xs, ws]));
    }
    let y = on_device_of!(x.value(), forward(x.value(), weight.value(), Some(bias.value()), window))?;
    let (xv, wv) = (x.value().clone(), weight.value().clone());
    Ok(tape.record([x, weight, bias], y, move |dy, needs| {
        let dx = needs[0]
            .then(|| on_device_of!(dy, try backward_input(&dy, &wv, xv.shape(), window)))
            .transpose()?;
        let dw = needs[1]
            .then(|| on_device_of!(dy, try backward_weight(&dy, &xv, wv.shape(), window)))
            .transpose()?;
        let db = needs[2].then(|| on_device_of!(dy, try backward_bias(&dy))).transpose()?;
        Ok([dx, dw, db])
    }))
}
