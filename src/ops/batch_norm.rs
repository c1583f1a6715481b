//! Batch normalisation and the ReLU that always follows it in this network.

use crate::cpu::batch_norm as cpu;
use crate::cpu::batch_norm::Normalization;
use crate::cuda::batch_norm as cuda;
use crate::{Error, Result, Tape, Tensor, Var};

/// Whose mean and variance normalise.
#[derive(Clone, Copy, Debug)]
pub enum BatchNorm<'a> {
    /// Running statistics, each `(S, C)`: evaluation. No gradient flows to them.
    Eval {
        /// The running mean.
        mean: &'a Tensor,
        /// The running variance.
        variance: &'a Tensor,
    },
    /// Those of the input itself, over batch, rows and columns: training.
    Train,
}

/// Statistics of a batch, for the running update: running = (1 − momentum)·running + momentum·batch.
#[derive(Clone, Debug)]
pub struct BatchStatistics {
    /// The mean, `(S, C)`.
    pub mean: Tensor,
    /// The unbiased variance, `(S, C)`.
    pub variance: Tensor,
}

/// y = max((x − μ)/√(σ² + eps)·w + b, 0), μ and σ² for each stream and channel; in training σ² is the biased
/// variance, and the statistics come back for the running update.
///
/// x `(S, …, C)`, weight and bias `(S, C)` -> `(S, …, C)`.
///
/// # Errors
/// When the shapes do not fit, and in training when there is a single value in each channel.
pub fn batch_norm_relu(
    tape: &mut Tape,
    x: &Var,
    weight: &Var,
    bias: &Var,
    mode: BatchNorm,
    eps: f32,
) -> Result<(Var, Option<BatchStatistics>)> {
    let (xs, ws, bs) = (x.shape(), weight.shape(), bias.shape());
    if ws.rank() != 2 || xs.rank() < 2 || xs[0] != ws[0] || xs.last() != ws[1] || bs != ws || xs.is_empty() {
        let why = "x must be (S, ..., C), the weight and the bias (S, C)";
        return Err(Error::shape("batch_norm_relu", why, &[xs, ws, bs]));
    }
    let rows = xs.len() / ws.len();
    let (mean, variance, statistics) = match mode {
        BatchNorm::Eval { mean, variance } => {
            if mean.shape() != ws || variance.shape() != ws {
                let why = "the running mean and variance must be (S, C)";
                return Err(Error::shape("batch_norm_relu", why, &[ws, mean.shape(), variance.shape()]));
            }
            (mean.clone(), variance.clone(), None)
        }
        BatchNorm::Train if rows < 2 => {
            let why = "training needs more than one value in each channel: use a larger batch or input";
            return Err(Error::shape("batch_norm_relu", why, &[xs]));
        }
        BatchNorm::Train => {
            let (mean, variance, unbiased) = on_device_of!(x.value(), try statistics(x.value(), ws[0]))?;
            (mean.clone(), variance, Some(BatchStatistics { mean, variance: unbiased }))
        }
    };
    let (weights, biases, of_batch) = (weight.value().clone(), bias.value().clone(), statistics.is_some());
    let normalization = Normalization { mean, variance, weight: weights, bias: biases, eps, of_batch };
    let y = on_device_of!(x.value(), forward(x.value(), &normalization))?;
    let xv = x.value().clone();
    let y = tape.record([x, weight, bias], y, move |dy, _| {
        let (dx, dw, db) = on_device_of!(xv, try backward(dy, &xv, &normalization))?;
        Ok([Some(dx), Some(dw), Some(db)])
    });
    Ok((y, statistics))
}

/// running = (1 − momentum)·running + momentum·batch, each `(S, C)`.
///
/// # Errors
/// When the shapes differ, or a device reports an error.
pub fn update_running(running: &mut Tensor, batch: &Tensor, momentum: f32) -> Result<()> {
    if running.shape() != batch.shape() {
        let shapes = [running.shape(), batch.shape()];
        return Err(Error::shape("update_running", "the shapes differ", &shapes));
    }
    on_device_of!(batch, update_running(running, batch, momentum))
}
