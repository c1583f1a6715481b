//! Operations on the CPU, on rayon's threads; also the reference that device kernels are held against.
//!
//! Each file has the forward and the backward of one operation. Shapes are checked by [`crate::ops`], not here.
//! Work is divided by shape alone, never by the number of threads, and partial sums are added in a fixed order, so
//! results have the same bits on any number of threads.

pub mod adamw;
pub mod argmax;
pub mod attention;
pub mod batch_norm;
pub mod conv;
pub mod depthwise;
pub mod elementwise;
pub mod fusion_loss;
pub mod gate;
pub mod layer_norm;
pub mod linear;
pub mod loss;
pub mod mask;
pub mod math;
pub mod matmul;
pub mod pool;
pub mod realign;
pub mod reduce;
pub mod resize;
pub mod resized_taps;
pub mod structure;

/// Runs `f` compiled for the widest vector instructions of this processor.
///
/// `f` must be an `#[inline(always)]` closure, and so must what it calls: only then are its loops compiled for them.
#[inline(always)]
pub fn simd<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

/// Runs `f` on one of rayon's threads.
///
/// A parallel loop that is started there shares its work at once; one that is started elsewhere is handed over first,
/// which wakes and waits for a thread each time. A pass has thousands of loops, so it pays to move as a whole.
pub fn on_pool<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| f())
}

/// Rows for one task of a parallel loop over `rows` rows of `row_len` numbers: about 64 KiB, at least one row.
pub fn rows_per_task(rows: usize, row_len: usize) -> usize {
    (16_384 / row_len.max(1)).clamp(1, rows.max(1))
}
