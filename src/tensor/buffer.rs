//! Host memory: cache-line aligned buffers, recycled, and counted.
//!
//! A training step frees and asks for the same sizes over and over; fresh pages from the system cost more than
//! many of the kernels that fill them. So a freed buffer waits in a pool for the next request of its size. The pool
//! never makes the process larger than its live peak: before a new allocation would, waiting buffers are released.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::Element;

/// The unit of allocation: one cache line.
#[repr(C, align(64))]
#[derive(Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
struct Line([u8; 64]);

/// Buffers below this many lines go straight to the system allocator, which is good at them.
const SMALLEST_POOLED: usize = 256;

#[derive(Default)]
struct Pool {
    /// Freed buffers by their length in lines.
    free: BTreeMap<usize, Vec<Box<[Line]>>>,
    /// Lines in `free`, in use, and the most that were in use at once since the start and since the last reset.
    waiting: usize,
    live: usize,
    most_live: usize,
    peak: usize,
}

static POOL: Mutex<Pool> =
    Mutex::new(Pool { free: BTreeMap::new(), waiting: 0, live: 0, most_live: 0, peak: 0 });

/// Bytes in all tensors that are alive now.
pub fn live_bytes() -> usize {
    lock().live * size_of::<Line>()
}

/// The most bytes that were alive at once since the start or the last [`reset_peak_bytes`].
pub fn peak_bytes() -> usize {
    lock().peak * size_of::<Line>()
}

/// Starts a new measurement of [`peak_bytes`] from what is alive now.
pub fn reset_peak_bytes() {
    let mut pool = lock();
    pool.peak = pool.live;
}

fn lock() -> std::sync::MutexGuard<'static, Pool> {
    // Every update below leaves the counts consistent before anything that can panic.
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// A waiting buffer of exactly `lines`, or `None` once there is room for a new one.
    fn take(&mut self, lines: usize) -> Option<Box<[Line]>> {
        self.live += lines;
        self.peak = self.peak.max(self.live);
        self.most_live = self.most_live.max(self.live);
        if let Some(list) = self.free.get_mut(&lines) {
            let found = list.pop();
            if list.is_empty() {
                self.free.remove(&lines);
            }
            if found.is_some() {
                self.waiting -= lines;
                return found;
            }
        }
        while self.live + self.waiting > self.most_live {
            let Some(mut entry) = self.free.last_entry() else { break };
            self.waiting -= *entry.key();
            entry.get_mut().pop();
            if entry.get().is_empty() {
                entry.remove();
            }
        }
        None
    }
}

/// A block of host memory that returns to the pool when dropped. Its content starts arbitrary.
pub struct Buffer {
    lines: Box<[Line]>,
}

impl Buffer {
    /// At least `bytes` bytes.
    pub fn new(bytes: usize) -> Self {
        let lines = bytes.div_ceil(size_of::<Line>());
        let recycled = lock().take(lines);
        Self { lines: recycled.unwrap_or_else(|| bytemuck::allocation::zeroed_slice_box(lines)) }
    }

    /// The whole buffer as elements of `T`.
    pub fn as_slice<T: Element>(&self) -> &[T] {
        bytemuck::cast_slice(&self.lines)
    }

    /// The whole buffer as elements of `T`, for writing.
    pub fn as_mut_slice<T: Element>(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.lines)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        let mut pool = lock();
        pool.live -= lines.len();
        if lines.len() >= SMALLEST_POOLED && pool.live + pool.waiting + lines.len() <= pool.most_live {
            pool.waiting += lines.len();
            pool.free.entry(lines.len()).or_default().push(lines);
        }
    }
}
