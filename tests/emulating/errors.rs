//! Planted errors are found, and the message says where.

use amdanet::DType;
use amdanet::cuda::driver::{Arg, Matrix, Product};
use emulator::Options;

use crate::bench::{Bench, every_mode, orders, pointer};

/// The error of a launch, which has to name all of `parts`.
fn assert_names(result: Result<(), String>, parts: &[&str]) {
    let error = result.expect_err(parts[0]);
    for part in parts {
        assert!(error.contains(part), "no {part:?} in {error:?}");
    }
}

#[test]
fn an_overrun_of_global_memory_by_one_number() {
    for options in orders() {
        let bench = Bench::new(options);
        let (x, y) = (bench.buffer(&[1.0f32; 65]), bench.empty(64 * 4));
        let launch =
            |count| bench.launch("planted_increment", 3, 32, 0, &[pointer(&x), pointer(&y), Arg::I32(count)]);
        launch(64).unwrap();
        let place = "0 bytes past the end of an allocation of 256 bytes";
        let thread = "block (2, 0, 0), thread (0, 0, 0)";
        assert_names(
            launch(65),
            &["planted_increment<<<", thread, "out of bounds: a write of 4 bytes", place],
        );
        // The emulator goes on after an error.
        launch(64).unwrap();
        assert_eq!(bench.read::<f32>(&y, 64), [2.0; 64]);
    }
}

#[test]
fn an_overrun_by_less_than_a_number() {
    let bench = Bench::new(Options::checked());
    let (x, y) = (bench.buffer(&[1.0f32; 64]), bench.empty(255));
    let args = [pointer(&x), pointer(&y), Arg::I32(64)];
    assert_names(bench.launch("planted_increment", 2, 32, 0, &args), &["out of bounds", "thread (31, 0, 0)"]);
}

#[test]
fn memory_that_was_freed() {
    let bench = Bench::new(Options::checked());
    let (x, y) = (bench.buffer(&[1.0f32; 64]), bench.empty(64 * 4));
    let args = [pointer(&x), pointer(&y), Arg::I32(64)];
    drop(x);
    let place = "argument 0 points to no allocation: byte 0 of an allocation of 256 bytes that was freed";
    assert_names(bench.launch("planted_increment", 2, 32, 0, &args), &[place]);
}

#[test]
fn a_null_pointer() {
    let bench = Bench::new(Options::checked());
    let y = bench.empty(4);
    let args = [Arg::Pointer(0), pointer(&y), Arg::I32(1)];
    assert_names(bench.launch("planted_increment", 1, 32, 0, &args), &["null pointer", "thread (0, 0, 0)"]);
}

#[test]
fn an_overrun_of_shared_memory() {
    for options in orders() {
        let bench = Bench::new(options);
        let y = bench.empty(64 * 4);
        let args = [pointer(&y), Arg::I32(64), Arg::I32(1)];
        let launch = |shared| bench.launch("planted_neighbour", 1, 64, shared, &args);
        launch(64 * 4).unwrap();
        let place = "out of bounds: a write of 4 bytes at byte 252 of shared memory, which has";
        assert_names(launch(63 * 4), &[place, "252", "thread (63, 0, 0)"]);
        assert_names(launch(64 * 4 - 1), &[place, "255", "thread (63, 0, 0)"]);
    }
}

#[test]
fn reads_of_what_nobody_wrote() {
    for options in orders() {
        let bench = Bench::new(options);
        let (x, y) = (bench.empty(64 * 4), bench.empty(64 * 4));
        let args = [pointer(&x), pointer(&y), Arg::I32(64)];
        let place = "uninitialised read of global memory, byte";
        assert_names(
            bench.launch("planted_increment", 1, 64, 0, &args),
            &[place, "of an allocation of 256 bytes"],
        );

        let shared = bench.launch("planted_uninitialised", 1, 64, 256, &[pointer(&y)]);
        assert_names(shared, &["uninitialised read of shared memory at byte", "planted_uninitialised"]);

        assert_names(
            bench.try_read::<f32>(&y, 64).map(drop),
            &["download of 256 bytes", "uninitialised read"],
        );
    }
    // Without checks it is NaN.
    let bench = Bench::new(Options::default());
    let y = bench.empty(64 * 4);
    bench.launch("planted_uninitialised", 1, 64, 256, &[pointer(&y)]).unwrap();
    assert!(bench.read::<f32>(&y, 64).iter().all(|y| y.is_nan()));
}

#[test]
fn an_address_that_is_no_multiple() {
    let bench = Bench::new(Options::checked());
    let (x, y) = (bench.buffer(&[1.0f32; 64]), bench.empty(16));
    let launch =
        |offset| bench.launch("planted_vector", 1, 1, 0, &[pointer(&x), pointer(&y), Arg::I32(offset)]);
    launch(60).unwrap();
    assert_names(launch(1), &["misaligned: an access of 16 bytes"]);
}

#[test]
fn a_missing_barrier() {
    for options in orders() {
        let bench = Bench::new(options);
        let y = bench.empty(256 * 4);
        let args = [pointer(&y), Arg::I32(256), Arg::I32(0)];
        assert_names(bench.launch("planted_neighbour", 1, 256, 1024, &args), &["race: ", "of shared memory"]);

        for barrier in [0, 3, 4, 5] {
            let args = [pointer(&y), Arg::I32(barrier)];
            assert_names(bench.launch("planted_warp_neighbour", 1, 32, 128, &args), &["race: "]);
        }

        let args = [pointer(&y), Arg::I32(0)];
        assert_names(bench.launch("planted_reduction", 1, 256, 1024, &args), &["race: "]);
    }
}

#[test]
fn a_missing_barrier_shows_in_some_order_without_checks() {
    let wrong = |shuffle| {
        let bench = Bench::new(Options { shuffle, ..Options::default() });
        let y = bench.empty(256 * 4);
        bench.launch("planted_neighbour", 1, 256, 1024, &[pointer(&y), Arg::I32(256), Arg::I32(0)]).unwrap();
        let y = bench.read::<f32>(&y, 256);
        y.iter().enumerate().any(|(i, y)| *y != ((i + 1) % 256) as f32)
    };
    assert!((1..4).all(|seed| wrong(Some(seed))));
}

#[test]
fn a_barrier_that_some_threads_do_not_reach() {
    for options in every_mode() {
        let bench = Bench::new(options);
        let y = bench.empty(64 * 4);
        let launch =
            |count| bench.launch("planted_divergent_barrier", 2, 64, 0, &[pointer(&y), Arg::I32(count)]);
        launch(64).unwrap();
        launch(0).unwrap();
        for count in [1, 32, 63] {
            let missing = format!("thread ({count}, 0, 0) has returned");
            let place = "thread (0, 0, 0): divergent barrier";
            assert_names(launch(count), &["planted_divergent_barrier", "block (", place, &missing]);
        }
    }
}

#[test]
fn a_shuffle_that_some_lanes_do_not_reach() {
    for options in every_mode() {
        let bench = Bench::new(options);
        let y = bench.empty(64 * 4);
        let launch = |block: u32, count, mask: u32, barrier| {
            let args = [pointer(&y), Arg::I32(count), Arg::I32(mask as i32), Arg::I32(barrier)];
            bench.launch("planted_divergent_shuffle", 1, block, 0, &args)
        };
        launch(64, 32, u32::MAX, 0).unwrap();
        launch(64, 16, 0xFFFF, 0).unwrap();
        launch(64, 16, 0xFFFF, 1).unwrap();
        assert_names(launch(32, 31, u32::MAX, 0), &["divergent shuffle", "lane 31 has returned"]);
        assert_names(launch(32, 31, u32::MAX, 1), &["divergent shuffle", "lane 31 waits at __syncthreads"]);
        assert_names(launch(24, 24, u32::MAX, 0), &["divergent shuffle", "lane 24 does not exist"]);
        assert_names(launch(32, 32, 0xFFFF, 0), &["divergent shuffle", "leaves it out", "block (0, 0, 0)"]);
        assert_names(launch(32, 2, 0xFFFE, 0), &["divergent shuffle"]);
    }
}

#[test]
fn launches_that_do_not_fit_the_kernel() {
    for options in every_mode() {
        let bench = Bench::new(options);
        let y = bench.empty(4);
        let good = [pointer(&y), Arg::I32(1), Arg::U64(2), Arg::F32(3.0)];
        let launch = |args: &[Arg]| bench.launch("planted_parameters", 1, 32, 0, args);
        launch(&good).unwrap();
        assert_names(
            launch(&good[..3]),
            &["planted_parameters", "it has 4 parameters and was given 3 arguments"],
        );
        let kinds = ["a pointer", "int", "unsigned long long", "float"];
        for (i, kind) in kinds.iter().enumerate() {
            let mut args = good;
            args[i] = good[(i + 1) % 4];
            assert_names(launch(&args), &["planted_parameters", &format!("argument {i} is"), kind]);
        }
        let mut args = good;
        args[0] = Arg::Pointer(y.address() + 5);
        assert_names(launch(&args), &["argument 0 points to no allocation: 1 bytes past the end"]);

        assert_names(bench.launch("planted_nothing", 1, 32, 0, &[]), &["planted_nothing", "no such kernel"]);
        let shape = |grid, block, shared| bench.launch_3d("planted_parameters", grid, block, shared, &good);
        assert_names(shape([0, 1, 1], [32, 1, 1], 0), &["a grid has"]);
        assert_names(shape([1, 65536, 1], [32, 1, 1], 0), &["a grid has"]);
        assert_names(shape([1, 1, 1], [32, 33, 1], 0), &["a block has 1 to 1024 threads"]);
        assert_names(shape([1, 1, 1], [32, 1, 1], 164 << 10), &["bytes of shared memory"]);
    }
}

#[test]
fn a_product_that_reaches_too_far() {
    for options in every_mode() {
        let bench = Bench::new(options);
        let (a, b, c) = (bench.buffer(&[1.0f32; 12]), bench.buffer(&[1.0f32; 20]), bench.empty(15 * 4));
        let matrix = |address, stride| Matrix { address, stride, batch: 0 };
        let product = Product {
            dtype: DType::F32,
            c_dtype: DType::F32,
            count: 1,
            shape: (3, 5, 4),
            a: matrix(a.address(), 4),
            a_transposed: false,
            b: matrix(b.address(), 5),
            b_transposed: false,
            c: matrix(c.address(), 5),
            bias: None,
            residual: None,
            relu: false,
        };
        // SAFETY: the emulator checks the ranges of products in every mode.
        let multiply = |product| unsafe { bench.driver.product(&product) }.map_err(|error| error.to_string());
        multiply(product).unwrap();
        let place = "out of bounds";
        assert_names(multiply(Product { shape: (4, 5, 4), ..product }), &["product_f32", "a, row 3", place]);
        assert_names(multiply(Product { b: matrix(b.address() + 4, 5), ..product }), &["b, row 3", place]);
        assert_names(multiply(Product { c: matrix(c.address(), 6), ..product }), &["c, row 2", place]);
        assert_names(multiply(Product { c: matrix(c.address(), 4), ..product }), &["rows of c overlap"]);
        assert_names(multiply(Product { bias: Some(c.address() + 44), ..product }), &["bias, row 0", place]);
        let residual = Some(matrix(c.address() + 4, 5));
        assert_names(multiply(Product { residual, ..product }), &["residual, row 2", place]);
        if options.checked {
            let empty = bench.empty(48);
            let a = matrix(empty.address(), 4);
            assert_names(
                multiply(Product { a, ..product }),
                &["a, row 0: uninitialised read of global memory"],
            );
        }
    }
}
