//! The fused engine allocates nothing once it knows a shape. One test only: the counter is that of the process.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use amdanet::infer::{Engine, Pairs, Wanted};
use amdanet::model::{Amdanet, Arch, Encoder, ModelConfig};
use amdanet::{Tensor, verify};

/// The system's allocator, which counts.
struct Counting;

static COUNT: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is handed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Relaxed);
        // SAFETY: the caller vouches for the layout.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from `alloc`, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_known_shape_allocates_nothing() {
    // Handing work to a pool from outside allocates, so everything happens inside.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    pool.install(|| {
        for arch in [Arch::Release, Arch::Paper] {
            let mut model = Amdanet::new(ModelConfig::new(Encoder::Nano, arch, 9)).unwrap();
            verify::fill(&mut model.params, 5).unwrap();
            let mut session = Engine::consume(model).unwrap().session();
            let pictures = [[75, 101], [64, 96]].map(|[h, w]| Tensor::full([1, 1, h, w, 3], 0.5));
            let wanted = Wanted { image: true, logits: true, probabilities: true };
            let mut run = || {
                for picture in &pictures {
                    session.run(&Pairs::new(picture, picture).unwrap(), wanted).unwrap();
                }
            };
            run();
            let before = COUNT.load(Relaxed);
            run();
            run();
            assert_eq!(COUNT.load(Relaxed) - before, 0, "{arch}");
        }
    });
}
