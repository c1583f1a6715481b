//! The CUDA device: the seam, and for each operation what launches its kernels.

pub mod driver;
