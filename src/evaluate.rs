//! Measures a network on the split of a data set: whole pictures, one after the other.

use serde::Serialize;

use crate::data::{ClassSet, Dataset, Example, Sample, batch, to_bytes};
use crate::infer::{Engine, Pairs, Session, Wanted};
use crate::metrics::{AveragePrecision, Confusion, FusionMean, Scores, fusion_metrics};
use crate::model::{Amdanet, SMALLEST_SIDE};
use crate::nn::Pass;
use crate::{DType, Device, Error, Result, Tensor, ops};

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

/// A network that is ready to predict: on the CPU packed for the fused engine, whose plans and memory are kept.
pub struct Predictor<'a> {
    model: &'a Amdanet,
    session: Option<Session>,
}

impl<'a> Predictor<'a> {
    /// Packs the network where it is on the CPU.
    ///
    /// # Errors
    /// When a weight is missing.
    pub fn new(model: &'a Amdanet) -> Result<Self> {
        let packed = *model.params.device() == Device::Cpu;
        let session = packed.then(|| Engine::new(model)).transpose()?.map(|engine| engine.session());
        Ok(Self { model, session })
    }

    /// Fuses and labels one pair; pictures `(1, 1, H, W, 3)` in [0, 1].
    ///
    /// # Errors
    /// When the pictures' shapes differ or a side is below 32.
    pub fn predict(&mut self, visible: &Tensor, infrared: &Tensor) -> Result<Prediction> {
        if let Some(session) = &mut self.session {
            let wanted = Wanted { logits: true, ..Wanted::default() };
            let output = session.run(&Pairs::new(visible, infrared)?, wanted)?;
            let shape = visible.shape().with_last(self.model.config().classes);
            let logits = Tensor::from_slice(shape, output.logits.unwrap_or_default())?;
            let (labels, fused) = (output.labels.to_vec(), output.fused.to_vec());
            return Ok(Prediction { labels, fused, logits: crate::Var::constant(logits) });
        }
        let mut pass = Pass::eval(&self.model.params);
        let output = self.model.forward(&mut pass, visible, infrared)?;
        let labels = ops::argmax(&mut pass.tape, &output.logits)?.to(&Device::Cpu)?;
        let image = output.image.value().cast(DType::F32)?.to(&Device::Cpu)?;
        let (labels, fused) = (labels.as_slice::<u8>().to_vec(), to_bytes(image.f32()));
        Ok(Prediction { labels, fused, logits: output.logits })
    }
}

/// [`Predictor::predict`] for a single pair.
///
/// # Errors
/// As [`Predictor::predict`].
pub fn predict(model: &Amdanet, visible: &Tensor, infrared: &Tensor) -> Result<Prediction> {
    Predictor::new(model)?.predict(visible, infrared)
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
    let mut predictor = Predictor::new(model)?;
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
        let predicted = predictor.predict(&input.visible, &input.infrared)?;
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
