//! The pairs that a report shows: the best and the worst, in a memory that does not grow with the data set.

use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::imageops::{FilterType, resize};
use image::{ExtendedColorType, ImageEncoder, RgbImage};

use crate::data::{IGNORED, Sample, Tile, colorize};
use crate::evaluate::Prediction;
use crate::metrics::{Confusion, luminance};
use crate::{Error, Result};

/// The best and the worst pairs that were added, by the mIoU of each pair alone.
pub struct Gallery {
    palette: Vec<[u8; 3]>,
    keep: usize,
    /// From the best to the worst: at most twice `keep`, and nobody between the two ends.
    shown: Vec<Shown>,
}

/// A pair in the gallery.
pub struct Shown {
    /// Its name in the data set.
    pub name: String,
    /// The mIoU over the classes of this pair.
    pub miou: f64,
    /// Visible, infrared, fused, label, prediction, errors; each at most 480 pixels on its longer side.
    pub tiles: [Tile; 6],
}

/// What the pictures of a pair are called, in order.
pub const TILES: [&str; 6] = ["visible", "infrared", "fused", "label", "prediction", "errors"];

/// The first of the pictures whose every colour has a meaning; those before are photographs.
pub const EXACT_FROM: usize = 3;

/// Pixels on the longer side of a picture of the gallery.
const LONGEST: usize = 480;
const WRONG: [u8; 3] = [255, 96, 32];
const NOT_COUNTED: [u8; 3] = [96, 104, 150];

impl Gallery {
    /// An empty gallery that will hold the best and the worst `keep` pairs, labels in the colours of `palette`.
    pub fn new(keep: usize, palette: &[[u8; 3]]) -> Self {
        Self { palette: palette.to_vec(), keep, shown: Vec::new() }
    }

    /// Shows the pair if it is among the best or the worst so far; one without a counted pixel is neither.
    ///
    /// # Errors
    /// When labels and prediction do not fit together.
    pub fn add(&mut self, sample: &Sample, predicted: &Prediction) -> Result<()> {
        let mut confusion = Confusion::new(self.palette.len());
        confusion.add(&sample.labels.ids, &predicted.labels)?;
        let Some(miou) = confusion.miou() else { return Ok(()) };
        // Of equals, the first added comes first.
        let place = self.shown.partition_point(|s| s.miou >= miou);
        let full = self.shown.len() == 2 * self.keep;
        if full && place == self.keep {
            return Ok(());
        }
        let tiles = tiles(sample, predicted, &self.palette);
        self.shown.insert(place, Shown { name: sample.name.clone(), miou, tiles });
        if full {
            self.shown.remove(self.keep);
        }
        Ok(())
    }

    /// The best pairs, best first; half of all, rounded up, where there are too few.
    pub fn best(&self) -> &[Shown] {
        &self.shown[..self.best_count()]
    }

    /// The worst pairs that are not among the best, worst first.
    pub fn worst(&self) -> impl Iterator<Item = &Shown> {
        self.shown[self.best_count()..].iter().rev()
    }

    fn best_count(&self) -> usize {
        self.keep.min(self.shown.len().div_ceil(2))
    }
}

fn tiles(sample: &Sample, predicted: &Prediction, palette: &[[u8; 3]]) -> [Tile; 6] {
    let (labels, prediction) = (&sample.labels.ids, &predicted.labels);
    let visible = sample.visible.to_rgb8();
    let errors = errors(&visible, labels, prediction);
    let (smooth, exact) = (FilterType::Triangle, FilterType::Nearest);
    [
        (visible, smooth),
        (sample.infrared.to_rgb8(), smooth),
        (predicted.fused.clone(), smooth),
        (colorize(labels, palette), exact),
        (colorize(prediction, palette), exact),
        (errors, exact),
    ]
    .map(|(rgb, filter)| {
        let (width, height) = (sample.visible.width, sample.visible.height);
        reduced(Tile { width, height, rgb }, filter)
    })
}

/// The visible picture, dark and grey, with wrong pixels in orange and those that do not count in blue.
fn errors(visible: &[u8], labels: &[u8], prediction: &[u8]) -> Vec<u8> {
    let grey = luminance(visible);
    let pixels = grey.iter().zip(labels).zip(prediction).flat_map(|((&grey, &label), &predicted)| {
        if label == IGNORED {
            NOT_COUNTED
        } else if label != predicted {
            WRONG
        } else {
            [grey / 2 + 16; 3]
        }
    });
    pixels.collect()
}

/// The picture at a size that a report has room for.
fn reduced(tile: Tile, filter: FilterType) -> Tile {
    let Tile { width, height, .. } = tile;
    let longest = width.max(height);
    if longest <= LONGEST {
        return tile;
    }
    let side = |length: usize| ((length * LONGEST + longest / 2) / longest).max(1);
    let (w, h) = (side(width), side(height));
    match RgbImage::from_raw(width as u32, height as u32, tile.rgb) {
        Some(image) => {
            Tile { width: w, height: h, rgb: resize(&image, w as u32, h as u32, filter).into_raw() }
        }
        None => Tile { width: 0, height: 0, rgb: Vec::new() },
    }
}

/// The picture as a data URI: a JPEG, or a PNG where every colour has a meaning.
///
/// # Errors
/// When the picture cannot be encoded.
pub fn data_uri(tile: &Tile, exact: bool) -> Result<String> {
    use base64::Engine;
    let (w, h) = (tile.width as u32, tile.height as u32);
    let mut bytes = Vec::new();
    let (kind, done) = if exact {
        ("png", PngEncoder::new(&mut bytes).write_image(&tile.rgb, w, h, ExtendedColorType::Rgb8))
    } else {
        let jpeg = JpegEncoder::new_with_quality(&mut bytes, 88);
        ("jpeg", jpeg.write_image(&tile.rgb, w, h, ExtendedColorType::Rgb8))
    };
    done.map_err(|e| Error::Config(format!("a picture of {w}x{h} cannot be encoded: {e}")))?;
    let text = base64::engine::general_purpose::STANDARD.encode(bytes);
    Ok(format!("data:image/{kind};base64,{text}"))
}
