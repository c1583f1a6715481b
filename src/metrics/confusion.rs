//! The confusion matrix and what follows from it.

use super::{IGNORE, mean};
use crate::{Error, Result};

/// How often each label met each prediction, over any number of pictures. Pixels labelled 255 do not count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confusion {
    classes: usize,
    /// Row: label; column: prediction.
    counts: Vec<u64>,
}

impl Confusion {
    /// An empty matrix for `classes` classes.
    pub fn new(classes: usize) -> Self {
        Self { classes, counts: vec![0; classes * classes] }
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Pixels of class `label` that were predicted as `prediction`.
    pub fn count(&self, label: usize, prediction: usize) -> u64 {
        self.counts[label * self.classes + prediction]
    }

    /// Counts the pixels of a picture.
    ///
    /// # Errors
    /// When the lengths differ, a label is neither a class nor 255, or a prediction is not a class. Then nothing
    /// is counted.
    pub fn add(&mut self, label: &[u8], prediction: &[u8]) -> Result<()> {
        if label.len() != prediction.len() {
            return Err(Error::Config(format!(
                "{} labels for {} predictions",
                label.len(),
                prediction.len()
            )));
        }
        // A matrix over all bytes: the loop needs no checks, and the checks follow on the counts.
        let mut seen = vec![0u64; 256 * 256];
        for (&l, &p) in label.iter().zip(prediction) {
            seen[usize::from(l) << 8 | usize::from(p)] += 1;
        }
        let n = self.classes;
        for (at, _) in seen.iter().enumerate().filter(|(_, count)| **count > 0) {
            let (l, p) = (at >> 8, at & 255);
            if l >= n && l != usize::from(IGNORE) {
                return Err(Error::Config(format!("label {l}, but there are {n} classes")));
            }
            if p >= n {
                return Err(Error::Config(format!("prediction {p}, but there are {n} classes")));
            }
        }
        for l in 0..n.min(256) {
            for p in 0..n.min(256) {
                self.counts[l * n + p] += seen[l << 8 | p];
            }
        }
        Ok(())
    }

    /// Adds the counts of another matrix.
    ///
    /// # Errors
    /// When the numbers of classes differ.
    pub fn merge(&mut self, other: &Confusion) -> Result<()> {
        if self.classes != other.classes {
            let what = format!("confusion matrices of {} and {} classes", self.classes, other.classes);
            return Err(Error::Config(what));
        }
        for (a, b) in self.counts.iter_mut().zip(&other.counts) {
            *a += b;
        }
        Ok(())
    }

    /// Pixels labelled as class `c`.
    pub fn labelled(&self, c: usize) -> u64 {
        (0..self.classes).map(|p| self.count(c, p)).sum()
    }

    /// Pixels predicted as class `c`.
    pub fn predicted(&self, c: usize) -> u64 {
        (0..self.classes).map(|l| self.count(l, c)).sum()
    }

    /// Pixels that were counted.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// TP / (TP + FP + FN) of class `c`; none when it occurs neither in labels nor in predictions.
    pub fn iou(&self, c: usize) -> Option<f64> {
        let hit = self.count(c, c);
        ratio(hit, self.labelled(c) + self.predicted(c) - hit)
    }

    /// The mean IoU over the classes that occur in labels or predictions, background included.
    pub fn miou(&self) -> Option<f64> {
        mean((0..self.classes).filter_map(|c| self.iou(c)))
    }

    /// TP / (TP + FN) of class `c`; none when no label has it.
    pub fn class_accuracy(&self, c: usize) -> Option<f64> {
        ratio(self.count(c, c), self.labelled(c))
    }

    /// The mean accuracy over the classes that occur in labels.
    pub fn macc(&self) -> Option<f64> {
        mean((0..self.classes).filter_map(|c| self.class_accuracy(c)))
    }

    /// The share of pixels with the right class.
    pub fn pixel_accuracy(&self) -> Option<f64> {
        ratio((0..self.classes).map(|c| self.count(c, c)).sum(), self.total())
    }

    /// Frequency-weighted IoU: each class's IoU times its share of the labels.
    pub fn fwiou(&self) -> Option<f64> {
        let total = self.total();
        let weighted = |c| self.iou(c).map(|iou| iou * self.labelled(c) as f64 / total as f64);
        (total > 0).then(|| (0..self.classes).filter_map(weighted).sum())
    }
}

fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_of_a_small_matrix() {
        // Labels 0: 4 pixels, of which 3 right and 1 taken for 1. Labels 1: 2 pixels, both right. Class 2 is only
        // predicted, class 3 only labelled, and class 4 does neither.
        let mut m = Confusion::new(5);
        m.add(&[0, 0, 0, 0, 1, 255], &[0, 0, 0, 1, 1, 4]).unwrap();
        let mut rest = Confusion::new(5);
        rest.add(&[1, 3], &[1, 2]).unwrap();
        m.merge(&rest).unwrap();
        assert_eq!(
            [0, 1, 2, 3, 4].map(|c| m.iou(c)),
            [Some(0.75), Some(2.0 / 3.0), Some(0.0), Some(0.0), None]
        );
        assert!((m.miou().unwrap() - (0.75 + 2.0 / 3.0) / 4.0).abs() < 1e-15);
        assert_eq!([0, 1, 2, 3].map(|c| m.class_accuracy(c)), [Some(0.75), Some(1.0), None, Some(0.0)]);
        assert!((m.macc().unwrap() - 1.75 / 3.0).abs() < 1e-15);
        assert_eq!(m.pixel_accuracy(), Some(5.0 / 7.0));
        assert!((m.fwiou().unwrap() - (0.75 * 4.0 + 2.0 / 3.0 * 2.0) / 7.0).abs() < 1e-15);
    }

    #[test]
    fn nothing_counted_has_no_score() {
        let mut m = Confusion::new(2);
        m.add(&[255], &[1]).unwrap();
        assert_eq!([m.miou(), m.macc(), m.pixel_accuracy(), m.fwiou(), m.iou(0)], [None; 5]);
    }

    #[test]
    fn values_out_of_range_are_named_and_not_counted() {
        let mut m = Confusion::new(2);
        assert!(m.add(&[0, 2], &[0, 0]).unwrap_err().to_string().contains("label 2"));
        assert!(m.add(&[0, 0], &[0, 9]).unwrap_err().to_string().contains("prediction 9"));
        assert!(m.add(&[0], &[0, 0]).is_err());
        assert_eq!(m, Confusion::new(2));
        assert!(m.merge(&Confusion::new(3)).is_err());
    }
}
