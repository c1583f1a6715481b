//! Losses of the segmentation.
//!
//! Logits are `(1, B, H, W, K)`, labels U8 `(B, H, W)`, and each loss is a number of shape `(1)`.

use crate::cpu::loss as cpu;
use crate::cuda::loss as cuda;
use crate::{DType, Error, Result, Tape, Tensor, Var};

pub use crate::cpu::loss::IGNORE;

/// Cross entropy: −mean log softmax(logits)\[label\] over the pixels not labelled [`IGNORE`].
///
/// Without such a pixel the loss and its gradient are 0 (PyTorch gives NaN): a crop may be all padding.
///
/// # Errors
/// When the shapes do not fit, or a label is neither a class nor [`IGNORE`].
pub fn cross_entropy(tape: &mut Tape, logits: &Var, labels: &Tensor) -> Result<Var> {
    check("cross_entropy", logits, labels)?;
    let (x, labels) = (logits.value().clone(), labels.clone());
    let (loss, pixels) = on_device_of!(x, cross_entropy(&x, &labels))?;
    Ok(tape.record([logits], loss, move |dy, _| {
        Ok([Some(on_device_of!(x, cross_entropy_backward(&dy, &pixels, &x, &labels))?)])
    }))
}

/// Dice: 1 − meanₖ (2·Σ pₖ·onehotₖ + s) / (Σ (pₖ + onehotₖ) + s), p = softmax(logits), s = 1e-5, sums over all
/// pixels. As in the published training, pixels labelled [`IGNORE`] count as class 0.
///
/// # Errors
/// When the shapes do not fit, or a label is neither a class nor [`IGNORE`].
pub fn dice(tape: &mut Tape, logits: &Var, labels: &Tensor) -> Result<Var> {
    check("dice", logits, labels)?;
    let (x, labels) = (logits.value().clone(), labels.clone());
    if x.is_on_cpu() {
        let sums = cpu::dice_sums(&x, labels.as_slice());
        Ok(tape.record([logits], Tensor::scalar(cpu::dice(&sums)), move |dy, _| {
            Ok([Some(cpu::dice_backward(dy.item(), &sums, &x, labels.as_slice()))])
        }))
    } else {
        let (loss, coefficients) = cuda::dice(&x, &labels)?;
        Ok(tape.record([logits], loss, move |dy, _| {
            Ok([Some(cuda::dice_backward(&dy, &coefficients, &x, &labels)?)])
        }))
    }
}

/// Consistency of a masked prediction with the unmasked one (the last term of eq. 16 in the paper's form):
/// −mean Σₖ softmax(target_logits)ₖ · log softmax(logits)ₖ over the pixels not labelled [`IGNORE`]; 0 without any.
///
/// No gradient flows to `target_logits`, of the shape of `logits`.
///
/// # Errors
/// When the shapes do not fit, or a label is neither a class nor [`IGNORE`].
pub fn consistency(tape: &mut Tape, logits: &Var, target_logits: &Var, labels: &Tensor) -> Result<Var> {
    check("consistency", logits, labels)?;
    if target_logits.shape() != logits.shape() {
        let shapes = [logits.shape(), target_logits.shape()];
        return Err(Error::shape("consistency", "logits and their target differ", &shapes));
    }
    let (x, t, labels) = (logits.value().clone(), target_logits.value().clone(), labels.clone());
    same_device("consistency", &x, &[&t])?;
    let (loss, pixels) = on_device_of!(x, consistency(&x, &t, &labels))?;
    Ok(tape.record([logits], loss, move |dy, _| {
        Ok([Some(on_device_of!(x, consistency_backward(&dy, &pixels, &x, &t, &labels))?)])
    }))
}

/// Σ weight · term, for terms of shape `(1)`. A term of weight 0 is left out, whatever its value.
///
/// # Errors
/// When a term has another shape.
pub fn weighted_sum(tape: &mut Tape, terms: &[(f32, Var)]) -> Result<Var> {
    if let Some((_, term)) = terms.iter().find(|(_, term)| *term.shape() != [1]) {
        return Err(Error::shape("weighted_sum", "each term must be a number", &[term.shape()]));
    }
    let terms: Vec<(f32, &Var)> = terms.iter().filter(|t| t.0 != 0.0).map(|(w, term)| (*w, term)).collect();
    let Some((_, first)) = terms.first() else { return Ok(Var::constant(Tensor::scalar(0.0))) };
    let values: Vec<(f32, &Tensor)> = terms.iter().map(|(w, term)| (*w, term.value())).collect();
    let total = on_device_of!(first.value(), weighted_sum(&values))?;
    // One record for each term, of which only the last one's value is read.
    let mut sum = Var::constant(total.clone());
    for (weight, term) in terms {
        sum = tape.record([&sum, term], total.clone(), move |dy, _| {
            let scaled = on_device_of!(dy, scale(&dy, weight))?;
            Ok([Some(dy), Some(scaled)])
        });
    }
    Ok(sum)
}

fn check(op: &'static str, logits: &Var, labels: &Tensor) -> Result<()> {
    let (x, l) = (logits.shape(), labels.shape());
    if x.rank() != 5 || x[0] != 1 || x[1..4] != *l || x.is_empty() {
        return Err(Error::shape(op, "logits must be (1, B, H, W, K) and labels (B, H, W)", &[x, l]));
    }
    if labels.dtype() != DType::U8 {
        return Err(Error::shape(op, format!("labels must be u8, not {}", labels.dtype()), &[l]));
    }
    same_device(op, logits.value(), &[labels])?;
    if labels.is_on_cpu() { check_labels(op, labels, x.last()) } else { Ok(()) }
}

/// Whether each of `labels`, U8 `(B, H, W)` on the CPU, is one of `classes` classes or [`IGNORE`].
///
/// The losses ask it of labels on the CPU. On a device a label that is no class counts as [`IGNORE`], so whoever moves
/// labels there asks first.
///
/// # Errors
/// When one is not; the message starts with `op`.
pub fn check_labels(op: &str, labels: &Tensor, classes: usize) -> Result<()> {
    let l = labels.shape();
    let is_bad = |&label: &u8| usize::from(label) >= classes && label != IGNORE;
    let labels = labels.as_slice::<u8>();
    if let Some(i) = labels.iter().position(is_bad) {
        let (sample, row, column) = (i / (l[1] * l[2]), i / l[2] % l[1], i % l[2]);
        return Err(Error::Config(format!(
            "{op}: label {} in sample {sample} at row {row}, column {column}, but there are {classes} classes: \
             labels are 0 to {} or {IGNORE} for pixels to ignore",
            labels[i],
            classes - 1
        )));
    }
    Ok(())
}

/// Whether all of `others` are on the device of `x`.
pub(super) fn same_device(op: &str, x: &Tensor, others: &[&Tensor]) -> Result<()> {
    match others.iter().find(|other| other.device() != x.device()) {
        Some(other) => {
            let (here, there) = (x.device(), other.device());
            Err(Error::Config(format!(
                "{op}: one tensor is on {here:?}, another on {there:?}: move them together"
            )))
        }
        None => Ok(()),
    }
}
