use amdanet::random::Stream;
use amdanet::{Device, Shape, Tape, Tensor, Var, ops};

use crate::device;
use crate::gradient::{check_with, random};

/// Streams, batch, rows, columns, channels.
const CASES: [[usize; 5]; 4] = [[2, 3, 3, 5, 7], [1, 1, 1, 1, 1], [1, 3, 1, 1, 9], [2, 1, 70, 61, 5]];

fn mask(shape: impl Into<Shape>, keep: f32, seed: u64, stream: u64) -> Tensor {
    ops::feature_mask(&Device::Cpu, shape, keep, seed, stream).unwrap()
}

#[test]
fn masks_depend_on_seed_stream_and_index_alone() {
    let whole = mask([1, 3, 101, 111], 0.85, 11, 4);
    let (bits, stream) = (whole.as_slice::<u8>(), Stream::new(11, 4));
    for i in (0..bits.len()).step_by(997) {
        assert_eq!(bits[i], u8::from(stream.uniform(i as u64) < 0.85), "{i}");
    }
    let kept = bits.iter().map(|&b| f64::from(b)).sum::<f64>() / bits.len() as f64;
    assert!((kept - 0.85).abs() < 0.006, "{kept}");
    let pool = rayon::ThreadPoolBuilder::new().num_threads(5).build().unwrap();
    assert_eq!(pool.install(|| mask([33_633], 0.85, 11, 4)).as_slice::<u8>(), bits);
    assert_ne!(mask([33_633], 0.85, 11, 5).as_slice::<u8>(), bits);
    assert!(mask([5], 1.0, 1, 1).as_slice::<u8>() == [1; 5]);
    assert!(mask([5], 0.0, 1, 1).as_slice::<u8>() == [0; 5]);
}

#[test]
fn factors_are_zero_or_make_up_for_the_dropped() {
    let f = ops::drop_path_factors(&Device::Cpu, 4000, [0.0, 0.25], 3, 1).unwrap();
    assert_eq!(*f.shape(), [2, 4000]);
    let (first, second) = f.f32().split_at(4000);
    assert!(first.iter().all(|&f| f == 1.0));
    assert!(second.iter().all(|&f| f == 0.0 || f == 1.0 / 0.75));
    let dropped = second.iter().filter(|&&f| f == 0.0).count();
    assert!((880..1120).contains(&dropped), "{dropped}");
    let f = ops::channel_dropout_factors(&Device::Cpu, [1, 3, 64], 0.1, 3, 2).unwrap();
    assert_eq!(*f.shape(), [1, 3, 64]);
    assert!(f.f32().contains(&0.0) && f.f32().iter().all(|&f| f == 0.0 || f == 1.0 / (1.0 - 0.1)));
    assert_eq!(ops::drop_path_factors(&Device::Cpu, 3, [1.0; 2], 3, 1).unwrap().f32(), [0.0; 6]);
}

#[test]
fn match_a_plain_loop() {
    for case in CASES {
        let [s, b, h, w, c] = case;
        let x = Var::constant(random(case, 1));
        let t = &mut Tape::off();
        let mask = mask(case, 0.5, 1, 1);
        let (rows, channels) = (random([s, b], 2), random([s, b, c], 3));
        let masked = ops::apply_mask(t, &x, &mask).unwrap();
        let branch = Var::constant(random(case, 4));
        let sum = ops::drop_path(t, &x, &branch, &rows).unwrap();
        let by_channel = ops::scale_channels(t, &x, &channels).unwrap();
        for (i, &x) in x.value().f32().iter().enumerate() {
            let sample = i / (h * w * c);
            assert_eq!(masked.value().f32()[i], x * f32::from(mask.as_slice::<u8>()[i]));
            assert_eq!(sum.value().f32()[i], x + branch.value().f32()[i] * rows.f32()[sample]);
            assert_eq!(by_channel.value().f32()[i], x * channels.f32()[sample * c + i % c]);
        }
    }
}

#[test]
fn gradients() {
    for case in CASES {
        let [s, b, _, _, c] = case;
        let x = [random(case, 1), random(case, 4)];
        let mask = mask(case, 0.6, 1, 1);
        let (rows, channels) = (random([s, b], 2), random([s, b, c], 3));
        check_with(&x[..1], 0.5, 1e-4, |t, v| ops::apply_mask(t, &v[0], &mask));
        check_with(&x, 0.5, 1e-4, |t, v| ops::drop_path(t, &v[0], &v[1], &rows));
        check_with(&x[..1], 0.5, 1e-4, |t, v| ops::scale_channels(t, &v[0], &channels));
    }
}

#[test]
fn masks_on_a_device_have_the_same_bits() {
    for len in [1, 3, 4, 15, 16, 17, 4099, 70_001] {
        for (seed, stream) in [(0, 0), (11, 4), (u64::MAX, u64::MAX - 1), (7 << 40 | 3, 1 << 33)] {
            for keep in [0.0, 0.15, 0.85, 1.0] {
                let want = mask([len], keep, seed, stream);
                for device in device::all() {
                    let got = ops::feature_mask(device, [len], keep, seed, stream).unwrap();
                    let got = got.to(&Device::Cpu).unwrap();
                    assert_eq!(got.as_slice::<u8>(), want.as_slice::<u8>(), "{len} {seed} {stream} {keep}");
                }
            }
        }
    }
}

#[test]
fn on_a_device() {
    let more = [[2, 3, 4, 5, 8], [1, 3, 7, 9, 16], [1, 1, 5, 5, 40], [1, 2, 3, 8, 1]];
    for case in CASES.into_iter().chain(more) {
        let [s, b, _, _, c] = case;
        let x = [random(case, 1), random(case, 4)];
        let constants = [mask(case, 0.6, 1, 1), random([s, b], 2), random([s, b, c], 3)];
        device::check(&x[..1], &[], &constants, |t, v, constants| ops::apply_mask(t, &v[0], &constants[0]));
        device::check(&x, &[], &constants, |t, v, constants| ops::drop_path(t, &v[0], &v[1], &constants[1]));
        device::check(&x[..1], &[], &constants, |t, v, constants| {
            ops::scale_channels(t, &v[0], &constants[2])
        });
    }
    for device in device::all() {
        for (seed, stream) in [(3, 1), (u64::MAX, u64::MAX - 1), (7 << 40 | 3, 1 << 33)] {
            let make = |device| {
                [
                    ops::drop_path_factors(device, 9, [0.0, 0.25], seed, stream).unwrap(),
                    ops::channel_dropout_factors(device, [1, 3, 101], 0.1, seed, stream).unwrap(),
                ]
            };
            for (got, want) in make(device).iter().zip(make(&Device::Cpu)) {
                assert!(got.device() == *device && got.shape() == want.shape());
                assert_eq!(got.to(&Device::Cpu).unwrap().f32(), want.f32());
            }
        }
    }
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    let (t, x) = (&mut Tape::off(), Var::constant(random([2, 3, 4, 5, 6], 1)));
    let wrong = Tensor::zeros([3, 2]);
    for e in [
        ops::apply_mask(t, &x, &wrong),
        ops::drop_path(t, &x, &x, &wrong),
        ops::scale_channels(t, &x, &wrong),
    ] {
        let e = e.unwrap_err().to_string();
        assert!(e.contains("(2, 3, 4, 5, 6)") && e.contains("(3, 2)"), "{e}");
    }
    assert!(ops::apply_mask(t, &x, x.value()).is_err());
}
