//! Where tensors are.

use std::fmt;
use std::sync::Arc;

use super::DType;
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

/// How numbers are multiplied and activations stored. Parameters, sums, norms and losses are float32 always.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum Precision {
    /// 32-bit float throughout.
    #[default]
    F32,
    /// 32-bit storage; the factors of matrix products are rounded to 10 bits of mantissa.
    Tf32,
    /// IEEE half precision; training scales the loss.
    F16,
    /// bfloat16.
    Bf16,
}

impl Precision {
    /// The type of activations.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 | Self::Tf32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
        }
    }
}

impl Device {
    /// Waits until everything that was started is done.
    ///
    /// # Errors
    /// What the device met.
    pub fn synchronise(&self) -> crate::Result<()> {
        match self {
            Self::Cpu => Ok(()),
            Self::Cuda(driver) => driver.synchronise(),
        }
    }
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
