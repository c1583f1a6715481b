//! Memory, products, captures, and the driver that fails on purpose.

use std::sync::Arc;

use amdanet::DType;
use amdanet::cuda::driver::{Arg, Driver, Launch, Matrix, Memory, Product, Work};
use emulator::{Emulator, Failing, Options};
use half::{bf16, f16};

use crate::bench::{Bench, every_mode, pointer};

#[test]
fn memory_is_counted_aligned_and_poisoned() {
    let bench = Bench::new(Options::default());
    let buffers: Vec<_> =
        [1, 255, 256, 257, 100_000].iter().map(|bytes| (bench.empty(*bytes), *bytes)).collect();
    assert_eq!(bench.emulator.live_allocations(), 5);
    assert_eq!(bench.emulator.live_bytes(), 1 + 255 + 256 + 257 + 100_000);
    for (memory, bytes) in &buffers {
        assert_eq!(memory.address() % 256, 0);
        assert!(bench.read::<u8>(memory, *bytes).iter().all(|byte| *byte == 0xFF));
        assert!(bench.try_read::<u8>(memory, bytes + 1).unwrap_err().contains("out of bounds"));
        // SAFETY: the memory is as long.
        unsafe { bench.driver.fill(memory.address(), 7, *bytes).unwrap() };
    }
    drop(buffers);
    assert_eq!((bench.emulator.live_allocations(), bench.emulator.live_bytes()), (0, 0));
    assert!(bench.read::<u8>(&bench.empty(100_000), 100_000).iter().all(|byte| *byte == 0xFF));
    assert!(bench.driver.allocate(usize::MAX).unwrap_err().to_string().contains("out of memory"));
    assert!(bench.driver.allocate(1 << 50).is_err());
}

#[test]
#[should_panic = "no allocation begins"]
fn a_wrong_free_panics() {
    let emulator = Emulator::new(Options::default());
    let address = emulator.allocate(100).unwrap();
    emulator.free(address + 4, 96);
}

#[test]
fn copies_and_fills() {
    for options in every_mode() {
        let bench = Bench::new(options);
        let (x, y) = (bench.buffer(&[1u8, 2, 3, 4, 5, 6]), bench.empty(6));
        // SAFETY: the emulator checks the ranges.
        unsafe {
            bench.driver.fill(y.address(), 9, 6).unwrap();
            bench.driver.copy(x.address() + 1, y.address() + 2, 3).unwrap();
            assert!(bench.driver.copy(x.address(), y.address() + 1, 6).is_err());
            assert!(bench.driver.copy(x.address(), x.address() + 2, 3).is_err());
            assert!(bench.driver.fill(y.address(), 9, 7).is_err());
            assert!(bench.driver.upload(&[0; 7], y.address()).is_err());
        }
        assert_eq!(bench.read::<u8>(&y, 6), [9, 9, 2, 3, 4, 9]);
    }
}

#[test]
fn work_aside_is_done_as_late_as_it_may() {
    let bench = Bench::new(Options::default());
    let x = bench.buffer(&[1u8; 4]);
    let fill = |byte| {
        // SAFETY: the memory is as long.
        unsafe { bench.driver.fill(x.address(), byte, 4).unwrap() };
    };
    let aside = |byte| {
        bench.driver.aside().unwrap();
        fill(byte);
        bench.driver.back();
    };
    aside(2);
    assert_eq!(bench.read::<u8>(&x, 4), [1; 4]);
    fill(3);
    bench.driver.join().unwrap();
    assert_eq!(bench.read::<u8>(&x, 4), [2; 4]);

    bench.driver.begin_capture().unwrap();
    aside(4);
    fill(5);
    bench.driver.join().unwrap();
    let graph = bench.driver.end_capture().unwrap();
    // SAFETY: the memory is there still.
    unsafe { graph.launch().unwrap() };
    assert_eq!(bench.read::<u8>(&x, 4), [4; 4]);

    bench.driver.begin_capture().unwrap();
    aside(6);
    let e = bench.driver.end_capture().err().unwrap().to_string();
    assert!(e.contains("was not waited for"), "{e}");
    bench.driver.join().unwrap();
    assert_eq!(bench.read::<u8>(&x, 4), [4; 4]);
}

/// Numbers of `dtype` from f32, and back.
fn to_bytes(dtype: DType, numbers: &[f32]) -> Vec<u8> {
    match dtype {
        DType::F32 => numbers.iter().flat_map(|x| x.to_ne_bytes()).collect(),
        DType::F16 => numbers.iter().flat_map(|x| f16::from_f32(*x).to_ne_bytes()).collect(),
        _ => numbers.iter().flat_map(|x| bf16::from_f32(*x).to_ne_bytes()).collect(),
    }
}

fn from_bytes(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    let pairs = || bytes.chunks(2).map(|b| [b[0], b[1]]);
    match dtype {
        DType::F32 => bytes.chunks(4).map(|b| f32::from_ne_bytes(b.try_into().unwrap())).collect(),
        DType::F16 => pairs().map(|b| f16::from_ne_bytes(b).to_f32()).collect(),
        _ => pairs().map(|b| bf16::from_ne_bytes(b).to_f32()).collect(),
    }
}

/// Every kind of product against a plain loop. Small integers and halves are exact in every type and order.
#[test]
fn products_are_those_of_a_plain_loop() {
    let (count, m, n, k) = (3, 5, 7, 11);
    let numbers = |seed: usize, len: usize| -> Vec<f32> {
        (0..len).map(|i| ((i * 31 + seed * 17 + i * i) % 9) as f32 / 2.0 - 2.0).collect()
    };
    for case in 0..192 {
        let dtype = [DType::F32, DType::F16, DType::BF16][case % 3];
        let on = |bit: usize| (case / 3) >> bit & 1 == 1;
        let (a_transposed, b_transposed, with_bias, with_residual, in_place, relu) =
            (on(0), on(1), on(2), on(3), on(4), on(5));
        let c_dtype = if with_bias || case / 2 % 2 == 0 { dtype } else { DType::F32 };
        let bench = Bench::new(Options { checked: case % 2 == 0, ..Options::default() });
        // Rows and products lie further apart than they need to.
        let dense = |rows: usize, columns: usize| (columns + 3, rows * (columns + 3) + 5);
        let (a_stride, a_batch) = if a_transposed { dense(k, m) } else { dense(m, k) };
        let (b_stride, b_batch) = if b_transposed { dense(n, k) } else { dense(k, n) };
        let (c_stride, c_batch) = dense(m, n);
        let (a, b) = (numbers(1, count * a_batch), numbers(2, count * b_batch));
        let (bias, old) = (numbers(3, count * n), numbers(4, count * c_batch));
        let upload = |numbers: &[f32], dtype| bench.buffer(&to_bytes(dtype, numbers));
        let (da, db, dbias) = (upload(&a, dtype), upload(&b, dtype), upload(&bias, dtype));
        let (dc, dr) = (upload(&old, c_dtype), upload(&old, c_dtype));
        let matrix = |memory: &Memory, stride, batch| Matrix { address: memory.address(), stride, batch };
        let c = matrix(&dc, c_stride, c_batch);
        let product = Product {
            dtype,
            c_dtype,
            count,
            shape: (m, n, k),
            a: matrix(&da, a_stride, a_batch),
            a_transposed,
            b: matrix(&db, b_stride, b_batch),
            b_transposed,
            c,
            bias: with_bias.then(|| dbias.address()),
            residual: with_residual.then(|| if in_place { c } else { matrix(&dr, c_stride, c_batch) }),
            relu,
        };
        // SAFETY: the buffers are as large as the strides say.
        unsafe { bench.driver.product(&product).unwrap() };

        let mut expected = old.clone();
        for (p, i, j) in (0..count).flat_map(|p| (0..m * n).map(move |i| (p, i / n, i % n))) {
            let mut sum = 0.0;
            for l in 0..k {
                let left = if a_transposed { l * a_stride + i } else { i * a_stride + l };
                let right = if b_transposed { j * b_stride + l } else { l * b_stride + j };
                sum += a[p * a_batch + left] * b[p * b_batch + right];
            }
            let place = p * c_batch + i * c_stride + j;
            sum += if with_bias { bias[p * n + j] } else { 0.0 };
            sum += if with_residual { old[place] } else { 0.0 };
            expected[place] = if relu { sum.max(0.0) } else { sum };
        }
        let expected = from_bytes(c_dtype, &to_bytes(c_dtype, &expected));
        let c = from_bytes(c_dtype, &bench.read::<u8>(&dc, old.len() * c_dtype.size()));
        assert_eq!(c, expected, "{product}");
    }
}

#[test]
fn tf32_rounds_the_factors_alone() {
    for (tf32, expected) in [(false, 1.0 + f32::EPSILON * 4.0 + 1e-4), (true, 1.0 + 1e-4)] {
        let bench = Bench::new(Options { tf32, ..Options::default() });
        let (a, b) = (bench.buffer(&[1.0 + f32::EPSILON * 4.0]), bench.buffer(&[1.0f32]));
        let (bias, c) = (bench.buffer(&[1e-4f32]), bench.empty(4));
        let matrix = |memory: &Memory| Matrix { address: memory.address(), stride: 1, batch: 1 };
        let product = Product {
            dtype: DType::F32,
            c_dtype: DType::F32,
            count: 1,
            shape: (1, 1, 1),
            a: matrix(&a),
            a_transposed: false,
            b: matrix(&b),
            b_transposed: false,
            c: matrix(&c),
            bias: Some(bias.address()),
            residual: None,
            relu: false,
        };
        // SAFETY: all are of one number.
        unsafe { bench.driver.product(&product).unwrap() };
        assert_eq!(bench.read::<f32>(&c, 1), [expected]);
    }
}

#[test]
fn a_capture_is_done_when_it_is_launched() {
    for options in every_mode() {
        let bench = Bench::new(options);
        let (x, y) = (bench.buffer(&[1.0f32; 64]), bench.buffer(&[0.0f32; 64]));
        let driver = &bench.driver;
        driver.begin_capture().unwrap();
        assert!(driver.begin_capture().is_err() && driver.synchronise().is_err());
        assert!(bench.try_read::<f32>(&x, 1).is_err());
        bench.launch("planted_increment", 2, 32, 0, &[pointer(&x), pointer(&y), Arg::I32(64)]).unwrap();
        assert!(bench.launch("planted_nothing", 1, 1, 0, &[]).is_err());
        // SAFETY: the buffers are as long.
        unsafe {
            driver.copy(y.address(), x.address(), 256).unwrap();
            driver.fill(x.address(), 0, 4).unwrap();
        }
        let graph = driver.end_capture().unwrap();
        assert!(driver.end_capture().is_err());
        assert_eq!(bench.read::<f32>(&y, 64), [0.0; 64]);
        for time in 1..4 {
            // SAFETY: the buffers are still there.
            unsafe { graph.launch().unwrap() };
            assert_eq!(bench.read::<f32>(&y, 64)[1..], [1.0 + time as f32; 63]);
            assert_eq!(bench.read::<f32>(&y, 1), [if time == 1 { 2.0 } else { 1.0 }]);
        }
    }
}

#[test]
fn each_kind_of_call_can_be_made_to_fail_once() {
    let emulator = Emulator::new(Options::default());
    let failing = Failing::new(emulator.clone());
    let driver: Arc<dyn Driver> = failing.clone();
    let work = || -> amdanet::Result<()> {
        let (x, y) = (Memory::new(&driver, 4)?, Memory::new(&driver, 4)?);
        let one = Matrix { address: x.address(), stride: 1, batch: 1 };
        let product = Product {
            dtype: DType::F32,
            c_dtype: DType::F32,
            count: 1,
            shape: (1, 1, 1),
            a: one,
            a_transposed: false,
            b: one,
            b_transposed: false,
            c: Matrix { address: y.address(), ..one },
            bias: None,
            residual: None,
            relu: false,
        };
        let args = [pointer(&x), pointer(&y), Arg::I32(1)];
        let launch = Launch {
            kernel: "planted_increment",
            grid: [1; 3],
            block: [32, 1, 1],
            shared: 0,
            args: &args,
            work: Work::default(),
        };
        // SAFETY: all are of one number.
        unsafe {
            driver.upload(&2.0f32.to_ne_bytes(), x.address())?;
            driver.fill(y.address(), 0, 4)?;
            driver.launch(&launch)?;
            driver.product(&product)?;
            driver.copy(y.address(), x.address(), 4)?;
        }
        Ok(())
    };
    work().unwrap();
    let calls = failing.calls();
    assert_eq!(calls, 7);
    for n in 1..=calls {
        failing.fail_at(n);
        assert!(work().unwrap_err().to_string().contains("injected failure"));
        work().unwrap();
        assert_eq!(emulator.live_allocations(), 0);
    }
}
