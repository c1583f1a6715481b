//! Training examples from samples: mirror, scale, crop, in that order (the published recipe), and batches of them.
//!
//! The three steps are one: for every row and column of the crop it is known which source pixels it comes from, so
//! only the crop is ever computed, never the whole scaled picture.

use super::stored::Value;
use super::{IGNORED, Labels, Sample, Stored, Values};
use crate::{DType, Device, Error, Result, Tensor};

/// How samples become training examples.
#[derive(Clone, PartialEq, Debug)]
pub struct Augment {
    /// Height and width of every example.
    pub size: (usize, usize),
    /// The factors to choose from, all equally likely; none means 1.
    pub scales: Vec<f64>,
    /// The probability of mirroring left and right.
    pub mirror: f32,
}

/// What the network trains on: a crop of size H×W.
#[derive(Clone, PartialEq, Debug)]
pub struct Example {
    /// Rows.
    pub height: usize,
    /// Pixels in a row.
    pub width: usize,
    /// `(H, W, 3)`, values in [0, 1]; 0 in padding.
    pub visible: Vec<f32>,
    /// `(H, W, 3)`, values in [0, 1]; 0 in padding.
    pub infrared: Vec<f32>,
    /// `(H, W)`; [`IGNORED`] in padding.
    pub labels: Vec<u8>,
    /// `(H, W)`: 1 inside the picture, 0 in padding.
    pub valid: Vec<u8>,
}

/// Examples of equal size, stacked.
#[derive(Clone, Debug)]
pub struct Batch {
    /// `(1, B, H, W, 3)` float32.
    pub visible: Tensor,
    /// `(1, B, H, W, 3)` float32.
    pub infrared: Tensor,
    /// `(B, H, W)` bytes.
    pub labels: Tensor,
    /// `(B, H, W)` bytes: 1 inside the picture, 0 in padding.
    pub valid: Tensor,
}

impl Batch {
    /// The same examples on `device`.
    ///
    /// # Errors
    /// When the device reports one.
    pub fn to(&self, device: &Device) -> Result<Self> {
        let [visible, infrared, labels, valid] =
            [&self.visible, &self.infrared, &self.labels, &self.valid].map(|x| x.to(device));
        Ok(Self { visible: visible?, infrared: infrared?, labels: labels?, valid: valid? })
    }
}

impl Example {
    /// The sample as it is, for evaluation.
    pub fn whole(sample: &Sample) -> Self {
        let Labels { width, height, ref ids } = sample.labels;
        Self {
            height,
            width,
            visible: sample.visible.picture().rgb,
            infrared: sample.infrared.picture().rgb,
            labels: ids.clone(),
            valid: vec![1; ids.len()],
        }
    }
}

/// Mirrors, scales and crops a sample; both pictures and the labels move together. Colours are interpolated
/// bilinearly with half-pixel centres and no antialiasing (OpenCV's `INTER_LINEAR`), labels are the nearest
/// (`INTER_NEAREST`). Where the scaled picture is smaller than the crop it is centred and padded.
///
/// `uniform` returns the next random number in [0, 1). Exactly four are drawn, whatever they decide: mirror, scale,
/// row, column.
///
/// # Panics
/// When the sizes of the sample's pictures and labels differ, which [`Dataset::sample`](super::Dataset::sample)
/// rules out.
pub fn augment(sample: &Sample, config: &Augment, uniform: &mut dyn FnMut() -> f32) -> Example {
    let [mirror, scale, row, column] = [uniform(), uniform(), uniform(), uniform()];
    let (height, width) = config.size;
    let factor = config.scales.get(pick(scale, config.scales.len())).copied().unwrap_or(1.0);
    // The published recipe rounds the scaled size down.
    let scaled = |length: usize| ((length as f64 * factor) as usize).max(1);
    let Stored { width: from_width, height: from_height, .. } = sample.visible;
    let rows = Axis::crop(from_height, scaled(from_height), height, row, false);
    let columns = Axis::crop(from_width, scaled(from_width), width, column, mirror < config.mirror);

    let inside = |y: usize| columns.start + y * width..columns.start + y * width + columns.taps.len();
    let mut valid = vec![0; height * width];
    for y in rows.start..rows.start + rows.taps.len() {
        valid[inside(y)].fill(1);
    }
    let mut labels = vec![IGNORED; height * width];
    for (y, row) in rows.taps.iter().enumerate() {
        let from = &sample.labels.ids[row.nearest * from_width..][..from_width];
        for (to, column) in labels[inside(rows.start + y)].iter_mut().zip(&columns.taps) {
            *to = from[column.nearest];
        }
    }
    Example {
        height,
        width,
        visible: crop(&sample.visible, &rows, &columns, height, width),
        infrared: crop(&sample.infrared, &rows, &columns, height, width),
        labels,
        valid,
    }
}

/// Stacks examples.
///
/// # Errors
/// When there is none, or their sizes differ.
pub fn batch(examples: &[Example]) -> Result<Batch> {
    let Some(first) = examples.first() else {
        return Err(Error::Config("a batch of no examples: a batch size of at least 1 is needed".into()));
    };
    let (b, h, w) = (examples.len(), first.height, first.width);
    if let Some(other) = examples.iter().find(|e| (e.height, e.width) != (h, w)) {
        let why = "examples of one batch differ in size: crop them alike, or use a batch size of 1";
        return Err(Error::shape("batch", why, &[[h, w].into(), [other.height, other.width].into()]));
    }
    let pictures = |of: fn(&Example) -> &[f32]| {
        let mut t = Tensor::scratch([1, b, h, w, 3]);
        for (to, example) in t.f32_mut().chunks_exact_mut((h * w * 3).max(1)).zip(examples) {
            to.copy_from_slice(of(example));
        }
        t
    };
    let bytes = |of: fn(&Example) -> &[u8]| {
        let mut t = Tensor::scratch_of([b, h, w], DType::U8);
        for (to, example) in t.as_mut_slice::<u8>().chunks_exact_mut((h * w).max(1)).zip(examples) {
            to.copy_from_slice(of(example));
        }
        t
    };
    Ok(Batch {
        visible: pictures(|e| &e.visible),
        infrared: pictures(|e| &e.infrared),
        labels: bytes(|e| &e.labels),
        valid: bytes(|e| &e.valid),
    })
}

/// Index 0..n for a uniform number in [0, 1).
fn pick(uniform: f32, n: usize) -> usize {
    ((f64::from(uniform) * n as f64) as usize).min(n.saturating_sub(1))
}

/// Where one row or column of the crop comes from.
#[derive(Clone, Copy)]
struct Tap {
    /// The two source positions, and the weight of the second.
    first: usize,
    second: usize,
    weight: f32,
    /// The source position of labels.
    nearest: usize,
}

/// One axis of a crop: `taps.len()` scaled positions from `start` on; what is before and behind is padding.
struct Axis {
    start: usize,
    taps: Vec<Tap>,
}

impl Axis {
    /// Scales `from` positions to `scaled` and cuts out `crop` of them, at a place given by `uniform`.
    fn crop(from: usize, scaled: usize, crop: usize, uniform: f32, mirror: bool) -> Self {
        let first = pick(uniform, scaled.saturating_sub(crop) + 1);
        let start = crop.saturating_sub(scaled) / 2;
        let taps = (first..first + scaled.min(crop)).map(|at| {
            let tap = Tap::new(at, from, scaled);
            if !mirror {
                return tap;
            }
            // The picture is mirrored before it is scaled.
            let flip = |at: usize| from - 1 - at;
            Tap {
                first: flip(tap.first),
                second: flip(tap.second),
                nearest: flip(tap.nearest),
                weight: tap.weight,
            }
        });
        Self { start, taps: taps.collect() }
    }
}

impl Tap {
    /// Position `at` of `scaled`, in a source of `from` positions: OpenCV's arithmetic to the last bit.
    fn new(at: usize, from: usize, scaled: usize) -> Self {
        let step = 1.0 / (scaled as f64 / from as f64);
        let nearest = ((at as f64 * step) as usize).min(from - 1);
        let centre = ((at as f64 + 0.5) * step - 0.5) as f32;
        let first = centre.floor();
        let last = from - 1;
        match first as usize {
            _ if first < 0.0 => Self { first: 0, second: 0, weight: 0.0, nearest },
            i if i >= last => Self { first: last, second: last, weight: 0.0, nearest },
            i => Self { first: i, second: i + 1, weight: centre - first, nearest },
        }
    }
}

/// The crop of a picture as RGB, padded with 0 to height × width.
fn crop(picture: &Stored, rows: &Axis, columns: &Axis, height: usize, width: usize) -> Vec<f32> {
    let from = picture.width;
    match &picture.values {
        Values::Gray8(v) => bilinear::<_, 1>(v, from, rows, columns, height, width),
        Values::Rgb8(v) => bilinear::<_, 3>(v, from, rows, columns, height, width),
        Values::Gray16(v) => bilinear::<_, 1>(v, from, rows, columns, height, width),
        Values::Rgb16(v) => bilinear::<_, 3>(v, from, rows, columns, height, width),
    }
}

#[inline(always)]
fn mix(a: f32, b: f32, weight: f32) -> f32 {
    a * (1.0 - weight) + b * weight
}

/// [`crop`] for `C` channels, of rows of `from` pixels.
fn bilinear<T: Value, const C: usize>(
    values: &[T],
    from: usize,
    rows: &Axis,
    columns: &Axis,
    height: usize,
    width: usize,
) -> Vec<f32> {
    let mut out = vec![0.0; height * width * 3];
    let inside = columns.taps.len();
    // Source rows with their columns interpolated, of which neighbouring rows of the crop share some.
    let mut above = Line::new(inside * C);
    let mut below = Line::new(inside * C);
    for (row, out) in rows.taps.iter().zip(out.chunks_exact_mut(width * 3).skip(rows.start)) {
        if below.row == Some(row.first) {
            std::mem::swap(&mut above, &mut below);
        }
        for (line, at) in [(&mut above, row.first), (&mut below, row.second)] {
            if line.row != Some(at) {
                line.row = Some(at);
                let pixels = values[at * from * C..][..from * C].as_chunks::<C>().0;
                for (to, column) in line.values.as_chunks_mut::<C>().0.iter_mut().zip(&columns.taps) {
                    let (a, b) = (&pixels[column.first], &pixels[column.second]);
                    for c in 0..C {
                        to[c] = mix(a[c].unit(), b[c].unit(), column.weight);
                    }
                }
            }
        }
        let out = &mut out[columns.start * 3..][..inside * 3];
        let mixed = above.values.iter().zip(&below.values).map(|(a, b)| mix(*a, *b, row.weight));
        if C == 3 {
            out.iter_mut().zip(mixed).for_each(|(to, value)| *to = value);
        } else {
            out.as_chunks_mut::<3>().0.iter_mut().zip(mixed).for_each(|(to, value)| *to = [value; 3]);
        }
    }
    out
}

/// One row of a picture on the crop's columns.
struct Line {
    row: Option<usize>,
    values: Vec<f32>,
}

impl Line {
    fn new(length: usize) -> Self {
        Self { row: None, values: vec![0.0; length] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(height: usize, width: usize) -> Sample {
        let values = |n: usize, step: usize| (0..n).map(|i| (i * step % 101) as u8).collect();
        let visible = Values::Rgb8(values(height * width * 3, 37));
        let infrared = Values::Gray8(values(height * width, 53));
        Sample {
            name: "test".into(),
            visible: Stored { width, height, values: visible },
            infrared: Stored { width, height, values: infrared },
            labels: Labels { width, height, ids: (0..height * width).map(|i| (i * 7 % 11) as u8).collect() },
        }
    }

    /// A source of the four numbers, and nothing more.
    fn numbers(values: [f32; 4]) -> impl FnMut() -> f32 {
        let mut values = values.into_iter();
        move || values.next().expect("four numbers are drawn")
    }

    fn red(rgb: &[f32]) -> Vec<f32> {
        rgb.iter().step_by(3).copied().collect()
    }

    impl Value for f32 {
        fn unit(self) -> f32 {
            self
        }
    }

    /// Source rows, columns, scaled rows, columns; the red channel by INTER_LINEAR; the labels by INTER_NEAREST.
    type Case = ([usize; 4], &'static [f32], &'static [u8]);

    /// OpenCV 5.0.0:
    /// ```python
    /// picture = (np.arange(h * w * 3) * 37 % 101 / 100).astype(np.float32).reshape(h, w, 3)
    /// labels = (np.arange(h * w) * 7 % 11).astype(np.uint8).reshape(h, w)
    /// cv2.resize(picture, (W, H), interpolation=cv2.INTER_LINEAR)[..., 0].ravel()
    /// cv2.resize(labels, (W, H), interpolation=cv2.INTER_NEAREST).ravel()
    /// ```
    #[rustfmt::skip]
    const OPENCV: [Case; 5] = [
        ([3, 5, 5, 8], &[
            0.0, 0.04375, 0.10625, 0.16875, 0.23125, 0.29375, 0.35625, 0.4,
            0.2, 0.24375, 0.30625004, 0.36875, 0.43125, 0.49375, 0.55625004, 0.6,
            0.5, 0.54375, 0.60625005, 0.66875, 0.73125, 0.79375, 0.85625, 0.9,
            0.8, 0.578625, 0.30025, 0.36275, 0.42525, 0.48775, 0.55025, 0.594,
            1.0, 0.601875, 0.096_250_005, 0.15875, 0.22125, 0.28375, 0.34625, 0.39,
        ], &[
            0, 0, 7, 7, 3, 10, 10, 6, 0, 0, 7, 7, 3, 10, 10, 6, 2, 2, 9, 9, 5, 1, 1, 8, 2, 2, 9, 9, 5, 1, 1, 8,
            4, 4, 0, 0, 7, 3, 3, 10,
        ]),
        ([5, 7, 3, 4], &[
            0.27083334, 0.44583333, 0.32625002, 0.45916668,
            0.4275, 0.60249996, 0.777_500_03, 0.9525,
            0.58416665, 0.675, 0.260_833_32, 0.435_833_33,
        ], &[0, 7, 10, 2, 5, 1, 4, 7, 4, 0, 3, 6]),
        ([4, 6, 2, 3], &[0.35, 0.55, 0.4975, 0.54, 0.48749998, 0.435], &[0, 3, 6, 7, 10, 2]),
        ([5, 3, 8, 5], &[
            0.0, 0.04, 0.1, 0.16, 0.2,
            0.13125, 0.17125, 0.23125, 0.29125, 0.33125,
            0.31875, 0.358_750_02, 0.418_750_02, 0.478_750_02, 0.518_75,
            0.50625, 0.54625, 0.60625, 0.66625, 0.706_25,
            0.69375, 0.733_75, 0.79375, 0.664_375, 0.578125,
            0.881_249_96, 0.921_25, 0.98125, 0.473_124_98, 0.134_374_98,
            0.500_625, 0.540_625, 0.600_625, 0.3955, 0.25875,
            0.19, 0.23, 0.29, 0.35, 0.39,
        ], &[
            0, 0, 7, 7, 3, 0, 0, 7, 7, 3, 10, 10, 6, 6, 2, 10, 10, 6, 6, 2, 9, 9, 5, 5, 1, 8, 8, 4, 4, 0,
            8, 8, 4, 4, 0, 7, 7, 3, 3, 10,
        ]),
        ([7, 5, 5, 3], &[
            0.13333334, 0.3, 0.46666667,
            0.631_333_35, 0.394, 0.560_666_7,
            0.523_333_3, 0.69, 0.856_666_7,
            0.617_333_35, 0.38, 0.546_666_7,
            0.644, 0.272, 0.438_666_64,
        ], &[0, 7, 10, 2, 9, 1, 4, 0, 3, 8, 4, 7, 10, 6, 9]),
    ];

    #[test]
    fn resizing_agrees_with_opencv() {
        for ([h, w, to_h, to_w], red_expected, labels_expected) in OPENCV {
            let s = sample(h, w);
            let (rows, columns) =
                (Axis::crop(h, to_h, to_h, 0.0, false), Axis::crop(w, to_w, to_w, 0.0, false));
            let picture: Vec<f32> = (0..h * w * 3).map(|i| (i * 37 % 101) as f32 / 100.0).collect();
            let got = red(&bilinear::<_, 3>(&picture, w, &rows, &columns, to_h, to_w));
            let nearest =
                |y: usize, x: usize| s.labels.ids[rows.taps[y].nearest * w + columns.taps[x].nearest];
            let labels: Vec<u8> = (0..to_h * to_w).map(|i| nearest(i / to_w, i % to_w)).collect();
            assert_eq!(labels, labels_expected);
            assert_eq!(got.len(), red_expected.len());
            for (a, b) in got.iter().zip(red_expected) {
                assert!((a - b).abs() < 2e-7, "{h}×{w} to {to_h}×{to_w}: {a} is not {b}");
            }
        }
    }

    #[test]
    fn every_way_to_store_a_picture_gives_the_same_crop() {
        let (h, w) = (5, 7);
        let bytes: Vec<u8> = (0..h * w).map(|i| (i * 29 % 256) as u8).collect();
        let wide: Vec<u16> = bytes.iter().map(|v| u16::from(*v) * 257).collect();
        let three = |v: &[u8]| v.iter().flat_map(|v| [*v; 3]).collect();
        let values = [
            Values::Gray8(bytes.clone()),
            Values::Rgb8(three(&bytes)),
            Values::Gray16(wide.clone()),
            Values::Rgb16(wide.iter().flat_map(|v| [*v; 3]).collect()),
        ];
        let (rows, columns) = (Axis::crop(h, 8, 6, 0.5, false), Axis::crop(w, 5, 9, 0.0, true));
        let crops = values.map(|values| crop(&Stored { width: w, height: h, values }, &rows, &columns, 6, 9));
        assert!(crops[0].iter().any(|v| *v > 0.5));
        assert_eq!(crops[1], crops[0]);
        for (a, b) in crops[0].iter().zip(&crops[2]) {
            assert!((a - b).abs() < 1e-6, "{a} {b}");
        }
        assert_eq!(crops[3], crops[2]);
    }

    #[test]
    fn a_crop_is_a_part_of_the_whole_scaled_picture() {
        let s = sample(6, 8);
        for scale in [0.5, 1.0, 1.75] {
            let scaled = ((6.0 * scale) as usize, (8.0 * scale) as usize);
            let config = |size| Augment { size, scales: vec![scale], mirror: 0.5 };
            for mirror in [0.0, 0.9] {
                let whole = augment(&s, &config(scaled), &mut numbers([mirror, 0.0, 0.0, 0.0]));
                let crop = (scaled.0 - 1, scaled.1 - 2);
                let part = augment(&s, &config(crop), &mut numbers([mirror, 0.0, 0.99, 0.5]));
                for y in 0..crop.0 {
                    // 0.99 of two positions is the last, 0.5 of three the middle one.
                    let from = (y + 1) * scaled.1 + 1;
                    let to = y * crop.1..(y + 1) * crop.1;
                    assert_eq!(part.labels[to.clone()], whole.labels[from..from + crop.1]);
                    let (from, to) = (from * 3..(from + crop.1) * 3, to.start * 3..to.end * 3);
                    assert_eq!(part.visible[to.clone()], whole.visible[from.clone()]);
                    assert_eq!(part.infrared[to], whole.infrared[from]);
                }
                assert!(part.valid.iter().all(|v| *v == 1));
            }
        }
    }

    #[test]
    fn mirroring_comes_first_and_moves_everything() {
        let s = sample(3, 5);
        let config = Augment { size: (3, 5), scales: vec![], mirror: 0.5 };
        let plain = augment(&s, &config, &mut numbers([0.5, 0.0, 0.0, 0.0]));
        assert_eq!(plain, Example::whole(&s));
        let mirrored = augment(&s, &config, &mut numbers([0.49, 0.0, 0.0, 0.0]));
        for (i, label) in mirrored.labels.iter().enumerate() {
            let from = i / 5 * 5 + 4 - i % 5;
            assert_eq!(*label, s.labels.ids[from]);
            assert_eq!(mirrored.visible[i * 3..][..3], s.visible.picture().rgb[from * 3..][..3]);
            assert_eq!(mirrored.infrared[i * 3..][..3], s.infrared.picture().rgb[from * 3..][..3]);
        }
        // Nearest labels are not symmetric, so the order of mirroring and scaling shows in them.
        let config = Augment { size: (3, 8), scales: vec![1.6], mirror: 1.0 };
        let scaled = augment(&s, &config, &mut numbers([0.0, 0.0, 0.0, 0.0]));
        // cv2.resize(labels[:, ::-1].copy(), (8, 4), interpolation=cv2.INTER_NEAREST)[0]
        let mut row: Vec<u8> = s.labels.ids[..5].to_vec();
        row.reverse();
        let expected: Vec<u8> = [0, 0, 1, 1, 2, 3, 3, 4].map(|i: usize| row[i]).to_vec();
        assert_eq!(scaled.labels[..8], expected);
    }

    #[test]
    fn a_small_picture_is_centred_in_padding() {
        let s = sample(2, 3);
        let config = Augment { size: (5, 6), scales: vec![1.0], mirror: 0.0 };
        let e = augment(&s, &config, &mut numbers([0.3, 0.9, 0.9, 0.9]));
        #[rustfmt::skip]
        let valid = [
            0, 0, 0, 0, 0, 0,
            0, 1, 1, 1, 0, 0,
            0, 1, 1, 1, 0, 0,
            0, 0, 0, 0, 0, 0,
            0, 0, 0, 0, 0, 0,
        ];
        assert_eq!(e.valid, valid);
        let mut inside = s.labels.ids.iter();
        for (i, v) in valid.into_iter().enumerate() {
            if v == 1 {
                assert_eq!(Some(&e.labels[i]), inside.next());
            } else {
                assert_eq!((e.labels[i], &e.visible[i * 3..][..3]), (IGNORED, [0.0; 3].as_slice()));
                assert_eq!(e.infrared[i * 3..][..3], [0.0; 3]);
            }
        }
    }

    #[test]
    fn every_scale_and_position_is_drawn() {
        let s = sample(4, 4);
        let config = Augment { size: (3, 9), scales: vec![0.1, 1.0], mirror: 0.5 };
        // A tenth of 4 is nothing: one pixel stays.
        let tiny = augment(&s, &config, &mut numbers([0.9, 0.49, 0.0, 0.0]));
        assert_eq!(tiny.valid.iter().map(|v| usize::from(*v)).sum::<usize>(), 1);
        let first = augment(&s, &config, &mut numbers([0.9, 0.5, 0.49, 0.0]));
        let second = augment(&s, &config, &mut numbers([0.9, 0.5, 0.5, 0.0]));
        assert_eq!(first.labels[2..6], s.labels.ids[..4]);
        assert_eq!(second.labels[2..6], s.labels.ids[4..8]);
        assert_eq!((pick(0.999_999_94, 7), pick(0.0, 0), pick(1.0, 3)), (6, 0, 2));
    }

    #[test]
    fn batches_stack_examples_of_one_size() {
        let (a, mut b) = (Example::whole(&sample(2, 3)), Example::whole(&sample(2, 3)));
        b.visible[0] = 0.75;
        b.labels[5] = 255;
        b.valid[5] = 0;
        let t = batch(&[a.clone(), b.clone()]).unwrap();
        assert_eq!(t.visible.shape()[..], [1, 2, 2, 3, 3]);
        assert_eq!(t.infrared.shape()[..], [1, 2, 2, 3, 3]);
        assert_eq!((&t.labels.shape()[..], &t.valid.shape()[..]), (&[2, 2, 3][..], &[2, 2, 3][..]));
        assert_eq!(t.visible.f32(), [a.visible.clone(), b.visible].concat());
        assert_eq!(t.infrared.f32(), [a.infrared.clone(), b.infrared].concat());
        assert_eq!(t.labels.as_slice::<u8>(), [a.labels.clone(), b.labels].concat());
        assert_eq!(t.valid.as_slice::<u8>(), [a.valid.clone(), b.valid].concat());
        let e = batch(&[a, Example::whole(&sample(3, 3))]).unwrap_err().to_string();
        assert!(e.contains("(2, 3) and (3, 3)"), "{e}");
        assert!(batch(&[]).is_err());
    }
}
