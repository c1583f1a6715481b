//! Measures a network on the split of a data set, one pair after the other.

mod modes;

use std::collections::BTreeMap;

use serde::Serialize;

pub use self::modes::{Modes, Window};
use crate::data::{ClassSet, Dataset, Example, Sample, batch, to_bytes};
use crate::infer::{Engine, Pairs, Session, Wanted};
use crate::metrics::{
    AveragePrecision, Confusion, FusionMean, FusionMetrics, Scores, fusion_metrics, luminance, stretch,
};
use crate::model::Amdanet;
use crate::{Device, Error, Result, Tape, Tensor, Var, cpu, ops};

/// A modality that is replaced by black, to see what the network makes of the other alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
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
    /// The fused picture as it came, `(1, 1, H, W, 3)` float32 on the CPU.
    pub image: Tensor,
    /// The scores, `(1, 1, H, W, classes)`.
    pub logits: Var,
}

/// A network that is ready to predict: packed for the fused engine, on the device of the network.
pub struct Predictor {
    engine: Engine,
    session: Session,
}

impl Predictor {
    /// Packs the network.
    ///
    /// # Errors
    /// When a weight is missing, or a device reports an error.
    pub fn new(model: &Amdanet) -> Result<Self> {
        Ok(Self::packed(Engine::new(model)?))
    }

    /// With a network that is packed already.
    pub fn packed(engine: Engine) -> Self {
        Self { session: engine.session(), engine }
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.engine.config().classes
    }

    /// Fuses and labels one pair, pictures `(1, 1, H, W, 3)` in [0, 1] on the CPU: whole, in windows, mirrored too, or at
    /// several scales.
    ///
    /// # Errors
    /// When the pictures' shapes differ, a side is below 32, or `modes` cannot be used for these pictures.
    pub fn predict(&mut self, visible: &Tensor, infrared: &Tensor, modes: &Modes) -> Result<Prediction> {
        cpu::on_pool(|| {
            let (logits, image) = modes::scores(self, visible, infrared, modes)?;
            let logits = Var::constant(logits);
            let labels = ops::argmax(&mut Tape::off(), &logits)?;
            let labels = labels.to(&Device::Cpu)?.as_slice::<u8>().to_vec();
            Ok(Prediction { labels, fused: to_bytes(image.f32()), image, logits })
        })
    }

    /// One pass: logits and picture, float32 on the CPU.
    fn pass(&mut self, visible: &Tensor, infrared: &Tensor) -> Result<(Tensor, Tensor)> {
        let wanted = Wanted { logits: true, image: true, ..Wanted::default() };
        let output = self.session.run(&Pairs::new(visible, infrared)?, wanted)?;
        let logits = visible.shape().with_last(self.engine.config().classes);
        let logits = Tensor::from_slice(logits, output.logits.unwrap_or_default())?;
        Ok((logits, Tensor::from_slice(visible.shape(), output.image.unwrap_or_default())?))
    }
}

/// [`Predictor::predict`] for a single pair, whole.
///
/// # Errors
/// As [`Predictor::predict`].
pub fn predict(model: &Amdanet, visible: &Tensor, infrared: &Tensor) -> Result<Prediction> {
    Predictor::new(model)?.predict(visible, infrared, &Modes::default())
}

/// How [`evaluate`] measures. The default takes whole pictures as they are.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct Options {
    /// How scores are obtained.
    #[serde(flatten)]
    pub modes: Modes,
    /// A modality to replace by black.
    pub blank: Option<Modality>,
    /// Whether each fused picture is stretched to its minimum and maximum before it is scored, as the published
    /// scripts do.
    pub stretch: bool,
}

/// The scores of some of the pairs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Part {
    /// Pairs that were measured.
    pub pairs: usize,
    /// Segmentation and fusion.
    #[serde(flatten)]
    pub scores: Scores,
}

/// What [`evaluate`] measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// Pairs that were measured.
    pub pairs: usize,
    /// Segmentation and fusion.
    #[serde(flatten)]
    pub scores: Scores,
    /// `day` and `night`, each if names tell of such pairs; see [`time_of_day`].
    pub splits: BTreeMap<&'static str, Part>,
    /// How it was measured.
    pub options: Options,
    /// Labels against predictions, over all pairs.
    #[serde(skip)]
    pub confusion: Confusion,
    /// The scores of the fused pictures as they are saved, and stretched.
    #[serde(skip)]
    pub fusion: [Option<FusionMetrics>; 2],
}

/// `day` or `night` by a name that ends in a digit and D or N, as in MFNet, MSRS and the synthetic scenes.
pub fn time_of_day(name: &str) -> Option<&'static str> {
    match name.as_bytes() {
        [.., b'0'..=b'9', b'D'] => Some("day"),
        [.., b'0'..=b'9', b'N'] => Some("night"),
        _ => None,
    }
}

/// Measures `model` on every pair of `dataset`; `each` sees every prediction.
///
/// # Errors
/// When the options cannot be used, a file of the data set cannot be read or a picture is too small.
pub fn evaluate(
    model: &Amdanet,
    dataset: &Dataset,
    classes: &ClassSet,
    options: &Options,
    each: impl FnMut(&Sample, &Prediction),
) -> Result<Evaluation> {
    evaluate_with(&mut Predictor::new(model)?, dataset, classes, options, each)
}

/// [`evaluate`] with a network that is ready.
///
/// # Errors
/// As there.
pub fn evaluate_with(
    predictor: &mut Predictor,
    dataset: &Dataset,
    classes: &ClassSet,
    options: &Options,
    mut each: impl FnMut(&Sample, &Prediction),
) -> Result<Evaluation> {
    options.modes.validate()?;
    let n = predictor.classes();
    let mut all = Counts::new(n);
    let mut parts = BTreeMap::new();
    for index in 0..dataset.len() {
        let sample = dataset.sample(index)?;
        let at_sample = |e: Error| Error::Config(format!("sample {}: {e}", sample.name));
        options.modes.check_size(sample.visible.height, sample.visible.width).map_err(at_sample)?;
        let mut input = batch(&[Example::whole(&sample)])?;
        match options.blank {
            Some(Modality::Visible) => input.visible.f32_mut().fill(0.0),
            Some(Modality::Infrared) => input.infrared.f32_mut().fill(0.0),
            None => {}
        }
        let predicted = predictor.predict(&input.visible, &input.infrared, &options.modes)?;
        let probabilities = ops::probabilities(&mut Tape::off(), &predicted.logits)?;
        let probabilities = probabilities.to(&Device::Cpu)?;
        let fusion = fusion_scores(&sample, &predicted)?;
        let part = time_of_day(&sample.name).map(|time| parts.entry(time).or_insert_with(|| Counts::new(n)));
        for counts in [Some(&mut all), part].into_iter().flatten() {
            counts.add(&sample.labels.ids, &predicted.labels, probabilities.f32(), fusion)?;
        }
        each(&sample, &predicted);
    }
    let Part { pairs, scores } = all.part(classes, options.stretch);
    let splits = parts.iter().map(|(time, counts)| (*time, counts.part(classes, options.stretch))).collect();
    let fusion = all.fusion.map(|mean| mean.mean());
    Ok(Evaluation { pairs, scores, splits, options: options.clone(), confusion: all.confusion, fusion })
}

/// The fused picture's scores as it is saved, and stretched.
fn fusion_scores(sample: &Sample, predicted: &Prediction) -> Result<[FusionMetrics; 2]> {
    let (w, h) = (sample.visible.width, sample.visible.height);
    let (visible, infrared) = (sample.visible.to_rgb8(), luminance(&sample.infrared.to_rgb8()));
    let stretched = to_bytes(&stretch(predicted.image.f32()));
    let [plain, stretched] =
        [&predicted.fused, &stretched].map(|fused| fusion_metrics(fused, &visible, &infrared, w, h));
    Ok([plain?, stretched?])
}

/// What is counted over pairs.
struct Counts {
    pairs: usize,
    confusion: Confusion,
    precision: AveragePrecision,
    /// As saved, and stretched.
    fusion: [FusionMean; 2],
}

impl Counts {
    fn new(classes: usize) -> Self {
        let (confusion, precision) = (Confusion::new(classes), AveragePrecision::new(classes));
        Self { pairs: 0, confusion, precision, fusion: Default::default() }
    }

    fn add(
        &mut self,
        labels: &[u8],
        predicted: &[u8],
        probabilities: &[f32],
        fusion: [FusionMetrics; 2],
    ) -> Result<()> {
        self.pairs += 1;
        self.confusion.add(labels, predicted)?;
        self.precision.add(probabilities, labels)?;
        self.fusion.iter_mut().zip(fusion).for_each(|(mean, scores)| mean.add(scores));
        Ok(())
    }

    fn part(&self, classes: &ClassSet, stretch: bool) -> Part {
        let fusion = self.fusion[usize::from(stretch)].mean();
        let scores = Scores::new(&classes.names, &self.confusion, Some(&self.precision), fusion);
        Part { pairs: self.pairs, scores }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_day_from_night() {
        let times =
            ["00012D", "00013N", "1N", "00012", "garden", "ROAD", "N", "", "7ä", "3d"].map(time_of_day);
        assert_eq!(times[..3], [Some("day"), Some("night"), Some("night")]);
        assert_eq!(times[3..], [None; 7]);
    }
}
