//! How good a prediction is: scores of the segmentation and of the fused image.

mod confusion;
mod fusion;
mod precision;

use serde::Serialize;

pub use confusion::Confusion;
pub use fusion::{FusionMean, FusionMetrics, fusion_metrics, luminance, stretch};
pub use precision::AveragePrecision;

/// The label of pixels that do not count.
const IGNORE: u8 = crate::ops::IGNORE;

/// The scores of one class.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassScore {
    /// The name of the class.
    pub name: String,
    /// TP / (TP + FP + FN); none when the class occurs neither in the labels nor in the predictions.
    pub iou: Option<f64>,
    /// TP / (TP + FN); none when no label has the class.
    pub accuracy: Option<f64>,
    /// Average precision; none when no label has the class, or probabilities were not counted.
    pub ap: Option<f64>,
}

/// All scores of a split, as they appear in reports and in JSON.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Scores {
    /// Mean of the classes' IoU.
    pub miou: Option<f64>,
    /// Mean of the classes' accuracy, which Table 4 of the paper calls mAP.
    pub macc: Option<f64>,
    /// Mean of the classes' average precision.
    pub map: Option<f64>,
    /// Share of the pixels with the right class.
    pub pixel_accuracy: Option<f64>,
    /// IoU weighted with the classes' shares of the labels.
    pub fwiou: Option<f64>,
    /// The classes in order.
    pub classes: Vec<ClassScore>,
    /// Scores of the fused images, when there were any.
    pub fusion: Option<FusionMetrics>,
}

impl Scores {
    /// Puts the scores together; class i is called `names[i]`, or by its number when it has no name.
    pub fn new<S: AsRef<str>>(
        names: &[S],
        confusion: &Confusion,
        precision: Option<&AveragePrecision>,
        fusion: Option<FusionMetrics>,
    ) -> Self {
        let class = |c: usize| ClassScore {
            name: names.get(c).map_or_else(|| c.to_string(), |name| name.as_ref().to_string()),
            iou: confusion.iou(c),
            accuracy: confusion.class_accuracy(c),
            ap: precision.and_then(|p| p.ap(c)),
        };
        Self {
            miou: confusion.miou(),
            macc: confusion.macc(),
            map: precision.and_then(AveragePrecision::map),
            pixel_accuracy: confusion.pixel_accuracy(),
            fwiou: confusion.fwiou(),
            classes: (0..confusion.classes()).map(class).collect(),
            fusion,
        }
    }
}

/// The mean of what there is, if anything.
fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (count, sum) = values.fold((0usize, 0.0), |(n, sum), v| (n + 1, sum + v));
    (count > 0).then(|| sum / count as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_the_promised_keys() {
        let mut confusion = Confusion::new(2);
        confusion.add(&[0, 0, 0], &[0, 0, 0]).unwrap();
        let fusion = FusionMetrics { en: 1.0, sd: 2.0, sf: 3.0, scd: 4.0 };
        let json = serde_json::to_value(Scores::new(&["car"], &confusion, None, Some(fusion))).unwrap();
        assert_eq!(json["miou"], 1.0);
        assert_eq!(json["pixel_accuracy"], 1.0);
        assert!(json["map"].is_null() && json["macc"] == 1.0);
        assert_eq!(json["classes"][0]["name"], "car");
        assert_eq!(json["classes"][1]["name"], "1");
        assert!(json["classes"][1]["iou"].is_null() && json["classes"][0]["accuracy"] == 1.0);
        assert_eq!(json["fusion"]["scd"], 4.0);
    }
}
