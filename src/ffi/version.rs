//! What library this is.

use std::ffi::{CString, c_char};
use std::sync::OnceLock;

use crate::cuda::kernels;
use crate::infer::product::Instructions;

/// The major version of this header. A library of the same major version runs every program that was compiled with an
/// older header.
pub const AMDANET_VERSION_MAJOR: u32 = 0;
/// The minor version of this header.
pub const AMDANET_VERSION_MINOR: u32 = 1;
/// The patch version of this header.
pub const AMDANET_VERSION_PATCH: u32 = 0;
/// The version of this header as one number: 10000 major + 100 minor + patch.
pub const AMDANET_VERSION: u32 = 100;

/// The version of the library that runs, as one number like AMDANET_VERSION. Any thread may call it.
#[unsafe(no_mangle)]
pub extern "C" fn amdanet_version() -> u32 {
    AMDANET_VERSION
}

/// What the library was built with, in one line for logs and reports: its version, the vector instructions that it uses on
/// this processor, and its CUDA kernels. Never NULL; it lives as long as the program. Any thread may call it.
#[unsafe(no_mangle)]
pub extern "C" fn amdanet_build_info() -> *const c_char {
    static TEXT: OnceLock<CString> = OnceLock::new();
    let text = || {
        let (version, instructions) = (env!("CARGO_PKG_VERSION"), Instructions::best());
        let text = format!("amdanet {version}; {instructions:?} instructions; {}", kernels::summary());
        CString::new(text).unwrap_or_default()
    };
    TEXT.get_or_init(text).as_ptr()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_has_the_crates_version() {
        let numbers = [AMDANET_VERSION_MAJOR, AMDANET_VERSION_MINOR, AMDANET_VERSION_PATCH];
        assert_eq!(numbers.map(|n| n.to_string()).join("."), env!("CARGO_PKG_VERSION"));
        assert_eq!(AMDANET_VERSION, 10000 * numbers[0] + 100 * numbers[1] + numbers[2]);
    }
}
