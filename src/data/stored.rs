//! A decoded picture as its file stores it.

use super::Picture;

/// A grey or RGB picture of 8 or 16 bits: a twelfth to a half of the memory of a [`Picture`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stored {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `(height, width)` or `(height, width, 3)`, row-major.
    pub values: Values,
}

/// The values of a [`Stored`] picture.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Values {
    /// One channel; 255 is white.
    Gray8(Vec<u8>),
    /// Three channels; 255 is full.
    Rgb8(Vec<u8>),
    /// One channel; 65535 is white.
    Gray16(Vec<u16>),
    /// Three channels; 65535 is full.
    Rgb16(Vec<u16>),
}

/// A number that stands for one in [0, 1].
pub(super) trait Value: Copy {
    /// That number.
    fn unit(self) -> f32;
}

impl Value for u8 {
    #[inline(always)]
    fn unit(self) -> f32 {
        f32::from(self) / 255.0
    }
}

impl Value for u16 {
    #[inline(always)]
    fn unit(self) -> f32 {
        f32::from(self) / 65535.0
    }
}

impl Stored {
    /// The picture as RGB in [0, 1]; grey is repeated to three channels.
    pub fn picture(&self) -> Picture {
        fn gray<T: Value>(values: &[T]) -> Vec<f32> {
            values.iter().flat_map(|v| [v.unit(); 3]).collect()
        }
        fn rgb<T: Value>(values: &[T]) -> Vec<f32> {
            values.iter().map(|v| v.unit()).collect()
        }
        let rgb = match &self.values {
            Values::Gray8(v) => gray(v),
            Values::Rgb8(v) => rgb(v),
            Values::Gray16(v) => gray(v),
            Values::Rgb16(v) => rgb(v),
        };
        Picture { width: self.width, height: self.height, rgb }
    }

    /// The picture as 8-bit RGB, `(height, width, 3)`.
    pub fn to_rgb8(&self) -> Vec<u8> {
        match &self.values {
            Values::Rgb8(v) => v.clone(),
            Values::Gray8(v) => v.iter().flat_map(|v| [*v; 3]).collect(),
            _ => self.picture().to_rgb8(),
        }
    }

    /// Memory of the values.
    pub fn bytes(&self) -> usize {
        match &self.values {
            Values::Gray8(v) | Values::Rgb8(v) => v.len(),
            Values::Gray16(v) | Values::Rgb16(v) => 2 * v.len(),
        }
    }
}
