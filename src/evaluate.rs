//! Measures a network on the split of a data set: whole pictures, one after the other.

use serde::Serialize;

use crate::data::{ClassSet, Dataset, Example, Sample, batch, to_bytes};
use crate::metrics::{AveragePrecision, Confusion, FusionMean, Scores, fusion_metrics};
use crate::model::{Amdanet, SMALLEST_SIDE};
use crate::nn::Pass;
use crate::{DType, Device, Error, Result, Tensor, cpu, ops};

/// A modality that is replaced by black, to see what the network makes of the other alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Modality {
    /// The visible picture.
    Visible,
    /// The infrared picture.
    Infrared,
}

/// What the network makes of one pair.
pub struct Prediction {
    /// The class of each pixel, `(H, W)`.
    pub labels: Vec<u8>,
    /// The fused picture as 8-bit RGB, `(H, W, 3)`.
    pub fused: Vec<u8>,
    /// The scores, `(1, 1, H, W, classes)`.
    pub logits: crate::Var,
}

/// Fuses and labels one pair; pictures `(1, 1, H, W, 3)` in [0, 1].
///
/// # Errors
/// When the pictures' shapes differ or a side is below 32.
pub fn predict(model: &Amdanet, visible: &Tensor, infrared: &Tensor) -> Result<Prediction> {
    cpu::on_pool(|| {
        let mut pass = Pass::eval(&model.params);
        let output = model.forward(&mut pass, visible, infrared)?;
        let labels = ops::argmax(&mut pass.tape, &output.logits)?.to(&Device::Cpu)?;
        let image = output.image.value().cast(DType::F32)?.to(&Device::Cpu)?;
        let (labels, fused) = (labels.as_slice::<u8>().to_vec(), to_bytes(image.f32()));
        Ok(Prediction { labels, fused, logits: output.logits })
    })
}

/// What [`evaluate`] measured.
#[derive(Clone, Debug, Serialize)]
pub struct Evaluation {
    /// Pairs that were measured.
    pub pairs: usize,
    /// Segmentation and fusion.
    #[serde(flatten)]
    pub scores: Scores,
}

/// Measures `model` on every pair of `dataset`, with one modality blanked if asked for; `each` sees every prediction.
///
/// # Errors
/// When a file of the data set cannot be read or a picture is too small.
pub fn evaluate(
    model: &Amdanet,
    dataset: &Dataset,
    classes: &ClassSet,
    blank: Option<Modality>,
    mut each: impl FnMut(&Sample, &Prediction),
) -> Result<Evaluation> {
    let n = model.config().classes;
    let mut confusion = Confusion::new(n);
    let mut precision = AveragePrecision::new(n);
    let mut fusion = FusionMean::default();
    for index in 0..dataset.len() {
        let sample = dataset.sample(index)?;
        let (w, h) = (sample.visible.width, sample.visible.height);
        if w.min(h) < SMALLEST_SIDE {
            let what = format!("{w}x{h} pixels: the network needs at least {SMALLEST_SIDE} on each side");
            return Err(Error::Config(format!("sample {}: {what}", sample.name)));
        }
        let mut input = batch(&[Example::whole(&sample)])?;
        match blank {
            Some(Modality::Visible) => input.visible.f32_mut().fill(0.0),
            Some(Modality::Infrared) => input.infrared.f32_mut().fill(0.0),
            None => {}
        }
        let predicted = predict(model, &input.visible, &input.infrared)?;
        confusion.add(&sample.labels.ids, &predicted.labels)?;
        let probabilities =
            ops::probabilities(&mut crate::Tape::off(), &predicted.logits)?.to(&Device::Cpu)?;
        precision.add(probabilities.f32(), &sample.labels.ids)?;
        let (visible, infrared) = (sample.visible.to_rgb8(), sample.infrared.to_rgb8());
        let infrared: Vec<u8> = infrared.as_chunks::<3>().0.iter().map(|rgb| rgb[0]).collect();
        fusion.add(fusion_metrics(&predicted.fused, &visible, &infrared, w, h)?);
        each(&sample, &predicted);
    }
    let scores = Scores::new(&classes.names, &confusion, Some(&precision), fusion.mean());
    Ok(Evaluation { pairs: dataset.len(), scores })
}
