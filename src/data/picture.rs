//! Reading and writing picture files.
//!
//! PNG, JPEG, BMP and TIFF are recognised by their content, whatever the file is called. Samples of 8 bits are
//! divided by 255 and samples of 16 bits by 65535, their full range: an infrared camera that stores 14 bits in 16
//! uses a quarter of the range, and its pictures must be stretched before they come here. Alpha is dropped.

use std::fs;
use std::io::{Cursor, Read};
use std::path::Path;

use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::codecs::tiff::TiffDecoder;
use image::metadata::Orientation;
use image::{
    DynamicImage, ExtendedColorType, ImageDecoder, ImageEncoder, ImageError, ImageFormat, ImageReader,
};

use super::{Stored, Values};
use crate::files::replace;
use crate::{Error, Result};

/// What a picture file may ask for, checked against its header before anything is allocated for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// The most pixels, width × height.
    pub max_pixels: u64,
}

impl Default for Limits {
    /// 64 Mpx: 8192×8192.
    fn default() -> Self {
        Self { max_pixels: 8192 * 8192 }
    }
}

impl Limits {
    fn check(self, path: &Path, width: u32, height: u32) -> Result<()> {
        if width == 0 || height == 0 {
            let what = format!("the picture is {width}×{height} pixels and holds nothing: export it again");
            return Err(Error::file(path, what));
        }
        if u64::from(width) * u64::from(height) > self.max_pixels {
            let what = format!(
                "{width}×{height} pixels are above the limit of {}: make the picture smaller, or raise the limit \
                 with --max-pixels",
                self.max_pixels
            );
            return Err(Error::file(path, what));
        }
        Ok(())
    }

    /// Bytes that a decoder may allocate: four channels of 16 bits, and once more for what it keeps on the way.
    fn bytes(self) -> u64 {
        self.max_pixels.saturating_mul(16).saturating_add(1 << 20)
    }
}

/// An RGB picture with values in [0, 1].
#[derive(Clone, PartialEq, Debug)]
pub struct Picture {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `(height, width, 3)`, row-major.
    pub rgb: Vec<f32>,
}

impl Picture {
    /// The picture as 8-bit RGB, `(height, width, 3)`.
    pub fn to_rgb8(&self) -> Vec<u8> {
        to_bytes(&self.rgb)
    }
}

/// A class id for every pixel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Labels {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `(height, width)`, row-major; 255 means ignored.
    pub ids: Vec<u8>,
}

/// Reads a picture as RGB in [0, 1]. A grey picture is repeated to three channels; an EXIF orientation is applied.
///
/// # Errors
/// When the file cannot be read, is no picture, is damaged or cut short, or is larger than `limits`.
pub fn read_rgb(path: &Path, limits: Limits) -> Result<Picture> {
    Ok(read_stored(path, limits)?.picture())
}

/// [`read_rgb`], as the file stores it.
pub(super) fn read_stored(path: &Path, limits: Limits) -> Result<Stored> {
    let image = read_image(path, limits)?;
    let (width, height) = (image.width() as usize, image.height() as usize);
    let values = match image {
        DynamicImage::ImageLuma8(b) => Values::Gray8(b.into_raw()),
        DynamicImage::ImageLumaA8(b) => Values::Gray8(first_channels::<_, 2, 1>(&b)),
        DynamicImage::ImageRgb8(b) => Values::Rgb8(b.into_raw()),
        DynamicImage::ImageRgba8(b) => Values::Rgb8(first_channels::<_, 4, 3>(&b)),
        DynamicImage::ImageLuma16(b) => Values::Gray16(b.into_raw()),
        DynamicImage::ImageLumaA16(b) => Values::Gray16(first_channels::<_, 2, 1>(&b)),
        DynamicImage::ImageRgb16(b) => Values::Rgb16(b.into_raw()),
        DynamicImage::ImageRgba16(b) => Values::Rgb16(first_channels::<_, 4, 3>(&b)),
        other => return Err(unsupported(path, &format!("samples of type {:?}", other.color()))),
    };
    Ok(Stored { width, height, values })
}

/// Reads a picture whose four channels are RGB and infrared: (visible, infrared).
///
/// # Errors
/// As [`read_rgb`], and when there are not four channels.
pub(super) fn read_four_channels(path: &Path, limits: Limits) -> Result<(Stored, Stored)> {
    let image = read_image(path, limits)?;
    let (width, height) = (image.width() as usize, image.height() as usize);
    let stored = |values| Stored { width, height, values };
    match image {
        DynamicImage::ImageRgba8(b) => {
            let visible = Values::Rgb8(first_channels::<_, 4, 3>(&b));
            Ok((stored(visible), stored(Values::Gray8(last_of_four(&b)))))
        }
        DynamicImage::ImageRgba16(b) => {
            let visible = Values::Rgb16(first_channels::<_, 4, 3>(&b));
            Ok((stored(visible), stored(Values::Gray16(last_of_four(&b)))))
        }
        other => {
            let what = format!(
                "{} channels, but MFNet's pictures have four, RGB and thermal: if the thermal pictures are files of \
                 their own, arrange the data set in the flat layout",
                other.color().channel_count()
            );
            Err(Error::file(path, what))
        }
    }
}

fn read_image(path: &Path, limits: Limits) -> Result<DynamicImage> {
    let (bytes, format) = read(path)?;
    decode(path, &bytes, format, limits)
}

/// The first `N` of `C` channels.
fn first_channels<T: Copy, const C: usize, const N: usize>(samples: &[T]) -> Vec<T> {
    samples.as_chunks::<C>().0.iter().flat_map(|pixel| pixel[..N].iter().copied()).collect()
}

fn last_of_four<T: Copy>(samples: &[T]) -> Vec<T> {
    samples.as_chunks::<4>().0.iter().map(|pixel| pixel[3]).collect()
}

/// Reads a picture of class ids: a grey picture, a palette PNG (the indices count, not the colours), or a colour
/// picture whose three channels are equal. A PNG of 1, 2 or 4 bits holds the ids unscaled.
///
/// # Errors
/// As [`read_rgb`]; also for a JPEG, whose compression changes ids, for a BMP or TIFF of fewer than 8 bits, for colours, and
/// for an id above 255.
pub fn read_labels(path: &Path, limits: Limits) -> Result<Labels> {
    let (bytes, format) = read(path)?;
    match format {
        ImageFormat::Png => return png_labels(path, &bytes, limits),
        ImageFormat::Jpeg => {
            let what = "labels cannot be a JPEG, whose compression changes the ids: save them as a grey PNG";
            return Err(Error::file(path, what));
        }
        _ => {}
    }
    if is_narrow(&bytes, format) {
        let what =
            "labels of fewer than 8 bits, whose ids are lost when such a file is decoded: save them as a PNG";
        return Err(Error::file(path, what));
    }
    let image = decode(path, &bytes, format, limits)?;
    let (width, height) = (image.width() as usize, image.height() as usize);
    let ids = match image {
        DynamicImage::ImageLuma8(b) => ids(path, width, &b, 1),
        DynamicImage::ImageLumaA8(b) => ids(path, width, &b, 2),
        DynamicImage::ImageRgb8(b) => ids(path, width, &b, 3),
        DynamicImage::ImageRgba8(b) => ids(path, width, &b, 4),
        DynamicImage::ImageLuma16(b) => ids(path, width, &b, 1),
        DynamicImage::ImageLumaA16(b) => ids(path, width, &b, 2),
        DynamicImage::ImageRgb16(b) => ids(path, width, &b, 3),
        DynamicImage::ImageRgba16(b) => ids(path, width, &b, 4),
        other => Err(unsupported(path, &format!("samples of type {:?}", other.color()))),
    }?;
    Ok(Labels { width, height, ids })
}

/// The network's output in [0, 1] as bytes: round(255·v), clamped.
pub fn to_bytes(values: &[f32]) -> Vec<u8> {
    // The cast saturates, and turns NaN into 0.
    values.iter().map(|v| (255.0 * v).round() as u8).collect()
}

/// Writes 8-bit RGB, `(height, width, 3)`, as a PNG, and creates the folders above it. The file appears complete
/// or not at all.
///
/// # Errors
/// When `rgb` does not have that many bytes, or the file or a folder cannot be written.
pub fn write_rgb(path: &Path, width: usize, height: usize, rgb: &[u8]) -> Result<()> {
    write_png(path, width, height, rgb, ExtendedColorType::Rgb8)
}

/// Writes 8-bit grey values, `(height, width)`, as [`write_rgb`] does.
///
/// # Errors
/// As [`write_rgb`].
pub fn write_gray(path: &Path, width: usize, height: usize, gray: &[u8]) -> Result<()> {
    write_png(path, width, height, gray, ExtendedColorType::L8)
}

/// The whole file and its format, which is checked first: a film of 50 GB is never read.
fn read(path: &Path) -> Result<(Vec<u8>, ImageFormat)> {
    let mut file = fs::File::open(path).map_err(Error::io(path, "read"))?;
    let metadata = file.metadata().map_err(Error::io(path, "read"))?;
    if !metadata.is_file() {
        return Err(Error::file(path, "not a file: give the path of a picture"));
    }
    let mut bytes = Vec::new();
    file.by_ref().take(64).read_to_end(&mut bytes).map_err(Error::io(path, "read"))?;
    let format = match image::guess_format(&bytes) {
        Ok(f @ (ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::Bmp | ImageFormat::Tiff)) => f,
        Ok(other) => return Err(unsupported(path, &format!("{other:?} files"))),
        Err(_) if bytes.is_empty() => {
            return Err(Error::file(path, "the file is empty: copy or export it again"));
        }
        Err(_) => {
            let what = "not a picture that can be read: convert it to PNG, JPEG, BMP or TIFF";
            return Err(Error::file(path, what));
        }
    };
    file.read_to_end(&mut bytes).map_err(Error::io(path, "read"))?;
    if format == ImageFormat::Jpeg && !jpeg_is_complete(&bytes) {
        return Err(damaged(path, "JPEG", "the file ends before the picture does"));
    }
    Ok((bytes, format))
}

fn decode(path: &Path, bytes: &[u8], format: ImageFormat, limits: Limits) -> Result<DynamicImage> {
    let failed = |e: ImageError| match e {
        ImageError::Unsupported(e) => unsupported(path, &e.to_string()),
        ImageError::Limits(e) => {
            let what = format!(
                "decoding takes more memory than a picture of {} pixels may ({}): if the file is not damaged, raise \
                 the limit with --max-pixels",
                limits.max_pixels,
                one_line(&e.to_string())
            );
            Error::file(path, what)
        }
        e => damaged(path, name(format), &e.to_string()),
    };
    let mut memory = image::Limits::no_limits();
    memory.max_alloc = Some(limits.bytes());
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(memory);
    let mut decoder = reader.into_decoder().map_err(failed)?;
    let (width, height) = decoder.dimensions();
    limits.check(path, width, height)?;
    // An orientation that cannot be read is as good as none.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut image = DynamicImage::from_decoder(decoder).map_err(failed)?;
    image.apply_orientation(orientation);
    Ok(image)
}

/// Whether a BMP or TIFF has samples of fewer than 8 bits, which the decoder stretches over 0..255.
fn is_narrow(bytes: &[u8], format: ImageFormat) -> bool {
    match format {
        // Bits of a pixel, in every header but the oldest.
        ImageFormat::Bmp => {
            matches!(bytes.get(28..30), Some(&[low, high]) if u16::from_le_bytes([low, high]) < 8)
        }
        ImageFormat::Tiff => TiffDecoder::new(Cursor::new(bytes))
            .is_ok_and(|decoder| decoder.original_color_type() == ExtendedColorType::L1),
        _ => false,
    }
}

/// Whether the end marker follows the scan. The decoder fills what is missing with grey and reports success.
fn jpeg_is_complete(bytes: &[u8]) -> bool {
    const START_OF_SCAN: u8 = 0xDA;
    const END: [u8; 2] = [0xFF, 0xD9];
    // The segments before the scan are skipped by their length: one may hold a thumbnail with an end of its own.
    let mut at = 2;
    while let Some(&[0xFF, marker, high, low]) = bytes.get(at..at + 4) {
        if marker == START_OF_SCAN {
            return bytes[at..].windows(2).any(|w| w == END);
        }
        // A byte of 0xFF may pad the space between segments.
        at += if marker == 0xFF { 1 } else { 2 + usize::from(u16::from_be_bytes([high, low])) };
    }
    // No scan, or a layout of segments unknown here: the decoder's to judge.
    bytes.windows(2).skip(at.min(bytes.len())).any(|w| w == END)
}

/// The class ids of pixels of which only grey ones, up to 255, make sense.
fn ids<T: Copy + Into<u16>>(path: &Path, width: usize, samples: &[T], channels: usize) -> Result<Vec<u8>> {
    let mut ids = Vec::with_capacity(samples.len() / channels);
    for (i, pixel) in samples.chunks_exact(channels).enumerate() {
        let (x, y) = (i % width, i / width);
        let id: u16 = match *pixel {
            [grey] | [grey, _] => grey.into(),
            [r, g, b] | [r, g, b, _] => {
                let (r, g, b) = (r.into(), g.into(), b.into());
                if r != g || g != b {
                    let what = format!(
                        "a picture of colours, ({r}, {g}, {b}) at x {x}, y {y}, where class ids are expected: save \
                         the ids as a grey PNG"
                    );
                    return Err(Error::file(path, what));
                }
                r
            }
            _ => 0,
        };
        let id = u8::try_from(id).map_err(|_| {
            let what =
                format!("label {id} at x {x}, y {y} does not fit a byte: save the ids as an 8-bit grey PNG");
            Error::file(path, what)
        })?;
        ids.push(id);
    }
    Ok(ids)
}

/// Labels of a PNG, read without the usual expansion: that would turn indices into colours and stretch the ids of
/// a picture of 1, 2 or 4 bits over 0..255.
fn png_labels(path: &Path, bytes: &[u8], limits: Limits) -> Result<Labels> {
    let failed = |e: png::DecodingError| damaged(path, "PNG", &e.to_string());
    let memory = png::Limits { bytes: usize::try_from(limits.bytes()).unwrap_or(usize::MAX) };
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes), memory);
    decoder.set_transformations(png::Transformations::IDENTITY);
    let header = decoder.read_header_info().map_err(failed)?;
    limits.check(path, header.width, header.height)?;
    let mut reader = decoder.read_info().map_err(failed)?;
    let size = reader.output_buffer_size().ok_or_else(|| damaged(path, "PNG", "its size overflows"))?;
    let mut data = vec![0; size];
    let frame = reader.next_frame(&mut data).map_err(failed)?;
    let (width, height) = (frame.width as usize, frame.height as usize);
    let data = data.get(..frame.buffer_size()).unwrap_or_default();
    let channels = frame.color_type.samples();
    let ids = match frame.bit_depth {
        png::BitDepth::Eight => ids(path, width, data, channels)?,
        png::BitDepth::Sixteen => {
            let wide: Vec<u16> = data.chunks_exact(2).map(|b| u16::from_be_bytes([b[0], b[1]])).collect();
            ids(path, width, &wide, channels)?
        }
        // Only one channel can be this narrow. Pixels are packed from the high bits down, rows start on a byte.
        depth @ (png::BitDepth::One | png::BitDepth::Two | png::BitDepth::Four) => {
            let bits = depth as usize;
            let pixel = |row: &[u8], x: usize| (row[x * bits / 8] << (x * bits % 8)) >> (8 - bits);
            data.chunks_exact(frame.line_size)
                .flat_map(|row| (0..width).map(move |x| pixel(row, x)))
                .collect()
        }
    };
    Ok(Labels { width, height, ids })
}

fn write_png(path: &Path, width: usize, height: usize, data: &[u8], color: ExtendedColorType) -> Result<()> {
    let channels = usize::from(color.channel_count());
    let sizes = (u32::try_from(width), u32::try_from(height));
    let ((Ok(w), Ok(h)), Some(_)) = (sizes, path.file_name()) else {
        return Err(Error::file(
            path,
            format!("a picture of {width}×{height} cannot be written under this name"),
        ));
    };
    if Some(data.len()) != width.checked_mul(height).and_then(|n| n.checked_mul(channels)) {
        let what =
            format!("{} bytes were given for {width}×{height} pixels of {channels} channels", data.len());
        return Err(Error::file(path, what));
    }
    if let Some(folder) = path.parent().filter(|f| !f.as_os_str().is_empty()) {
        fs::create_dir_all(folder).map_err(Error::io(folder, "create the folder"))?;
    }
    let mut bytes = Vec::new();
    PngEncoder::new_with_quality(&mut bytes, CompressionType::Fast, FilterType::Adaptive)
        .write_image(data, w, h, color)
        .map_err(|e| Error::file(path, format!("cannot encode {width}×{height} pixels: {e}")))?;
    replace(path, |temporary| fs::write(temporary, &bytes))
}

fn name(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::Png => "PNG",
        ImageFormat::Jpeg => "JPEG",
        ImageFormat::Bmp => "BMP",
        _ => "TIFF",
    }
}

fn damaged(path: &Path, format: &str, why: &str) -> Error {
    let what = format!("a damaged {format} file ({}): copy or export it again", one_line(why));
    Error::file(path, what)
}

fn unsupported(path: &Path, what: &str) -> Error {
    let what = format!(
        "cannot be read ({}): convert it to a grey or RGB picture, PNG, of 8 or 16 bits",
        one_line(what)
    );
    Error::file(path, what)
}

/// The words of a decoder on one line.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
