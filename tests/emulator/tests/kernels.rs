//! Kernels without errors give right results in every mode; planted errors are found.

use std::sync::Arc;

use amdanet::cuda::driver::{Arg, Driver, Launch, Memory, Work};
use emulator::{Emulator, Options};

const ORDERS: [Option<u64>; 4] = [None, Some(1), Some(2), Some(3)];

fn every_mode() -> impl Iterator<Item = Options> {
    [false, true]
        .into_iter()
        .flat_map(|checked| ORDERS.map(move |shuffle| Options { checked, shuffle, ..Options::default() }))
}

/// An emulator, and buffers on it.
struct Bench {
    emulator: Arc<Emulator>,
    driver: Arc<dyn Driver>,
}

impl Bench {
    fn new(options: Options) -> Self {
        let emulator = Emulator::new(options);
        Self { driver: emulator.clone(), emulator }
    }

    fn empty(&self, numbers: usize) -> Memory {
        Memory::new(&self.driver, numbers * 4).unwrap()
    }

    fn buffer(&self, numbers: &[f32]) -> Memory {
        let memory = self.empty(numbers.len());
        let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_ne_bytes()).collect();
        // SAFETY: the memory is as long as the numbers.
        unsafe { self.driver.upload(&bytes, memory.address()).unwrap() };
        memory
    }

    fn read(&self, memory: &Memory, numbers: usize) -> amdanet::Result<Vec<f32>> {
        let mut bytes = vec![0; numbers * 4];
        // SAFETY: the emulator checks the range.
        unsafe { self.driver.download(memory.address(), &mut bytes)? };
        Ok(bytes.chunks_exact(4).map(|b| f32::from_ne_bytes(b.try_into().unwrap())).collect())
    }

    fn launch(&self, kernel: &str, grid: u32, block: u32, shared: u32, args: &[Arg]) -> Result<(), String> {
        let launch =
            Launch { kernel, grid: [grid, 1, 1], block: [block, 1, 1], shared, args, work: Work::default() };
        // SAFETY: the planted errors are small, and made in checked mode where they would do harm.
        unsafe { self.driver.launch(&launch) }.map_err(|error| error.to_string())
    }
}

fn pointer(memory: &Memory) -> Arg {
    Arg::Pointer(memory.address())
}

#[test]
fn a_correct_kernel_gives_the_same_bits_in_every_mode() {
    let (rows, c) = (37, 1001);
    let x: Vec<f32> = (0..rows * c).map(|i| (i as f32 * 0.37).sin()).collect();
    let mut first: Option<Vec<f32>> = None;
    for options in every_mode() {
        let bench = Bench::new(options);
        let (input, sums) = (bench.buffer(&x), bench.empty(rows));
        let args = [pointer(&input), pointer(&sums), Arg::I32(c as i32)];
        bench.launch("planted_row_sums", rows as u32, 256, 128, &args).unwrap();
        let sums = bench.read(&sums, rows).unwrap();
        for (row, sum) in x.chunks(c).zip(&sums) {
            let expected: f64 = row.iter().map(|x| f64::from(*x)).sum();
            assert!((f64::from(*sum) - expected).abs() < 1e-4, "{sum} {expected}");
        }
        assert_eq!(first.get_or_insert_with(|| sums.clone()), &sums);
    }
}

#[test]
#[ignore = "a measurement"]
fn speed() {
    for (checked, shuffle) in [(false, None), (false, Some(1)), (true, None)] {
        let bench = Bench::new(Options { checked, shuffle, ..Options::default() });
        let x = vec![1.0; 256 * 256 * 4];
        let (input, sums) = (bench.buffer(&x), bench.empty(256));
        let args = [pointer(&input), pointer(&sums), Arg::I32(1024)];
        for _ in 0..3 {
            let start = std::time::Instant::now();
            bench.launch("planted_row_sums", 256, 256, 128, &args).unwrap();
            println!("checked {checked}, shuffle {shuffle:?}: 65536 threads in {:?}", start.elapsed());
        }
    }
}
