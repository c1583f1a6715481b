//! What the threads of a block run on: a coroutine each, and the host's own stack between them.

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult, Yielder};

use crate::block::{Block, STACK, run_threads};

/// It gives way with the thread that waits, and ends; both with the thread that runs next.
type Fiber = Coroutine<(), (usize, Option<usize>), Option<usize>, DefaultStack>;

/// The fibers of one block at a time.
pub struct Fibers {
    stacks: Vec<DefaultStack>,
    /// The fiber of each thread that waits.
    waiting: Vec<Option<Fiber>>,
    /// Of the fiber that runs.
    yielder: *const Yielder<(), (usize, Option<usize>)>,
}

impl Fibers {
    pub fn new() -> Self {
        Self { stacks: Vec::new(), waiting: Vec::new(), yielder: std::ptr::null() }
    }

    /// Makes ready for a block.
    pub fn begin_block(&mut self, threads: usize) {
        self.waiting.resize_with(threads, || None);
    }

    /// Takes the stacks of the fibers that will not go on, as an error leaves them.
    fn abandon(&mut self) {
        for mut fiber in self.waiting.drain(..).flatten() {
            // SAFETY: on its stack are frames of device code, which has no destructors, and of functions here that hold
            // nothing while they wait. Dropped as it is, a fiber would unwind through them.
            unsafe { fiber.force_reset() };
            self.stacks.push(fiber.into_stack());
        }
    }

    /// Runs a thread and those that it gives way to, until it is nobody's turn.
    ///
    /// # Safety
    /// `block` is the current one, with these fibers.
    pub unsafe fn run(block: *mut Block<'static>, thread: usize) {
        let mut next = Some(thread);
        // SAFETY: each reference to the block ends before a fiber is resumed.
        unsafe {
            while let Some(thread) = next {
                let fibers = &mut *(*block).fibers;
                let mut fiber = fibers.waiting[thread].take().unwrap_or_else(|| {
                    let stack = fibers.stacks.pop();
                    let stack =
                        stack.unwrap_or_else(|| DefaultStack::new(STACK).expect("memory for a stack"));
                    Coroutine::with_stack(stack, move |yielder, ()| {
                        (*block).fibers.yielder = yielder;
                        run_threads(block)
                    })
                });
                next = match fiber.resume(()) {
                    CoroutineResult::Yield((thread, next)) => {
                        (&mut (*block).fibers.waiting)[thread] = Some(fiber);
                        next
                    }
                    CoroutineResult::Return(next) => {
                        (*block).fibers.stacks.push(fiber.into_stack());
                        next
                    }
                }
            }
            (*block).fibers.abandon();
        }
    }

    /// Lets `next` run until it is the turn of `thread`, which runs, again.
    ///
    /// # Safety
    /// `block` is the current one, with these fibers.
    pub unsafe fn switch(block: *mut Block<'static>, thread: usize, next: Option<usize>) {
        // SAFETY: the yielder is that of the running fiber, which sets it whenever it goes on.
        unsafe {
            let yielder = (*block).fibers.yielder;
            (*yielder).suspend((thread, next));
            (*block).fibers.yielder = yielder;
        }
    }
}
