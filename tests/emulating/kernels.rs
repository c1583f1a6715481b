//! Kernels without errors give right results in every mode.

use amdanet::cuda::driver::Arg;
use emulator::Options;

use crate::bench::{Bench, every_mode, pointer};

#[test]
fn sums_have_the_same_bits_in_every_mode() {
    let (rows, c) = (37, 1001);
    let x: Vec<f32> = (0..rows * c).map(|i| (i as f32 * 0.37).sin()).collect();
    let mut first: Option<Vec<f32>> = None;
    for options in every_mode() {
        let bench = Bench::new(options);
        let (input, sums) = (bench.buffer(&x), bench.empty(rows * 4));
        let args = [pointer(&input), pointer(&sums), Arg::I32(c as i32)];
        bench.launch("planted_row_sums", rows as u32, 256, 128, &args).unwrap();
        let sums = bench.read::<f32>(&sums, rows);
        for (row, sum) in x.chunks(c).zip(&sums) {
            let expected: f64 = row.iter().map(|x| f64::from(*x)).sum();
            assert!((f64::from(*sum) - expected).abs() < 1e-4, "{sum} {expected}");
        }
        assert_eq!(first.get_or_insert_with(|| sums.clone()), &sums);
    }
}

#[test]
fn arguments_arrive() {
    for options in every_mode() {
        let bench = Bench::new(options);
        let y = bench.empty(4);
        let args = [pointer(&y), Arg::I32(-3), Arg::U64(1 << 40), Arg::F32(0.5)];
        bench.launch("planted_parameters", 1, 32, 0, &args).unwrap();
        assert_eq!(bench.read::<f32>(&y, 1), [-3.0 + (1u64 << 40) as f32 + 0.5]);
    }
}

#[test]
fn threads_and_blocks_know_where_they_are() {
    for options in every_mode() {
        let bench = Bench::new(options);
        let (blocks, threads) = (2 * 3 * 4, 5 * 3 * 2);
        let to = bench.empty(blocks * threads * 4);
        bench.launch_3d("planted_positions", [2, 3, 4], [5, 3, 2], 0, &[pointer(&to)]).unwrap();
        let expected: Vec<_> =
            (0..blocks).flat_map(|b| (0..threads).map(move |t| (b * 1000 + t) as i32)).collect();
        assert_eq!(bench.read::<i32>(&to, blocks * threads), expected);
    }
}

#[test]
fn barriers_order_what_threads_write() {
    for options in every_mode() {
        let bench = Bench::new(options);
        let y = bench.empty(96 * 4);
        bench.launch("planted_neighbour", 1, 96, 96 * 4, &[pointer(&y), Arg::I32(96), Arg::I32(1)]).unwrap();
        assert_eq!(bench.read::<f32>(&y, 96), (0..96).map(|i| ((i + 1) % 96) as f32).collect::<Vec<_>>());

        for barrier in [1, 2] {
            bench.launch("planted_warp_neighbour", 1, 96, 96 * 4, &[pointer(&y), Arg::I32(barrier)]).unwrap();
            assert_eq!(bench.read::<f32>(&y, 96), (0..96).map(|i| (i ^ 1) as f32).collect::<Vec<_>>());
        }

        bench.launch("planted_reduction", 1, 256, 1024, &[pointer(&y), Arg::I32(1)]).unwrap();
        assert_eq!(bench.read::<f32>(&y, 1), [256.0]);
    }
}

#[test]
fn shuffles_and_votes_are_cuda_s() {
    let mut expected = Vec::new();
    for lane in 0..32 {
        let all_sixth = (0..32).filter(|lane| lane % 3 == 0).fold(0u32, |votes, lane| votes | 1 << lane);
        expected.extend([
            5,
            (lane + 9) % 32,
            lane / 8 * 8 + 3,
            if lane >= 2 { lane - 2 } else { lane },
            if lane % 8 >= 2 { lane - 2 } else { lane },
            if lane + 3 < 32 { lane + 3 } else { lane },
            if lane % 16 + 3 < 16 { lane + 3 } else { lane },
            lane ^ 17,
            // A lane of a later group of 8 cannot be read, one of an earlier group can.
            if lane ^ 9 <= lane | 7 { lane ^ 9 } else { lane },
            1,
            all_sixth as i32,
            1,
            1,
            lane ^ 1,
            30 + lane % 2,
            lane ^ 2,
        ]);
    }
    for options in every_mode() {
        let bench = Bench::new(options);
        let y = bench.empty(32 * 16 * 4);
        bench.launch("planted_shuffles", 1, 32, 0, &[pointer(&y)]).unwrap();
        assert_eq!(bench.read::<i32>(&y, 32 * 16), expected);
    }
}

#[test]
fn atomics_count_every_thread() {
    for options in every_mode() {
        let bench = Bench::new(options);
        let (global, from_shared) = (bench.buffer(&[0i32]), bench.empty(50 * 4));
        bench.launch("planted_count", 50, 96, 4, &[pointer(&global), pointer(&from_shared)]).unwrap();
        assert_eq!(bench.read::<i32>(&global, 1), [50 * 96]);
        assert_eq!(bench.read::<u32>(&from_shared, 50), [192; 50]);
    }
}

#[test]
fn asynchronous_copies_arrive_with_the_wait() {
    let x: Vec<f32> = (0..512).map(|i| i as f32).collect();
    for options in every_mode() {
        let bench = Bench::new(options);
        let (input, y) = (bench.buffer(&x), bench.empty(512 * 4));
        let args = |waited| [pointer(&input), pointer(&y), Arg::I32(50), Arg::I32(waited)];
        bench.launch("planted_copy_async", 1, 64, 128 * 16, &args(1)).unwrap();
        let y_expected: Vec<_> = x.iter().map(|x| if *x as i32 / 4 % 64 < 50 { *x } else { 0.0 }).collect();
        assert_eq!(bench.read::<f32>(&y, 512), y_expected);

        let early = bench.launch("planted_copy_async", 1, 64, 128 * 16, &args(0));
        if options.checked {
            assert!(early.unwrap_err().contains("uninitialised read of shared memory"));
        } else {
            early.unwrap();
            assert!(bench.read::<f32>(&y, 256).iter().any(|y| y.is_nan()));
        }
    }
}

#[test]
fn copies_by_memcpy_are_accesses() {
    let bench = Bench::new(Options::checked());
    let (x, y) = (bench.buffer(&[1.0f32; 50]), bench.empty(200));
    let args = |count| [pointer(&x), pointer(&y), Arg::I32(count)];
    bench.launch("planted_memcpy", 1, 1, 0, &args(50)).unwrap();
    assert_eq!(bench.read::<f32>(&y, 50), [1.0; 50]);
    assert!(bench.launch("planted_memcpy", 1, 1, 0, &args(51)).unwrap_err().contains("out of bounds"));
}
