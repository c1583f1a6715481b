//! Operations on each element alone.

use crate::cpu::elementwise as cpu;
use crate::{Error, Result, Tape, Var};

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

/// max(x, 0).
pub fn relu(tape: &mut Tape, x: &Var) -> Var {
    let y = cpu::relu(x.value());
    let saved = y.clone();
    tape.record([x], y, move |dy, _| Ok([Some(cpu::relu_backward(dy, &saved))]))
}

/// The logistic function σ(x).
pub fn sigmoid(tape: &mut Tape, x: &Var) -> Var {
    let y = cpu::sigmoid(x.value());
    let saved = y.clone();
    tape.record([x], y, move |dy, _| Ok([Some(cpu::sigmoid_backward(dy, &saved))]))
}

/// GELU(x) = x·Φ(x), exact.
pub fn gelu(tape: &mut Tape, x: &Var) -> Var {
    let y = cpu::gelu(x.value());
    let saved = x.value().clone();
    tape.record([x], y, move |dy, _| Ok([Some(cpu::gelu_backward(dy, &saved))]))
}
