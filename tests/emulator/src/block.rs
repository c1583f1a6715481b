//! One block of a launch, whose threads one thread of the host runs by turns.

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::ptr;

use crate::collective::Group;
use crate::fiber::Fibers;
use crate::kernels::Kernel;
use crate::memory::DeviceMemory;
use crate::shared::Shared;

/// Lanes of a warp.
pub const WARP: usize = 32;

/// Bytes of a thread's stack.
pub const STACK: usize = 64 << 10;

/// `EmulatedThread` of include/emulated.h.
#[repr(C)]
struct Running {
    thread: [u32; 3],
    block: [u32; 3],
    block_dim: [u32; 3],
    grid_dim: [u32; 3],
    shared: *mut u8,
    lane: u32,
}

unsafe extern "C" {
    safe fn emulated_thread_address() -> *mut Running;
}

/// What all blocks of a launch have in common.
pub struct Grid<'a> {
    pub kernel: &'static Kernel,
    pub memory: &'a DeviceMemory,
    pub checked: bool,
    pub shuffle: Option<u64>,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    /// The position of each thread of a block.
    pub positions: Vec<[u32; 3]>,
    pub shared: usize,
    /// The bits of each argument.
    pub args: &'a [u64],
}

/// What 32 threads are doing, a bit for each lane. A lane that has none of these bits runs, or waits in a group.
#[derive(Default)]
pub struct Warp {
    /// The lanes that exist.
    all: u32,
    /// They can run.
    ready: u32,
    /// They wait for the other threads of the block.
    barrier: u32,
    returned: u32,
    /// Operations that some lanes wait in.
    pub groups: Vec<Group>,
}

/// An asynchronous copy of 16 bytes that has not arrived.
#[derive(Clone, Copy)]
pub struct Copy {
    pub shared: usize,
    pub global: usize,
    pub valid: bool,
    /// The commit groups that its thread had closed before it.
    pub group: u32,
}

/// The asynchronous copies of one thread.
#[derive(Default)]
pub struct Copies {
    pub waiting: Vec<Copy>,
    /// The commit groups that it has closed.
    pub committed: u32,
}

/// What there is for each thread, and for each warp.
#[derive(Default)]
struct Threads {
    begun: Vec<bool>,
    /// What each thread brings to the operation that it waits in, and takes away; whole warps.
    words: Vec<*mut u32>,
    copies: Vec<Copies>,
    warps: Vec<Warp>,
}

/// A block that is being run.
pub struct Block<'a> {
    pub grid: &'a Grid<'a>,
    index: [u32; 3],
    pub shared: &'a mut Shared,
    /// The thread that runs, or ran last.
    pub running: usize,
    seen: *mut Running,
    threads: &'a mut Threads,
    pub fibers: &'a mut Fibers,
    /// The warp whose turn it is.
    warp: usize,
    error: Option<String>,
    random: u64,
}

/// What a thread of the host keeps from block to block.
struct Worker {
    fibers: Fibers,
    threads: Threads,
    shared: Shared,
}

thread_local! {
    static WORKER: RefCell<Worker> =
        RefCell::new(Worker { fibers: Fibers::new(), threads: Threads::default(), shared: Shared::new() });
    static BLOCK: Cell<*mut Block<'static>> = const { Cell::new(ptr::null_mut()) };
}

/// The block whose thread is running on this thread of the host; null outside of kernels.
pub fn current() -> *mut Block<'static> {
    BLOCK.get()
}

/// Runs block number `number` of the grid.
pub fn run(grid: &Grid, number: u64) -> Result<(), String> {
    let [x, y, _] = grid.grid.map(u64::from);
    let index = [number % x, number / x % y, number / x / y].map(|i| i as u32);
    WORKER.with_borrow_mut(|worker| {
        let Worker { fibers, threads, shared } = worker;
        let count = grid.positions.len();
        shared.begin_block(grid.shared, count, grid.checked);
        threads.begin_block(count);
        fibers.begin_block(count);
        let seen = emulated_thread_address();
        // SAFETY: the address is that of this thread's own variable, which only its kernels read.
        unsafe {
            *seen = Running {
                thread: [0; 3],
                block: index,
                block_dim: grid.block,
                grid_dim: grid.grid,
                shared: shared.address() as *mut u8,
                lane: 0,
            };
        }
        let random = grid.shuffle.map_or(0, |seed| mix(seed ^ mix(number)));
        let mut block =
            Block { grid, index, shared, running: 0, seen, threads, fibers, warp: 0, error: None, random };
        let raw = (&raw mut block).cast::<Block<'static>>();
        let outer = BLOCK.replace(raw);
        // SAFETY: `block` outlives the call, and is not used otherwise meanwhile. It is a pointer because the functions
        // that device code calls use it too, and references to it end before another fiber runs.
        unsafe {
            if let Some(first) = (*raw).next() {
                Fibers::run(raw, first);
            }
        }
        BLOCK.set(outer);
        block.error.map_or(Ok(()), Err)
    })
}

/// What a fiber does: the kernel, for the thread that runs and then for those that begin after it has returned; a
/// kernel in which nobody waits is a loop over its threads. It ends with the turn of a thread that waits on another
/// fiber, or of none.
pub fn run_threads(block: *mut Block<'static>) -> Option<usize> {
    // SAFETY: the block outlives its fibers. The kernel reads as many arguments as `args` has, and only reads.
    unsafe {
        let grid: &Grid = (*block).grid;
        let mut pointers = [ptr::null_mut::<c_void>(); MAX_ARGS];
        for (pointer, arg) in pointers.iter_mut().zip(grid.args) {
            *pointer = ptr::from_ref(arg).cast_mut().cast();
        }
        loop {
            (*block).begin();
            (grid.kernel.call)(pointers.as_mut_ptr());
            match (*block).end() {
                Some(thread) if !(*block).has_begun(thread) => {}
                next => return next,
            }
        }
    }
}

/// Parameters that a kernel can have.
pub const MAX_ARGS: usize = 64;

/// Lets other threads run until this one is ready, or for ever after an error.
///
/// # Safety
/// `block` is the current one.
#[inline(always)]
pub unsafe fn suspend(block: *mut Block<'static>) {
    // SAFETY: the caller vouches for the block.
    unsafe {
        let thread = (*block).running;
        let next = (*block).next();
        if next != Some(thread) {
            Fibers::switch(block, thread, next);
        }
    }
}

/// Ends the launch with an error; the running thread does not go on.
///
/// # Safety
/// `block` is the current one.
#[cold]
pub unsafe fn fail(block: *mut Block<'static>, why: &str) {
    // SAFETY: the caller vouches for the block; after an error no thread goes on.
    unsafe {
        let message = (*block).message((*block).running, why);
        (*block).stop(message);
        suspend(block);
    }
}

impl Threads {
    /// Forgets the last block.
    fn begin_block(&mut self, threads: usize) {
        let warps = threads.div_ceil(WARP);
        self.begun.clear();
        self.begun.resize(threads, false);
        self.words.resize(warps * WARP, ptr::null_mut());
        self.copies.resize_with(threads, Copies::default);
        for copies in &mut self.copies {
            copies.waiting.clear();
            copies.committed = 0;
        }
        self.warps.resize_with(warps, Warp::default);
        for (i, warp) in self.warps.iter_mut().enumerate() {
            let all = u32::MAX >> (WARP - (threads - i * WARP).min(WARP));
            (warp.all, warp.ready, warp.barrier, warp.returned) = (all, all, 0, 0);
            warp.groups.clear();
        }
    }
}

impl Block<'_> {
    /// Ends the launch with this message when the running thread waits.
    pub fn stop(&mut self, message: String) {
        self.error = Some(message);
    }

    /// `why`, with the thread that it happened to.
    pub fn message(&self, thread: usize, why: &str) -> String {
        let ([bx, by, bz], [x, y, z]) = (self.index, self.grid.positions[thread]);
        format!("block ({bx}, {by}, {bz}), thread ({x}, {y}, {z}): {why}")
    }

    pub fn warp(&mut self, warp: usize) -> &mut Warp {
        &mut self.threads.warps[warp]
    }

    /// The words of the lanes of a warp.
    pub fn words(&mut self, warp: usize) -> &mut [*mut u32; WARP] {
        let words = self.threads.words[warp * WARP..].first_chunk_mut();
        words.expect("there are words for whole warps")
    }

    /// The asynchronous copies of the running thread.
    pub fn copies(&mut self) -> &mut Copies {
        &mut self.threads.copies[self.running]
    }

    fn has_begun(&self, thread: usize) -> bool {
        self.threads.begun[thread]
    }

    /// The running thread begins.
    fn begin(&mut self) {
        self.threads.begun[self.running] = true;
    }

    /// The running thread has returned; whose turn it is.
    fn end(&mut self) -> Option<usize> {
        let thread = self.running;
        self.warp(thread / WARP).returned |= 1 << (thread % WARP);
        self.next()
    }

    /// Whose turn it is, which is then the running thread. None when all have returned, and after an error.
    #[inline]
    fn next(&mut self) -> Option<usize> {
        let mut lanes = self.threads.warps[self.warp].ready;
        if lanes == 0 || self.grid.shuffle.is_some() || self.error.is_some() {
            lanes = self.next_warp()?;
        }
        let lane = lanes.trailing_zeros() as usize;
        self.threads.warps[self.warp].ready &= !(1 << lane);
        let thread = self.warp * WARP + lane;
        self.running = thread;
        // SAFETY: only the kernels of this thread of the host read it.
        unsafe {
            (*self.seen).thread = self.grid.positions[thread];
            (*self.seen).lane = lane as u32;
        }
        Some(thread)
    }

    /// Finds a warp that can run; those of its lanes, or the last ones of them where the order is random.
    #[inline(never)]
    fn next_warp(&mut self) -> Option<u32> {
        let warps = self.threads.warps.len();
        loop {
            if self.error.is_some() {
                return None;
            }
            if self.grid.shuffle.is_some() {
                self.random = mix(self.random);
                self.warp = (self.random % warps as u64) as usize;
            }
            let mut turns = (0..warps).map(|step| (self.warp + step) % warps);
            if let Some(turn) = turns.find(|warp| self.threads.warps[*warp].ready != 0) {
                self.warp = turn;
                break;
            }
            if self.threads.warps.iter().all(|warp| warp.returned == warp.all) {
                return None;
            }
            self.error = self.release().err();
            self.warp = 0;
        }
        let mut lanes = self.threads.warps[self.warp].ready;
        if self.grid.shuffle.is_some() {
            self.random = mix(self.random);
            for _ in 0..self.random % u64::from(lanes.count_ones()) {
                lanes &= lanes - 1;
            }
        }
        Some(lanes)
    }

    /// Nobody can run: opens the barrier that everybody waits at, or says who waits in vain.
    fn release(&mut self) -> Result<(), String> {
        let warps = &self.threads.warps;
        if let Some(warp) = warps.iter().position(|warp| !warp.groups.is_empty()) {
            return Err(self.divergent_shuffle(warp));
        }
        let first = |lanes: fn(&Warp) -> u32| {
            let warp = warps.iter().position(|warp| lanes(warp) != 0)?;
            Some(warp * WARP + lanes(&warps[warp]).trailing_zeros() as usize)
        };
        if let (Some(waiting), Some(returned)) = (first(|warp| warp.barrier), first(|warp| warp.returned)) {
            let [x, y, z] = self.grid.positions[returned];
            let why = format!(
                "divergent barrier: it waits at __syncthreads, and thread ({x}, {y}, {z}) has returned"
            );
            return Err(self.message(waiting, &why));
        }
        self.shared.block_barrier();
        for warp in &mut self.threads.warps {
            warp.ready = std::mem::take(&mut warp.barrier);
        }
        Ok(())
    }
}

impl Warp {
    /// Lets these lanes run.
    pub fn resume(&mut self, lanes: u32) {
        self.ready |= lanes;
    }

    /// What the lane of this number does when it neither runs nor can run.
    pub fn state(&self, lane: usize) -> &'static str {
        let is = |lanes: u32| lanes >> lane & 1 == 1;
        match () {
            () if !is(self.all) => "does not exist",
            () if is(self.returned) => "has returned",
            () if is(self.barrier) => "waits at __syncthreads",
            () => "waits in another operation",
        }
    }
}

/// A step of splitmix64.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ x >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ x >> 31
}

/// The positions of the threads of a block of this shape.
pub fn positions([x, y, z]: [u32; 3]) -> Vec<[u32; 3]> {
    (0..x * y * z).map(|thread| [thread % x, thread / x % y, thread / x / y]).collect()
}

/// `__syncthreads`.
#[unsafe(no_mangle)]
extern "C" fn emulated_block_barrier() {
    let block = current();
    // SAFETY: kernels run only while their block is the current one.
    unsafe {
        let thread = (*block).running;
        (*block).warp(thread / WARP).barrier |= 1 << (thread % WARP);
        suspend(block);
    }
}
