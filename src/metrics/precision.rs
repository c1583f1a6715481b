//! Pixel-wise average precision from histograms of the class probabilities.

use super::{IGNORE, mean};
use crate::{Error, Result};

const BINS: usize = 1024;

/// For each class, how the probabilities of its own pixels and of all others are distributed, in 1024 bins: a
/// memory that does not grow with the number of pictures. Pixels labelled 255 do not count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AveragePrecision {
    classes: usize,
    /// For each class and bin: pixels of the class, and pixels of other classes.
    histogram: Vec<[u64; 2]>,
}

impl AveragePrecision {
    /// Empty histograms for `classes` classes.
    pub fn new(classes: usize) -> Self {
        Self { classes, histogram: vec![[0; 2]; classes * BINS] }
    }

    /// Counts the pixels of a picture: `probabilities` (pixels, classes) row-major, `labels` (pixels).
    ///
    /// # Errors
    /// When the lengths do not fit, or a label is neither a class nor 255. Then nothing is counted.
    pub fn add(&mut self, probabilities: &[f32], labels: &[u8]) -> Result<()> {
        let n = self.classes;
        if probabilities.len() != labels.len() * n {
            let (p, l) = (probabilities.len(), labels.len());
            return Err(Error::Config(format!("{p} probabilities for {l} labels of {n} classes")));
        }
        if let Some(label) = labels.iter().find(|&&l| usize::from(l) >= n && l != IGNORE) {
            return Err(Error::Config(format!("label {label}, but there are {n} classes")));
        }
        for (p, &label) in probabilities.chunks_exact(n.max(1)).zip(labels) {
            if label == IGNORE {
                continue;
            }
            for (class, &p) in p.iter().enumerate() {
                // A conversion that saturates: NaN counts as 0.
                let bin = ((p * BINS as f32) as usize).min(BINS - 1);
                self.histogram[class * BINS + bin][usize::from(class != usize::from(label))] += 1;
            }
        }
        Ok(())
    }

    /// Adds the histograms of another set of pictures.
    ///
    /// # Errors
    /// When the numbers of classes differ.
    pub fn merge(&mut self, other: &AveragePrecision) -> Result<()> {
        if self.classes != other.classes {
            let what = format!("average precision over {} and {} classes", self.classes, other.classes);
            return Err(Error::Config(what));
        }
        for (a, b) in self.histogram.iter_mut().zip(&other.histogram) {
            *a = [a[0] + b[0], a[1] + b[1]];
        }
        Ok(())
    }

    /// Σ (Rₖ − Rₖ₋₁)·Pₖ over the bins from the highest probability down, with R and P the recall and precision of
    /// calling every pixel from bin k upward positive; none when no label has the class.
    pub fn ap(&self, class: usize) -> Option<f64> {
        let bins = &self.histogram[class * BINS..(class + 1) * BINS];
        let positives: u64 = bins.iter().map(|b| b[0]).sum();
        let (mut own, mut others, mut area) = (0, 0, 0.0);
        for &[hit, miss] in bins.iter().rev().filter(|b| b[0] > 0 || b[1] > 0) {
            own += hit;
            others += miss;
            area += hit as f64 * own as f64 / (own + others) as f64;
        }
        (positives > 0).then(|| area / positives as f64)
    }

    /// The mean over the classes that occur in labels.
    pub fn map(&self) -> Option<f64> {
        mean((0..self.classes).filter_map(|c| self.ap(c)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn average_precision_of_a_ranking() {
        // Class 0 in order of its probability: yes, no, yes, yes, no; class 1 the other way round.
        let p = [0.9f32, 0.8, 0.6, 0.3, 0.1];
        let labels = [0u8, 1, 0, 0, 1];
        let both: Vec<f32> = p.iter().flat_map(|&p| [p, 1.0 - p]).chain([0.5, f32::NAN]).collect();
        let mut ap = AveragePrecision::new(2);
        ap.add(&both, &[&labels[..], &[255]].concat()).unwrap();
        let zero = (1.0 + 2.0 / 3.0 + 3.0 / 4.0) / 3.0;
        let one = (1.0 + 2.0 / 4.0) / 2.0;
        assert!((ap.ap(0).unwrap() - zero).abs() < 1e-15);
        assert!((ap.ap(1).unwrap() - one).abs() < 1e-15);
        assert!((ap.map().unwrap() - (zero + one) / 2.0).abs() < 1e-15);
        // Twice the same pictures change nothing.
        let once = ap.clone();
        ap.merge(&once).unwrap();
        assert_eq!(ap.ap(0), once.ap(0));
    }

    #[test]
    fn equal_probabilities_share_a_threshold() {
        let mut ap = AveragePrecision::new(2);
        ap.add(&[0.5; 8], &[0, 1, 1, 1]).unwrap();
        assert_eq!([ap.ap(0), ap.ap(1)], [Some(0.25), Some(0.75)]);
    }

    #[test]
    fn extremes_and_errors() {
        let mut ap = AveragePrecision::new(2);
        ap.add(&[1.0, 0.0, 1.0, f32::NAN], &[0, 0]).unwrap();
        assert_eq!([ap.ap(0), ap.ap(1), ap.map()], [Some(1.0), None, Some(1.0)]);
        assert!(ap.add(&[1.0, 0.0], &[2]).unwrap_err().to_string().contains("label 2"));
        assert!(ap.add(&[1.0], &[0]).is_err());
        assert!(ap.merge(&AveragePrecision::new(3)).is_err());
        assert_eq!(AveragePrecision::new(1).map(), None);
    }
}
