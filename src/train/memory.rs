//! How much memory a training will take, told before it begins.

use super::examples::CACHE_BYTES;
use super::{Config, Trainer};
use crate::cuda::conv;
use crate::cuda::trace::Trace;
use crate::data::{Batch, Dataset};
use crate::model::Amdanet;
use crate::nn::{Layout, Params, Pass};
use crate::tensor::pool;
use crate::{DType, Device, Result, Tensor};

/// The most memory that a training takes, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Estimate {
    /// Of the host.
    pub host: usize,
    /// Of the CUDA device, where one computes: what tensors and freed memory take.
    pub device: Option<usize>,
}

/// The program itself, its threads, and what the matrix products pack.
const PROGRAM: usize = 16 << 20;
/// Steps that are traced: as many as it takes to draw both choices of masking.
const STEPS: usize = 8;

/// The memory that a training with `config`, whose steps are counted, takes on `device` with activations of type `compute`;
/// `train` and, for the evaluation at the end, `val` tell the sizes of the pictures by their first one.
///
/// The tensors are not guessed: some steps run on a driver that computes nothing and counts what is allocated.
///
/// # Errors
/// When the configuration cannot be trained, or a picture cannot be read.
pub fn estimate(
    config: &Config,
    device: &Device,
    compute: DType,
    train: &Dataset,
    val: Option<&Dataset>,
) -> Result<Estimate> {
    let size = |dataset: &Dataset| -> Result<(usize, usize)> {
        let picture = dataset.sample(0)?.visible;
        Ok((picture.height, picture.width))
    };
    let sample = train.sample(0)?.bytes();
    let mut model = Amdanet::new(config.model.clone())?;
    let parameters = bytes(&model.params);
    let workspace = convolutions(&model.params);
    let trace = Trace::new(None);
    let place = Device::Cuda(trace.clone());
    model.params.place(&place, compute)?;
    let crop = (config.augment.height, config.augment.width);
    let batch = blank(&place, config.run.examples(), crop)?;
    let mut trainer = Trainer::new(model, config.clone());
    for _ in 0..STEPS {
        trainer.step(&batch)?;
    }
    let Trainer { model, .. } = trainer;
    drop(batch);
    if let Some(val) = val {
        let pair = blank(&place, 1, size(val)?)?;
        model.forward(&mut Pass::eval(&model.params), &pair.visible, &pair.infrared)?;
    }
    let tensors = trace.peak_bytes();
    // The peak is in the fusion head's 3×3 convolution over both pictures, whose patches the device gathers in large parts and
    // the CPU a few hundred at a time.
    let patches = (4 * config.run.batch * crop.0 * crop.1 * 9 * 6).min(conv::MOST_BYTES);

    // Both pictures of three floats, labels and what is valid.
    let example = |(height, width): (usize, usize)| height * width * (2 * 3 * 4 + 2);
    // Two batches wait, a third is being made of its examples or waits to join them.
    let queue = 4 * config.run.examples() * example(crop);
    let decoded = (sample * train.len().min(config.run.examples() * config.run.steps)).min(CACHE_BYTES);
    // A checkpoint is written from copies: both moments, then the weights. An average is one more of each.
    let copies = if config.run.ema > 0.0 { 3 } else { 2 } * parameters;
    let beside = PROGRAM + queue + decoded + copies;
    let (host, device) = match device {
        Device::Cpu => (pool::most(tensors - patches.min(tensors)) + workspace + beside, None),
        Device::Cuda(_) => (parameters + beside, Some(pool::most(tensors))),
    };
    // A twentieth for what is held in between, so that a training stays below what is said.
    Ok(Estimate { host: host + host / 20, device })
}

/// Bytes of all parameters.
fn bytes(params: &Params) -> usize {
    params.iter().map(|(_, param)| param.value.bytes()).sum()
}

/// What the backward of a convolution holds beside tensors on the CPU: parts of the gradient of its weight, and patches.
fn convolutions(params: &Params) -> usize {
    let threads = rayon::current_num_threads();
    let of_one = |weight: &Tensor| {
        let numbers = weight.len() / weight.dim(0);
        let parts = if numbers > 1 << 18 { 4 } else { 8 };
        let patch = numbers / weight.dim(1);
        4 * ((parts + 1) * numbers + weight.len() + threads * 256 * patch)
    };
    let weights = params.iter().filter(|(_, param)| param.layout == Layout::Conv);
    weights.map(|(_, param)| of_one(&param.value)).max().unwrap_or(0)
}

/// A batch of zeros.
fn blank(place: &Device, batch: usize, (height, width): (usize, usize)) -> Result<Batch> {
    let picture = || Tensor::zeros_on(place, [1, batch, height, width, 3], DType::F32);
    let bytes = || Tensor::zeros_on(place, [batch, height, width], DType::U8);
    Ok(Batch { visible: picture()?, infrared: picture()?, labels: bytes()?, valid: bytes()? })
}
