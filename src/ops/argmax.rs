//! From logits to classes and to probabilities.

use crate::cpu::argmax as cpu;
use crate::cuda::argmax as cuda;
use crate::{Error, Result, Tape, Tensor, Var};

/// The class of each pixel: logits `(1, B, H, W, K)` -> U8 `(B, H, W)`, the first class where several are largest.
///
/// # Errors
/// When the shape is another, K exceeds 255 (label 255 means "ignored"), or the logits need a gradient.
pub fn argmax(tape: &mut Tape, logits: &Var) -> Result<Tensor> {
    check("argmax", tape, logits)?;
    if logits.shape().last() > 255 {
        let why = "labels are 8 bits with 255 reserved: at most 255 classes";
        return Err(Error::shape("argmax", why, &[logits.shape()]));
    }
    on_device_of!(logits.value(), argmax(logits.value()))
}

/// The probability of each class: softmax over K of logits `(1, B, H, W, K)`, f32 of the same shape.
///
/// # Errors
/// When the shape is another, or the logits need a gradient.
pub fn probabilities(tape: &mut Tape, logits: &Var) -> Result<Tensor> {
    check("probabilities", tape, logits)?;
    on_device_of!(logits.value(), probabilities(logits.value()))
}

fn check(op: &'static str, tape: &Tape, logits: &Var) -> Result<()> {
    let s = logits.shape();
    if s.rank() != 5 || s[0] != 1 || s.is_empty() {
        return Err(Error::shape(op, "logits must be (1, B, H, W, K)", &[s]));
    }
    tape.forward_only(op, [logits])
}
