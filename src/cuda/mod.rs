//! The CUDA device: the seam, and for each operation what launches its kernels.
//!
//! A launcher knows the shapes that [`crate::ops`] has checked; it makes the outputs, chooses the grid, and states why
//! the launch is sound. The kernel is in the file of the same name in `kernels/`.

pub mod adamw;
pub mod argmax;
pub mod attention;
pub mod batch_norm;
pub mod conv;
pub mod depthwise;
pub mod driver;
pub mod elementwise;
pub mod frame;
pub mod fuse;
pub mod fusion_loss;
pub mod gate;
pub mod gpu;
pub mod kernels;
pub mod layer_norm;
pub mod linear;
pub mod loss;
pub mod mask;
pub mod pool;
pub mod realign;
pub mod reduce;
pub mod resize;
pub mod resized_taps;
pub mod scores;
pub mod spatial;
pub mod structure;
pub mod trace;
pub mod windows;

use std::sync::{Arc, OnceLock};

use driver::{Arg, Driver, Launch, Work};

use crate::{DType, Error, Result, Tensor};

/// What [`open`] does: a device by its number, and whether its products round float32 factors as tf32.
pub type Opener = fn(usize, bool) -> Result<Arc<dyn Driver>>;

static OPENER: OnceLock<Opener> = OnceLock::new();

/// Opens CUDA device number `ordinal`; with `tf32`, products of float32 round their factors.
///
/// # Errors
/// When there is no such device, no driver, or this build has no kernels: the message says which, and what to do.
pub fn open(ordinal: usize, tf32: bool) -> Result<Arc<dyn Driver>> {
    OPENER.get_or_init(|| gpu::Gpu::open)(ordinal, tf32)
}

/// For tests: what [`open`] does from now on in this process, if nothing was opened before.
#[doc(hidden)]
pub fn open_with(opener: Opener) {
    let _ = OPENER.set(opener);
}

/// Lanes of a warp.
pub(crate) const WARP: usize = 32;

/// The driver of the device that holds `x`.
pub(crate) fn driver_of(x: &Tensor) -> Result<&Arc<dyn Driver>> {
    let (driver, _) = x.address().ok_or_else(|| Error::cuda("launch", "a tensor is on the CPU"))?;
    Ok(driver)
}

/// Float32 numbers of arbitrary content beside `x`: for statistics and partial sums.
pub(crate) fn scratch_f32(x: &Tensor, shape: impl Into<crate::Shape>) -> Result<Tensor> {
    Tensor::scratch_on(&x.device(), shape, DType::F32)
}

/// Numbers of the type of `x`, of arbitrary content, beside it.
pub(crate) fn scratch_like(x: &Tensor, shape: impl Into<crate::Shape>) -> Result<Tensor> {
    Tensor::scratch_on(&x.device(), shape, x.dtype())
}

/// A launch in the making: arguments in the order of the kernel's parameters, then [`Call::launch`].
///
/// What does not fit (a tensor elsewhere, of another type, a number too large) is remembered, and the error of the
/// launch.
pub(crate) struct Call<'a> {
    driver: &'a Arc<dyn Driver>,
    kernel: String,
    dtype: DType,
    args: Vec<Arg>,
    work: Work,
    problem: Option<String>,
}

impl<'a> Call<'a> {
    /// The kernel `op_TYPE` for the type of `x`, on its device.
    pub fn new(op: &str, x: &'a Tensor) -> Result<Self> {
        let dtype = x.dtype();
        Ok(Self { kernel: format!("{op}_{dtype}"), dtype, ..Self::untyped(op, x)? })
    }

    /// The kernel `op`, on the device of `x`.
    pub fn untyped(op: &str, x: &'a Tensor) -> Result<Self> {
        Ok(Self::on(op, driver_of(x)?, x.dtype()))
    }

    /// The kernel `op`, whose tensors are of type `dtype`, where there is no input.
    pub fn on(op: &str, driver: &'a Arc<dyn Driver>, dtype: DType) -> Self {
        let (args, work) = (Vec::with_capacity(16), Work::default());
        Self { driver, kernel: op.into(), dtype, args, work, problem: None }
    }

    fn tensor(&mut self, x: &Tensor, dtype: DType) {
        self.work.bytes += x.bytes() as u64;
        match x.address() {
            Some((driver, address)) if Arc::ptr_eq(driver, self.driver) && x.dtype() == dtype => {
                self.args.push(Arg::Pointer(address));
            }
            Some((driver, _)) if Arc::ptr_eq(driver, self.driver) => {
                self.problem = Some(format!("argument {} is {}, not {dtype}", self.args.len(), x.dtype()));
            }
            _ => self.problem = Some(format!("argument {} is on another device", self.args.len())),
        }
    }

    /// A tensor of the kernel's type, read.
    pub fn input(self, x: &Tensor) -> Self {
        let dtype = self.dtype;
        self.input_of(x, dtype)
    }

    /// A tensor of type `dtype`, read.
    pub fn input_of(mut self, x: &Tensor, dtype: DType) -> Self {
        self.tensor(x, dtype);
        self
    }

    /// A tensor of type `dtype` that may be missing: a null pointer then.
    pub fn maybe_input_of(mut self, x: Option<&Tensor>, dtype: DType) -> Self {
        match x {
            Some(x) => self.tensor(x, dtype),
            None => self.args.push(Arg::Pointer(0)),
        }
        self
    }

    /// A tensor of the kernel's type, written; nobody else may share its buffer.
    pub fn output(self, y: &mut Tensor) -> Self {
        let dtype = self.dtype;
        self.output_of(y, dtype)
    }

    /// A tensor of type `dtype`, written; nobody else may share its buffer.
    pub fn output_of(mut self, y: &mut Tensor, dtype: DType) -> Self {
        if !y.is_unique() {
            self.problem = Some(format!("argument {} is shared and would be written", self.args.len()));
        }
        self.tensor(y, dtype);
        self
    }

    /// A tensor of type `dtype` that may be missing, written: a null pointer then.
    pub fn maybe_output_of(self, y: Option<&mut Tensor>, dtype: DType) -> Self {
        match y {
            Some(y) => self.output_of(y, dtype),
            None => self.maybe_input_of(None, dtype),
        }
    }

    /// An address for whose memory the caller vouches.
    pub fn pointer(mut self, address: u64) -> Self {
        self.args.push(Arg::Pointer(address));
        self
    }

    /// An `int`.
    pub fn int(mut self, n: usize) -> Self {
        match i32::try_from(n) {
            Ok(n) => self.args.push(Arg::I32(n)),
            Err(_) => self.problem = Some(format!("argument {} is {n}, more than an int", self.args.len())),
        }
        self
    }

    /// An `unsigned long long`.
    pub fn u64(mut self, n: u64) -> Self {
        self.args.push(Arg::U64(n));
        self
    }

    /// A `float`.
    pub fn float(mut self, x: f32) -> Self {
        self.args.push(Arg::F32(x));
        self
    }

    /// Whether every address so far is a multiple of 16.
    pub fn is_aligned(&self) -> bool {
        self.args.iter().all(|arg| !matches!(arg, Arg::Pointer(address) if address % 16 != 0))
    }

    /// The arguments `groups` and `len` of a kernel over `len` numbers, and its threads: the first `groups` take `lanes`
    /// numbers each, which are none where an address so far is no multiple of 16, and the others take one.
    pub fn groups(self, len: usize, lanes: usize) -> (Self, usize) {
        let groups = if self.is_aligned() { len / lanes } else { 0 };
        (self.u64(groups as u64).u64(len as u64), groups + (len - groups * lanes))
    }

    /// Bytes that are not those of the arguments, each counted once: for a kernel that touches part of a tensor.
    pub fn bytes(mut self, bytes: usize) -> Self {
        self.work.bytes = bytes as u64;
        self
    }

    /// Floating-point operations, 2 for a multiply-add.
    pub fn operations(mut self, operations: usize) -> Self {
        self.work.operations = operations as u64;
        self
    }

    /// Starts `grid` blocks of `threads` threads with `shared` bytes of shared memory each.
    ///
    /// # Errors
    /// When an argument did not fit, the grid is empty or too large, or the device reports an error.
    ///
    /// # Safety
    /// The arguments are those of the kernel's parameters, and with this grid it touches nothing beyond them.
    pub unsafe fn launch(self, grid: [usize; 3], threads: usize, shared: usize) -> Result<()> {
        let most = [i32::MAX as usize, 65_535, 65_535];
        let problem = self.problem.or_else(|| {
            let fits = grid.iter().zip(most).all(|(&n, most)| (1..=most).contains(&n));
            (!fits || !(1..=1024).contains(&threads))
                .then(|| format!("a grid of {grid:?} blocks of {threads} threads cannot be launched"))
        });
        if let Some(problem) = problem {
            return Err(Error::cuda(self.kernel, problem));
        }
        let launch = Launch {
            kernel: &self.kernel,
            grid: grid.map(|n| n as u32),
            block: [threads as u32, 1, 1],
            shared: shared as u32,
            args: &self.args,
            work: self.work,
        };
        // SAFETY: the caller vouches for the arguments, and each tensor is on this device.
        unsafe { self.driver.launch(&launch) }
    }
}
