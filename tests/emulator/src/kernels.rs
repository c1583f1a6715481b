//! The kernels that the build script has compiled.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_void};
use std::sync::LazyLock;

/// `EmulatedEntry` of include/emulated.h.
#[repr(C)]
struct Entry {
    name: *const c_char,
    call: Option<unsafe extern "C" fn(*mut *mut c_void)>,
    parameters: *const c_char,
}

/// One kernel.
pub struct Kernel {
    pub name: &'static str,
    /// Calls it for the running thread with pointers to the arguments, as `cuLaunchKernel` takes them.
    pub call: unsafe extern "C" fn(*mut *mut c_void),
    /// A letter for each parameter: pointer, int, unsigned long long, float.
    pub parameters: &'static [u8],
}

include!(concat!(env!("OUT_DIR"), "/tables.rs"));

/// The kernels by name, built for speed or with a check at each access.
pub fn kernels(checks: bool) -> &'static BTreeMap<&'static str, Kernel> {
    static FAST: LazyLock<BTreeMap<&str, Kernel>> = LazyLock::new(|| collect(fast()));
    static CHECKED: LazyLock<BTreeMap<&str, Kernel>> = LazyLock::new(|| collect(checked()));
    if checks { &CHECKED } else { &FAST }
}

fn collect(tables: Vec<*const Entry>) -> BTreeMap<&'static str, Kernel> {
    let mut kernels = BTreeMap::new();
    for mut entry in tables {
        // SAFETY: each table ends with an entry without a function; names and parameters are C strings, all static.
        unsafe {
            while let Some(call) = (*entry).call {
                let name = CStr::from_ptr((*entry).name).to_str().expect("kernels have plain names");
                let parameters = CStr::from_ptr((*entry).parameters).to_bytes();
                let earlier = kernels.insert(name, Kernel { name, call, parameters });
                assert!(earlier.is_none(), "two kernels are called {name}");
                entry = entry.add(1);
            }
        }
    }
    kernels
}
