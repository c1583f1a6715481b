//! Memory of the host that a device copies from and to without staging, if the system lets it be pinned.

use std::sync::Arc;

use crate::cuda::driver::Driver;
use crate::{DType, Tensor};

/// From this many bytes on, tensors are mappings of their own, which can be pinned.
const SMALLEST: usize = 128 << 10;

/// Bytes that are pinned, if they are many and may be.
pub struct Pinned {
    tensor: Tensor,
    driver: Option<Arc<dyn Driver>>,
}

impl Pinned {
    /// `bytes` bytes of arbitrary content.
    pub fn new(driver: &Arc<dyn Driver>, bytes: usize) -> Self {
        let mut pinned = Self { tensor: Tensor::scratch_of([bytes], DType::U8), driver: None };
        if bytes >= SMALLEST {
            // SAFETY: a tensor of this size is a mapping of its own; `drop` unpins it before it is given back.
            let done = unsafe { driver.pin(pinned.bytes_mut().as_mut_ptr(), bytes) };
            pinned.driver = done.is_ok().then(|| driver.clone());
        }
        pinned
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        self.tensor.as_slice()
    }

    /// The bytes, for writing.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.tensor.as_mut_slice()
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Some(driver) = self.driver.take() {
            // SAFETY: it was pinned in `new`, and whoever copies waits for the copy.
            unsafe { driver.unpin(self.bytes_mut().as_mut_ptr()) };
        }
    }
}
