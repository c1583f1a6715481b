//! The C library: everything that `src/ffi` exports.

pub use amdanet::ffi::*;
