//! Runs the device code of `amdanet` on the host, for its tests.
//!
//! The build script compiles the very files of `kernels/` with the host's C++ compiler. A launch gives each CUDA thread
//! a coroutine; barriers, shuffles and matrix instructions switch between them. [`Emulator`] is a
//! [`Driver`], so launchers run unchanged.
//!
//! In checked mode the kernels are built with a call at each access to memory, and a launch fails that
//! - touches global memory outside of an allocation, or shared memory outside of what the launch asked for,
//! - reads a byte that nobody wrote,
//! - touches a byte of shared memory from two threads without a barrier in between when one of them writes,
//! - touches memory at an address that is not a multiple of the access's size.
//!
//! In every mode a barrier or a shuffle that some thread never reaches makes the launch fail. Fresh memory is full of
//! NaN. A wild access in fast mode does what it does in any C++ program.

mod block;
mod collective;
mod failing;
#[cfg_attr(all(target_arch = "x86_64", unix, not(feature = "coroutines")), path = "fiber_x86_64.rs")]
mod fiber;
mod hooks;
mod kernels;
mod memory;
mod product;
mod shared;

use std::sync::{Arc, Mutex, MutexGuard};

use amdanet::cuda::driver::{Arg, Driver, Graph, Launch, Product, Task};
use amdanet::{Error, Result};
use rayon::prelude::*;

pub use failing::Failing;
use kernels::{Kernel, kernels};
use memory::DeviceMemory;

/// How to emulate.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Checks every access to memory.
    pub checked: bool,
    /// Runs the threads of a block in an order drawn from this seed; without it, in the order of their numbers.
    pub shuffle: Option<u64>,
    /// Products round f32 factors to 10 bits of mantissa.
    pub tf32: bool,
    /// The compute capability to report.
    pub capability: (u32, u32),
}

impl Default for Options {
    fn default() -> Self {
        Self { checked: false, shuffle: None, tf32: false, capability: (8, 0) }
    }
}

impl Options {
    /// With every check.
    pub fn checked() -> Self {
        Self { checked: true, ..Self::default() }
    }
}

/// A CUDA device that is none.
pub struct Emulator {
    device: Arc<Device>,
    recording: Mutex<Option<Vec<Task>>>,
    beside: Mutex<Beside>,
}

/// What is queued aside is done as late as can be: where it is waited for.
#[derive(Default)]
struct Beside {
    now: bool,
    tasks: Vec<Task>,
}

struct Device {
    options: Options,
    memory: DeviceMemory,
    meetings: Mutex<Vec<Meeting>>,
    /// Addresses and bytes of the host's memory that is pinned.
    pinned: Mutex<Vec<(usize, usize)>>,
}

/// A wait between a queue and a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Meeting {
    /// [`Driver::follow`] that stream.
    Follow(u64),
    /// [`Driver::lead`] that stream.
    Lead(u64),
}

impl Emulator {
    /// A device with no memory in use.
    pub fn new(options: Options) -> Arc<Self> {
        let memory = DeviceMemory::new(options.checked);
        let device = Device { options, memory, meetings: Mutex::default(), pinned: Mutex::default() };
        Arc::new(Self::of(Arc::new(device)))
    }

    fn of(device: Arc<Device>) -> Self {
        Self { device, recording: Mutex::default(), beside: Mutex::default() }
    }

    /// Bytes that are allocated.
    pub fn live_bytes(&self) -> usize {
        self.device.memory.live_bytes()
    }

    /// Allocations that were not freed.
    pub fn live_allocations(&self) -> usize {
        self.device.memory.live_allocations()
    }

    /// The waits for streams and of streams so far, which are all that there is of them: everything is done at once.
    pub fn meetings(&self) -> Vec<Meeting> {
        self.device.meetings.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    fn meet(&self, meeting: Meeting) -> Result<()> {
        self.not_while_recording("a wait for a stream")?;
        self.device.meetings.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(meeting);
        Ok(())
    }

    fn recording(&self) -> MutexGuard<'_, Option<Vec<Task>>> {
        self.recording.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Records the task, or does it.
    ///
    /// # Safety
    /// What it touches belongs to the caller.
    unsafe fn queue(&self, task: Task) -> Result<()> {
        let mut beside = self.beside();
        if beside.now {
            beside.tasks.push(task);
            return Ok(());
        }
        drop(beside);
        if let Some(tasks) = self.recording().as_mut() {
            tasks.push(task);
            return Ok(());
        }
        // SAFETY: the caller vouches for the memory.
        unsafe { self.device.run(&task) }
    }

    fn beside(&self) -> MutexGuard<'_, Beside> {
        self.beside.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn not_while_recording(&self, what: &str) -> Result<()> {
        if self.recording().is_some() {
            return Err(Error::cuda(what, "not possible during a capture"));
        }
        Ok(())
    }
}

impl Driver for Emulator {
    fn name(&self) -> String {
        let (major, minor) = self.device.options.capability;
        format!("emulator of sm_{major}{minor}")
    }

    fn capability(&self) -> (u32, u32) {
        self.device.options.capability
    }

    fn queue(self: Arc<Self>) -> Result<Arc<dyn Driver>> {
        Ok(Arc::new(Self::of(self.device.clone())))
    }

    fn aside(&self) -> Result<()> {
        self.beside().now = true;
        Ok(())
    }

    fn back(&self) {
        self.beside().now = false;
    }

    fn join(&self) -> Result<()> {
        let tasks = std::mem::take(&mut self.beside().tasks);
        // SAFETY: who queued them vouched for what they touch, up to here.
        tasks.into_iter().try_for_each(|task| unsafe { self.queue(task) })
    }

    unsafe fn follow(&self, stream: u64) -> Result<()> {
        self.meet(Meeting::Follow(stream))
    }

    unsafe fn lead(&self, stream: u64) -> Result<()> {
        self.meet(Meeting::Lead(stream))
    }

    fn holds(&self, address: u64) -> bool {
        self.device.memory.holds(address, 1)
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        let address = self.device.memory.allocate(bytes);
        address.ok_or_else(|| Error::cuda(format_args!("allocation of {bytes} bytes"), "out of memory"))
    }

    fn free(&self, address: u64, bytes: usize) {
        self.device.memory.free(address, bytes);
    }

    unsafe fn pin(&self, memory: *mut u8, bytes: usize) -> Result<()> {
        self.device.pinned().push((memory as usize, bytes));
        Ok(())
    }

    unsafe fn unpin(&self, memory: *mut u8) {
        let mut pinned = self.device.pinned();
        let place = pinned.iter().position(|&(address, _)| address == memory as usize);
        pinned.swap_remove(place.expect("what is unpinned was pinned"));
    }

    fn is_pinned(&self, memory: &[u8]) -> bool {
        let range = memory.as_ptr_range();
        let around = |&(address, bytes): &(usize, usize)| {
            address <= range.start as usize && range.end as usize <= address + bytes
        };
        self.device.pinned().iter().any(around)
    }

    unsafe fn upload(&self, data: &[u8], to: u64) -> Result<()> {
        let what = format!("upload of {} bytes", data.len());
        self.not_while_recording(&what)?;
        self.device.check(&what, to, data.len(), true)?;
        // SAFETY: the bytes lie within an allocation.
        unsafe { (to as *mut u8).copy_from_nonoverlapping(data.as_ptr(), data.len()) };
        Ok(())
    }

    unsafe fn download(&self, from: u64, data: &mut [u8]) -> Result<()> {
        let what = format!("download of {} bytes", data.len());
        self.not_while_recording(&what)?;
        self.device.check(&what, from, data.len(), false)?;
        // SAFETY: the bytes lie within an allocation.
        unsafe { (from as *const u8).copy_to_nonoverlapping(data.as_mut_ptr(), data.len()) };
        Ok(())
    }

    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise is passed on.
        unsafe { self.queue(Task::Copy { from, to, bytes }) }
    }

    unsafe fn fill(&self, to: u64, byte: u8, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise is passed on.
        unsafe { self.queue(Task::Fill { to, byte, bytes }) }
    }

    unsafe fn launch(&self, launch: &Launch) -> Result<()> {
        // A wrong launch is refused where it is recorded, as the real driver does.
        self.device.check_launch(launch)?;
        // SAFETY: the caller's promise is passed on.
        unsafe { self.queue(Task::of(launch)) }
    }

    unsafe fn product(&self, product: &Product) -> Result<()> {
        // SAFETY: the caller's promise is passed on.
        unsafe { self.queue(Task::Product(*product)) }
    }

    fn synchronise(&self) -> Result<()> {
        self.not_while_recording("synchronise")
    }

    fn begin_capture(&self) -> Result<()> {
        self.not_while_recording("begin_capture")?;
        *self.recording() = Some(Vec::new());
        Ok(())
    }

    fn end_capture(&self) -> Result<Box<dyn Graph>> {
        let beside = std::mem::take(&mut *self.beside());
        let tasks = self.recording().take();
        if !beside.tasks.is_empty() {
            return Err(Error::cuda("end_capture", "what was queued aside was not waited for"));
        }
        let tasks = tasks.ok_or_else(|| Error::cuda("end_capture", "no capture has begun"))?;
        Ok(Box::new(Recording { device: self.device.clone(), tasks }))
    }
}

/// What was done between `begin_capture` and `end_capture`.
struct Recording {
    device: Arc<Device>,
    tasks: Vec<Task>,
}

impl Graph for Recording {
    unsafe fn launch(&self) -> Result<()> {
        // SAFETY: the caller vouches for the memory that the tasks touch.
        self.tasks.iter().try_for_each(|task| unsafe { self.device.run(task) })
    }
}

impl Device {
    fn pinned(&self) -> MutexGuard<'_, Vec<(usize, usize)>> {
        self.pinned.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// # Safety
    /// What the task touches belongs to the caller.
    unsafe fn run(&self, task: &Task) -> Result<()> {
        match task {
            Task::Copy { from, to, bytes } => {
                let what = format!("copy of {bytes} bytes");
                self.check(&what, *from, *bytes, false)?;
                self.check(&what, *to, *bytes, true)?;
                if from.abs_diff(*to) < *bytes as u64 {
                    return Err(Error::cuda(what, "source and destination overlap"));
                }
                // SAFETY: both ranges lie within allocations and do not overlap.
                unsafe { (*from as *const u8).copy_to_nonoverlapping(*to as *mut u8, *bytes) };
                Ok(())
            }
            Task::Fill { to, byte, bytes } => {
                self.check(&format!("fill of {bytes} bytes"), *to, *bytes, true)?;
                // SAFETY: the bytes lie within an allocation.
                unsafe { (*to as *mut u8).write_bytes(*byte, *bytes) };
                Ok(())
            }
            Task::Launch { kernel, grid, block, shared, args, work } => {
                let (grid, block, shared, work) = (*grid, *block, *shared, *work);
                self.launch(&Launch { kernel, grid, block, shared, args, work })
            }
            // SAFETY: the caller vouches for the matrices.
            Task::Product(product) => unsafe { product::product(&self.memory, product, self.options.tf32) },
        }
    }

    /// Whether bytes that the host names lie within an allocation, and whether they were written.
    fn check(&self, what: &str, address: u64, bytes: usize, write: bool) -> Result<()> {
        if !self.memory.holds(address, bytes) {
            return Err(Error::cuda(what, format!("out of bounds: from {}", self.memory.describe(address))));
        }
        hooks::check_global(&self.memory, address as usize, bytes, write)
            .map_err(|why| Error::cuda(what, why))
    }

    fn check_launch(&self, launch: &Launch) -> Result<&'static Kernel> {
        let error = |why: String| Err(Error::cuda(launch, why));
        let Some(kernel) = kernels(self.options.checked).get(launch.kernel) else {
            return error("there is no such kernel".to_string());
        };
        let (wanted, given) = (kernel.parameters, launch.args);
        if wanted.len() != given.len() {
            return error(format!(
                "it has {} parameters and was given {} arguments",
                wanted.len(),
                given.len()
            ));
        }
        assert!(wanted.len() <= block::MAX_ARGS, "{} has more parameters than are foreseen", kernel.name);
        for (i, (wanted, given)) in wanted.iter().zip(given).enumerate() {
            let (wanted, fits) = match wanted {
                b'p' => ("a pointer", matches!(given, Arg::Pointer(_))),
                b'i' => ("int", matches!(given, Arg::I32(_))),
                b'u' => ("unsigned long long", matches!(given, Arg::U64(_))),
                _ => ("float", matches!(given, Arg::F32(_))),
            };
            if !fits {
                return error(format!("argument {i} is {given:?}, and its parameter is {wanted}"));
            }
            if let Arg::Pointer(address) = *given
                && address != 0
                && !self.memory.holds(address, 0)
            {
                let place = self.memory.describe(address);
                return error(format!("argument {i} points to no allocation: {place}"));
            }
        }
        let ([gx, gy, gz], [bx, by, bz]) = (launch.grid, launch.block);
        if gx == 0 || gx > i32::MAX as u32 || !(1..=65535).contains(&gy) || !(1..=65535).contains(&gz) {
            return error("a grid has 1 to 2147483647, 65535 and 65535 blocks".to_string());
        }
        let threads = [bx, by, bz].iter().map(|n| u64::from(*n)).product::<u64>();
        if threads == 0 || threads > 1024 || bx > 1024 || by > 1024 || bz > 64 {
            return error("a block has 1 to 1024 threads".to_string());
        }
        let most = self.shared_memory();
        if launch.shared as usize > most {
            return error(format!("a block has at most {most} bytes of shared memory"));
        }
        Ok(kernel)
    }

    /// Bytes of shared memory that a block can have.
    fn shared_memory(&self) -> usize {
        match self.options.capability {
            (8, 0 | 7) => 163 << 10,
            (8, _) | (12, _) => 99 << 10,
            _ => shared::MAX_SHARED,
        }
    }

    fn launch(&self, launch: &Launch) -> Result<()> {
        let kernel = self.check_launch(launch)?;
        let args: Vec<_> = launch.args.iter().map(|arg| arg.bits()).collect();
        let grid = block::Grid {
            kernel,
            memory: &self.memory,
            checked: self.options.checked,
            shuffle: self.options.shuffle,
            grid: launch.grid,
            block: launch.block,
            positions: block::positions(launch.block),
            shared: launch.shared as usize,
            args: &args,
        };
        let blocks = launch.grid.iter().map(|n| u64::from(*n)).product::<u64>();
        let result = (0..blocks).into_par_iter().try_for_each(|number| block::run(&grid, number));
        result.map_err(|why| Error::cuda(launch, why))
    }
}
