//! Scores of a fused image without a reference: EN, SD, SF, SCD.

use serde::Serialize;

use crate::{Error, Result};

/// Scores of one fused image, or their mean over a set, on 8-bit luminance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct FusionMetrics {
    /// Entropy in bits: −Σ p log₂ p over the 256 values.
    pub en: f64,
    /// Standard deviation: √mean((F − μ)²).
    pub sd: f64,
    /// Spatial frequency: √(mean(ΔxF²) + mean(ΔyF²)) over the differences of neighbours.
    pub sf: f64,
    /// Sum of the correlations of differences: corr(F − V, I) + corr(F − I, V).
    pub scd: f64,
}

/// The mean of [`FusionMetrics`] over pictures.
#[derive(Clone, Copy, Debug, Default)]
pub struct FusionMean {
    sum: FusionMetrics,
    count: usize,
}

impl FusionMean {
    /// Counts a picture.
    pub fn add(&mut self, m: FusionMetrics) {
        let s = &mut self.sum;
        *s = FusionMetrics { en: s.en + m.en, sd: s.sd + m.sd, sf: s.sf + m.sf, scd: s.scd + m.scd };
        self.count += 1;
    }

    /// The mean; none without a picture.
    pub fn mean(&self) -> Option<FusionMetrics> {
        let (s, n) = (self.sum, self.count as f64);
        let mean = FusionMetrics { en: s.en / n, sd: s.sd / n, sf: s.sf / n, scd: s.scd / n };
        (self.count > 0).then_some(mean)
    }
}

/// Y = 0.299 R + 0.587 G + 0.114 B of interleaved RGB, rounded to the nearest of 0 … 255: the usual conversion to
/// grey (ITU-R BT.601), in whole numbers so that it is the same everywhere.
pub fn luminance(rgb: &[u8]) -> Vec<u8> {
    let grey = |p: &[u8]| {
        let [r, g, b] = [p[0], p[1], p[2]].map(u32::from);
        ((299 * r + 587 * g + 114 * b + 500) / 1000) as u8
    };
    rgb.chunks_exact(3).map(grey).collect()
}

/// The values moved and scaled so that the smallest is 0 and the largest 1, as the published scripts do with each
/// fused image before they save it; values that are all equal stay as they are.
pub fn stretch(values: &[f32]) -> Vec<f32> {
    let min = values.iter().copied().fold(f32::INFINITY, f32::min);
    let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let range = if max > min { max - min } else { return values.to_vec() };
    values.iter().map(|v| (v - min) / range).collect()
}

/// Scores a fused image: `fused` and `visible` are interleaved RGB of `width`·`height` pixels, `infrared` is grey.
///
/// F and V are the [`luminance`] of the two, I is `infrared`. Without neighbours in a direction its differences
/// count as 0, and a correlation with something constant is 0.
///
/// # Errors
/// When a length does not fit `width` and `height`, or there is no pixel.
pub fn fusion_metrics(
    fused: &[u8],
    visible: &[u8],
    infrared: &[u8],
    width: usize,
    height: usize,
) -> Result<FusionMetrics> {
    let n = width.checked_mul(height).filter(|&n| n > 0);
    if n != Some(infrared.len()) || [fused.len(), visible.len()] != [infrared.len() * 3; 2] {
        let lengths = [fused.len(), visible.len(), infrared.len()];
        return Err(Error::Config(format!(
            "fusion metrics of {width} x {height} pixels: {lengths:?} bytes given for fused RGB, visible RGB and \
             grey infrared"
        )));
    }
    let (fused, visible) = (luminance(fused), luminance(visible));
    let variance = variance(&fused);
    Ok(FusionMetrics {
        en: entropy(&fused),
        sd: variance.sqrt(),
        sf: spatial_frequency(&fused, width),
        scd: difference_correlation(&fused, &visible, infrared)
            + difference_correlation(&fused, infrared, &visible),
    })
}

fn entropy(image: &[u8]) -> f64 {
    let mut counts = [0u64; 256];
    for &v in image {
        counts[usize::from(v)] += 1;
    }
    let share = |&count: &u64| count as f64 / image.len() as f64;
    // 0 − x instead of −x: the entropy of one value is 0, not −0.
    0.0 - counts.iter().filter(|c| **c > 0).map(share).map(|p| p * p.log2()).sum::<f64>()
}

fn variance(image: &[u8]) -> f64 {
    let n = image.len() as f64;
    let mean = image.iter().map(|&v| u64::from(v)).sum::<u64>() as f64 / n;
    image.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n
}

fn spatial_frequency(image: &[u8], width: usize) -> f64 {
    let square = |(a, b): (&u8, &u8)| u64::from(a.abs_diff(*b)).pow(2);
    let rows = image.chunks_exact(width);
    let horizontal: u64 = rows.map(|r| r.iter().zip(&r[1..]).map(square).sum::<u64>()).sum();
    let vertical: u64 = image.iter().zip(&image[width..]).map(square).sum();
    let mean = |sum: u64, count: usize| if count == 0 { 0.0 } else { sum as f64 / count as f64 };
    (mean(horizontal, image.len() / width * (width - 1)) + mean(vertical, image.len() - width)).sqrt()
}

/// The correlation of `image` − `minus` with `with`; exact sums, so a constant is recognised as such.
fn difference_correlation(image: &[u8], minus: &[u8], with: &[u8]) -> f64 {
    let n = image.len() as i128;
    let [mut a, mut b, mut aa, mut bb, mut ab] = [0i64; 5];
    for ((&f, &m), &w) in image.iter().zip(minus).zip(with) {
        let (d, w) = (i64::from(f) - i64::from(m), i64::from(w));
        a += d;
        b += w;
        aa += d * d;
        bb += w * w;
        ab += d * w;
    }
    let central = |ab: i64, a: i64, b: i64| n * i128::from(ab) - i128::from(a) * i128::from(b);
    let (va, vb) = (central(aa, a, a), central(bb, b, b));
    if va == 0 || vb == 0 {
        return 0.0;
    }
    central(ab, a, b) as f64 / ((va as f64).sqrt() * (vb as f64).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grey(values: &[u8]) -> Vec<u8> {
        values.iter().flat_map(|&v| [v; 3]).collect()
    }

    #[test]
    fn luminance_rounds_to_nearest() {
        assert_eq!(luminance(&[255, 255, 255, 255, 0, 0, 0, 255, 0, 0, 0, 255]), [255, 76, 150, 29]);
        assert_eq!(luminance(&grey(&[0, 1, 127, 254])), [0, 1, 127, 254]);
    }

    #[test]
    fn stretching_fills_the_range() {
        assert_eq!(stretch(&[0.5, 0.25, 0.75]), [0.5, 0.0, 1.0]);
        assert_eq!(stretch(&[0.5, 0.5]), [0.5, 0.5]);
        assert_eq!(stretch(&[]), [0.0; 0]);
    }

    #[test]
    fn scores_of_a_small_picture() {
        // F = [10 20; 30 20]: probabilities 1/4, 1/2, 1/4; mean 20; differences 10, -10 and 20, 0.
        let m =
            fusion_metrics(&grey(&[10, 20, 30, 20]), &grey(&[0, 10, 30, 40]), &[1, 2, 3, 4], 2, 2).unwrap();
        assert!((m.en - 1.5).abs() < 1e-12);
        assert!((m.sd - 50f64.sqrt()).abs() < 1e-12);
        assert!((m.sf - (100.0 + 200.0f64).sqrt()).abs() < 1e-12);
        // F − V = [10 10 0 −20] with I, then F − I = [9 18 27 16] with V.
        // Σd = 0, Σd² = 600, I − mean = [−1.5 −0.5 0.5 1.5]: Σ = −15 − 5 − 30 = −50, over √(600·5).
        let first = -50.0 / 3000f64.sqrt();
        // d − mean = [−8.5 0.5 9.5 −1.5], V − mean = [−20 −10 10 20]: 170 − 5 + 95 − 30 = 230, over √(165·1000).
        let second = 230.0 / 165_000f64.sqrt();
        assert!((m.scd - first - second).abs() < 1e-12, "{}", m.scd);
    }

    #[test]
    fn constant_pictures_and_single_pixels_have_finite_scores() {
        let zero = FusionMetrics::default();
        assert_eq!(fusion_metrics(&[9; 3], &[3; 3], &[4], 1, 1).unwrap(), zero);
        assert_eq!(fusion_metrics(&[9; 15], &[3; 15], &[4; 5], 5, 1).unwrap(), zero);
        let m = fusion_metrics(&grey(&[0, 255]), &[3; 6], &[4, 4], 1, 2).unwrap();
        assert_eq!((m.en, m.sd, m.sf, m.scd), (1.0, 127.5, 255.0, 0.0));
    }

    #[test]
    fn means_and_errors() {
        let mut mean = FusionMean::default();
        assert_eq!(mean.mean(), None);
        mean.add(FusionMetrics { en: 1.0, sd: 2.0, sf: 3.0, scd: 4.0 });
        mean.add(FusionMetrics { en: 3.0, sd: 2.0, sf: 1.0, scd: 0.0 });
        assert_eq!(mean.mean(), Some(FusionMetrics { en: 2.0, sd: 2.0, sf: 2.0, scd: 2.0 }));
        assert!(fusion_metrics(&[], &[], &[], 0, 5).is_err());
        assert!(
            fusion_metrics(&[0; 12], &[0; 12], &[0; 3], 2, 2)
                .unwrap_err()
                .to_string()
                .contains("[12, 12, 3]")
        );
    }
}
