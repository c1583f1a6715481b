//! Linear layers.

use crate::cpu::linear as cpu;
use crate::cuda::linear as cuda;
use crate::{Error, Result, Tape, Tensor, Var};

/// y = x·Wᵀ + b.
///
/// x `(S, …, I)`, weight `(S, O, I)`, bias `(S, O)` -> `(S, …, O)`.
///
/// # Errors
/// When the shapes do not fit.
pub fn linear(tape: &mut Tape, x: &Var, weight: &Var, bias: Option<&Var>) -> Result<Var> {
    check(x, weight, bias)?;
    let y = on_device_of!(x.value(), forward(x.value(), weight.value(), bias.map(Var::value), None))?;
    let (xv, wv) = (x.value().clone(), weight.value().clone());
    Ok(match bias {
        None => tape.record_adding([x, weight], y, move |dy, needs, sum| {
            let [dx, dw, _] = backward(&dy, &xv, &wv, [needs[0], needs[1], false], sum)?;
            Ok([dx, dw])
        }),
        Some(b) => {
            tape.record_adding([x, weight, b], y, move |dy, needs, sum| backward(&dy, &xv, &wv, needs, sum))
        }
    })
}

/// y = x·Wᵀ + b + residual, the end of a residual branch; `residual` has the shape of the output.
///
/// # Errors
/// When the shapes do not fit.
pub fn linear_add(tape: &mut Tape, x: &Var, weight: &Var, bias: &Var, residual: &Var) -> Result<Var> {
    check(x, weight, Some(bias))?;
    if residual.shape() != x.shape().with_last(weight.value().dim(1)) {
        let why = "the residual does not have the output's shape";
        return Err(Error::shape("linear_add", why, &[x.shape(), weight.shape(), residual.shape()]));
    }
    let (b, r) = (Some(bias.value()), Some(residual.value()));
    let y = on_device_of!(x.value(), forward(x.value(), weight.value(), b, r))?;
    let (xv, wv) = (x.value().clone(), weight.value().clone());
    Ok(tape.record_adding([x, weight, bias, residual], y, move |dy, needs, sum| {
        let [dx, dw, db] = backward(&dy, &xv, &wv, [needs[0], needs[1], needs[2]], sum)?;
        Ok([dx, dw, db, Some(dy)])
    }))
}

/// The gradients that are needed; that of x is added to `sum`.
fn backward(
    dy: &Tensor,
    x: &Tensor,
    w: &Tensor,
    needs: [bool; 3],
    sum: Option<Tensor>,
) -> Result<[Option<Tensor>; 3]> {
    let s = w.dim(0);
    Ok([
        needs[0].then(|| on_device_of!(dy, backward_input(dy, w, sum.as_ref()))).transpose()?,
        needs[1].then(|| on_device_of!(dy, backward_weight(dy, x, s))).transpose()?,
        needs[2].then(|| on_device_of!(dy, try backward_bias(dy, s))).transpose()?,
    ])
}

fn check(x: &Var, weight: &Var, bias: Option<&Var>) -> Result<()> {
    let (xs, ws) = (x.shape(), weight.shape());
    if ws.rank() != 3 || xs.rank() < 2 || xs[0] != ws[0] || xs.last() != ws[2] || xs.is_empty() {
        return Err(Error::shape("linear", "x must be (S, ..., I) and the weight (S, O, I)", &[xs, ws]));
    }
    if let Some(b) = bias
        && *b.shape() != ws[..2]
    {
        return Err(Error::shape("linear", "the bias must be (S, O)", &[ws, b.shape()]));
    }
    Ok(())
}
