//! What can compute.

use std::ffi::c_char;
use std::sync::OnceLock;

use super::sized::{self, Struct};
use super::status::{Failure, Result, amdanet_status, beginning, guard};
use crate::cuda::gpu;

/// A kind of device.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum amdanet_device_kind {
    /// CUDA device 0 if it is usable, else the CPU.
    Auto = 0,
    /// The processor.
    Cpu = 1,
    /// An NVIDIA GPU.
    Cuda = 2,
}

/// A device of this machine.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct amdanet_device {
    /// sizeof(amdanet_device), set before the call.
    pub struct_size: usize,
    /// An amdanet_device_kind, never AMDANET_DEVICE_KIND_AUTO.
    pub kind: u32,
    /// Its number among those of its kind, from 0.
    pub ordinal: u32,
    /// Its memory in bytes; 0 for the CPU.
    pub memory: u64,
    /// Whether sessions can be made there: 1 or 0.
    pub usable: u32,
    /// 0.
    pub reserved: u32,
    /// What it is called, and why it is not usable if so. UTF-8, cut off where it does not fit, ends with a 0.
    pub name: [c_char; 256],
}

// SAFETY: it begins with its size, and any bytes are a value.
unsafe impl Struct for amdanet_device {
    const NAME: &'static str = "amdanet_device";
}

/// The CPU, then the CUDA devices; looked for once.
fn devices() -> &'static [amdanet_device] {
    static DEVICES: OnceLock<Vec<amdanet_device>> = OnceLock::new();
    DEVICES.get_or_init(|| {
        let mut devices = vec![named(amdanet_device_kind::Cpu, 0, 0, true, &cpu_name())];
        for (ordinal, found) in gpu::find().map(|found| found.devices).unwrap_or_default().iter().enumerate()
        {
            let fit = found.usable();
            let (usable, ordinal, memory) = (fit.is_ok(), ordinal as u32, found.bytes as u64);
            let name = format!("{found}; {}", fit.unwrap_or_else(|why| why));
            devices.push(named(amdanet_device_kind::Cuda, ordinal, memory, usable, &name));
        }
        devices
    })
}

fn cpu_name() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{}, {cores} threads", std::env::consts::ARCH)
}

fn named(kind: amdanet_device_kind, ordinal: u32, memory: u64, usable: bool, name: &str) -> amdanet_device {
    let usable = u32::from(usable);
    let mut device = amdanet_device { kind: kind as u32, ordinal, memory, usable, ..sized::zeroed() };
    let name = beginning(name, device.name.len() - 1);
    device.name.iter_mut().zip(name.bytes()).for_each(|(to, byte)| *to = byte as c_char);
    device
}

/// The number of devices, at least 1: device 0 is the CPU. They are looked for once in a process. Any thread may call it.
#[unsafe(no_mangle)]
pub extern "C" fn amdanet_device_count() -> u32 {
    std::panic::catch_unwind(|| devices().len() as u32).unwrap_or(0)
}

/// Describes device `index`, below amdanet_device_count, in `*device`, whose struct_size is set. Any thread may call it.
///
/// Errors: AMDANET_STATUS_INVALID_ARGUMENT when there is no such device, or `device` is NULL or has no valid size.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn amdanet_get_device(index: u32, device: *mut amdanet_device) -> amdanet_status {
    guard(|| {
        // SAFETY: the caller says that the structure may be written.
        unsafe { sized::write(device, "device", at(index)?) }
    })
}

fn at(index: u32) -> Result<&'static amdanet_device> {
    let there = devices();
    there.get(index as usize).ok_or_else(|| {
        Failure::argument("index", format!("{index}: there are {} devices, from 0", there.len()))
    })
}
