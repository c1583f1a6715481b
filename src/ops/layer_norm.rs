//! Layer normalisation.

use crate::cpu::layer_norm as cpu;
use crate::cuda::layer_norm as cuda;
use crate::{Error, Result, Tape, Var};

/// y = (x − μ)/√(σ² + eps)·w + b, μ and σ² over the channels.
///
/// x `(S, …, C)`, weight `(S, C)`, bias `(S, C)` -> `(S, …, C)`.
///
/// # Errors
/// When the shapes do not fit.
pub fn layer_norm(tape: &mut Tape, x: &Var, weight: &Var, bias: &Var, eps: f32) -> Result<Var> {
    let (xs, ws, bs) = (x.shape(), weight.shape(), bias.shape());
    if ws.rank() != 2 || xs.rank() < 2 || xs[0] != ws[0] || xs.last() != ws[1] || bs != ws || xs.is_empty() {
        let why = "x must be (S, ..., C), the weight and the bias (S, C)";
        return Err(Error::shape("layer_norm", why, &[xs, ws, bs]));
    }
    let (y, statistics) = on_device_of!(x.value(), forward(x.value(), weight.value(), bias.value(), eps))?;
    let (xv, wv) = (x.value().clone(), weight.value().clone());
    Ok(tape.record_adding([x, weight, bias], y, move |dy, _, sum| {
        let (dx, dw, db) = on_device_of!(xv, try backward(dy, &xv, &wv, &statistics, sum.as_ref()))?;
        Ok([Some(dx), Some(dw), Some(db)])
    }))
}
