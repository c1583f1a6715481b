//! A real CUDA device, by way of its driver library and cuBLASLt. Nothing else in this crate names `cudarc`.
//!
//! Both libraries are looked for when a device is asked for, so a program with kernels starts on a machine without
//! them. `cudarc` panics where a library is missing; that is asked first.

mod blas;
mod nvml;

use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString, c_void};
use std::fmt;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use cudarc::cublaslt::sys as cublaslt;
use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute, CUresult};

use self::blas::Blas;
use self::nvml::Nvml;
use super::driver::{Driver, Graph, Launch, Product};
use super::kernels;
use crate::tensor::pool::Pool;
use crate::{Error, Result};

/// What this machine has.
pub struct Found {
    /// The newest CUDA release that the driver knows, 13.0 as (13, 0).
    pub driver: (u32, u32),
    /// The devices, at the place of their ordinal.
    pub devices: Vec<Info>,
}

/// A device.
#[derive(Clone)]
pub struct Info {
    /// What its maker calls it.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    /// All of its memory.
    pub bytes: usize,
}

impl Info {
    /// What this build would run there, as [`kernels::fit`] says it.
    ///
    /// # Errors
    /// When it can run nothing; the text says why and what to do.
    pub fn usable(&self) -> Result<String, String> {
        let kernels = kernels::fit(self.capability)?;
        // SAFETY: this opens a library by its names, and what it runs when opened is its own.
        if !unsafe { cublaslt::is_culib_present() } {
            return Err(
                "libcublasLt is not found: install cuBLAS 12 or 13, and add its folder to LD_LIBRARY_PATH"
                    .into(),
            );
        }
        Ok(kernels)
    }
}

impl fmt::Display for Info {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, capability: (major, minor), bytes } = self;
        write!(f, "{name}, sm_{major}{minor}, {:.1} GiB", *bytes as f64 / GIB)
    }
}

/// Bytes in a GiB.
const GIB: f64 = (1u64 << 30) as f64;

/// Dynamic shared memory that a kernel may have without asking for it.
const SHARED_UNASKED: u32 = 48 << 10;

/// The most marks that can be compared: an older mark's event is used again.
const MARKS: u64 = 1 << 18;

/// Bytes of pinned memory of a queue, through which small uploads go.
const STAGING: usize = 1 << 20;

/// Looks for CUDA devices.
///
/// # Errors
/// When there is no driver, or it does not work.
pub fn find() -> Result<Found> {
    let what = "CUDA";
    // SAFETY: this opens libraries by their names, and what they run when opened is the driver's own.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::cuda(
            what,
            "there is no driver (libcuda) on this machine: install NVIDIA's driver",
        ));
    }
    // SAFETY: nothing comes before it.
    match unsafe { sys::cuInit(0) } {
        CUresult::CUDA_SUCCESS => {}
        // Found, and the driver works as far as it can without one.
        CUresult::CUDA_ERROR_NO_DEVICE => {
            return Ok(Found { driver: driver_version()?, devices: Vec::new() });
        }
        CUresult::CUDA_ERROR_STUB_LIBRARY => {
            return Err(Error::cuda(
                what,
                "the driver library that was found is a stub for linking: install NVIDIA's driver",
            ));
        }
        status => return Err(Error::cuda(what, format!("the driver does not start: {}", Failure(status)))),
    }
    let mut count = 0;
    // SAFETY: the driver was started; the number is valid while it is written.
    check(unsafe { sys::cuDeviceGetCount(&mut count) }, "counting devices")?;
    let devices = (0..count).map(info).collect::<Result<_>>()?;
    Ok(Found { driver: driver_version()?, devices })
}

fn driver_version() -> Result<(u32, u32)> {
    let mut version = 0;
    // SAFETY: the number is valid while it is written.
    check(unsafe { sys::cuDriverGetVersion(&mut version) }, "the driver's version")?;
    Ok((version as u32 / 1000, version as u32 % 1000 / 10))
}

/// A device that exists.
fn info(ordinal: i32) -> Result<Info> {
    let what = format!("cuda:{ordinal}");
    let (mut device, mut bytes, mut name) = (0, 0, [0; 256]);
    // SAFETY: the driver was started; everything is valid while it is written, and the name ends with a zero.
    let name = unsafe {
        check(sys::cuDeviceGet(&mut device, ordinal), &what)?;
        check(sys::cuDeviceTotalMem_v2(&mut bytes, device), &what)?;
        check(sys::cuDeviceGetName(name.as_mut_ptr(), name.len() as i32, device), &what)?;
        CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned()
    };
    let major = attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    Ok(Info { name, capability: (major, minor), bytes })
}

fn attribute(device: sys::CUdevice, attribute: Attribute) -> Result<u32> {
    let mut value = 0;
    // SAFETY: the number is valid while it is written; a wrong device is an error.
    check(unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, device) }, "a device's attribute")?;
    Ok(value as u32)
}

/// An error of the driver in words: its name, its text, and what it means for the caller.
struct Failure(CUresult);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use CUresult::*;
        let (mut name, mut text) = (std::ptr::null(), std::ptr::null());
        // SAFETY: both pointers are valid while they are written.
        let known = unsafe {
            sys::cuGetErrorName(self.0, &mut name) == CUDA_SUCCESS
                && sys::cuGetErrorString(self.0, &mut text) == CUDA_SUCCESS
        };
        if known && !name.is_null() && !text.is_null() {
            // SAFETY: the driver gave two strings that live as long as it is loaded, which is forever.
            let (name, text) = unsafe { (CStr::from_ptr(name), CStr::from_ptr(text)) };
            write!(f, "{} ({})", name.to_string_lossy(), text.to_string_lossy())?;
        } else {
            write!(f, "{:?}", self.0)?;
        }
        match self.0 {
            // These end the context, whatever call they come back from.
            CUDA_ERROR_ILLEGAL_ADDRESS
            | CUDA_ERROR_LAUNCH_TIMEOUT
            | CUDA_ERROR_ASSERT
            | CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUDA_ERROR_MISALIGNED_ADDRESS
            | CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUDA_ERROR_INVALID_PC
            | CUDA_ERROR_LAUNCH_FAILED
            | CUDA_ERROR_ECC_UNCORRECTABLE => {
                f.write_str(", met by work queued earlier: CUDA_LAUNCH_BLOCKING=1 shows by which")
            }
            _ => Ok(()),
        }
    }
}

fn check(status: CUresult, what: impl fmt::Display) -> Result<()> {
    match status {
        CUresult::CUDA_SUCCESS => Ok(()),
        status => Err(Error::cuda(what, Failure(status))),
    }
}

/// The kind of memory at an address, a `CUmemorytype`, and the device that it was allocated on; zeros where the driver
/// does not know the address. A context is current.
fn memory_at(address: u64) -> (u32, i32) {
    use sys::CUpointer_attribute_enum::{
        CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, CU_POINTER_ATTRIBUTE_MEMORY_TYPE,
    };
    let (mut kind, mut ordinal) = (0u32, 0i32);
    let mut attributes = [CU_POINTER_ATTRIBUTE_MEMORY_TYPE, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL];
    let mut places = [(&raw mut kind).cast::<c_void>(), (&raw mut ordinal).cast()];
    // The call for one attribute makes an error of an address that the driver does not know; this one does not.
    // SAFETY: two attributes of 32 bits, which are valid while they are written; any address may be asked for.
    let status =
        unsafe { sys::cuPointerGetAttributes(2, attributes.as_mut_ptr(), places.as_mut_ptr(), address) };
    if status == CUresult::CUDA_SUCCESS { (kind, ordinal) } else { (0, 0) }
}

/// A poisoned lock holds what it held: nothing here is left half done by a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A queue of a CUDA device.
pub struct Gpu(Arc<Queue>);

/// A device, as its queues share it.
struct Context {
    ordinal: usize,
    info: Info,
    tf32: bool,
    device: sys::CUdevice,
    handle: sys::CUcontext,
    pool: sys::CUmemoryPool,
    modules: Vec<sys::CUmodule>,
    functions: HashMap<&'static str, Function>,
    /// The most shared memory of a block.
    most_shared: u32,
    /// Opened when energy is asked for, if it is there.
    nvml: OnceLock<Option<Nvml>>,
}

/// What a queue and the graphs recorded on it share.
struct Queue {
    context: Arc<Context>,
    stream: sys::CUstream,
    /// For memory that is needed while the queue is being recorded.
    for_memory: sys::CUstream,
    /// For work that is done beside the rest, and whether that is what is queued now.
    beside: sys::CUstream,
    is_beside: AtomicBool,
    /// Where this queue and another stream wait for each other.
    meeting: sys::CUevent,
    /// For products of the queue, and for those beside it once there are any: each stream has a workspace.
    blas: [Mutex<Option<Blas>>; 2],
    /// Memory that was freed, in the order of the queue: it may serve whatever is queued next.
    waiting: Mutex<Pool<u64>>,
    recording: Mutex<Option<Recording>>,
    marks: Mutex<Marks>,
    staging: Mutex<Staging>,
}

/// [`STAGING`] bytes of pinned memory, or null. The driver promises to be through with a source when an asynchronous copy
/// returns for no memory; what was copied here first may go at once.
struct Staging {
    memory: *mut u8,
    /// How much of it copies may still be reading.
    used: usize,
}

// SAFETY: the driver's handles may be used by any thread whose current context is theirs, and every call begins by
// making it so. What changes is behind locks.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}
// SAFETY: as above.
unsafe impl Send for Queue {}
// SAFETY: as above.
unsafe impl Sync for Queue {}

struct Function {
    handle: sys::CUfunction,
    /// The dynamic shared memory that it may have so far.
    shared: Mutex<u32>,
}

/// Memory while the queue is being recorded. What a recorded launch touches must stay, so nothing goes back to the
/// driver; what was reserved in the recording may serve it again, because a graph keeps the order of the queue.
#[derive(Default)]
struct Recording {
    reserved: HashSet<u64>,
    spare: HashMap<usize, Vec<u64>>,
    /// Freed here, but older than the recording, with their bytes.
    older: Vec<(u64, usize)>,
}

impl Recording {
    fn freed(self) -> Vec<(u64, usize)> {
        let spare = self.spare.into_iter();
        spare
            .flat_map(|(bytes, all)| all.into_iter().map(move |address| (address, bytes)))
            .chain(self.older)
            .collect()
    }
}

/// Events, and how many marks were made: mark number n is event n modulo [`MARKS`].
#[derive(Default)]
struct Marks {
    events: Vec<sys::CUevent>,
    count: u64,
}

impl Gpu {
    /// Opens a device; with `tf32`, products of float32 round their factors.
    ///
    /// # Errors
    /// When the driver, the device, its kernels or cuBLASLt are missing, or the device refuses.
    pub fn open(ordinal: usize, tf32: bool) -> Result<Arc<dyn Driver>> {
        let what = format!("cuda:{ordinal}");
        let found = find().map_err(|e| match e {
            Error::Cuda { why, .. } => Error::cuda(&what, why),
            other => other,
        })?;
        let info = match (found.devices.len(), found.devices.get(ordinal)) {
            (_, Some(info)) => info.clone(),
            (0, _) => {
                return Err(Error::cuda(
                    what,
                    "the driver finds no device: nvidia-smi and CUDA_VISIBLE_DEVICES may tell why",
                ));
            }
            (1, _) => return Err(Error::cuda(what, "the only device is cuda:0")),
            (n, _) => return Err(Error::cuda(what, format!("the devices are cuda:0 to cuda:{}", n - 1))),
        };
        info.usable().map_err(|why| Error::cuda(&what, why))?;
        let mut context = Context {
            ordinal,
            info,
            tf32,
            device: 0,
            handle: null_mut(),
            pool: null_mut(),
            modules: Vec::new(),
            functions: HashMap::new(),
            most_shared: 0,
            nvml: OnceLock::new(),
        };
        // From here on an error drops `context`, which gives back what it has got so far.
        context.create(&what)?;
        context.load(&what, found.driver)?;
        Ok(Arc::new(Self(Queue::new(Arc::new(context))?)))
    }
}

/// The context of the caller's thread comes back when this is dropped.
#[must_use]
struct Entered;

impl Drop for Entered {
    fn drop(&mut self) {
        let mut left = null_mut();
        // SAFETY: `enter` has put a context on top of this thread's; the handle is valid while it is written.
        let _ = unsafe { sys::cuCtxPopCurrent_v2(&mut left) };
    }
}

impl Context {
    /// Context and pool.
    fn create(&mut self, what: &str) -> Result<()> {
        // SAFETY: the driver was started; each handle is written by the call that makes it, and given back in `drop`.
        unsafe {
            check(sys::cuDeviceGet(&mut self.device, self.ordinal as i32), what)?;
            check(sys::cuDevicePrimaryCtxRetain(&mut self.handle, self.device), what)?;
            let _entered = self.enter()?;
            if attribute(self.device, Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED)? == 0 {
                return Err(Error::cuda(what, "the device or its driver has no memory pools"));
            }
            // All zeros mean no handles to share it by and no limit. The device's own pool is the program's around us.
            let mut of: sys::CUmemPoolProps = std::mem::zeroed();
            of.allocType = sys::CUmemAllocationType_enum::CU_MEM_ALLOCATION_TYPE_PINNED;
            of.location.type_ = sys::CUmemLocationType_enum::CU_MEM_LOCATION_TYPE_DEVICE;
            of.location.id = self.device;
            check(sys::cuMemPoolCreate(&mut self.pool, &of), what)?;
            // What queues give back stays in the pool, for any of them.
            let mut keep = u64::MAX;
            let threshold = sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
            check(sys::cuMemPoolSetAttribute(self.pool, threshold, (&raw mut keep).cast()), what)?;
        }
        self.most_shared =
            attribute(self.device, Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        Ok(())
    }

    /// Kernels: all of them now, because loading one while the queue is being recorded would end the recording.
    fn load(&mut self, what: &str, driver: (u32, u32)) -> Result<()> {
        let _entered = self.enter()?;
        for &(file, image, names) in kernels::KERNELS.iter().filter(|(_, _, names)| !names.is_empty()) {
            let mut module = null_mut();
            // SAFETY: the context is current, and the image is a fat binary that nvcc made.
            match unsafe { sys::cuModuleLoadData(&mut module, image.as_ptr().cast()) } {
                CUresult::CUDA_SUCCESS => self.modules.push(module),
                status => {
                    let (failure, build, (major, minor)) = (Failure(status), kernels::summary(), driver);
                    let why = format!(
                        "the kernels of {file}.cu do not load: {failure}; this build has {build}, and the driver is \
                         for CUDA {major}.{minor}: install a newer driver, or build for this device (AMDANET_CUDA_ARCHS)"
                    );
                    return Err(Error::cuda(what, why));
                }
            }
            for &name in names {
                let mut handle = null_mut();
                let c_name = CString::new(name).map_err(|e| Error::cuda(name, e))?;
                // SAFETY: the module was loaded above, and the name ends with a zero.
                check(unsafe { sys::cuModuleGetFunction(&mut handle, module, c_name.as_ptr()) }, name)?;
                self.functions.insert(name, Function { handle, shared: Mutex::new(SHARED_UNASKED) });
            }
        }
        Ok(())
    }

    /// Makes the context this thread's own until the value is dropped: every call to the driver below needs that.
    fn enter(&self) -> Result<Entered> {
        // SAFETY: the context lives until `drop`.
        check(unsafe { sys::cuCtxPushCurrent_v2(self.handle) }, "entering the context")?;
        Ok(Entered)
    }

    /// The device's PCI address, as `0000:01:00.0`.
    fn bus(&self) -> Option<CString> {
        let mut text = [0; 32];
        // SAFETY: the text is valid while it is written, and ends with a zero when the call succeeds.
        unsafe {
            let status = sys::cuDeviceGetPCIBusId(text.as_mut_ptr(), text.len() as i32, self.device);
            (status == CUresult::CUDA_SUCCESS).then(|| CStr::from_ptr(text.as_ptr()).into())
        }
    }

    /// Lets a function have the shared memory of a launch.
    fn allow_shared(&self, function: &Function, launch: &Launch) -> Result<()> {
        let bytes = launch.shared;
        if bytes <= SHARED_UNASKED {
            return Ok(());
        }
        if bytes > self.most_shared {
            let why = format!("the device has {} bytes of shared memory for a block", self.most_shared);
            return Err(Error::cuda(launch, why));
        }
        let mut allowed = lock(&function.shared);
        if bytes > *allowed {
            let most = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is of a module that lives until `drop`.
            check(unsafe { sys::cuFuncSetAttribute(function.handle, most, bytes as i32) }, launch)?;
            *allowed = bytes;
        }
        Ok(())
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: each handle was made by this value and is given back once, what uses others first; null handles
        // were not reached. Errors have nobody to go to.
        unsafe {
            if self.handle.is_null() {
                return;
            }
            if let Ok(_entered) = self.enter() {
                for &module in &self.modules {
                    let _ = sys::cuModuleUnload(module);
                }
                if !self.pool.is_null() {
                    let _ = sys::cuMemPoolDestroy(self.pool);
                }
            }
            let _ = sys::cuDevicePrimaryCtxRelease_v2(self.device);
        }
    }
}

impl Queue {
    /// A queue of its own, with a workspace for products.
    fn new(context: Arc<Context>) -> Result<Arc<Self>> {
        let mut queue = Self {
            context,
            stream: null_mut(),
            for_memory: null_mut(),
            beside: null_mut(),
            is_beside: AtomicBool::new(false),
            meeting: null_mut(),
            blas: Default::default(),
            waiting: Mutex::new(Pool::empty()),
            recording: Mutex::new(None),
            marks: Mutex::default(),
            staging: Mutex::new(Staging { memory: null_mut(), used: 0 }),
        };
        // From here on an error drops `queue`, which gives back what it has got so far.
        let what = format!("a queue of cuda:{}", queue.context.ordinal);
        let _entered = queue.enter()?;
        let flags = sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32;
        let untimed = sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: the context is current; each handle is written by the call that makes it, and given back in `drop`.
        unsafe {
            check(sys::cuStreamCreate(&mut queue.stream, flags), &what)?;
            check(sys::cuStreamCreate(&mut queue.for_memory, flags), &what)?;
            check(sys::cuStreamCreate(&mut queue.beside, flags), &what)?;
            check(sys::cuEventCreate(&mut queue.meeting, untimed), &what)?;
            let mut memory = null_mut();
            check(sys::cuMemHostAlloc(&mut memory, STAGING, 0), &what)?;
            lock(&queue.staging).memory = memory.cast();
        }
        queue.open_blas(0, if queue.context.info.capability.0 == 9 { 64 << 20 } else { 32 << 20 })?;
        Ok(Arc::new(queue))
    }

    /// Starts cuBLASLt for one of the two streams with a workspace of `bytes` bytes, if that is still to be done.
    fn open_blas(&self, stream: usize, bytes: usize) -> Result<()> {
        let mut blas = lock(&self.blas[stream]);
        if blas.is_none() {
            self.not_recording("starting cuBLASLt")?;
            let address = self.reserve(bytes, self.stream)?;
            let opened = Blas::new(address, bytes, self.context.tf32);
            *blas = Some(opened.inspect_err(|_| self.release(address))?);
        }
        Ok(())
    }

    /// The stream for what is queued now.
    fn current(&self) -> sys::CUstream {
        if self.is_beside.load(Relaxed) { self.beside } else { self.stream }
    }

    fn enter(&self) -> Result<Entered> {
        self.context.enter()
    }

    fn reserve(&self, bytes: usize, stream: sys::CUstream) -> Result<u64> {
        let mut address = 0;
        // SAFETY: the context is current, the stream is one of ours, the address is valid while it is written.
        let mut reserve =
            || unsafe { sys::cuMemAllocFromPoolAsync(&mut address, bytes.max(1), self.context.pool, stream) };
        let mut status = reserve();
        if status == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            // Memory waits here, or that of finished work in pieces in the driver's pool: give it back, and ask once more.
            // Where the other stream is meant the queue is being recorded, and nothing can be freed on it.
            if stream == self.stream {
                self.release_waiting();
            }
            // SAFETY: as above.
            let trimmed = unsafe {
                sys::cuStreamSynchronize(stream) == CUresult::CUDA_SUCCESS
                    && sys::cuMemPoolTrimTo(self.context.pool, 0) == CUresult::CUDA_SUCCESS
            };
            if trimmed {
                status = reserve();
            }
        }
        match status {
            CUresult::CUDA_SUCCESS => Ok(address),
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let (mut free, mut total) = (0, 0);
                // SAFETY: the context is current, both numbers are valid while they are written.
                let known = unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) } == CUresult::CUDA_SUCCESS;
                let (free, total) = (free as f64 / GIB, total as f64 / GIB);
                let left =
                    if known { format!(": {free:.2} of {total:.1} GiB are free") } else { String::new() };
                Err(Error::cuda(Allocation(bytes), format!("{}{left}", Failure(status))))
            }
            status => Err(Error::cuda(Allocation(bytes), Failure(status))),
        }
    }

    /// Does something that the driver forbids a thread that records, though it is no part of the recording: reserving
    /// memory, loading kernels.
    fn unrecorded<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let mut mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the mode is this thread's own; the exchange writes the former one, which is put back below.
        check(unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) }, "pausing a recording")?;
        let done = work();
        // SAFETY: as above.
        check(unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) }, "going on with a recording")?;
        done
    }

    /// Reserves memory while the queue is being recorded: from the other queue, and ready when this returns.
    fn reserve_aside(&self, bytes: usize) -> Result<u64> {
        self.unrecorded(|| {
            let address = self.reserve(bytes, self.for_memory)?;
            // SAFETY: the stream is ours.
            check(unsafe { sys::cuStreamSynchronize(self.for_memory) }, Allocation(bytes))?;
            Ok(address)
        })
    }

    /// Memory of [`Queue::waiting`], or new.
    fn allocate(&self, bytes: usize) -> Result<u64> {
        let found = lock(&self.waiting).take(bytes, |address| self.release(address));
        if let Some(address) = found {
            return Ok(address);
        }
        let address = self.reserve(bytes, self.stream)?;
        lock(&self.waiting).count(bytes);
        Ok(address)
    }

    /// Gives all memory that waits back to the driver.
    fn release_waiting(&self) {
        lock(&self.waiting).drain().for_each(|address| self.release(address));
    }

    /// Lets memory wait for the next request of its size.
    fn free(&self, address: u64, bytes: usize) {
        let left = lock(&self.waiting).give(bytes, address);
        left.into_iter().for_each(|address| self.release(address));
    }

    /// Gives memory back in the order of the queue. There is nobody to tell of an error; the next call meets it too.
    fn release(&self, address: u64) {
        // SAFETY: the address came from `reserve`, and its owner gave it up.
        let _ = unsafe { sys::cuMemFreeAsync(address, self.stream) };
    }

    /// An error if the queue is being recorded: `what` cannot be.
    fn not_recording(&self, what: &str) -> Result<()> {
        match *lock(&self.recording) {
            Some(_) => Err(Error::cuda(what, "cannot be done while launches are being recorded")),
            None => Ok(()),
        }
    }

    /// Lets what is queued on `stream` from now on wait for what is queued on `other`; both are this device's.
    fn wait(&self, stream: sys::CUstream, other: sys::CUstream, what: &str) -> Result<()> {
        // SAFETY: streams of ours, or one that the caller of `follow` or `lead` vouches for; the event is ours, and what waits
        // for it waits for this record of it.
        unsafe {
            check(sys::cuEventRecord(self.meeting, other), what)?;
            check(sys::cuStreamWaitEvent(stream, self.meeting, 0), what)
        }
    }

    fn synchronise(&self, what: impl fmt::Display) -> Result<()> {
        // SAFETY: the stream is ours.
        check(unsafe { sys::cuStreamSynchronize(self.stream) }, what)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: each handle was made by this value and is given back once, what uses others first; null handles
        // were not reached. Errors have nobody to go to.
        unsafe {
            let Ok(_entered) = self.enter() else { return };
            if lock(&self.recording).take().is_some() {
                let mut graph = null_mut();
                if sys::cuStreamEndCapture(self.stream, &mut graph) == CUresult::CUDA_SUCCESS
                    && !graph.is_null()
                {
                    let _ = sys::cuGraphDestroy(graph);
                }
            }
            if !self.stream.is_null() {
                if !self.beside.is_null() {
                    let _ = sys::cuStreamSynchronize(self.beside);
                }
                let blas = self.blas.each_ref().map(|blas| lock(blas).take());
                blas.iter().flatten().for_each(|blas| self.release(blas.workspace()));
                self.release_waiting();
                let _ = sys::cuStreamSynchronize(self.stream);
                drop(blas);
                let _ = sys::cuStreamDestroy_v2(self.stream);
            }
            let staging = lock(&self.staging).memory;
            if !staging.is_null() {
                let _ = sys::cuMemFreeHost(staging.cast());
            }
            for stream in [self.for_memory, self.beside].into_iter().filter(|stream| !stream.is_null()) {
                let _ = sys::cuStreamDestroy_v2(stream);
            }
            let events = std::mem::take(&mut lock(&self.marks).events);
            for event in events.into_iter().chain([self.meeting]).filter(|event| !event.is_null()) {
                let _ = sys::cuEventDestroy_v2(event);
            }
        }
    }
}

/// An allocation in an error message.
struct Allocation(usize);

impl fmt::Display for Allocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "allocation of {} bytes", self.0)
    }
}

impl Driver for Gpu {
    fn name(&self) -> String {
        format!("cuda:{}, {}", self.0.context.ordinal, self.0.context.info)
    }

    fn capability(&self) -> (u32, u32) {
        self.0.context.info.capability
    }

    fn peak_bytes(&self) -> Option<u64> {
        let mut bytes = 0u64;
        let what = sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH;
        // SAFETY: the pool is ours, and the attribute is 64 bits that are valid while they are written.
        let status =
            unsafe { sys::cuMemPoolGetAttribute(self.0.context.pool, what, (&raw mut bytes).cast()) };
        (status == CUresult::CUDA_SUCCESS).then_some(bytes)
    }

    fn joules(&self) -> Option<f64> {
        self.0.context.nvml.get_or_init(|| Nvml::open(&self.0.context.bus()?)).as_ref()?.joules()
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        let _entered = self.0.enter()?;
        let mut recording = lock(&self.0.recording);
        let Some(recording) = &mut *recording else { return self.0.allocate(bytes) };
        if let Some(address) = recording.spare.get_mut(&bytes).and_then(Vec::pop) {
            return Ok(address);
        }
        let address = self.0.reserve_aside(bytes)?;
        recording.reserved.insert(address);
        lock(&self.0.waiting).count(bytes);
        Ok(address)
    }

    fn free(&self, address: u64, bytes: usize) {
        let Ok(_entered) = self.0.enter() else { return };
        match &mut *lock(&self.0.recording) {
            Some(recording) if recording.reserved.contains(&address) => {
                recording.spare.entry(bytes).or_default().push(address);
            }
            Some(recording) => recording.older.push((address, bytes)),
            None => self.0.free(address, bytes),
        }
    }

    unsafe fn pin(&self, memory: *mut u8, bytes: usize) -> Result<()> {
        let _entered = self.0.enter()?;
        // SAFETY: the caller vouches for the bytes.
        let status = unsafe { sys::cuMemHostRegister_v2(memory.cast(), bytes, 0) };
        check(status, format_args!("pinning {bytes} bytes of the host"))
    }

    unsafe fn unpin(&self, memory: *mut u8) {
        if let Ok(_entered) = self.0.enter() {
            // SAFETY: the caller vouches for it. There is nobody to tell of an error.
            let _ = unsafe { sys::cuMemHostUnregister(memory.cast()) };
        }
    }

    fn is_pinned(&self, memory: &[u8]) -> bool {
        let host = sys::CUmemorytype_enum::CU_MEMORYTYPE_HOST as u32;
        self.0.enter().is_ok_and(|_entered| memory_at(memory.as_ptr() as u64).0 == host)
    }

    unsafe fn upload(&self, data: &[u8], to: u64) -> Result<()> {
        let what = format!("upload of {} bytes", data.len());
        let _entered = self.0.enter()?;
        self.0.not_recording(&what)?;
        if data.is_empty() {
            return Ok(());
        }
        let mut source = data.as_ptr();
        let pinned = self.is_pinned(data);
        let staged = !pinned && data.len() <= STAGING;
        let mut staging = lock(&self.0.staging);
        if staged {
            if staging.used + data.len() > STAGING {
                self.0.synchronise(&what)?;
                staging.used = 0;
            }
            // SAFETY: the queue is through with the rest of the staging, which has room.
            unsafe {
                let place = staging.memory.add(staging.used);
                place.copy_from_nonoverlapping(source, data.len());
                source = place;
            }
            staging.used = (staging.used + data.len()).next_multiple_of(256);
        }
        // SAFETY: the caller vouches for the destination, and for a pinned source. The staging stays until the queue was
        // waited for, and so does another source.
        let status = unsafe { sys::cuMemcpyHtoDAsync_v2(to, source.cast(), data.len(), self.0.stream) };
        // Also after an error, because part of the copy may be under way.
        let waited = if pinned || staged { Ok(()) } else { self.0.synchronise(&what) };
        check(status, &what)?;
        waited
    }

    unsafe fn download(&self, from: u64, data: &mut [u8]) -> Result<()> {
        let what = format!("download of {} bytes", data.len());
        let _entered = self.0.enter()?;
        self.0.not_recording(&what)?;
        if data.is_empty() {
            return self.0.synchronise(what);
        }
        // SAFETY: the caller vouches for the source; the destination is valid until this call has waited for it.
        let status = unsafe {
            sys::cuMemcpyDtoHAsync_v2(data.as_mut_ptr().cast::<c_void>(), from, data.len(), self.0.stream)
        };
        // Also after an error, because part of the copy may be under way.
        let waited = self.0.synchronise(&what);
        check(status, &what)?;
        waited
    }

    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let _entered = self.0.enter()?;
        // SAFETY: the caller vouches for both ranges.
        let status = unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes, self.0.current()) };
        check(status, format_args!("copy of {bytes} bytes"))
    }

    unsafe fn fill(&self, to: u64, byte: u8, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let _entered = self.0.enter()?;
        // SAFETY: the caller vouches for the range.
        let status = unsafe { sys::cuMemsetD8Async(to, byte, bytes, self.0.current()) };
        check(status, format_args!("fill of {bytes} bytes"))
    }

    unsafe fn launch(&self, launch: &Launch) -> Result<()> {
        let function = self.0.context.functions.get(launch.kernel);
        let function =
            function.ok_or_else(|| Error::cuda(launch, "this build has no kernel of that name"))?;
        let _entered = self.0.enter()?;
        self.0.context.allow_shared(function, launch)?;
        // The driver reads as many bytes of each as the parameter has, the low ones first.
        let mut bits: Vec<u64> = launch.args.iter().map(|arg| arg.bits()).collect();
        let mut pointers: Vec<*mut c_void> = bits.iter_mut().map(|bits| (&raw mut *bits).cast()).collect();
        let ([gx, gy, gz], [bx, by, bz]) = (launch.grid, launch.block);
        // SAFETY: the caller vouches for number and kind of the arguments and for what the kernel touches; the
        // arguments are copied before the call returns.
        let status = unsafe {
            sys::cuLaunchKernel(
                function.handle,
                gx,
                gy,
                gz,
                bx,
                by,
                bz,
                launch.shared,
                self.0.current(),
                pointers.as_mut_ptr(),
                null_mut(),
            )
        };
        check(status, launch)
    }

    unsafe fn product(&self, product: &Product) -> Result<()> {
        let _entered = self.0.enter()?;
        let (stream, of) = (self.0.current(), usize::from(self.0.is_beside.load(Relaxed)));
        let run = || match &mut *lock(&self.0.blas[of]) {
            // SAFETY: the caller vouches for the matrices, and the stream is the one whose order they follow.
            Some(blas) => unsafe { blas.run(product, stream.cast()) },
            None => Err(Error::cuda(product, "cuBLASLt is closed")),
        };
        let recording = lock(&self.0.recording).is_some();
        // cuBLASLt may load the kernel of a product that it has not met.
        if recording { self.0.unrecorded(run) } else { run() }
    }

    fn queue(self: Arc<Self>) -> Result<Arc<dyn Driver>> {
        let new = || Queue::new(self.0.context.clone());
        // What waits in this queue may be what the other one lacks.
        let queue = new().or_else(|e| {
            let _entered = self.0.enter()?;
            self.0.not_recording("another queue").map_err(|_| e)?;
            self.0.release_waiting();
            self.0.synchronise("another queue")?;
            new()
        });
        Ok(Arc::new(Self(queue?)))
    }

    fn aside(&self) -> Result<()> {
        let _entered = self.0.enter()?;
        // Products of a few pictures.
        self.0.open_blas(1, 8 << 20)?;
        self.0.wait(self.0.beside, self.0.stream, "beginning work beside other work")?;
        self.0.is_beside.store(true, Relaxed);
        Ok(())
    }

    fn back(&self) {
        self.0.is_beside.store(false, Relaxed);
    }

    fn join(&self) -> Result<()> {
        let _entered = self.0.enter()?;
        self.0.wait(self.0.stream, self.0.beside, "waiting for work beside other work")
    }

    unsafe fn follow(&self, stream: u64) -> Result<()> {
        let what = "waiting for the caller's stream";
        let _entered = self.0.enter()?;
        self.0.not_recording(what)?;
        self.0.wait(self.0.stream, stream as sys::CUstream, what)
    }

    unsafe fn lead(&self, stream: u64) -> Result<()> {
        let what = "letting the caller's stream wait";
        let _entered = self.0.enter()?;
        self.0.not_recording(what)?;
        self.0.wait(stream as sys::CUstream, self.0.stream, what)
    }

    fn holds(&self, address: u64) -> bool {
        let Ok(_entered) = self.0.enter() else { return false };
        let device = sys::CUmemorytype_enum::CU_MEMORYTYPE_DEVICE as u32;
        memory_at(address) == (device, self.0.context.ordinal as i32)
    }

    fn synchronise(&self) -> Result<()> {
        let _entered = self.0.enter()?;
        self.0.not_recording("waiting for the device")?;
        self.0.synchronise("waiting for the device")
    }

    fn mark(&self) -> Result<u64> {
        let what = "marking a time";
        let _entered = self.0.enter()?;
        self.0.not_recording(what)?;
        let mut marks = lock(&self.0.marks);
        let mark = marks.count;
        if mark < MARKS {
            let mut event = null_mut();
            // SAFETY: the context is current, the handle is valid while it is written.
            check(unsafe { sys::cuEventCreate(&mut event, 0) }, what)?;
            marks.events.push(event);
        }
        // SAFETY: event and stream are ours.
        check(unsafe { sys::cuEventRecord(marks.events[(mark % MARKS) as usize], self.0.stream) }, what)?;
        marks.count += 1;
        Ok(mark)
    }

    fn between(&self, start: u64, end: u64) -> Result<f32> {
        let what = "the time between two marks";
        // The function that tells it has another name in older drivers.
        if driver_version()? < (12, 8) {
            return Err(Error::cuda(what, "needs a driver for CUDA 12.8 or later"));
        }
        let _entered = self.0.enter()?;
        self.0.not_recording(what)?;
        let marks = lock(&self.0.marks);
        let kept = marks.count.saturating_sub(MARKS)..marks.count;
        if !kept.contains(&start) || !kept.contains(&end) {
            return Err(Error::cuda(what, format!("only the last {MARKS} marks are kept")));
        }
        let event = |mark: u64| marks.events[(mark % MARKS) as usize];
        let mut milliseconds = 0.0;
        // SAFETY: both events are ours and were recorded; the number is valid while it is written.
        unsafe {
            check(sys::cuEventSynchronize(event(start)), what)?;
            check(sys::cuEventSynchronize(event(end)), what)?;
            check(sys::cuEventElapsedTime_v2(&mut milliseconds, event(start), event(end)), what)?;
        }
        Ok(milliseconds)
    }

    fn begin_capture(&self) -> Result<()> {
        let what = "recording launches";
        let _entered = self.0.enter()?;
        let mut recording = lock(&self.0.recording);
        if recording.is_some() {
            return Err(Error::cuda(what, "they are being recorded already"));
        }
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is ours.
        check(unsafe { sys::cuStreamBeginCapture_v2(self.0.stream, mode) }, what)?;
        *recording = Some(Recording::default());
        Ok(())
    }

    fn end_capture(&self) -> Result<Box<dyn Graph>> {
        let what = "recording launches";
        let _entered = self.0.enter()?;
        let recording = lock(&self.0.recording).take();
        let recording = recording.ok_or_else(|| Error::cuda(what, "it was not begun"))?;
        // Dropping this, after an error too, gives back what was freed meanwhile.
        let mut recorded =
            Recorded { queue: self.0.clone(), executable: null_mut(), memory: recording.freed() };
        let mut graph = null_mut();
        // SAFETY: the stream is ours, and being recorded since `begin_capture`; the handles are valid while they are
        // written, and the graph is not used after it has become an executable one.
        unsafe {
            check(sys::cuStreamEndCapture(self.0.stream, &mut graph), what)?;
            if graph.is_null() {
                return Err(Error::cuda(what, "nothing came of it"));
            }
            let status = sys::cuGraphInstantiateWithFlags(&mut recorded.executable, graph, 0);
            let _ = sys::cuGraphDestroy(graph);
            check(status, what)?;
        }
        Ok(Box::new(recorded))
    }
}

/// Recorded launches with the memory that was freed while they were recorded: they still use it.
struct Recorded {
    queue: Arc<Queue>,
    executable: sys::CUgraphExec,
    memory: Vec<(u64, usize)>,
}

// SAFETY: as for `Queue`; only one thread at a time has this value.
unsafe impl Send for Recorded {}

impl Graph for Recorded {
    unsafe fn launch(&self) -> Result<()> {
        let _entered = self.queue.enter()?;
        // SAFETY: the caller vouches for the memory that the launches touch; what was freed meanwhile is kept here.
        check(unsafe { sys::cuGraphLaunch(self.executable, self.queue.stream) }, "recorded launches")
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        let Ok(_entered) = self.queue.enter() else { return };
        // Only after its last launch: what is freed follows the order of the queue, and the driver keeps an executable
        // graph until it is through.
        if !self.executable.is_null() {
            // SAFETY: it was made by `end_capture` and is given back once.
            let _ = unsafe { sys::cuGraphExecDestroy(self.executable) };
        }
        // If another recording is under way, what is given back now belongs to that one.
        match &mut *lock(&self.queue.recording) {
            Some(recording) => recording.older.append(&mut self.memory),
            None => self.memory.drain(..).for_each(|(address, bytes)| self.queue.free(address, bytes)),
        }
    }
}
