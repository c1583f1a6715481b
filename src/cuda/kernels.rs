//! The kernels that this build carries, as `build.rs` made them.

// The driver reads a fat binary as a structure, so it begins at a multiple of 16.
#[allow(dead_code)] // A build without nvcc has none.
#[repr(align(16))]
struct Image<const N: usize>([u8; N]);

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
