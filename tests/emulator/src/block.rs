//! One block of a launch: a coroutine for each of its threads, run by turns on one thread of the host.

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::ptr;

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult, Yielder};

use crate::collective::Group;
use crate::kernels::Kernel;
use crate::memory::DeviceMemory;
use crate::shared::Shared;

/// Lanes of a warp.
pub const WARP: usize = 32;

/// Bytes of a thread's stack.
const STACK: usize = 64 << 10;

type Thread = Coroutine<(), (), (), DefaultStack>;

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
    pub shared: usize,
    /// The bits of each argument.
    pub args: &'a [u64],
}

/// What a thread waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Nothing: it can run, or is running.
    Ready,
    /// The other threads of the block.
    Barrier,
    /// Lanes of its warp.
    Lanes,
    /// It has returned.
    Returned,
}

/// An asynchronous copy of 16 bytes that has not arrived.
#[derive(Clone, Copy)]
pub struct Copy {
    pub thread: usize,
    pub shared: usize,
    pub global: usize,
    pub valid: bool,
    /// The commit groups that its thread had closed before it.
    pub group: u32,
}

/// A block that is being run.
pub struct Block<'a> {
    pub grid: &'a Grid<'a>,
    index: [u32; 3],
    pub shared: &'a mut Shared,
    /// The thread that runs, or ran last.
    pub running: usize,
    pub states: Vec<State>,
    coroutines: Vec<Option<Thread>>,
    yielders: Vec<*const Yielder<(), ()>>,
    /// Lanes that can run, for each warp.
    pub ready: Vec<u32>,
    /// Unfinished operations of each warp.
    pub groups: Vec<Vec<Group>>,
    pub copies: Vec<Copy>,
    pub committed: Vec<u32>,
    error: Option<String>,
    random: u64,
}

/// What a thread of the host keeps from block to block.
struct Worker {
    stacks: Vec<DefaultStack>,
    shared: Shared,
}

thread_local! {
    static WORKER: RefCell<Worker> = RefCell::new(Worker { stacks: Vec::new(), shared: Shared::new() });
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
        let threads = grid.block.iter().product::<u32>() as usize;
        let warps = threads.div_ceil(WARP);
        let lanes = |warp: usize| u32::MAX >> (WARP - (threads - warp * WARP).min(WARP));
        worker.shared.begin_block(grid.shared, threads, grid.checked);
        let mut block = Block {
            grid,
            index,
            shared: &mut worker.shared,
            running: 0,
            states: vec![State::Ready; threads],
            coroutines: (0..threads).map(|_| None).collect(),
            yielders: vec![ptr::null(); threads],
            ready: (0..warps).map(lanes).collect(),
            groups: (0..warps).map(|_| Vec::new()).collect(),
            copies: Vec::new(),
            committed: vec![0; threads],
            error: None,
            random: grid.shuffle.map_or(0, |seed| mix(seed ^ mix(number))),
        };
        let running = emulated_thread_address();
        // SAFETY: the address is that of this thread's own variable, which only its kernels read.
        unsafe {
            *running = Running {
                thread: [0; 3],
                block: index,
                block_dim: grid.block,
                grid_dim: grid.grid,
                shared: block.shared.address() as *mut u8,
                lane: 0,
            };
        }
        let raw = (&raw mut block).cast::<Block<'static>>();
        let outer = BLOCK.replace(raw);
        // SAFETY: `block` outlives the call, and is not used otherwise meanwhile.
        let result = unsafe { schedule(raw, running, &mut worker.stacks) };
        BLOCK.set(outer);
        for coroutine in block.coroutines.iter_mut().filter_map(Option::take) {
            worker.stacks.push(abandon(coroutine));
        }
        result
    })
}

/// Takes the stack from a coroutine that will not go on.
fn abandon(mut coroutine: Thread) -> DefaultStack {
    // SAFETY: on the stack are frames of device code, which has no destructors, and of functions here that hold
    // nothing while they are suspended.
    unsafe { coroutine.force_reset() };
    coroutine.into_stack()
}

/// Runs the threads until all have returned, or one of them meets an error.
///
/// # Safety
/// `block` is valid, and nobody else uses it until this returns. It is a pointer because the functions that device
/// code calls use it too, while a coroutine runs.
unsafe fn schedule(
    block: *mut Block<'static>,
    running: *mut Running,
    stacks: &mut Vec<DefaultStack>,
) -> Result<(), String> {
    // SAFETY: each reference to the block ends before a coroutine is resumed.
    unsafe {
        let mut warp = 0;
        while let Some(thread) = (*block).next(&mut warp)? {
            (*block).running = thread;
            (*running).thread = (*block).position(thread);
            (*running).lane = (thread % WARP) as u32;
            let coroutine = (&mut (*block).coroutines)[thread].take();
            let mut coroutine = coroutine.unwrap_or_else(|| {
                let stack = stacks.pop();
                let stack = stack.unwrap_or_else(|| DefaultStack::new(STACK).expect("memory for a stack"));
                Coroutine::with_stack(stack, move |yielder, ()| enter(block, yielder))
            });
            match coroutine.resume(()) {
                CoroutineResult::Return(()) => {
                    stacks.push(coroutine.into_stack());
                    (&mut (*block).states)[thread] = State::Returned;
                }
                CoroutineResult::Yield(()) => {
                    (&mut (*block).coroutines)[thread] = Some(coroutine);
                    if let Some(error) = (*block).error.take() {
                        return Err(error);
                    }
                }
            }
        }
    }
    Ok(())
}

/// The body of a coroutine: the kernel, for the thread that runs.
fn enter(block: *mut Block<'static>, yielder: &Yielder<(), ()>) {
    // SAFETY: the block outlives its coroutines. The kernel reads as many arguments as `args` has, and only reads.
    unsafe {
        let thread = (*block).running;
        (&mut (*block).yielders)[thread] = yielder;
        let grid: &Grid = (*block).grid;
        let mut pointers = [ptr::null_mut::<c_void>(); MAX_ARGS];
        for (pointer, arg) in pointers.iter_mut().zip(grid.args) {
            *pointer = ptr::from_ref(arg).cast_mut().cast();
        }
        (grid.kernel.call)(pointers.as_mut_ptr());
    }
}

/// Parameters that a kernel can have.
pub const MAX_ARGS: usize = 64;

/// Lets other threads run until this one is ready.
///
/// # Safety
/// `block` is the current one.
pub unsafe fn suspend(block: *mut Block<'static>) {
    // SAFETY: the yielder is that of the running coroutine, which set it when it began.
    unsafe {
        let yielder = (&(*block).yielders)[(*block).running];
        (*yielder).suspend(());
    }
}

/// Ends the launch with an error; the running thread does not go on.
///
/// # Safety
/// `block` is the current one.
pub unsafe fn fail(block: *mut Block<'static>, why: &str) {
    // SAFETY: the caller vouches for the block; the scheduler does not resume a thread after an error.
    unsafe {
        let message = (*block).message((*block).running, why);
        (*block).error = Some(message);
        suspend(block);
    }
}

impl Block<'_> {
    /// Ends the launch with this message when the running thread is suspended.
    pub fn stop(&mut self, message: String) {
        self.error = Some(message);
    }

    fn position(&self, thread: usize) -> [u32; 3] {
        let ([x, y, _], thread) = (self.grid.block, thread as u32);
        [thread % x, thread / x % y, thread / x / y]
    }

    /// `why`, with the thread that it happened to.
    pub fn message(&self, thread: usize, why: &str) -> String {
        let ([bx, by, bz], [x, y, z]) = (self.index, self.position(thread));
        format!("block ({bx}, {by}, {bz}), thread ({x}, {y}, {z}): {why}")
    }

    /// The thread that runs next; `None` when all have returned.
    fn next(&mut self, warp: &mut usize) -> Result<Option<usize>, String> {
        let warps = self.ready.len();
        if self.grid.shuffle.is_some() {
            self.random = mix(self.random);
            *warp = (self.random % warps as u64) as usize;
        }
        let turn = (0..warps).map(|step| (*warp + step) % warps).find(|warp| self.ready[*warp] != 0);
        let Some(turn) = turn else {
            if self.states.iter().all(|state| *state == State::Returned) {
                return Ok(None);
            }
            self.release()?;
            *warp = 0;
            return self.next(warp);
        };
        *warp = turn;
        let mut lanes = self.ready[turn];
        if self.grid.shuffle.is_some() {
            self.random = mix(self.random);
            for _ in 0..self.random % u64::from(lanes.count_ones()) {
                lanes &= lanes - 1;
            }
        }
        let lane = lanes.trailing_zeros();
        self.ready[turn] &= !(1 << lane);
        Ok(Some(turn * WARP + lane as usize))
    }

    /// Nobody can run: opens the barrier that everybody waits at, or says who waits in vain.
    fn release(&mut self) -> Result<(), String> {
        if let Some(group) = self.groups.iter().position(|groups| !groups.is_empty()) {
            return Err(self.divergent_shuffle(group));
        }
        let waiting = self.states.iter().position(|state| *state == State::Barrier);
        let returned = self.states.iter().position(|state| *state == State::Returned);
        if let (Some(waiting), Some(returned)) = (waiting, returned) {
            let [x, y, z] = self.position(returned);
            let why = format!(
                "divergent barrier: it waits at __syncthreads, and thread ({x}, {y}, {z}) has returned"
            );
            return Err(self.message(waiting, &why));
        }
        self.shared.block_barrier();
        for (thread, state) in self.states.iter_mut().enumerate() {
            *state = State::Ready;
            self.ready[thread / WARP] |= 1 << (thread % WARP);
        }
        Ok(())
    }
}

/// A step of splitmix64.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ x >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ x >> 31
}

/// `__syncthreads`.
#[unsafe(no_mangle)]
extern "C" fn emulated_block_barrier() {
    let block = current();
    // SAFETY: kernels run only while their block is the current one.
    unsafe {
        let thread = (*block).running;
        (&mut (*block).states)[thread] = State::Barrier;
        suspend(block);
    }
}
