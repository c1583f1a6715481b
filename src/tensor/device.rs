//! Where tensors are.

use std::fmt;
use std::sync::Arc;

use crate::cuda::driver::Driver;

/// Where a tensor's numbers are, and where operations on it are computed.
#[derive(Clone, Default)]
pub enum Device {
    /// The host.
    #[default]
    Cpu,
    /// A CUDA device.
    Cuda(Arc<dyn Driver>),
}

impl PartialEq for Device {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Cpu, Self::Cpu) => true,
            (Self::Cuda(a), Self::Cuda(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(driver) => f.write_str(&driver.name()),
        }
    }
}
