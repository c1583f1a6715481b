//! What the threads of a block run on: a stack each, and switches from one straight to the next.
//!
//! A warp's lanes wait at the same place one after the other. A switch that returns to the same place as the last one
//! is a return that the processor foresees, which makes this several times faster than coroutines that go by way of
//! their caller.

use std::arch::naked_asm;
use std::ptr;

use corosensei::stack::{DefaultStack, Stack};

use crate::block::{Block, STACK, current, run_threads};

/// The fibers of one block at a time.
pub struct Fibers {
    stacks: Vec<DefaultStack>,
    /// The bases of the stacks that are free.
    free: Vec<*mut u64>,
    /// The stack of the fiber that began last.
    newest: *mut u64,
    /// Where each thread that waits goes on: the top of its stack. Null for one that has not begun.
    waiting: Vec<*mut u64>,
    /// Where the host goes on.
    host: *mut u64,
}

impl Fibers {
    pub fn new() -> Self {
        let (newest, host) = (ptr::null_mut(), ptr::null_mut());
        Self { stacks: Vec::new(), free: Vec::new(), newest, waiting: Vec::new(), host }
    }

    /// Makes ready for a block. Of the last one nothing is needed any more: on the stacks are frames of device code,
    /// which has no destructors, and of functions here that hold nothing while they wait.
    pub fn begin_block(&mut self, threads: usize) {
        self.free.clear();
        self.free.extend(self.stacks.iter().map(base));
        self.waiting.clear();
        self.waiting.resize(threads, ptr::null_mut());
    }

    /// Runs a thread and those that it gives way to, until it is nobody's turn.
    ///
    /// # Safety
    /// `block` is the current one, with these fibers.
    pub unsafe fn run(block: *mut Block<'static>, thread: usize) {
        // SAFETY: references to the block end before the switch.
        unsafe {
            let to = (*block).fibers.place(Some(thread));
            switch(&raw mut (*block).fibers.host, to);
        }
    }

    /// Lets `next` run until it is the turn of `thread`, which runs, again.
    ///
    /// # Safety
    /// `block` is the current one, with these fibers.
    #[inline(always)]
    pub unsafe fn switch(block: *mut Block<'static>, thread: usize, next: Option<usize>) {
        // SAFETY: references to the block end before the switch.
        unsafe {
            let to = (*block).fibers.place(next);
            let from = &raw mut (&mut (*block).fibers.waiting)[thread];
            switch(from, to);
        }
    }

    /// Where a thread begins or goes on, or the host does.
    #[inline(always)]
    fn place(&mut self, next: Option<usize>) -> *mut u64 {
        match next {
            Some(thread) if self.waiting[thread].is_null() => self.begin(),
            Some(thread) => self.waiting[thread],
            None => self.host,
        }
    }

    /// A stack from which [`switch`] returns to [`enter`].
    #[inline(never)]
    fn begin(&mut self) -> *mut u64 {
        self.newest = self.free.pop().unwrap_or_else(|| {
            self.stacks.push(DefaultStack::new(STACK).expect("memory for a stack"));
            self.stacks.last().map(base).expect("there is one")
        });
        // Six registers, the address, and the place of the one that a call would have left: by the calling convention
        // the stack is 8 below a multiple of 16 where a function begins.
        // SAFETY: the words lie at the end of the stack, which nobody uses.
        unsafe {
            let top = self.newest.sub(8);
            top.write_bytes(0, 8);
            top.add(6).write(enter as *const () as u64);
            top
        }
    }
}

/// The end of a stack, where it is empty.
fn base(stack: &DefaultStack) -> *mut u64 {
    ptr::with_exposed_provenance_mut(stack.base().get() & !15)
}

/// The first function on a stack.
extern "sysv64" fn enter() -> ! {
    let block = current();
    // SAFETY: fibers run only while their block is the current one. Nobody uses the stack before the switch, which does
    // not come back.
    unsafe {
        let stack = (*block).fibers.newest;
        let next = run_threads(block);
        let fibers = &mut *(*block).fibers;
        fibers.free.push(stack);
        let to = if next.is_none() { fibers.host } else { fibers.place(next) };
        let mut nowhere = ptr::null_mut();
        switch(&raw mut nowhere, to);
    }
    unreachable!("a fiber that has ended goes on")
}

/// Saves where this function returns to, and returns to where an earlier call was saved.
///
/// # Safety
/// `to` was saved on a stack that is as it was then.
#[unsafe(naked)]
unsafe extern "sysv64" fn switch(save: *mut *mut u64, to: *mut u64) {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rdi], rsp",
        "mov rsp, rsi",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
    )
}
