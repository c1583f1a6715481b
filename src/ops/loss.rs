//! Losses of the segmentation.
//!
//! Logits are `(1, B, H, W, K)`, labels U8 `(B, H, W)`, and each loss is a number of shape `(1)`.

use crate::cpu::loss as cpu;
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
    let value = cpu::cross_entropy(logits.value(), labels.as_slice());
    let (x, labels) = (logits.value().clone(), labels.clone());
    Ok(tape.record([logits], Tensor::scalar(value), move |dy, _| {
        Ok([Some(cpu::cross_entropy_backward(dy.item(), &x, labels.as_slice()))])
    }))
}

/// Dice: 1 − meanₖ (2·Σ pₖ·onehotₖ + s) / (Σ (pₖ + onehotₖ) + s), p = softmax(logits), s = 1e-5, sums over all
/// pixels. As in the published training, pixels labelled [`IGNORE`] count as class 0.
///
/// # Errors
/// When the shapes do not fit, or a label is neither a class nor [`IGNORE`].
pub fn dice(tape: &mut Tape, logits: &Var, labels: &Tensor) -> Result<Var> {
    check("dice", logits, labels)?;
    let sums = cpu::dice_sums(logits.value(), labels.as_slice());
    let (x, labels) = (logits.value().clone(), labels.clone());
    Ok(tape.record([logits], Tensor::scalar(cpu::dice(&sums)), move |dy, _| {
        Ok([Some(cpu::dice_backward(dy.item(), &sums, &x, labels.as_slice()))])
    }))
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
    let value = cpu::consistency(logits.value(), target_logits.value(), labels.as_slice());
    let (x, t, labels) = (logits.value().clone(), target_logits.value().clone(), labels.clone());
    Ok(tape.record([logits], Tensor::scalar(value), move |dy, _| {
        Ok([Some(cpu::consistency_backward(dy.item(), &x, &t, labels.as_slice()))])
    }))
}

/// Σ weight · term, for terms of shape `(1)`. A term of weight 0 is left out, whatever its value.
///
/// # Errors
/// When a term has another shape.
pub fn weighted_sum(tape: &mut Tape, terms: &[(f32, Var)]) -> Result<Var> {
    let mut sum = Var::constant(Tensor::scalar(0.0));
    for (weight, term) in terms {
        if term.shape() != sum.shape() {
            return Err(Error::shape("weighted_sum", "each term must be a number", &[term.shape()]));
        }
        if *weight == 0.0 {
            continue;
        }
        let weight = *weight;
        let value = Tensor::scalar(sum.value().item() + weight * term.value().item());
        sum = tape.record([&sum, term], value, move |dy, _| {
            let scaled = Tensor::scalar(weight * dy.item());
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
    let classes = x.last();
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
