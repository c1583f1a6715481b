//! The depthwise convolution of Mix-FFN.

use crate::cpu::depthwise as cpu;
use crate::cuda::depthwise as cuda;
use crate::{Error, Result, Tape, Var};

/// GELU(depthwise 3×3 convolution of x, padding 1, plus bias).
///
/// x `(S, B, H, W, C)`, weight `(S, 3, 3, C)`, bias `(S, C)` -> `(S, B, H, W, C)`.
///
/// # Errors
/// When the shapes do not fit.
pub fn depthwise_gelu(tape: &mut Tape, x: &Var, weight: &Var, bias: &Var) -> Result<Var> {
    let (xs, ws, bs) = (x.shape(), weight.shape(), bias.shape());
    if xs.rank() != 5 || *ws != [xs[0], 3, 3, xs[4]] || *bs != [xs[0], xs[4]] {
        let why = "x must be (S, B, H, W, C), the weight (S, 3, 3, C) and the bias (S, C)";
        return Err(Error::shape("depthwise_gelu", why, &[xs, ws, bs]));
    }
    let y = on_device_of!(x.value(), forward(x.value(), weight.value(), bias.value()))?;
    let (xv, wv, bv) = (x.value().clone(), weight.value().clone(), bias.value().clone());
    Ok(tape.record([x, weight, bias], y, move |dy, _| {
        Ok(on_device_of!(xv, try backward(dy, &xv, &wv, &bv))?.map(Some))
    }))
}
