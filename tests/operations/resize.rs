use amdanet::{Tape, Tensor, Var, ops};

use crate::device;
use crate::gradient::{check_threads, check_with, random, relative_error};

/// Streams, batch, height, width, channels; new height, new width.
type Case = ([usize; 5], usize, usize);
const CASES: [Case; 8] = [
    ([1, 1, 1, 1, 1], 1, 3),
    ([2, 3, 3, 5, 11], 7, 9),
    ([1, 2, 4, 4, 16], 16, 16),
    ([2, 1, 15, 20, 3], 60, 80),
    ([1, 1, 9, 7, 5], 4, 3),
    ([1, 3, 13, 8, 2], 5, 19),
    ([1, 1, 6, 5, 3], 6, 11),
    ([1, 1, 10, 4, 3], 1, 4),
];

/// One number of a plane `(h, w, C)` resized, by the definition.
fn sample(plane: &[f32], [h, w, c]: [usize; 3], [row, column, channel]: [usize; 3], size: [usize; 2]) -> f64 {
    let taps = |i: usize, input: usize, output: usize| {
        let at = ((i as f64 + 0.5) * input as f64 / output as f64 - 0.5).clamp(0.0, input as f64 - 1.0);
        let near = at.floor();
        [(near as usize, 1.0 - (at - near)), ((near as usize + 1).min(input - 1), at - near)]
    };
    let mut sum = 0.0;
    for (y, wy) in taps(row, h, size[0]) {
        for (x, wx) in taps(column, w, size[1]) {
            sum += wy * wx * f64::from(plane[(y * w + x) * c + channel]);
        }
    }
    sum
}

#[test]
fn matches_a_plain_loop() {
    for (shape, height, width) in CASES {
        let [s, b, h, w, c] = shape;
        let x = random(shape, 1);
        let want: Vec<f32> = (0..s * b * height * width * c)
            .map(|i| {
                let (plane, at) =
                    (i / (height * width * c), [i / (width * c) % height, i / c % width, i % c]);
                sample(&x.f32()[plane * h * w * c..], [h, w, c], at, [height, width]) as f32
            })
            .collect();
        let y = ops::resize(&mut Tape::off(), &Var::constant(x), height, width).unwrap();
        assert_eq!(*y.shape(), [s, b, height, width, c]);
        // Positions are found in f32, as PyTorch does.
        assert!(relative_error(y.value().f32(), &want) < 2e-6, "{shape:?} {height}x{width}");
    }
}

#[test]
fn known_values() {
    let resize = |data: &[f32], width| {
        let x = Tensor::from_slice([1, 1, 1, data.len(), 1], data).unwrap();
        let y = ops::resize(&mut Tape::off(), &Var::constant(x), 1, width).unwrap();
        y.value().f32().to_vec()
    };
    assert_eq!(resize(&[0.0, 1.0], 4), [0.0, 0.25, 0.75, 1.0]);
    assert_eq!(resize(&[0.0, 1.0, 2.0, 3.0], 2), [0.5, 2.5]);
    assert_eq!(resize(&[0.0, 1.0, 2.0, 3.0, 4.0], 1), [2.0]);
    // The same size is the same number, whatever stands beside it.
    assert_eq!(resize(&[f32::INFINITY, 1.0], 2), [f32::INFINITY, 1.0]);
}

#[test]
fn gradients() {
    for (shape, height, width) in CASES {
        check_with(&[random(shape, 1)], 0.5, 1e-4, |t, v| ops::resize(t, &v[0], height, width));
    }
    check_threads(&[random([2, 2, 13, 17, 5], 1)], |t, v| ops::resize(t, &v[0], 37, 41));
    // The same size: the variable itself.
    check_with(&[random([1, 2, 3, 4, 5], 1)], 0.5, 1e-4, |t, v| {
        let y = ops::resize(t, &v[0], 3, 4)?;
        ops::add(t, &y, v[0].clone())
    });
}

#[test]
fn on_a_device() {
    let wide = [([1, 2, 3, 5, 24], 13, 10), ([2, 1, 33, 2, 8], 66, 5), ([1, 1, 40, 37, 16], 7, 9)];
    for (shape, height, width) in CASES.into_iter().chain(wide) {
        device::check(&[random(shape, 1)], &[], &[], |t, v, _| ops::resize(t, &v[0], height, width));
    }
    // Large values: weights of one pixel add up to one, so nothing overflows that fits.
    let mut large = random([1, 1, 4, 6, 8], 1);
    large.f32_mut().iter_mut().for_each(|x| *x *= 65504.0);
    device::check(&[large], &[], &[], |t, v, _| ops::resize(t, &v[0], 9, 11));
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    let x = Var::constant(random([1, 1, 4, 5, 2], 1));
    let e = ops::resize(&mut Tape::off(), &x, 0, 3).unwrap_err().to_string();
    assert!(e.contains("resize") && e.contains("0x3") && e.contains("(1, 1, 4, 5, 2)"), "{e}");
}
