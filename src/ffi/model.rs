//! Networks with their weights.

use std::ffi::{CString, c_char, c_void};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::handle::{self, Handle};
use super::session::{Target, amdanet_precision};
use super::sized::{self, Struct};
use super::status::{
    Failure, Progress, Result, amdanet_log_level, amdanet_progress_callback, amdanet_status, guard, log,
};
use crate::checkpoint::{self, Loaded};
use crate::cuda::driver::Driver;
use crate::infer::Engine;
use crate::model::{LARGEST_SIDE, SMALLEST_SIDE};
use crate::tensor::{memory, release_waiting};
use crate::{DType, Device, Error, cuda};

/// A network with its weights. It never changes once it is loaded, so that any number of threads may use it at once.
pub struct amdanet_model(Arc<Model>);

/// What an [`amdanet_model`] shares.
pub struct Model {
    engine: Engine,
    /// The network on CUDA devices, made when it is first asked for.
    on_devices: Mutex<Vec<(Target, Computer)>>,
    classes: Vec<(CString, [u8; 3])>,
    arch: CString,
    encoder: CString,
    parameters: u64,
}

impl Handle for amdanet_model {
    const NAME: &'static str = "model";
    type Inner = Model;

    fn wrap(inner: Arc<Model>) -> Self {
        Self(inner)
    }

    fn inner(&self) -> &Arc<Model> {
        &self.0
    }
}

/// How a network is loaded. All zeros but struct_size are the defaults.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct amdanet_load_params {
    /// sizeof(amdanet_load_params).
    pub struct_size: usize,
    /// Is told how much is done; NULL for none.
    pub progress: amdanet_progress_callback,
    /// Handed to `progress`.
    pub progress_user: *mut c_void,
    /// The epsilon of the batch norms, above 0 and finite. 0: what the file says, or 1e-5 where it says nothing.
    pub bn_eps: f32,
    /// 0.
    pub reserved: u32,
}

// SAFETY: it begins with its size, and any bytes are a value.
unsafe impl Struct for amdanet_load_params {
    const NAME: &'static str = "amdanet_load_params";
}

/// Fills `*params` with the defaults: `amdanet_load_params_init(&params, sizeof params)`. `struct_size` is that size, so that
/// no more than the caller's structure is written. Any thread may call it.
///
/// Errors: AMDANET_STATUS_INVALID_ARGUMENT when `params` is NULL or `struct_size` is no size of it.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn amdanet_load_params_init(
    params: *mut amdanet_load_params,
    struct_size: usize,
) -> amdanet_status {
    // SAFETY: the caller says that so many bytes may be written.
    guard(|| unsafe { sized::init(params, struct_size) })
}

/// Loads a network from a file: safetensors of `amdanet train` or `amdanet convert`, or a published .pth as it is.
///
/// `path`: ends with a 0; bytes as the system takes them, UTF-8 on Windows. `params`: NULL for the defaults. `*model`: the
/// network, which the caller owns and frees with amdanet_model_free; NULL after an error.
///
/// Any thread may call it; nothing is shared between calls. The progress callback counts 2 steps: reading and packing.
///
/// Errors: AMDANET_STATUS_INVALID_ARGUMENT; AMDANET_STATUS_IO when the file cannot be read; AMDANET_STATUS_BAD_FILE when it is
/// no complete network, or damaged; AMDANET_STATUS_OUT_OF_MEMORY; AMDANET_STATUS_CANCELLED; AMDANET_STATUS_UNSUPPORTED when
/// `params` has fields of a newer version that are not 0.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn amdanet_model_load(
    path: *const c_char,
    params: *const amdanet_load_params,
    model: *mut *mut amdanet_model,
) -> amdanet_status {
    guard(|| {
        // SAFETY: the caller says what the pointers are.
        let (path, params) = unsafe {
            handle::place(model, "model")?;
            (handle::string(path, "path")?, read_params(params)?)
        };
        let path = path_of(path)?;
        let bytes = std::fs::metadata(path).map_err(Error::io(path, "open"))?.len();
        let loaded = load(&params, bytes, || checkpoint::load(path, eps(&params)))?;
        // SAFETY: the place was checked above.
        unsafe { handle::give(loaded, model) };
        Ok(())
    })
}

/// Loads a network from memory that holds such a file.
///
/// `data`, `length`: the bytes; they are not needed any more when the call returns. Everything else is as in
/// amdanet_model_load. Errors: as there, but for AMDANET_STATUS_IO.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn amdanet_model_load_memory(
    data: *const c_void,
    length: usize,
    params: *const amdanet_load_params,
    model: *mut *mut amdanet_model,
) -> amdanet_status {
    guard(|| {
        // SAFETY: the caller says what the pointers are.
        let params = unsafe {
            handle::place(model, "model")?;
            read_params(params)?
        };
        if data.is_null() {
            return Err(Failure::argument("data", "is NULL"));
        }
        if length == 0 || length > isize::MAX as usize {
            return Err(Failure::argument("length", format!("{length} bytes are no checkpoint")));
        }
        // SAFETY: the caller says that so many bytes are there, and the length was checked.
        let bytes = unsafe { std::slice::from_raw_parts(data.cast::<u8>(), length) };
        let loaded = load(&params, length as u64, || {
            checkpoint::load_bytes("the checkpoint in memory".as_ref(), bytes, eps(&params))
        })?;
        // SAFETY: the place was checked above.
        unsafe { handle::give(loaded, model) };
        Ok(())
    })
}

/// # Safety
/// As [`sized::read`].
unsafe fn read_params(params: *const amdanet_load_params) -> Result<amdanet_load_params> {
    // SAFETY: as above.
    let params = unsafe { sized::read_or_default(params, "params")? };
    if !params.bn_eps.is_finite() || params.bn_eps < 0.0 {
        let what = format!("{}: must be positive, or 0 for what the file says", params.bn_eps);
        return Err(Failure::argument("params.bn_eps", what));
    }
    reserved("params.reserved", params.reserved)?;
    Ok(params)
}

/// Fields for later must be 0, or they could not be given a meaning later.
pub fn reserved(name: &str, value: u32) -> Result<()> {
    if value != 0 {
        return Err(Failure::argument(name, format!("{value}: must be 0")));
    }
    Ok(())
}

fn eps(params: &amdanet_load_params) -> Option<f32> {
    Some(params.bn_eps).filter(|&eps| eps > 0.0)
}

#[cfg(unix)]
fn path_of(path: &std::ffi::CStr) -> Result<&Path> {
    use std::os::unix::ffi::OsStrExt;
    Ok(std::ffi::OsStr::from_bytes(path.to_bytes()).as_ref())
}

#[cfg(not(unix))]
fn path_of(path: &std::ffi::CStr) -> Result<&Path> {
    Ok(path.to_str().map_err(|_| Failure::argument("path", "is not UTF-8"))?.as_ref())
}

fn load(
    params: &amdanet_load_params,
    bytes: u64,
    read: impl FnOnce() -> crate::Result<Loaded>,
) -> Result<Model> {
    let progress = Progress { callback: params.progress, user: params.progress_user };
    progress.say(0, 2)?;
    // The arrays of the file and the network made of them are there at once, in float32 where the file has 16 bits.
    memory::check(usize::try_from(bytes).unwrap_or(usize::MAX).saturating_mul(4), "the network")?;
    let Loaded { model, classes } = read().map_err(|e| match e {
        // Whatever a network of a file cannot be is the file's fault.
        Error::Io { .. } => e.into(),
        other => Failure::new(amdanet_status::BadFile, other.to_string()),
    })?;
    progress.say(1, 2)?;
    let config = model.config();
    let text = |text: String| CString::new(text.replace('\0', "\\0")).unwrap_or_default();
    let (arch, encoder) = (text(config.arch.to_string()), text(config.encoder_name().to_owned()));
    let parameters = model.params.count() as u64;
    let classes: Vec<_> = classes.names.into_iter().map(text).zip(classes.palette).collect();
    log(amdanet_log_level::Info, || {
        let n = classes.len();
        format!("loaded a network: {arch:?}, encoder {encoder:?}, {n} classes, {parameters} parameters")
    });
    let engine = Engine::consume(model)?;
    progress.say(2, 2)?;
    let on_devices = Mutex::default();
    Ok(Model { engine, on_devices, classes, arch, encoder, parameters })
}

/// Frees a network; sessions that were made of it go on. NULL, and what was freed before, are nothing. Any thread may call
/// it, also while another uses the network.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn amdanet_model_free(model: *mut amdanet_model) {
    let _ = guard(|| {
        drop(handle::take(model));
        release_waiting();
        Ok(())
    });
}

/// What a network is.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct amdanet_model_info {
    /// sizeof(amdanet_model_info), set before the call.
    pub struct_size: usize,
    /// Number of parameters.
    pub parameters: u64,
    /// "release" or "paper". As `encoder` UTF-8 that ends with a 0 and lives as long as the model.
    pub arch: *const c_char,
    /// "nano", "b0" to "b5", or "custom".
    pub encoder: *const c_char,
    /// Number of classes, 1 to 255.
    pub classes: u32,
    /// The least width and height of a picture, in pixels.
    pub smallest_side: u32,
    /// The largest width and height of a picture, in pixels.
    pub largest_side: u32,
    /// 0.
    pub reserved: u32,
}

// SAFETY: it begins with its size, and any bytes are a value.
unsafe impl Struct for amdanet_model_info {
    const NAME: &'static str = "amdanet_model_info";
}

/// Describes a network in `*info`, whose struct_size is set. Any thread may call it.
///
/// Errors: AMDANET_STATUS_INVALID_ARGUMENT when `model` is none, or `info` is NULL or has no valid size.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn amdanet_model_get_info(
    model: *const amdanet_model,
    info: *mut amdanet_model_info,
) -> amdanet_status {
    guard(|| {
        let model = handle::get(model)?;
        let value = amdanet_model_info {
            parameters: model.parameters,
            arch: model.arch.as_ptr(),
            encoder: model.encoder.as_ptr(),
            classes: model.classes.len() as u32,
            smallest_side: SMALLEST_SIDE as u32,
            largest_side: LARGEST_SIDE as u32,
            ..sized::zeroed()
        };
        // SAFETY: the caller says that the structure may be written.
        unsafe { sized::write(info, "info", &value) }
    })
}

/// A class.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct amdanet_class {
    /// sizeof(amdanet_class), set before the call.
    pub struct_size: usize,
    /// Its name, UTF-8 that ends with a 0 and lives as long as the model.
    pub name: *const c_char,
    /// Its colour: red, green, blue, and 255.
    pub color: [u8; 4],
    /// 0.
    pub reserved: u32,
}

// SAFETY: it begins with its size, and any bytes are a value.
unsafe impl Struct for amdanet_class {
    const NAME: &'static str = "amdanet_class";
}

/// Describes class `index`, which is its label too, in `*info`, whose struct_size is set. Names come from the checkpoint, or
/// from the published data set with as many classes. Any thread may call it.
///
/// Errors: AMDANET_STATUS_INVALID_ARGUMENT when `model` is none, there is no such class, or `info` is NULL or has no valid
/// size.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn amdanet_model_get_class(
    model: *const amdanet_model,
    index: u32,
    info: *mut amdanet_class,
) -> amdanet_status {
    guard(|| {
        let model = handle::get(model)?;
        let (name, [r, g, b]) = model.classes.get(index as usize).ok_or_else(|| {
            Failure::argument("index", format!("{index}: there are {} classes, from 0", model.classes.len()))
        })?;
        let value = amdanet_class { name: name.as_ptr(), color: [*r, *g, *b, 255], ..sized::zeroed() };
        // SAFETY: the caller says that the structure may be written.
        unsafe { sized::write(info, "info", &value) }
    })
}

/// What computes: the engine, and the device that it is on, if it is on one.
#[derive(Clone)]
pub(super) struct Computer {
    pub engine: Engine,
    pub device: Option<Arc<dyn Driver>>,
}

impl Model {
    /// The network where it is to compute.
    pub(super) fn computer(&self, target: Target) -> Result<Computer> {
        let Target::Cuda { ordinal, precision } = target else {
            return Ok(Computer { engine: self.engine.clone(), device: None });
        };
        let mut there = self.on_devices.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, computer)) = there.iter().find(|(known, _)| *known == target) {
            return Ok(computer.clone());
        }
        let device = cuda::open(ordinal as usize, precision == amdanet_precision::Tf32)
            .map_err(|e| Failure::new(amdanet_status::Unsupported, e.to_string()))?;
        let dtype = match precision {
            amdanet_precision::F32 | amdanet_precision::Tf32 => DType::F32,
            amdanet_precision::F16 => DType::F16,
            amdanet_precision::Bf16 => DType::BF16,
        };
        let engine = self.engine.clone().to(&Device::Cuda(device.clone()), dtype)?;
        let computer = Computer { engine, device: Some(device) };
        there.push((target, computer.clone()));
        Ok(computer)
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.classes.len()
    }
}
