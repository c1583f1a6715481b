//! Memory of the host that a device copies from and to without staging, if the system lets it be pinned.

use std::sync::Arc;

use crate::cuda::driver::Driver;
use crate::tensor::Element;
use crate::{Device, Tensor};

/// From this many bytes on, tensors are mappings of their own, which can be pinned.
const SMALLEST: usize = 128 << 10;

/// A tensor in the host's memory that is pinned for a device, if it is large and may be: pictures in one go there faster.
pub struct Pinned {
    tensor: Tensor,
    /// Who has pinned it, and where it lies.
    pinned: Option<(Arc<dyn Driver>, usize)>,
}

impl Pinned {
    /// Pins `tensor` for `device`, or a copy of it if others share its memory; the CPU needs nothing of the kind.
    ///
    /// # Panics
    /// When `T` is not the tensor's type, or the tensor is on a device.
    pub fn new<T: Element>(device: &Device, mut tensor: Tensor) -> Self {
        let Device::Cuda(driver) = device else { return Self { tensor, pinned: None } };
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(tensor.as_mut_slice::<T>());
        let (at, len) = (bytes.as_mut_ptr(), bytes.len());
        // SAFETY: memory of this size is a mapping of its own, which the tensor keeps until `drop` has unpinned it.
        let done = len >= SMALLEST && unsafe { driver.pin(at, len).is_ok() };
        Self { tensor, pinned: done.then(|| (driver.clone(), at as usize)) }
    }

    /// The tensor.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// Its elements, for writing: where they are pinned, as long as nobody else has the tensor.
    pub(super) fn as_mut_slice<T: Element>(&mut self) -> &mut [T] {
        self.tensor.as_mut_slice()
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Some((driver, at)) = self.pinned.take() {
            // SAFETY: it was pinned in `new`, and whoever copies waits for the copy.
            unsafe { driver.unpin(at as *mut u8) };
        }
    }
}
