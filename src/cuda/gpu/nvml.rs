//! The energy counter of a device, by NVIDIA's management library (NVML), which comes with the driver.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::null_mut;

use libloading::Library;

/// Its names on Linux and on Windows.
const NAMES: [&str; 2] = ["libnvidia-ml.so.1", "nvml.dll"];

/// `NVML_SUCCESS`
const SUCCESS: c_int = 0;

/// A device of the library.
pub struct Nvml {
    device: *mut c_void,
    /// `nvmlDeviceGetTotalEnergyConsumption`: millijoules since the driver was loaded.
    energy: unsafe extern "C" fn(*mut c_void, *mut u64) -> c_int,
    /// `nvmlShutdown`
    shutdown: unsafe extern "C" fn() -> c_int,
    /// What holds the functions.
    _library: Library,
}

impl Nvml {
    /// The device at the PCI address `bus`; none where the library is missing or does not know it.
    pub fn open(bus: &CStr) -> Option<Self> {
        NAMES.iter().find_map(|name| Self::of(name, bus))
    }

    fn of(library: &str, bus: &CStr) -> Option<Self> {
        // SAFETY: what the library runs when opened is its own; the types are those of nvml.h, and each function is
        // called as it says: first init, then the handle, which stays valid until the shutdown in `drop`.
        unsafe {
            let library = Library::new(library).ok()?;
            let init: unsafe extern "C" fn() -> c_int = *library.get(b"nvmlInit_v2\0").ok()?;
            let find: unsafe extern "C" fn(*const c_char, *mut *mut c_void) -> c_int =
                *library.get(b"nvmlDeviceGetHandleByPciBusId_v2\0").ok()?;
            let energy = *library.get(b"nvmlDeviceGetTotalEnergyConsumption\0").ok()?;
            let shutdown = *library.get(b"nvmlShutdown\0").ok()?;
            if init() != SUCCESS {
                return None;
            }
            // From here on a value that is dropped shuts the library down.
            let mut found = Self { device: null_mut(), energy, shutdown, _library: library };
            (find(bus.as_ptr(), &mut found.device) == SUCCESS).then_some(found)
        }
    }

    /// Joules since the driver was loaded; none where the device does not count them.
    pub fn joules(&self) -> Option<f64> {
        let mut millijoules = 0;
        // SAFETY: the library is open, the handle is its own, the number is valid while it is written.
        let status = unsafe { (self.energy)(self.device, &mut millijoules) };
        (status == SUCCESS).then_some(millijoules as f64 * 1e-3)
    }
}

impl Drop for Nvml {
    fn drop(&mut self) {
        // SAFETY: once for the init that succeeded.
        let _ = unsafe { (self.shutdown)() };
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;

    /// A library with the four functions that knows one device.
    const LIBRARY: &str = r#"
        #include <string.h>
        static int started;
        int nvmlInit_v2(void) { started++; return 0; }
        int nvmlShutdown(void) { started--; return 0; }
        int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, void **device) {
            if (!started || strcmp(bus, "0000:01:00.0")) return 6;
            *device = &started;
            return 0;
        }
        int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *millijoules) {
            if (device != &started || !started) return 2;
            *millijoules = 12500;
            return 0;
        }"#;

    #[test]
    fn the_counter_of_the_device_at_an_address() {
        let folder = tempfile::tempdir().unwrap();
        let [source, library] = ["nvml.c", "nvml.so"].map(|name| folder.path().join(name));
        fs::write(&source, LIBRARY).unwrap();
        let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).status();
        assert!(built.unwrap().success());
        let library = library.to_str().unwrap();
        assert_eq!(Nvml::of(library, c"0000:01:00.0").unwrap().joules(), Some(12.5));
        assert!(Nvml::of(library, c"0000:02:00.0").is_none());
        assert!(Nvml::of("libnothing.so", c"0000:01:00.0").is_none());
    }
}
