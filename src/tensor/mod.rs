//! Contiguous, channels-last tensors on one device.
//!
//! A [`Tensor`] is a shape and a contiguous range of a shared buffer; there are no strides. Cloning one, or taking a
//! range of its leading axis, copies nothing. Writing to one that shares its buffer copies it first.

mod buffer;
mod device;
mod dtype;
pub mod memory;
pub mod pool;
mod shape;

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

pub use buffer::{Buffer, live_bytes, peak_bytes, release_waiting, reset_peak_bytes};
pub use device::{Device, Precision};
pub use dtype::{DType, Element};
pub use shape::{MAX_RANK, Shape};

use crate::cuda::driver::{Driver, Memory};
use crate::{Error, Result};

/// Where the numbers of a tensor are.
enum Storage {
    Host(Buffer),
    Device(Memory),
}

/// A contiguous array of numbers in row-major order; the last axis of a feature map is its channels.
///
/// A feature map is `(S, B, H, W, C)`: streams, batch, rows, columns, channels. Its tokens `(S, B, H·W, C)` are
/// the same bytes.
#[derive(Clone)]
pub struct Tensor {
    shape: Shape,
    dtype: DType,
    storage: Arc<Storage>,
    /// First element of this tensor within the buffer.
    start: usize,
}

impl Tensor {
    /// A float32 tensor of zeros.
    pub fn zeros(shape: impl Into<Shape>) -> Self {
        Self::full(shape, 0.0)
    }

    /// A float32 tensor that holds `value` everywhere.
    pub fn full(shape: impl Into<Shape>, value: f32) -> Self {
        let mut t = Self::scratch(shape);
        t.f32_mut().fill(value);
        t
    }

    /// A float32 tensor of arbitrary content, for a kernel that writes every element.
    pub fn scratch(shape: impl Into<Shape>) -> Self {
        Self::scratch_of(shape, DType::F32)
    }

    /// A tensor of arbitrary content, for a kernel that writes every element.
    pub fn scratch_of(shape: impl Into<Shape>, dtype: DType) -> Self {
        let shape = shape.into();
        let storage = Arc::new(Storage::Host(Buffer::new(shape.len() * dtype.size())));
        Self { shape, dtype, storage, start: 0 }
    }

    /// A tensor of arbitrary content on `device`, for a kernel that writes every element.
    ///
    /// # Errors
    /// When the device has not enough memory.
    pub fn scratch_on(device: &Device, shape: impl Into<Shape>, dtype: DType) -> Result<Self> {
        let shape = shape.into();
        match device {
            Device::Cpu => Ok(Self::scratch_of(shape, dtype)),
            Device::Cuda(driver) => {
                let storage = Storage::Device(Memory::new(driver, shape.len() * dtype.size())?);
                Ok(Self { shape, dtype, storage: Arc::new(storage), start: 0 })
            }
        }
    }

    /// A tensor on `device` whose bytes are all 0: zeros of any type.
    ///
    /// # Errors
    /// When the device has not enough memory, or reports an error.
    pub fn zeros_on(device: &Device, shape: impl Into<Shape>, dtype: DType) -> Result<Self> {
        Self::filled_on(device, shape, dtype, 0)
    }

    /// A tensor on `device` whose bytes are all `byte`: 1 makes a mask of U8 that keeps everything.
    ///
    /// # Errors
    /// When the device has not enough memory, or reports an error.
    pub fn filled_on(device: &Device, shape: impl Into<Shape>, dtype: DType, byte: u8) -> Result<Self> {
        let mut t = Self::scratch_on(device, shape, dtype)?;
        let bytes = t.bytes();
        match Arc::get_mut(&mut t.storage) {
            Some(Storage::Host(buffer)) => buffer.as_mut_slice::<u8>()[..bytes].fill(byte),
            // SAFETY: the memory was allocated for these bytes, and nobody else has it.
            Some(Storage::Device(memory)) => unsafe { memory.driver().fill(memory.address(), byte, bytes)? },
            None => unreachable!("a new tensor shares nothing"),
        }
        Ok(t)
    }

    /// Copies `data`, in row-major order.
    ///
    /// # Errors
    /// When `data` does not have as many elements as `shape`.
    pub fn from_slice<T: Element>(shape: impl Into<Shape>, data: &[T]) -> Result<Self> {
        let shape = shape.into();
        if shape.len() != data.len() {
            let why = format!("{} elements were given for {}", data.len(), shape.len());
            return Err(Error::shape("tensor", why, &[shape]));
        }
        let mut t = Self::scratch_of(shape, T::DTYPE);
        t.as_mut_slice().copy_from_slice(data);
        Ok(t)
    }

    /// The bytes of a file as a float32 tensor of one axis, without copying them: see [`Buffer::map`]. Numbers are in this
    /// machine's order of bytes.
    ///
    /// # Errors
    /// As there.
    pub fn map(file: &File) -> std::io::Result<Self> {
        let buffer = Buffer::map(file)?;
        let shape = [buffer.as_slice::<f32>().len()].into();
        Ok(Self { shape, dtype: DType::F32, storage: Arc::new(Storage::Host(buffer)), start: 0 })
    }

    /// A float32 tensor of one element and shape `(1)`.
    pub fn scalar(value: f32) -> Self {
        Self::full([1], value)
    }

    /// The shape.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The length of axis `axis`.
    pub fn dim(&self, axis: usize) -> usize {
        self.shape[axis]
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.len()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The type of the elements.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Bytes of all elements.
    pub fn bytes(&self) -> usize {
        self.len() * self.dtype.size()
    }

    /// The device that holds the elements.
    pub fn device(&self) -> Device {
        match &*self.storage {
            Storage::Host(_) => Device::Cpu,
            Storage::Device(memory) => Device::Cuda(memory.driver().clone()),
        }
    }

    /// Whether the elements are in the host's memory, where [`Tensor::as_slice`] can read them.
    pub fn is_on_cpu(&self) -> bool {
        matches!(*self.storage, Storage::Host(_))
    }

    /// The driver and the address of the first element, on a CUDA device.
    pub fn address(&self) -> Option<(&Arc<dyn Driver>, u64)> {
        match &*self.storage {
            Storage::Host(_) => None,
            Storage::Device(memory) => {
                Some((memory.driver(), memory.address() + (self.start * self.dtype.size()) as u64))
            }
        }
    }

    /// Whether no other tensor shares the buffer.
    pub fn is_unique(&mut self) -> bool {
        Arc::get_mut(&mut self.storage).is_some()
    }

    /// The same numbers on `device`; the same tensor when they are there.
    ///
    /// # Errors
    /// When a device reports one.
    pub fn to(&self, device: &Device) -> Result<Self> {
        let bytes = self.bytes();
        match (&*self.storage, device) {
            (Storage::Host(_), Device::Cpu) => Ok(self.clone()),
            (Storage::Host(buffer), Device::Cuda(driver)) => {
                let data = &buffer.as_slice::<u8>()[self.start * self.dtype.size()..][..bytes];
                let memory = Memory::new(driver, bytes)?;
                // SAFETY: the memory was allocated for these bytes, and nobody else has it.
                unsafe { driver.upload(data, memory.address())? };
                Ok(Self { storage: Arc::new(Storage::Device(memory)), start: 0, ..*self })
            }
            (Storage::Device(memory), Device::Cuda(driver)) if Arc::ptr_eq(memory.driver(), driver) => {
                Ok(self.clone())
            }
            (Storage::Device(memory), _) => {
                let mut buffer = Buffer::new(bytes);
                let from = memory.address() + (self.start * self.dtype.size()) as u64;
                // SAFETY: this tensor's elements lie within its memory.
                unsafe { memory.driver().download(from, &mut buffer.as_mut_slice::<u8>()[..bytes])? };
                Self { storage: Arc::new(Storage::Host(buffer)), start: 0, ..*self }.to(device)
            }
        }
    }

    /// The elements.
    ///
    /// # Panics
    /// When `T` is not the tensor's type, or the tensor is not on the CPU: mistakes in the program, never in its
    /// input.
    pub fn as_slice<T: Element>(&self) -> &[T] {
        assert_eq!(T::DTYPE, self.dtype, "a {} tensor was read as {}", self.dtype, T::DTYPE);
        let Storage::Host(buffer) = &*self.storage else { panic!("a tensor on a CUDA device was read") };
        &buffer.as_slice()[self.start..self.start + self.len()]
    }

    /// The elements for writing; a shared buffer is copied first, so no other tensor changes.
    ///
    /// # Panics
    /// When `T` is not the tensor's type, or the tensor is not on the CPU.
    pub fn as_mut_slice<T: Element>(&mut self) -> &mut [T] {
        assert_eq!(T::DTYPE, self.dtype, "a {} tensor was written as {}", self.dtype, T::DTYPE);
        assert!(self.is_on_cpu(), "a tensor on a CUDA device was written");
        self.make_unique().expect("a copy in the host's memory cannot be refused");
        let len = self.len();
        match Arc::get_mut(&mut self.storage) {
            Some(Storage::Host(buffer)) => &mut buffer.as_mut_slice()[self.start..self.start + len],
            _ => unreachable!("the buffer is the host's, and was just made unique"),
        }
    }

    /// Gives the tensor a buffer of its own, with a copy of the elements, if it shares one.
    ///
    /// # Errors
    /// When a device reports one.
    pub fn make_unique(&mut self) -> Result<()> {
        if self.is_unique() {
            return Ok(());
        }
        let (start, bytes) = (self.start * self.dtype.size(), self.bytes());
        let own = match &*self.storage {
            Storage::Host(from) => {
                let mut own = Buffer::new(bytes);
                own.as_mut_slice::<u8>()[..bytes].copy_from_slice(&from.as_slice::<u8>()[start..][..bytes]);
                Storage::Host(own)
            }
            Storage::Device(from) => {
                let own = Memory::new(from.driver(), bytes)?;
                // SAFETY: this tensor's elements lie within its memory, and the new memory overlaps nothing.
                unsafe { from.driver().copy(from.address() + start as u64, own.address(), bytes)? };
                Storage::Device(own)
            }
        };
        (self.storage, self.start) = (Arc::new(own), 0);
        Ok(())
    }

    /// The elements of a float32 tensor. Panics on another type, as [`Tensor::as_slice`] does.
    pub fn f32(&self) -> &[f32] {
        self.as_slice()
    }

    /// The elements of a float32 tensor for writing. Panics on another type, as [`Tensor::as_mut_slice`] does.
    pub fn f32_mut(&mut self) -> &mut [f32] {
        self.as_mut_slice()
    }

    /// The only element of a float32 tensor, or its first.
    pub fn item(&self) -> f32 {
        self.f32()[0]
    }

    /// The same elements under another shape.
    ///
    /// # Errors
    /// When the number of elements differs.
    pub fn reshape(&self, shape: impl Into<Shape>) -> Result<Self> {
        let shape = shape.into();
        if shape.len() != self.len() {
            return Err(Error::shape("reshape", "the number of elements differs", &[self.shape, shape]));
        }
        Ok(Self { shape, ..self.clone() })
    }

    /// The part `range` of the leading axis, sharing the buffer: stream 1 of a feature map is `narrow(1..2)`.
    ///
    /// # Errors
    /// When the range reaches past the leading axis.
    pub fn narrow(&self, range: Range<usize>) -> Result<Self> {
        let rank = self.shape.rank();
        if rank == 0 || range.start > range.end || range.end > self.shape[0] {
            let why = format!("{range:?} is not within the leading axis");
            return Err(Error::shape("narrow", why, &[self.shape]));
        }
        let row = self.len().checked_div(self.shape[0]).unwrap_or(0);
        let shape = self.shape.with_dim(0, range.len());
        Ok(Self { shape, start: self.start + range.start * row, ..self.clone() })
    }

    /// The parts one after the other along the leading axis; they are on one device.
    ///
    /// # Errors
    /// When there is none, they differ in more than the leading axis, or a device reports an error.
    pub fn concat(parts: &[&Tensor]) -> Result<Self> {
        let shapes: Vec<Shape> = parts.iter().map(|part| part.shape).collect();
        let Some(first) = parts.first().filter(|part| part.shape.rank() > 0) else {
            return Err(Error::shape("concat", "there is no leading axis", &shapes));
        };
        let row = |part: &Tensor| (part.dtype, part.shape.with_dim(0, 1), part.device());
        if parts.iter().any(|part| part.shape.rank() == 0 || row(part) != row(first)) {
            let why = "the parts differ in more than the leading axis";
            return Err(Error::shape("concat", why, &shapes));
        }
        let length = shapes.iter().map(|shape| shape[0]).sum();
        let mut all = Self::scratch_on(&first.device(), first.shape.with_dim(0, length), first.dtype)?;
        let mut at = 0;
        for part in parts {
            let (start, bytes) = (part.start * part.dtype.size(), part.bytes());
            match (&*part.storage, Arc::get_mut(&mut all.storage)) {
                (Storage::Host(from), Some(Storage::Host(to))) => to.as_mut_slice::<u8>()[at..at + bytes]
                    .copy_from_slice(&from.as_slice::<u8>()[start..start + bytes]),
                // SAFETY: both memories hold these bytes, and the new one overlaps nothing.
                (Storage::Device(from), Some(Storage::Device(to))) => unsafe {
                    let (driver, from) = (from.driver(), from.address() + start as u64);
                    driver.copy(from, to.address() + at as u64, bytes)?;
                },
                _ => unreachable!("the parts and their sum are on one device, and the sum is new"),
            }
            at += bytes;
        }
        Ok(all)
    }

    /// [`Tensor::cast`] of float32 tensors on one device to a 16-bit type; a CUDA device does it in one launch, and the
    /// results share a buffer.
    ///
    /// # Errors
    /// When a tensor is not float32 or on another device, or the device reports an error.
    pub fn cast_all(tensors: &[&Tensor], dtype: DType) -> Result<Vec<Self>> {
        match tensors.first() {
            Some(first) if !first.is_on_cpu() => crate::cuda::elementwise::cast_all(tensors, dtype),
            _ => tensors.iter().map(|x| x.cast(dtype)).collect(),
        }
    }

    /// The same numbers stored as `dtype`; float16 and bfloat16 round to nearest even.
    ///
    /// # Errors
    /// When either type is an integer type and the other is not.
    pub fn cast(&self, dtype: DType) -> Result<Self> {
        use half::slice::HalfFloatSliceExt;
        if !self.is_on_cpu() {
            return if self.dtype == dtype {
                Ok(self.clone())
            } else {
                crate::cuda::elementwise::cast(self, dtype)
            };
        }
        let mut out = Self::scratch_of(self.shape, dtype);
        match (self.dtype, dtype) {
            (a, b) if a == b => return Ok(self.clone()),
            (DType::F32, DType::F16) => out.as_mut_slice::<half::f16>().convert_from_f32_slice(self.f32()),
            (DType::F32, DType::BF16) => out.as_mut_slice::<half::bf16>().convert_from_f32_slice(self.f32()),
            (DType::F16, DType::F32) => self.as_slice::<half::f16>().convert_to_f32_slice(out.f32_mut()),
            (DType::BF16, DType::F32) => self.as_slice::<half::bf16>().convert_to_f32_slice(out.f32_mut()),
            (DType::F16, DType::BF16) | (DType::BF16, DType::F16) => {
                return self.cast(DType::F32)?.cast(dtype);
            }
            (from, to) => {
                let why = format!("no conversion from {from} to {to}");
                return Err(Error::shape("cast", why, &[self.shape]));
            }
        }
        Ok(out)
    }

    /// Adds `other` to every element in place.
    ///
    /// # Errors
    /// When the shapes differ.
    pub fn add_assign(&mut self, other: &Tensor) -> Result<()> {
        if self.shape != other.shape {
            return Err(Error::shape("add", "the shapes differ", &[self.shape, other.shape]));
        }
        if self.is_on_cpu() {
            crate::cpu::elementwise::add_assign(self.f32_mut(), other.f32());
            Ok(())
        } else {
            crate::cuda::elementwise::add_assign(self, other)
        }
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor({}, {})", self.dtype, self.shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writing_to_a_shared_buffer_leaves_the_others_alone() {
        let a = Tensor::from_slice([2, 2], &[1.0f32, 2.0, 3.0, 4.0]).unwrap();
        let mut b = a.narrow(1..2).unwrap();
        b.f32_mut()[0] = 9.0;
        assert_eq!(a.f32(), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(b.f32(), [9.0, 4.0]);
    }

    #[test]
    fn parts_follow_one_another() {
        let a = Tensor::from_slice([3, 2], &[1u8, 2, 3, 4, 5, 6]).unwrap();
        let b = Tensor::filled_on(&Device::Cpu, [1, 2], DType::U8, 9).unwrap();
        let all = Tensor::concat(&[&a.narrow(1..3).unwrap(), &b, &a.narrow(0..1).unwrap()]).unwrap();
        assert_eq!((*all.shape()).to_vec(), [4, 2]);
        assert_eq!(all.as_slice::<u8>(), [3, 4, 5, 6, 9, 9, 1, 2]);
        assert!(Tensor::concat(&[]).is_err());
        assert!(Tensor::concat(&[&a, &Tensor::zeros([1, 2])]).is_err());
        assert!(Tensor::concat(&[&a, &a.reshape([2, 3]).unwrap()]).is_err());
    }

    #[test]
    fn half_types_round_to_nearest_even() {
        let x = Tensor::from_slice([4], &[1.0f32, 0.1, 65519.0, 1e-8]).unwrap();
        let f16 = x.cast(DType::F16).unwrap().cast(DType::F32).unwrap();
        assert_eq!(f16.f32(), [1.0, 0.099_975_586, 65504.0, 0.0]);
        let bf16 = x.cast(DType::BF16).unwrap().cast(DType::F32).unwrap();
        assert_eq!(bf16.f32(), [1.0, 0.100_097_656, 65536.0, 1.001_171_8e-8]);
    }

    #[test]
    fn shape_errors_name_the_operation_and_both_shapes() {
        let mut a = Tensor::zeros([2, 3]);
        let e = a.add_assign(&Tensor::zeros([3, 2])).unwrap_err().to_string();
        assert_eq!(e, "add: the shapes differ; shapes (2, 3) and (3, 2)");
        let e = a.reshape([4]).unwrap_err().to_string();
        assert_eq!(e, "reshape: the number of elements differs; shapes (2, 3) and (4)");
        assert!(a.narrow(1..3).is_err());
        assert!(Tensor::from_slice([3], &[1.0f32]).is_err());
        assert!(a.cast(DType::U8).is_err());
    }
}
