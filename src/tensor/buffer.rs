//! Host memory: cache-line aligned buffers, recycled, and counted.

use std::fs::File;
use std::sync::{Mutex, PoisonError};

use memmap2::{MmapMut, MmapOptions};

use super::Element;
use super::pool::Pool;

/// The unit of allocation: one cache line.
#[repr(C, align(64))]
#[derive(Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
struct Line([u8; 64]);

/// Buffers below this many lines go straight to the system allocator, which is good at them.
const SMALLEST_POOLED: usize = 256;
/// Buffers from this many lines on, 128 KiB, are mappings of their own. The C library's allocator would place those of up
/// to 32 MiB in its heap, where holes that nothing fits into make a training half as large again as its tensors.
const SMALLEST_MAPPED: usize = 2048;

/// Lines of memory, from the allocator or from the system, or the content of a file.
enum Lines {
    Heap(Box<[Line]>),
    Mapped(MmapMut),
    File(MmapMut),
}

impl Lines {
    fn zeroed(lines: usize) -> Self {
        if lines >= SMALLEST_MAPPED
            && let Ok(mapped) = MmapMut::map_anon(lines * size_of::<Line>())
        {
            // A page of 2 MiB is asked of the system, and found by the processor, once instead of 512 times. A system that
            // has none gives small ones.
            #[cfg(target_os = "linux")]
            let _ = mapped.advise(memmap2::Advice::HugePage);
            return Self::Mapped(mapped);
        }
        Self::Heap(bytemuck::allocation::zeroed_slice_box(lines))
    }

    fn len(&self) -> usize {
        match self {
            Self::Heap(lines) => lines.len(),
            Self::Mapped(bytes) | Self::File(bytes) => bytes.len() / size_of::<Line>(),
        }
    }

    fn as_slice<T: Element>(&self) -> &[T] {
        match self {
            Self::Heap(lines) => bytemuck::cast_slice(lines),
            Self::Mapped(bytes) | Self::File(bytes) => bytemuck::cast_slice(bytes),
        }
    }

    fn as_mut_slice<T: Element>(&mut self) -> &mut [T] {
        match self {
            Self::Heap(lines) => bytemuck::cast_slice_mut(lines),
            Self::Mapped(bytes) | Self::File(bytes) => bytemuck::cast_slice_mut(bytes),
        }
    }
}

impl Default for Lines {
    fn default() -> Self {
        Self::Heap(Box::default())
    }
}

static POOL: Mutex<Pool<Lines>> = Mutex::new(Pool::empty());

/// Bytes in all tensors that are alive now.
pub fn live_bytes() -> usize {
    lock().live() * size_of::<Line>()
}

/// The most bytes that were alive at once since the start or the last [`reset_peak_bytes`].
pub fn peak_bytes() -> usize {
    lock().peak() * size_of::<Line>()
}

/// Gives freed buffers that wait for a request of their size back to the system.
pub fn release_waiting() {
    let waiting = lock().drain();
    // Without the lock, because it takes a while.
    waiting.for_each(drop);
}

/// Starts a new measurement of [`peak_bytes`] from what is alive now.
pub fn reset_peak_bytes() {
    lock().reset_peak();
}

fn lock() -> std::sync::MutexGuard<'static, Pool<Lines>> {
    // Every update leaves the counts consistent before anything that can panic.
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A block of host memory that returns to the pool when dropped. Its content starts arbitrary.
pub struct Buffer {
    lines: Lines,
}

impl Buffer {
    /// At least `bytes` bytes.
    pub fn new(bytes: usize) -> Self {
        let lines = bytes.div_ceil(size_of::<Line>());
        let recycled = lock().take(lines, drop);
        let new = || {
            let new = Lines::zeroed(lines);
            lock().count(lines);
            new
        };
        Self { lines: recycled.unwrap_or_else(new) }
    }

    /// The content of a file, whose length is a multiple of 64 bytes: read when it is first looked at, and shared with
    /// every process that looks at it. What is written to the buffer stays in this process.
    ///
    /// The file must stay as it is for as long as the buffer lives. A program that replaces it by renaming another file
    /// to its name leaves it as it is; one that cuts it short makes the system end this process.
    ///
    /// # Errors
    /// When the system refuses, or the length is another.
    pub fn map(file: &File) -> std::io::Result<Self> {
        // SAFETY: any bytes are valid elements, and the mapping is private: nothing is written to the file. That
        // nobody else changes the file is asked of the caller; this program replaces files by renaming.
        let bytes = unsafe { MmapOptions::new().no_reserve_swap().map_copy(file)? };
        if !bytes.len().is_multiple_of(size_of::<Line>()) {
            let what = format!("{} bytes are no multiple of {}", bytes.len(), size_of::<Line>());
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, what));
        }
        Ok(Self { lines: Lines::File(bytes) })
    }

    /// The whole buffer as elements of `T`.
    pub fn as_slice<T: Element>(&self) -> &[T] {
        self.lines.as_slice()
    }

    /// The whole buffer as elements of `T`, for writing.
    pub fn as_mut_slice<T: Element>(&mut self) -> &mut [T] {
        self.lines.as_mut_slice()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        if matches!(lines, Lines::File(_)) {
            return;
        }
        let mut pool = lock();
        if lines.len() < SMALLEST_POOLED {
            return pool.discount(lines.len());
        }
        let left = pool.give(lines.len(), lines);
        // Without the lock.
        drop(pool);
        drop(left);
    }
}
