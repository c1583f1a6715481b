//! Measures a network on the split of a data set (SPEC: whole pictures, one after the other).

use serde::Serialize;

use crate::data::{ClassSet, Dataset, Example, Sample, batch, to_bytes};
use crate::metrics::{AveragePrecision, Confusion, FusionMetrics, fusion_metrics};
use crate::model::Amdanet;
use crate::nn::Pass;
use crate::{Result, Tensor, ops};

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
    let mut pass = Pass::eval(&model.params);
    let output = model.forward(&mut pass, visible, infrared)?;
    let labels = ops::argmax(&mut pass.tape, &output.logits)?.as_slice::<u8>().to_vec();
    Ok(Prediction { labels, fused: to_bytes(output.image.value().f32()), logits: output.logits })
}

/// The scores of one class.
#[derive(Clone, Debug, Serialize)]
pub struct ClassScore {
    /// The class.
    pub name: String,
    /// TP / (TP + FP + FN); `None` when the class occurs neither in labels nor in predictions.
    pub iou: Option<f64>,
    /// TP / (TP + FN); `None` when the class does not occur in labels.
    pub accuracy: Option<f64>,
    /// Area under the precision-recall curve of its pixels; `None` when the class does not occur in labels.
    pub average_precision: Option<f64>,
}

/// What [`evaluate`] measured.
#[derive(Clone, Debug, Serialize)]
pub struct Evaluation {
    /// Pairs that were measured.
    pub pairs: usize,
    /// Mean IoU over the classes that occur.
    pub miou: Option<f64>,
    /// Mean class accuracy, which the paper's Table 4 calls mAP.
    pub macc: Option<f64>,
    /// Mean average precision.
    pub map: Option<f64>,
    /// Share of pixels that are right.
    pub pixel_accuracy: Option<f64>,
    /// IoU weighted by the frequency of the classes.
    pub fwiou: Option<f64>,
    /// By class.
    pub classes: Vec<ClassScore>,
    /// Quality of the fused pictures, averaged over the pairs.
    pub fusion: FusionMetrics,
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
    let mut fusion = FusionMetrics::default();
    for index in 0..dataset.len() {
        let sample = dataset.sample(index)?;
        let mut input = batch(&[Example::whole(&sample)])?;
        match blank {
            Some(Modality::Visible) => input.visible.f32_mut().fill(0.0),
            Some(Modality::Infrared) => input.infrared.f32_mut().fill(0.0),
            None => {}
        }
        let predicted = predict(model, &input.visible, &input.infrared)?;
        confusion.add(&sample.labels.ids, &predicted.labels);
        let probabilities = ops::probabilities(&mut crate::Tape::off(), &predicted.logits)?;
        precision.add(probabilities.f32(), &sample.labels.ids);
        let (visible, infrared) = (sample.visible.to_rgb8(), sample.infrared.to_rgb8());
        let infrared: Vec<u8> = infrared.as_chunks::<3>().0.iter().map(|rgb| rgb[0]).collect();
        let (w, h) = (sample.visible.width, sample.visible.height);
        fusion += fusion_metrics(&predicted.fused, &visible, &infrared, w, h);
        each(&sample, &predicted);
    }
    let scores = (0..n).map(|c| ClassScore {
        name: classes.names.get(c).cloned().unwrap_or_else(|| format!("class {c}")),
        iou: confusion.iou(c),
        accuracy: confusion.accuracy(c),
        average_precision: precision.ap(c),
    });
    Ok(Evaluation {
        pairs: dataset.len(),
        miou: confusion.miou(),
        macc: confusion.macc(),
        map: precision.map(),
        pixel_accuracy: confusion.pixel_accuracy(),
        fwiou: confusion.fwiou(),
        classes: scores.collect(),
        fusion: fusion / dataset.len().max(1) as f64,
    })
}
