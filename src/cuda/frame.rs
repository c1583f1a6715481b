//! Launches of `kernels/frame.cu`: pictures and results in the layout of whoever asks.

use std::sync::Arc;

use super::Call;
use super::driver::Driver;
use crate::{DType, Result};

/// Threads of a block.
const THREADS: usize = 256;

/// The numbers of a picture.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Number {
    /// 8 bits, 0 to 255.
    U8,
    /// 16 bits, 0 to 65535.
    U16,
    /// 32-bit float, 0 to 1.
    F32,
}

impl Number {
    /// Bytes of one.
    pub fn size(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::U16 => 2,
            Self::F32 => 4,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::U8 => "bytes",
            Self::U16 => "words",
            Self::F32 => "floats",
        }
    }

    /// The number that stands for 1.
    pub fn full(self) -> f32 {
        match self {
            Self::U8 => 255.0,
            Self::U16 => 65535.0,
            Self::F32 => 1.0,
        }
    }
}

/// Rows of numbers in the memory of a device.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Rows {
    /// The first number of the first row.
    pub address: u64,
    /// Numbers from one row to the next.
    pub stride: usize,
}

/// Pixels in the memory of a device.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Pixels {
    /// Where they are.
    pub rows: Rows,
    /// Of what.
    pub number: Number,
    /// Numbers of a pixel.
    pub channels: usize,
    /// Where red, green and blue are among them.
    pub order: [usize; 3],
    /// The numbers that are black and white, where they are not 0 and the largest.
    pub range: Option<(f32, f32)>,
}

/// Reads a picture to `to`, `(H, W, 3)`: as bytes, which only bytes without a range can be, or as floats in [0, 1].
///
/// # Errors
/// When the device reports one.
///
/// # Safety
/// The picture has `height` rows of `width` pixels, `to` has room for as many, and both belong to the caller.
pub unsafe fn read(
    queue: &Arc<dyn Driver>,
    picture: &Pixels,
    (height, width): (usize, usize),
    to: u64,
    as_bytes: bool,
) -> Result<()> {
    let &Pixels { rows, number, channels, order: [r, g, b], range } = picture;
    let (black, white) = range.unwrap_or((0.0, number.full()));
    let kind = if as_bytes { "bytes" } else { "floats" };
    let call = Call::on(&format!("frame_read_{}_{kind}", number.name()), queue, DType::U8);
    let call = call.pointer(rows.address).pointer(to).u64(rows.stride as u64).int(width).int(channels);
    let call = call.int(r).int(g).int(b).float(black).float(white - black);
    let pixel = channels * number.size() + if as_bytes { 3 } else { 12 };
    // SAFETY: the columns are guarded, and there is a block for each row; the caller vouches for the rest.
    unsafe { call.bytes(height * width * pixel).launch([width.div_ceil(THREADS), height, 1], THREADS, 0) }
}

/// Writes a picture, `(H, W, 3)` of the numbers that are asked for, which are no 16-bit ones.
///
/// # Errors
/// When the device reports one.
///
/// # Safety
/// As for [`read`], the other way round.
pub unsafe fn write(
    queue: &Arc<dyn Driver>,
    from: u64,
    (height, width): (usize, usize),
    picture: &Pixels,
) -> Result<()> {
    let &Pixels { rows, number, channels, order: [r, g, b], .. } = picture;
    let call = Call::on(&format!("frame_write_{}", number.name()), queue, DType::U8);
    let call = call.pointer(from).pointer(rows.address).u64(rows.stride as u64).int(width).int(channels);
    let call = call.int(r).int(g).int(b).bytes(height * width * (3 + channels) * number.size());
    // SAFETY: as in `read`.
    unsafe { call.launch([width.div_ceil(THREADS), height, 1], THREADS, 0) }
}

/// Writes `height` rows of `n` numbers, 8-bit or float ones.
///
/// # Errors
/// When the device reports one.
///
/// # Safety
/// As for [`write()`].
pub unsafe fn write_rows(
    queue: &Arc<dyn Driver>,
    from: u64,
    (height, n): (usize, usize),
    to: Rows,
    number: Number,
) -> Result<()> {
    let call = Call::on(&format!("frame_rows_{}", number.name()), queue, DType::U8);
    let call = call.pointer(from).pointer(to.address).u64(to.stride as u64).int(n);
    let call = call.bytes(2 * height * n * number.size());
    // SAFETY: as in `read`.
    unsafe { call.launch([n.div_ceil(THREADS), height, 1], THREADS, 0) }
}
