//! The seam between this program and a CUDA device.
//!
//! [`super::gpu`] implements it for a real device. The tests implement it with an emulator that runs the same kernels
//! on the host, and with one that fails on purpose.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use crate::{DType, Result};

/// An argument of a kernel, as its parameter list declares it.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Arg {
    /// A pointer to device memory; 0 is a null pointer.
    Pointer(u64),
    /// `int`
    I32(i32),
    /// `unsigned long long`
    U64(u64),
    /// `float`
    F32(f32),
}

impl Arg {
    /// The bytes that a launch passes: as many of them as the parameter is long, little-endian.
    pub fn bits(self) -> u64 {
        match self {
            Self::Pointer(v) | Self::U64(v) => v,
            Self::I32(v) => u64::from(v as u32),
            Self::F32(v) => u64::from(v.to_bits()),
        }
    }
}

/// What a launch cannot do without: the floor that its time is compared with.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Work {
    /// Bytes of inputs and outputs, each counted once.
    pub bytes: u64,
    /// Floating-point operations, 2 for a multiply-add.
    pub operations: u64,
}

/// One launch of a kernel.
#[derive(Debug)]
pub struct Launch<'a> {
    /// The kernel's `extern "C"` name.
    pub kernel: &'a str,
    /// Blocks along x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block along x, y, z.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// The arguments, in the order of the parameters.
    pub args: &'a [Arg],
    /// What the launch has to move and to compute at least.
    pub work: Work,
}

impl fmt::Display for Launch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ([gx, gy, gz], [bx, by, bz]) = (self.grid, self.block);
        write!(f, "{}<<<({gx}, {gy}, {gz}), ({bx}, {by}, {bz}), {}>>>", self.kernel, self.shared)
    }
}

/// A matrix of a product, or one for each of several products: row-major, `stride` elements from row to row and
/// `batch` elements from one product's matrix to the next.
#[derive(Clone, Copy, Debug)]
pub struct Matrix {
    /// Address of its first element.
    pub address: u64,
    /// Elements from one row to the next.
    pub stride: usize,
    /// Elements from one product to the next.
    pub batch: usize,
}

/// `count` products c = a·b + bias + residual, or ReLU of that, where a is m×k, b is k×n and c is m×n; sums in f32.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    /// The type of a, b and the bias.
    pub dtype: DType,
    /// The type of c and the residual: `dtype`, or f32 where there is no bias.
    pub c_dtype: DType,
    /// How many.
    pub count: usize,
    /// m, n, k.
    pub shape: (usize, usize, usize),
    /// a, or its transpose (k×m) when `a_transposed`.
    pub a: Matrix,
    /// Whether `a` is stored k×m.
    pub a_transposed: bool,
    /// b, or its transpose (n×k) when `b_transposed`.
    pub b: Matrix,
    /// Whether `b` is stored n×k.
    pub b_transposed: bool,
    /// c.
    pub c: Matrix,
    /// n numbers that are added to every row of c; the next product's follow.
    pub bias: Option<u64>,
    /// A matrix of the shape of c that is added to it; it may be c itself.
    pub residual: Option<Matrix>,
    /// Whether negative results become 0. What is not a number stays so or becomes 0: devices differ.
    pub relu: bool,
}

impl fmt::Display for Product {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (m, n, k) = self.shape;
        let t = |transposed| if transposed { "'" } else { "" };
        write!(f, "product_{} {} x ({m}x{k}){}", self.dtype, self.count, t(self.a_transposed))?;
        write!(f, "({k}x{n}){}", t(self.b_transposed))?;
        f.write_str(if self.c_dtype != self.dtype { " in f32" } else { "" })?;
        f.write_str(if self.bias.is_some() { " + bias" } else { "" })?;
        f.write_str(if self.residual.is_some() { " + residual" } else { "" })?;
        f.write_str(if self.relu { ", relu" } else { "" })
    }
}

impl Product {
    /// Bytes of all matrices, each counted once, and operations.
    pub fn work(&self) -> Work {
        let (m, n, k) = self.shape;
        let results = m * n * if self.residual.is_some() { 2 } else { 1 };
        let bytes = self.dtype.size() * (m * k + k * n) + self.c_dtype.size() * results;
        Work { bytes: (self.count * bytes) as u64, operations: (2 * self.count * m * n * k) as u64 }
    }
}

/// Something that a device does in the order of its queue, to be done later or again.
#[derive(Clone, Debug)]
pub enum Task {
    /// [`Driver::copy`].
    Copy {
        /// From here.
        from: u64,
        /// To here.
        to: u64,
        /// So many.
        bytes: usize,
    },
    /// [`Driver::fill`].
    Fill {
        /// From here on.
        to: u64,
        /// With this.
        byte: u8,
        /// So many.
        bytes: usize,
    },
    /// A [`Launch`] that owns its parts.
    Launch {
        /// As in [`Launch`], as all that follows.
        kernel: String,
        /// Blocks.
        grid: [u32; 3],
        /// Threads of a block.
        block: [u32; 3],
        /// Dynamic shared memory.
        shared: u32,
        /// Arguments.
        args: Vec<Arg>,
        /// Bytes and operations.
        work: Work,
    },
    /// [`Driver::product`].
    Product(Product),
}

impl Task {
    /// The launch as a task.
    pub fn of(launch: &Launch) -> Self {
        let Launch { kernel, grid, block, shared, args, work } = *launch;
        Self::Launch { kernel: kernel.to_owned(), grid, block, shared, args: args.to_owned(), work }
    }

    /// What it has to move and to compute at least.
    pub fn work(&self) -> Work {
        match self {
            Self::Copy { bytes, .. } => Work { bytes: 2 * *bytes as u64, operations: 0 },
            Self::Fill { bytes, .. } => Work { bytes: *bytes as u64, operations: 0 },
            Self::Launch { work, .. } => *work,
            Self::Product(product) => product.work(),
        }
    }

    /// What it is called.
    pub fn name(&self) -> String {
        match self {
            Self::Copy { .. } => "copy".into(),
            Self::Fill { .. } => "fill".into(),
            Self::Launch { kernel, .. } => kernel.clone(),
            Self::Product(product) => product.to_string(),
        }
    }

    /// Does it on `device`.
    ///
    /// # Errors
    /// When the device reports one.
    ///
    /// # Safety
    /// As for the call of [`Driver`] that it stands for.
    pub unsafe fn run(&self, device: &dyn Driver) -> Result<()> {
        // SAFETY: the caller's promise is passed on.
        unsafe {
            match self {
                Self::Copy { from, to, bytes } => device.copy(*from, *to, *bytes),
                Self::Fill { to, byte, bytes } => device.fill(*to, *byte, *bytes),
                Self::Launch { kernel, grid, block, shared, args, work } => {
                    let (grid, block, shared, work) = (*grid, *block, *shared, *work);
                    device.launch(&Launch { kernel, grid, block, shared, args, work })
                }
                Self::Product(product) => device.product(product),
            }
        }
    }
}

/// A device and a queue of work on it: everything is done in the order of the calls, but for [`Driver::aside`].
///
/// Work may still be under way when a call returns; an error that the device meets later comes with a later call.
pub trait Driver: Send + Sync {
    /// The device in words: `cuda:0, NVIDIA H200, sm_90, 139.8 GiB`.
    fn name(&self) -> String;

    /// Compute capability, major and minor: (9, 0) for Hopper.
    fn capability(&self) -> (u32, u32);

    /// The most bytes of device memory that were reserved at once, where the device tells.
    fn peak_bytes(&self) -> Option<u64> {
        None
    }

    /// Joules that the device has used since some moment, where it tells.
    fn joules(&self) -> Option<f64> {
        None
    }

    /// Another queue on the same device: its work is done beside that of this one. Memory is that of the device, and any
    /// queue may use it once [`Driver::synchronise`] has returned on the queue that made it or wrote to it last.
    ///
    /// # Errors
    /// When the device reports one.
    fn queue(self: Arc<Self>) -> Result<Arc<dyn Driver>>;

    /// What is queued from now on until [`Driver::back`] may be done beside what is queued after that, but after what was
    /// queued so far; a device may also do everything in the order of the calls. Up to [`Driver::join`] no memory is reserved
    /// or freed.
    ///
    /// # Errors
    /// When the device reports one.
    fn aside(&self) -> Result<()> {
        Ok(())
    }

    /// Ends what [`Driver::aside`] began.
    fn back(&self) {}

    /// Lets what is queued from now on wait for all that was queued aside.
    ///
    /// # Errors
    /// When the device reports one.
    fn join(&self) -> Result<()> {
        Ok(())
    }

    /// Lets what is queued here from now on wait for what is queued on a stream of another library.
    ///
    /// # Errors
    /// When the device reports one.
    ///
    /// # Safety
    /// The stream is one of this device, and is not being recorded.
    unsafe fn follow(&self, stream: u64) -> Result<()>;

    /// Lets what is queued on a stream of another library from now on wait for what is queued here.
    ///
    /// # Errors
    /// When the device reports one.
    ///
    /// # Safety
    /// As for [`Driver::follow`].
    unsafe fn lead(&self, stream: u64) -> Result<()>;

    /// Whether there is memory of the device at an address, whoever made it.
    fn holds(&self, address: u64) -> bool;

    /// Reserves device memory, of arbitrary content; the address is a multiple of 256.
    ///
    /// # Errors
    /// When there is not enough.
    fn allocate(&self, bytes: usize) -> Result<u64>;

    /// Gives back what [`Driver::allocate`] gave, once the work queued so far is done.
    fn free(&self, address: u64, bytes: usize);

    /// Pins memory of the host: copies from and to it need no staging.
    ///
    /// # Errors
    /// When the device reports one.
    ///
    /// # Safety
    /// The bytes are mappings of their own, and [`Driver::unpin`] is called before they are given back.
    unsafe fn pin(&self, _memory: *mut u8, _bytes: usize) -> Result<()> {
        Ok(())
    }

    /// Ends [`Driver::pin`], once no copy is under way.
    ///
    /// # Safety
    /// The memory was pinned, from this address on.
    unsafe fn unpin(&self, _memory: *mut u8) {}

    /// Whether memory of the host is pinned, by [`Driver::pin`] or by whoever it belongs to.
    fn is_pinned(&self, _memory: &[u8]) -> bool {
        false
    }

    /// Copies from the host.
    ///
    /// # Errors
    /// When the device reports one.
    ///
    /// # Safety
    /// `data.len()` bytes at `to` belong to the caller; if `data` is pinned, it stays as it is until the device was waited
    /// for.
    unsafe fn upload(&self, data: &[u8], to: u64) -> Result<()>;

    /// Copies to the host, and waits for it.
    ///
    /// # Errors
    /// When the device reports one.
    ///
    /// # Safety
    /// `data.len()` bytes at `from` belong to the caller.
    unsafe fn download(&self, from: u64, data: &mut [u8]) -> Result<()>;

    /// Copies within the device.
    ///
    /// # Errors
    /// When the device reports one.
    ///
    /// # Safety
    /// `bytes` bytes at both addresses belong to the caller and do not overlap.
    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()>;

    /// Sets every byte.
    ///
    /// # Errors
    /// When the device reports one.
    ///
    /// # Safety
    /// `bytes` bytes at `to` belong to the caller.
    unsafe fn fill(&self, to: u64, byte: u8, bytes: usize) -> Result<()>;

    /// Starts a kernel.
    ///
    /// # Errors
    /// When there is no such kernel, or the device reports one; the message names the launch.
    ///
    /// # Safety
    /// The arguments are what the kernel's parameters ask for, and what it touches belongs to the caller.
    unsafe fn launch(&self, launch: &Launch) -> Result<()>;

    /// Starts matrix products.
    ///
    /// # Errors
    /// When the device reports one; the message names the product.
    ///
    /// # Safety
    /// The matrices belong to the caller.
    unsafe fn product(&self, product: &Product) -> Result<()>;

    /// Waits until all queued work is done.
    ///
    /// # Errors
    /// What that work met.
    fn synchronise(&self) -> Result<()>;

    /// Marks this point of the queue, to measure time from or to it.
    ///
    /// # Errors
    /// When the device reports one.
    fn mark(&self) -> Result<u64> {
        self.synchronise()?;
        static START: OnceLock<Instant> = OnceLock::new();
        Ok(START.get_or_init(Instant::now).elapsed().as_nanos() as u64)
    }

    /// Milliseconds between two marks, once the queue has come past both; each mark is used once as a start and once
    /// as an end at most.
    ///
    /// # Errors
    /// When the device reports one.
    fn between(&self, start: u64, end: u64) -> Result<f32> {
        Ok(end.saturating_sub(start) as f32 * 1e-6)
    }

    /// Records what is queued from now on instead of doing it.
    ///
    /// # Errors
    /// When the device cannot.
    fn begin_capture(&self) -> Result<()>;

    /// Ends the recording; what was recorded can be done again and again, on the same memory.
    ///
    /// # Errors
    /// When something since [`Driver::begin_capture`] cannot be recorded.
    fn end_capture(&self) -> Result<Box<dyn Graph>>;
}

/// Recorded work.
pub trait Graph: Send {
    /// Queues all of it.
    ///
    /// # Errors
    /// When the device reports one.
    ///
    /// # Safety
    /// The memory that the recorded work touches still belongs to the caller.
    unsafe fn launch(&self) -> Result<()>;
}

/// A block of device memory, given back when dropped.
pub struct Memory {
    driver: Arc<dyn Driver>,
    address: u64,
    bytes: usize,
}

impl Memory {
    /// `bytes` bytes of arbitrary content.
    ///
    /// # Errors
    /// When there is not enough.
    pub fn new(driver: &Arc<dyn Driver>, bytes: usize) -> Result<Self> {
        // An empty tensor has an address too.
        let bytes = bytes.max(1);
        Ok(Self { address: driver.allocate(bytes)?, driver: driver.clone(), bytes })
    }

    /// Whose memory it is.
    pub fn driver(&self) -> &Arc<dyn Driver> {
        &self.driver
    }

    /// Where it begins.
    pub fn address(&self) -> u64 {
        self.address
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.driver.free(self.address, self.bytes);
    }
}
