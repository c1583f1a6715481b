//! How a picture is taken through the network: whole or in windows, mirrored too, at several scales.

use std::fmt;

use serde::Serialize;

use super::Predictor;
use crate::model::SMALLEST_SIDE;
use crate::{Error, Result, Tape, Tensor, Var, ops};

/// Windows that slide over a picture. A picture that is narrower or lower than a window is taken whole in that
/// direction; the last window of a row or column ends where the picture ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Window {
    /// Rows.
    pub height: usize,
    /// Pixels in a row.
    pub width: usize,
    /// Pixels from one window to the next, in both directions.
    pub stride: usize,
}

/// How the scores of a picture are obtained. Logits are averaged, over windows where they overlap and then over
/// scales and mirroring; probabilities are the softmax of the mean.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Modes {
    /// Sliding windows; none takes pictures whole.
    pub window: Option<Window>,
    /// Whether the mirrored picture counts as well.
    pub flip: bool,
    /// Factors of the picture's size, bilinear with half-pixel centres.
    pub scales: Vec<f64>,
}

impl Default for Modes {
    /// The whole picture, once.
    fn default() -> Self {
        Self { window: None, flip: false, scales: vec![1.0] }
    }
}

/// The largest factor: its pictures need 16 times the memory.
const LARGEST_SCALE: f64 = 4.0;

impl Modes {
    /// Whether the modes can be used at all, whatever the picture.
    ///
    /// # Errors
    /// When a window is smaller than the network's least, a stride leaves gaps, or a scale is out of range.
    pub fn validate(&self) -> Result<()> {
        if let Some(Window { height, width, stride }) = self.window {
            let side = height.min(width);
            if side < SMALLEST_SIDE {
                let what = format!("at least {SMALLEST_SIDE} on each side are needed");
                return Err(Error::Config(format!("windows of {height}x{width}: {what}")));
            }
            if stride == 0 || stride > side {
                let what = format!("a stride of {stride} for windows of {height}x{width}");
                return Err(Error::Config(format!("{what}: 1 to {side} leaves no gaps between windows")));
            }
        }
        if self.scales.is_empty() {
            return Err(Error::Config("no scales: give at least one, as 1".into()));
        }
        match self.scales.iter().find(|&&s| !(s > 0.0 && s <= LARGEST_SCALE)) {
            Some(s) => {
                Err(Error::Config(format!("scale {s}: above 0 and up to {LARGEST_SCALE} is possible")))
            }
            None => Ok(()),
        }
    }

    /// The size of a picture of `height` by `width` at `scale`.
    fn scaled(height: usize, width: usize, scale: f64) -> [usize; 2] {
        [height, width].map(|side| (side as f64 * scale).round() as usize)
    }

    /// Whether a picture of `height` by `width` is large enough at every scale.
    ///
    /// # Errors
    /// When it is not; the message names the size and the scale.
    pub fn check_size(&self, height: usize, width: usize) -> Result<()> {
        for &scale in std::iter::once(&1.0).chain(&self.scales) {
            let [h, w] = Self::scaled(height, width, scale);
            if h.min(w) < SMALLEST_SIDE {
                let at = if scale == 1.0 { String::new() } else { format!(" at scale {scale}") };
                let what =
                    format!("{w}x{h} pixels{at}: the network needs at least {SMALLEST_SIDE} on each side");
                return Err(Error::Config(what));
            }
        }
        Ok(())
    }
}

impl fmt::Display for Modes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.window {
            None => f.write_str("whole pictures")?,
            Some(Window { height, width, stride }) => {
                write!(f, "windows of {height}x{width} every {stride} pixels")?;
            }
        }
        if self.flip {
            f.write_str(", mirrored too")?;
        }
        if self.scales != [1.0] {
            let scales: Vec<String> = self.scales.iter().map(f64::to_string).collect();
            write!(f, ", at scales {}", scales.join(", "))?;
        }
        if *self != Self::default() {
            f.write_str("; logits averaged")?;
        }
        Ok(())
    }
}

/// The class scores `(1, 1, H, W, classes)` and the fused picture `(1, 1, H, W, 3)` of one pair, pictures
/// `(1, 1, H, W, 3)` in [0, 1] on the CPU. The fused picture is that of the picture as it is, unscaled and not
/// mirrored; over windows it is their mean where they overlap.
///
/// # Errors
/// When the modes cannot be used, the shapes differ, or the picture is too small.
pub(super) fn scores(
    predictor: &mut Predictor,
    visible: &Tensor,
    infrared: &Tensor,
    modes: &Modes,
) -> Result<(Tensor, Tensor)> {
    modes.validate()?;
    if *modes == Modes::default() {
        return predictor.pass(visible, infrared);
    }
    let shape = visible.shape();
    if shape != infrared.shape() || shape.rank() != 5 || shape[0..2] != [1, 1] || shape[4] != 3 {
        let why = "both pictures must be (1, 1, H, W, 3)";
        return Err(Error::shape("evaluate", why, &[shape, infrared.shape()]));
    }
    let (height, width) = (shape[2], shape[3]);
    modes.check_size(height, width)?;
    let (mut sum, mut count, mut image) = (None, 0.0, None);
    for &scale in &modes.scales {
        let [h, w] = Modes::scaled(height, width, scale);
        let pair = [resized(visible, h, w)?, resized(infrared, h, w)?];
        for mirror in [false, true].into_iter().take(1 + usize::from(modes.flip)) {
            let [visible, infrared] = if mirror { pair.each_ref().map(mirrored) } else { pair.clone() };
            let (logits, fused) = windowed(predictor, &visible, &infrared, modes.window)?;
            if (h, w) == (height, width) && !mirror {
                image = Some(fused);
            }
            let logits = if mirror { mirrored(&logits) } else { logits };
            accumulate(&mut sum, resized(&logits, height, width)?)?;
            count += 1.0;
        }
    }
    let Some(mut sum) = sum else { return Err(Error::Config("no scales: give at least one, as 1".into())) };
    sum.f32_mut().iter_mut().for_each(|v| *v /= count);
    let image = match image {
        Some(image) => image,
        None => windowed(predictor, visible, infrared, modes.window)?.1,
    };
    Ok((sum, image))
}

fn accumulate(sum: &mut Option<Tensor>, value: Tensor) -> Result<()> {
    match sum {
        Some(sum) => sum.add_assign(&value),
        None => {
            *sum = Some(value);
            Ok(())
        }
    }
}

/// Logits and picture in float32 on the CPU, of the whole picture or blended over windows.
fn windowed(
    predictor: &mut Predictor,
    visible: &Tensor,
    infrared: &Tensor,
    window: Option<Window>,
) -> Result<(Tensor, Tensor)> {
    let (h, w) = (visible.dim(2), visible.dim(3));
    let Some(window) = window.filter(|window| window.height < h || window.width < w) else {
        return predictor.pass(visible, infrared);
    };
    let size = [window.height.min(h), window.width.min(w)];
    let mut logits = Tensor::zeros([1, 1, h, w, predictor.classes()]);
    let mut image = Tensor::zeros([1, 1, h, w, 3]);
    let mut counts = Tensor::zeros([1, 1, h, w, 1]);
    let one = Tensor::full([1, 1, size[0], size[1], 1], 1.0);
    for y in starts(h, size[0], window.stride) {
        for x in starts(w, size[1], window.stride) {
            let at = [y, x];
            let (part, fused) = predictor.pass(&crop(visible, at, size), &crop(infrared, at, size))?;
            paste(&mut logits, &part, at);
            paste(&mut image, &fused, at);
            paste(&mut counts, &one, at);
        }
    }
    for tensor in [&mut logits, &mut image] {
        let channels = tensor.shape().last();
        for (values, count) in tensor.f32_mut().chunks_exact_mut(channels).zip(counts.f32()) {
            values.iter_mut().for_each(|v| *v /= count);
        }
    }
    Ok((logits, image))
}

/// Where windows of `size` begin along `length`, which is at least that.
fn starts(length: usize, size: usize, stride: usize) -> impl Iterator<Item = usize> {
    let last = length - size;
    (0..last).step_by(stride).chain([last])
}

/// The part of x `(1, 1, H, W, C)` of `size` that begins at row and column `at`.
fn crop(x: &Tensor, [y, left]: [usize; 2], [h, w]: [usize; 2]) -> Tensor {
    let (width, c) = (x.dim(3), x.shape().last());
    let mut part = Tensor::scratch([1, 1, h, w, c]);
    let rows = x.f32().chunks_exact(width * c).skip(y);
    for (to, from) in part.f32_mut().chunks_exact_mut(w * c).zip(rows) {
        to.copy_from_slice(&from[left * c..][..w * c]);
    }
    part
}

/// Adds `part` to the part of x that begins at row and column `at`.
fn paste(x: &mut Tensor, part: &Tensor, [y, left]: [usize; 2]) {
    let (width, w, c) = (x.dim(3), part.dim(3), x.shape().last());
    let rows = x.f32_mut().chunks_exact_mut(width * c).skip(y);
    for (to, from) in rows.zip(part.f32().chunks_exact(w * c)) {
        to[left * c..][..w * c].iter_mut().zip(from).for_each(|(to, from)| *to += from);
    }
}

/// x `(1, 1, H, W, C)` with left and right exchanged.
fn mirrored(x: &Tensor) -> Tensor {
    let (w, c) = (x.dim(3), x.shape().last());
    let mut out = Tensor::scratch(x.shape());
    for (to, from) in out.f32_mut().chunks_exact_mut(w * c).zip(x.f32().chunks_exact(w * c)) {
        to.chunks_exact_mut(c)
            .zip(from.chunks_exact(c).rev())
            .for_each(|(to, from)| to.copy_from_slice(from));
    }
    out
}

fn resized(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    Ok(ops::resize(&mut Tape::off(), &Var::constant(x.clone()), height, width)?.into_value())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_cover_a_length_and_end_with_it() {
        let all = |length, size, stride| starts(length, size, stride).collect::<Vec<_>>();
        assert_eq!(all(10, 4, 3), [0, 3, 6]);
        assert_eq!(all(11, 4, 3), [0, 3, 6, 7]);
        assert_eq!(all(4, 4, 3), [0]);
        assert_eq!(all(5, 4, 3), [0, 1]);
    }

    #[test]
    fn parts_come_from_and_go_to_their_place() {
        let values: Vec<f32> = (0..24).map(|v| v as f32).collect();
        let x = Tensor::from_slice([1, 1, 3, 4, 2], &values).unwrap();
        let part = crop(&x, [1, 2], [2, 2]);
        assert_eq!(part.f32(), [12.0, 13.0, 14.0, 15.0, 20.0, 21.0, 22.0, 23.0]);
        let mut twice = x.clone();
        paste(&mut twice, &part, [1, 2]);
        assert_eq!(
            twice.f32()[12..],
            [24.0, 26.0, 28.0, 30.0, 16.0, 17.0, 18.0, 19.0, 40.0, 42.0, 44.0, 46.0]
        );
        assert_eq!(mirrored(&x).f32()[..8], [6.0, 7.0, 4.0, 5.0, 2.0, 3.0, 0.0, 1.0]);
        assert_eq!(mirrored(&mirrored(&x)).f32(), x.f32());
    }

    #[test]
    fn modes_say_what_they_do() {
        assert_eq!(Modes::default().to_string(), "whole pictures");
        let window = Some(Window { height: 64, width: 96, stride: 32 });
        let modes = Modes { window, flip: true, scales: vec![0.75, 1.0] };
        let text = "windows of 64x96 every 32 pixels, mirrored too, at scales 0.75, 1; logits averaged";
        assert_eq!(modes.to_string(), text);
    }
}
