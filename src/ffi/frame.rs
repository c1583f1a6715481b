//! Pictures and results in the caller's memory: checked first, then read and written row by row.

use std::ffi::c_void;
use std::sync::Arc;

use super::model::reserved;
use super::sized::{self, Struct};
use super::status::{Failure, Result, amdanet_status, guard};
use crate::cuda::driver::Driver;
use crate::cuda::frame;
use crate::infer::{self, Output, Picture, Pixels, Wanted};
use crate::model::{LARGEST_SIDE, SMALLEST_SIDE};

/// The order of the numbers of a pixel.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum amdanet_channels {
    /// Red, green, blue.
    Rgb = 0,
    /// Blue, green, red.
    Bgr = 1,
    /// Red, green, blue, alpha: ignored in pictures, and full in results.
    Rgba = 2,
    /// Blue, green, red, alpha.
    Bgra = 3,
    /// One number, which stands for all three. For pictures only.
    Gray = 4,
}

/// The type of numbers, in the byte order of the machine.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum amdanet_type {
    /// uint8_t, 0 to 255.
    U8 = 0,
    /// uint16_t, 0 to 65535. For pictures only.
    U16 = 1,
    /// float, 0 to 1.
    F32 = 2,
}

/// Where memory is.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum amdanet_memory {
    /// The program's own.
    Host = 0,
    /// That of the session's CUDA device, in its primary context, which is that of the CUDA runtime. There, addresses and
    /// strides must be multiples of the size of a number, and floats of a picture that are not from 0 to 1 are limited.
    Cuda = 1,
}

use amdanet_channels as Channels;
use amdanet_memory as Memory;
use amdanet_type as Type;

/// A picture to read. Its layout never changes. No alignment is asked for in the program's own memory.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct amdanet_picture {
    /// The first pixel of the first row. Only read, and only until the frame is done.
    pub data: *const c_void,
    /// Bytes that `data` points at: at least (height - 1) stride + the bytes of a row.
    pub length: usize,
    /// Bytes from one row to the next, at least those of a row; 0 when there is nothing between rows.
    pub stride: usize,
    /// An amdanet_channels.
    pub channels: u32,
    /// An amdanet_type.
    pub r#type: u32,
    /// An amdanet_memory.
    pub memory: u32,
    /// 0.
    pub reserved: u32,
    /// The numbers that are black and white: a number v is taken as (v - black) / (white - black), limited to 0 and 1. With
    /// both 0, the whole range of the type. For a thermal camera that counts from 7000 to 9000 in 16 bits: those.
    pub black: f32,
    /// See `black`; another number than it, both finite.
    pub white: f32,
}

/// Memory to write to. Its layout never changes. No alignment is asked for in the program's own memory.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct amdanet_buffer {
    /// The first pixel of the first row; NULL when the result is not wanted. It may be that of a picture of the same frame,
    /// which is overwritten then.
    pub data: *mut c_void,
    /// Bytes that `data` points at: at least (height - 1) stride + the bytes of a row. What is between rows is not written.
    pub length: usize,
    /// Bytes from one row to the next, at least those of a row; 0 when there is nothing between rows.
    pub stride: usize,
    /// An amdanet_memory.
    pub memory: u32,
    /// 0.
    pub reserved: u32,
}

/// A pair of pictures, and where its results go. All zeros but struct_size are the defaults; sizes and data must be set.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct amdanet_frame {
    /// sizeof(amdanet_frame).
    pub struct_size: usize,
    /// Pixels in a row of both pictures and of all results: amdanet_model_info.smallest_side to largest_side.
    pub width: u32,
    /// Rows of both pictures and of all results; the same range.
    pub height: u32,
    /// The visible picture.
    pub visible: amdanet_picture,
    /// The infrared picture, registered with the visible one; usually gray.
    pub infrared: amdanet_picture,
    /// The fused picture, in `fused_channels` and `fused_type`.
    pub fused: amdanet_buffer,
    /// The class of each pixel, one uint8_t each. 255 does not occur.
    pub labels: amdanet_buffer,
    /// The probability of each class for each pixel: `classes` floats for a pixel, one pixel after the other in a row. Their
    /// sum is 1. This takes time and memory; labels do not need it.
    pub probabilities: amdanet_buffer,
    /// An amdanet_channels, not AMDANET_CHANNELS_GRAY.
    pub fused_channels: u32,
    /// An amdanet_type, not AMDANET_TYPE_U16. Bytes are 255 times the float, rounded.
    pub fused_type: u32,
    /// A CUstream or cudaStream_t of the session's CUDA device that takes part: the frame begins when the work that is on it
    /// is done, and work that is put on it after the frame begins when the results are there. If all pictures and buffers are
    /// in CUDA memory, the frame counts as done when it is queued: they must then stay until the stream has come past it, and
    /// what goes wrong on the device later is returned by a later call. Not CU_STREAM_PER_THREAD, because the session has
    /// threads of its own. NULL, always for the CPU: pictures are ready at the call, and results when the frame is done.
    pub stream: *mut c_void,
}

// SAFETY: it begins with its size, and any bytes are a value.
unsafe impl Struct for amdanet_frame {
    const NAME: &'static str = "amdanet_frame";
}

/// Fills `*frame` with the defaults: `amdanet_frame_init(&frame, sizeof frame)`. `struct_size` is that size, so that no more
/// than the caller's structure is written. Any thread may call it.
///
/// Errors: AMDANET_STATUS_INVALID_ARGUMENT when `frame` is NULL or `struct_size` is no size of it.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn amdanet_frame_init(frame: *mut amdanet_frame, struct_size: usize) -> amdanet_status {
    // SAFETY: the caller says that so many bytes may be written.
    guard(|| unsafe { sized::init(frame, struct_size) })
}

/// Rows in the caller's memory that were checked.
#[derive(Clone, Copy)]
struct Rows {
    data: *mut u8,
    stride: usize,
    /// Bytes of a row.
    row: usize,
    height: usize,
    on_device: bool,
}

// SAFETY: the caller leaves the memory to the library until the frame is done, on whichever thread that is.
unsafe impl Send for Rows {}
// SAFETY: as above.
unsafe impl Sync for Rows {}

/// What rows are checked for: the size of a frame, and the device of its session.
struct Check<'a> {
    device: Option<&'a Arc<dyn Driver>>,
    width: usize,
    height: usize,
}

impl Check<'_> {
    /// Checks a picture or a buffer whose pixels are `count` numbers of `size` bytes.
    fn rows(
        &self,
        name: &str,
        (data, length, stride): (*mut c_void, usize, usize),
        memory: u32,
        (count, size): (usize, usize),
    ) -> Result<Rows> {
        if data.is_null() {
            return Err(Failure::argument(format!("{name}.data"), "is NULL"));
        }
        let device = match (memory, self.device) {
            (m, _) if m == Memory::Host as u32 => None,
            (m, Some(device)) if m == Memory::Cuda as u32 => Some(device),
            (m, None) if m == Memory::Cuda as u32 => {
                let what = "CUDA memory: the session computes on the CPU; copy it to the program's own";
                return Err(Failure::new(amdanet_status::Unsupported, format!("{name}.memory: {what}")));
            }
            (m, _) => {
                return Err(Failure::no_constant(format!("{name}.memory"), m, "amdanet_memory"));
            }
        };
        let (height, row) = (self.height, self.width * count * size);
        let stride = if stride == 0 { row } else { stride };
        if stride < row {
            let what = format!("{stride} bytes are less than the {row} of a row");
            return Err(Failure::argument(format!("{name}.stride"), what));
        }
        let end = (height - 1).checked_mul(stride).and_then(|n| n.checked_add(row));
        let end =
            end.filter(|&end| (data as usize).checked_add(end).is_some_and(|e| isize::try_from(e).is_ok()));
        let Some(needed) = end else {
            let what = format!("{height} rows of {stride} bytes are more than an address space");
            return Err(Failure::argument(format!("{name}.stride"), what));
        };
        if length < needed {
            let what = format!("{length} bytes: {height} rows take {needed}");
            return Err(Failure::argument(format!("{name}.length"), what));
        }
        if let Some(device) = device {
            for (field, value) in [("data", data as usize), ("stride", stride)] {
                if !value.is_multiple_of(size) {
                    let what = format!("{value:#x} is no multiple of {size}, the bytes of a number");
                    return Err(Failure::argument(format!("{name}.{field}"), what));
                }
            }
            let first = data as u64;
            if ![first, first + needed as u64 - 1].iter().all(|&address| device.holds(address)) {
                let what =
                    format!("{needed} bytes from {first:#x} are not in the memory of {}", device.name());
                return Err(Failure::argument(format!("{name}.data"), what));
            }
        }
        Ok(Rows { data: data.cast(), stride, row, height, on_device: device.is_some() })
    }
}

impl Rows {
    /// Rows of numbers of `size` bytes for the device's kernels.
    fn for_device(&self, size: usize) -> frame::Rows {
        frame::Rows { address: self.data as u64, stride: self.stride / size }
    }

    /// The rows, for reading.
    ///
    /// # Safety
    /// The caller's promise still holds: the memory is there, in the program's own, and nobody writes to it.
    unsafe fn read(&self) -> impl Iterator<Item = &[u8]> {
        // SAFETY: `Check::rows` checked that the rows lie within the memory.
        (0..self.height)
            .map(|y| unsafe { std::slice::from_raw_parts(self.data.add(y * self.stride), self.row) })
    }

    /// All rows in one piece, if there is nothing between them.
    ///
    /// # Safety
    /// As [`Rows::read`].
    unsafe fn whole(&self) -> Option<&[u8]> {
        // SAFETY: as in `read`.
        let all = || unsafe { std::slice::from_raw_parts(self.data, self.row * self.height) };
        (self.stride == self.row).then(all)
    }

    /// The rows, for writing.
    ///
    /// # Safety
    /// As [`Rows::read`], and nobody reads it either.
    unsafe fn write(&self) -> impl Iterator<Item = &mut [u8]> {
        // SAFETY: `Check::rows` checked that the rows lie within the memory; one is handed out after the other.
        (0..self.height)
            .map(|y| unsafe { std::slice::from_raw_parts_mut(self.data.add(y * self.stride), self.row) })
    }
}

fn channels(name: &str, value: u32) -> Result<Channels> {
    use Channels::*;
    let found = [Rgb, Bgr, Rgba, Bgra, Gray].into_iter().find(|&c| c as u32 == value);
    found.ok_or_else(|| Failure::no_constant(name, value, "amdanet_channels"))
}

fn type_of(name: &str, value: u32) -> Result<Type> {
    let found = [Type::U8, Type::U16, Type::F32].into_iter().find(|&t| t as u32 == value);
    found.ok_or_else(|| Failure::no_constant(name, value, "amdanet_type"))
}

impl Channels {
    fn count(self) -> usize {
        match self {
            Self::Rgb | Self::Bgr => 3,
            Self::Rgba | Self::Bgra => 4,
            Self::Gray => 1,
        }
    }

    /// Where red, green and blue are.
    fn order(self) -> [usize; 3] {
        match self {
            Self::Rgb | Self::Rgba => [0, 1, 2],
            Self::Bgr | Self::Bgra => [2, 1, 0],
            Self::Gray => [0; 3],
        }
    }
}

impl Type {
    fn bytes(self) -> usize {
        self.number().size()
    }

    fn number(self) -> frame::Number {
        match self {
            Self::U8 => frame::Number::U8,
            Self::U16 => frame::Number::U16,
            Self::F32 => frame::Number::F32,
        }
    }
}

/// Pixels for the device's kernels.
fn for_device(rows: &Rows, channels: Channels, kind: Type, range: Option<(f32, f32)>) -> frame::Pixels {
    let (number, order, channels) = (kind.number(), channels.order(), channels.count());
    frame::Pixels { rows: rows.for_device(kind.bytes()), number, channels, order, range }
}

/// A picture that was checked.
struct Source {
    name: &'static str,
    rows: Rows,
    channels: Channels,
    kind: Type,
    /// Black and white, unless they are the type's own.
    range: Option<(f32, f32)>,
}

/// A picture as the engine takes it, where it is not so already.
#[derive(Default)]
pub struct Staging {
    bytes: Vec<u8>,
    floats: Vec<f32>,
}

impl Staging {
    /// Bytes that it holds.
    pub fn len(&self) -> usize {
        self.bytes.capacity() + 4 * self.floats.capacity()
    }
}

impl Source {
    fn new(name: &'static str, picture: &amdanet_picture, check: &Check) -> Result<Self> {
        let &amdanet_picture { data, length, stride, memory, black, white, .. } = picture;
        let channels = channels(&format!("{name}.channels"), picture.channels)?;
        let kind = type_of(&format!("{name}.type"), picture.r#type)?;
        reserved(&format!("{name}.reserved"), picture.reserved)?;
        let range = (black != 0.0 || white != 0.0).then_some((black, white));
        if !(white - black).is_finite() || range.is_some() && white == black {
            let what = format!("{black} and {white}: must be two different finite numbers, or both 0");
            return Err(Failure::argument(format!("{name}.black and {name}.white"), what));
        }
        let pixel = (channels.count(), kind.bytes());
        let rows = check.rows(name, (data.cast_mut(), length, stride), memory, pixel)?;
        Ok(Self { name, rows, channels, kind, range })
    }

    /// Whether it can be bytes for the engine.
    fn is_bytes(&self) -> bool {
        self.kind == Type::U8 && self.range.is_none()
    }

    /// The picture for the engine, as bytes or as floats.
    ///
    /// # Safety
    /// As [`Rows::read`], or the picture is on the device.
    unsafe fn picture<'a>(
        &'a self,
        width: usize,
        staging: &'a mut Staging,
        as_bytes: bool,
    ) -> Result<Picture<'a>> {
        if self.rows.on_device {
            return Ok(Picture::Device(for_device(&self.rows, self.channels, self.kind, self.range)));
        }
        // SAFETY: as above.
        unsafe { self.pixels(width, staging, as_bytes).map(Picture::Host) }
    }

    /// The picture in the program's own memory for the engine, in `staging` where it has to be converted.
    ///
    /// # Safety
    /// As [`Rows::read`].
    unsafe fn pixels<'a>(
        &'a self,
        width: usize,
        staging: &'a mut Staging,
        as_bytes: bool,
    ) -> Result<Pixels<'a>> {
        let count = 3 * width * self.rows.height;
        if as_bytes {
            // SAFETY: as above.
            if let Some(whole) = unsafe { self.rows.whole() }
                && self.channels == Channels::Rgb
            {
                return Ok(Pixels::Bytes(whole));
            }
            room(&mut staging.bytes, count, self.name)?;
            // SAFETY: as above.
            unsafe { self.convert::<1, u8>(&mut staging.bytes, |[byte]| byte) };
            return Ok(Pixels::Bytes(&staging.bytes));
        }
        let to = &mut staging.floats;
        room(to, count, self.name)?;
        let (black, white) = self.range.unwrap_or((0.0, 1.0));
        let scale = |v: f32| ((v - black) / (white - black)).clamp(0.0, 1.0);
        let full = self.kind.number().full();
        let ranged = self.range.is_some();
        let unit = |v: f32| if ranged { scale(v) } else { v / full };
        // SAFETY: as above.
        unsafe {
            match self.kind {
                Type::U8 => self.convert(to, |[byte]: [u8; 1]| unit(f32::from(byte))),
                Type::U16 => self.convert(to, |bytes| unit(f32::from(u16::from_ne_bytes(bytes)))),
                Type::F32 => self.convert(to, |bytes| unit(f32::from_ne_bytes(bytes))),
            }
        }
        // NaN is not in the range either.
        if self.kind == Type::F32
            && let Some(at) = to.iter().position(|v| !(0.0..=1.0).contains(v))
        {
            let (x, y) = (at / 3 % width, at / 3 / width);
            let what = format!("the number {} at x {x}, y {y} is not from 0 to 1", to[at]);
            return Err(Failure::argument(self.name, what));
        }
        Ok(Pixels::Floats(to))
    }

    /// Every pixel as three numbers; `N` is the bytes of one.
    ///
    /// # Safety
    /// As [`Rows::read`].
    unsafe fn convert<const N: usize, T>(&self, to: &mut [T], number: impl Fn([u8; N]) -> T) {
        let (order, count) = (self.channels.order(), self.channels.count());
        let width = self.rows.row / count / N;
        // SAFETY: as above.
        for (from, to) in unsafe { self.rows.read() }.zip(to.chunks_exact_mut(3 * width)) {
            let numbers = from.as_chunks::<N>().0;
            for (pixel, to) in numbers.chunks_exact(count).zip(to.as_chunks_mut::<3>().0) {
                *to = order.map(|channel| number(pixel[channel]));
            }
        }
    }
}

/// Makes `to` hold `count` numbers.
fn room<T: Default + Clone>(to: &mut Vec<T>, count: usize, name: &str) -> Result<()> {
    let more = count.saturating_sub(to.len());
    to.try_reserve_exact(more).map_err(|_| {
        let what = format!("{name}: there is no memory for a copy of {count} numbers");
        Failure::new(amdanet_status::OutOfMemory, what)
    })?;
    to.resize(count, T::default());
    Ok(())
}

/// A frame that was checked.
pub struct Frame {
    pub width: usize,
    pub height: usize,
    sources: [Source; 2],
    fused: Option<(Rows, Channels, Type)>,
    labels: Option<Rows>,
    probabilities: Option<Rows>,
    stream: Option<u64>,
}

/// CU_STREAM_PER_THREAD, which is cudaStreamPerThread: a name for a stream of whichever thread calls.
const STREAM_PER_THREAD: u64 = 2;

impl Frame {
    /// Checks a frame of the caller for a network of so many classes, and for a session on the CPU or a device.
    pub fn new(frame: &amdanet_frame, classes: usize, device: Option<&Arc<dyn Driver>>) -> Result<Self> {
        let side = |name: &str, n: u32| -> Result<usize> {
            if !(SMALLEST_SIDE..=LARGEST_SIDE).contains(&(n as usize)) {
                let what = format!("{n} pixels: must be {SMALLEST_SIDE} to {LARGEST_SIDE}");
                return Err(Failure::argument(name, what));
            }
            Ok(n as usize)
        };
        let (width, height) = (side("frame.width", frame.width)?, side("frame.height", frame.height)?);
        let stream = (!frame.stream.is_null()).then_some(frame.stream as u64);
        if stream.is_some() && device.is_none() {
            let what =
                "frame.stream: the session computes on the CPU, which has no CUDA streams: leave it NULL";
            return Err(Failure::new(amdanet_status::Unsupported, what));
        }
        if stream == Some(STREAM_PER_THREAD) {
            let what = "the stream of each thread (CU_STREAM_PER_THREAD) is another one in the session's threads: make one";
            return Err(Failure::argument("frame.stream", what));
        }
        let check = Check { device, width, height };
        let sources = [
            Source::new("frame.visible", &frame.visible, &check)?,
            Source::new("frame.infrared", &frame.infrared, &check)?,
        ];
        let fused_channels = channels("frame.fused_channels", frame.fused_channels)?;
        let fused_type = type_of("frame.fused_type", frame.fused_type)?;
        if fused_channels == Channels::Gray {
            return Err(Failure::argument("frame.fused_channels", "the fused picture has colours"));
        }
        if fused_type == Type::U16 {
            return Err(Failure::argument("frame.fused_type", "the fused picture is uint8_t or float"));
        }
        let buffer = |name: &str, buffer: &amdanet_buffer, pixel: (usize, usize)| -> Result<Option<Rows>> {
            let &amdanet_buffer { data, length, stride, memory, reserved: zero } = buffer;
            if data.is_null() {
                return Ok(None);
            }
            reserved(&format!("{name}.reserved"), zero)?;
            check.rows(name, (data, length, stride), memory, pixel).map(Some)
        };
        let fused = buffer("frame.fused", &frame.fused, (fused_channels.count(), fused_type.bytes()))?;
        let labels = buffer("frame.labels", &frame.labels, (1, 1))?;
        let probabilities = buffer("frame.probabilities", &frame.probabilities, (classes, 4))?;
        if fused.is_none() && labels.is_none() && probabilities.is_none() {
            let what = "fused.data, labels.data and probabilities.data are NULL: ask for one of them";
            return Err(Failure::argument("frame", what));
        }
        let fused = fused.map(|rows| (rows, fused_channels, fused_type));
        Ok(Self { width, height, sources, fused, labels, probabilities, stream })
    }

    /// What the engine has to compute.
    pub fn wanted(&self) -> Wanted {
        Wanted {
            image: matches!(self.fused, Some((_, _, Type::F32))),
            logits: false,
            probabilities: self.probabilities.is_some(),
        }
    }

    /// Whether both pictures are bytes for the engine, which takes both as bytes or both as floats.
    pub fn is_bytes(&self) -> bool {
        self.sources.iter().all(Source::is_bytes)
    }

    /// The frame for the engine.
    ///
    /// # Safety
    /// The caller's pictures are still there, and nobody writes to them.
    pub unsafe fn request<'a>(&'a self, staging: &'a mut [Staging; 2]) -> Result<infer::Frame<'a>> {
        let ([visible, infrared], [first, second]) = (&self.sources, staging);
        let as_bytes = self.is_bytes();
        // SAFETY: as above.
        let pictures = unsafe {
            [visible.picture(self.width, first, as_bytes)?, infrared.picture(self.width, second, as_bytes)?]
        };
        let Self { width, height, labels, probabilities, stream, .. } = *self;
        let fused = self.fused.as_ref();
        let all = [fused.map(|(rows, ..)| *rows), labels, probabilities];
        Ok(infer::Frame {
            batch: 1,
            height,
            width,
            pictures,
            on_host: all.iter().flatten().any(|rows| !rows.on_device),
            fused: fused
                .filter(|(rows, ..)| rows.on_device)
                .map(|(rows, channels, kind)| for_device(rows, *channels, *kind, None)),
            labels: labels.filter(|rows| rows.on_device).map(|rows| rows.for_device(1)),
            probabilities: probabilities.filter(|rows| rows.on_device).map(|rows| rows.for_device(4)),
            stream,
        })
    }

    /// Writes the results that are wanted in the program's own memory.
    ///
    /// # Safety
    /// The caller's buffers are still there, and nobody else uses them.
    pub unsafe fn write(&self, output: &Output) {
        // SAFETY: as above.
        unsafe {
            let fused = self.fused.as_ref().filter(|(rows, ..)| !rows.on_device);
            match fused {
                Some((rows, channels, Type::F32)) => {
                    write_pixels(rows, *channels, output.image.unwrap_or_default(), f32::to_ne_bytes, 1.0);
                }
                Some((rows, channels, _)) => {
                    write_pixels(rows, *channels, output.fused, |byte: u8| [byte], 255);
                }
                None => {}
            }
            let on_host = |rows: &&Rows| !rows.on_device;
            if let Some(rows) = self.labels.as_ref().filter(on_host) {
                write_rows(rows, output.labels);
            }
            if let Some(rows) = self.probabilities.as_ref().filter(on_host) {
                write_rows(rows, bytemuck::cast_slice(output.probabilities.unwrap_or_default()));
            }
        }
    }
}

/// # Safety
/// As [`Rows::write`].
unsafe fn write_rows(rows: &Rows, from: &[u8]) {
    // SAFETY: as above.
    for (to, from) in unsafe { rows.write() }.zip(from.chunks_exact(rows.row)) {
        to.copy_from_slice(from);
    }
}

/// # Safety
/// As [`Rows::write`].
unsafe fn write_pixels<const N: usize, T: Copy + bytemuck::Pod>(
    rows: &Rows,
    channels: Channels,
    from: &[T],
    bytes: impl Fn(T) -> [u8; N],
    alpha: T,
) {
    if channels == Channels::Rgb {
        // SAFETY: as above.
        return unsafe { write_rows(rows, bytemuck::cast_slice(from)) };
    }
    let (order, count) = (channels.order(), channels.count());
    let width = rows.row / count / N;
    // SAFETY: as above.
    for (to, from) in unsafe { rows.write() }.zip(from.chunks_exact(3 * width)) {
        let numbers = to.as_chunks_mut::<N>().0;
        for (to, from) in numbers.chunks_exact_mut(count).zip(from.as_chunks::<3>().0) {
            for (channel, &number) in order.into_iter().zip(from) {
                to[channel] = bytes(number);
            }
            if let Some(last) = to.get_mut(3) {
                *last = bytes(alpha);
            }
        }
    }
}
