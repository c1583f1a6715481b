//! An emulator and buffers on it, for the tests.

use std::sync::Arc;

use amdanet::cuda::driver::{Arg, Driver, Launch, Memory, Work};
use bytemuck::Pod;
use emulator::{Emulator, Options};

/// Fast and checked, each in several orders.
pub fn every_mode() -> impl Iterator<Item = Options> {
    [false, true].into_iter().flat_map(|checked| orders().map(move |options| Options { checked, ..options }))
}

/// Checked, in several orders.
pub fn orders() -> impl Iterator<Item = Options> {
    [None, Some(1), Some(2), Some(3)].into_iter().map(|shuffle| Options { shuffle, ..Options::checked() })
}

/// An emulator, and buffers on it.
pub struct Bench {
    pub emulator: Arc<Emulator>,
    pub driver: Arc<dyn Driver>,
}

impl Bench {
    pub fn new(options: Options) -> Self {
        let emulator = Emulator::new(options);
        Self { driver: emulator.clone(), emulator }
    }

    pub fn empty(&self, bytes: usize) -> Memory {
        Memory::new(&self.driver, bytes).unwrap()
    }

    pub fn buffer<T: Pod>(&self, numbers: &[T]) -> Memory {
        let memory = self.empty(size_of_val(numbers));
        // SAFETY: the memory is as long as the numbers.
        unsafe { self.driver.upload(bytemuck::cast_slice(numbers), memory.address()).unwrap() };
        memory
    }

    pub fn read<T: Pod>(&self, memory: &Memory, count: usize) -> Vec<T> {
        self.try_read(memory, count).unwrap()
    }

    pub fn try_read<T: Pod>(&self, memory: &Memory, count: usize) -> Result<Vec<T>, String> {
        let mut numbers = vec![T::zeroed(); count];
        // SAFETY: the emulator checks the range.
        let result =
            unsafe { self.driver.download(memory.address(), bytemuck::cast_slice_mut(&mut numbers)) };
        result.map(|()| numbers).map_err(|error| error.to_string())
    }

    pub fn launch(
        &self,
        kernel: &str,
        grid: u32,
        block: u32,
        shared: u32,
        args: &[Arg],
    ) -> Result<(), String> {
        self.launch_3d(kernel, [grid, 1, 1], [block, 1, 1], shared, args)
    }

    pub fn launch_3d(
        &self,
        kernel: &str,
        grid: [u32; 3],
        block: [u32; 3],
        shared: u32,
        args: &[Arg],
    ) -> Result<(), String> {
        let launch = Launch { kernel, grid, block, shared, args, work: Work::default() };
        // SAFETY: the planted errors that would do harm are made in checked mode.
        unsafe { self.driver.launch(&launch) }.map_err(|error| error.to_string())
    }
}

pub fn pointer(memory: &Memory) -> Arg {
    Arg::Pointer(memory.address())
}
