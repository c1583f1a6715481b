//! Operations on each element alone.

use crate::cpu::elementwise as cpu;
use crate::cuda::elementwise as cuda;
use crate::{Error, Result, Tape, Tensor, Var};

/// a + b, of equal shapes. The buffer of `b` is reused when nobody else holds it.
///
/// # Errors
/// When the shapes differ.
pub fn add(tape: &mut Tape, a: &Var, b: Var) -> Result<Var> {
    if a.shape() != b.shape() {
        return Err(Error::shape("add", "the shapes differ", &[a.shape(), b.shape()]));
    }
    let keys = [a.key(), b.key()];
    let mut y = b.into_value();
    y.add_assign(a.value())?;
    Ok(tape.record_keys(keys, y, |dy, _| Ok([Some(dy.clone()), Some(dy)])))
}

/// `y`, which is x stored as another type; the gradient comes back in the type of x.
pub fn cast(tape: &mut Tape, x: &Var, y: Tensor) -> Var {
    let from = x.value().dtype();
    tape.record([x], y, move |dy, _| Ok([Some(dy.cast(from)?)]))
}

/// max(x, 0).
///
/// # Errors
/// When a device reports one.
pub fn relu(tape: &mut Tape, x: &Var) -> Result<Var> {
    let y = on_device_of!(x.value(), relu(x.value()))?;
    let saved = y.clone();
    Ok(tape.record([x], y, move |dy, _| Ok([Some(on_device_of!(saved, relu_backward(dy, &saved))?)])))
}

/// The logistic function σ(x).
///
/// # Errors
/// When a device reports one.
pub fn sigmoid(tape: &mut Tape, x: &Var) -> Result<Var> {
    let y = on_device_of!(x.value(), sigmoid(x.value()))?;
    let saved = y.clone();
    Ok(tape.record([x], y, move |dy, _| Ok([Some(on_device_of!(saved, sigmoid_backward(dy, &saved))?)])))
}

/// GELU(x) = x·Φ(x), exact.
///
/// # Errors
/// When a device reports one.
pub fn gelu(tape: &mut Tape, x: &Var) -> Result<Var> {
    let y = on_device_of!(x.value(), gelu(x.value()))?;
    let saved = x.value().clone();
    Ok(tape.record([x], y, move |dy, _| Ok([Some(on_device_of!(saved, gelu_backward(dy, &saved))?)])))
}
