use amdanet::{Tape, Tensor, Var, ops};

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
    // The same size: the variable itself.
    check_with(&[random([1, 2, 3, 4, 5], 1)], 0.5, 1e-4, |t, v| {
        let y = ops::resize(t, &v[0], 3, 4)?;
        ops::add(t, &y, v[0].clone())
    });
}

/// Four maps and two images.
fn inputs(batch: usize, sizes: [(usize, usize); 4], (h, w): (usize, usize), c: usize) -> Vec<Tensor> {
    let maps = sizes.iter().zip(1..).map(|(&(h, w), seed)| random([2, batch, h, w, c], seed));
    maps.chain([5, 6].map(|seed| random([1, batch, h, w, 3], seed))).collect()
}

fn concat(tape: &mut Tape, v: &[Var]) -> amdanet::Result<Var> {
    ops::resize_concat(tape, [&v[0], &v[1], &v[2], &v[3]], [&v[4], &v[5]])
}

const SIZES: [(usize, usize); 4] = [(5, 7), (3, 4), (2, 2), (1, 1)];

#[test]
fn concatenation_is_the_maps_resized_and_the_images() {
    for (batch, c, size) in [(1, 16, (20, 28)), (3, 5, (17, 29)), (2, 1, (5, 7))] {
        let x = inputs(batch, SIZES, size, c);
        let vars: Vec<Var> = x.iter().cloned().map(Var::constant).collect();
        let y = concat(&mut Tape::off(), &vars).unwrap();
        let channels = 8 * c + 6;
        assert_eq!(*y.shape(), [1, batch, size.0, size.1, channels]);
        let mut want = vec![0.0; y.value().len()];
        for (i, want) in want.iter_mut().enumerate() {
            let (pixel, channel) = (i / channels, i % channels);
            let (image, row, column) = (pixel / (size.0 * size.1), pixel / size.1 % size.0, pixel % size.1);
            *want = if channel < 8 * c {
                let (level, stream) = (channel / (2 * c), channel / c % 2);
                let (h, w) = SIZES[level];
                let plane = &x[level].f32()[(stream * batch + image) * h * w * c..];
                sample(plane, [h, w, c], [row, column, channel % c], [size.0, size.1]) as f32
            } else {
                let at = channel - 8 * c;
                x[4 + at / 3].f32()[pixel * 3 + at % 3]
            };
        }
        assert!(relative_error(y.value().f32(), &want) < 2e-6, "{batch} {c} {size:?}");
    }
}

#[test]
fn concatenation_gradients() {
    for (batch, c, size) in [(1, 16, (20, 28)), (3, 5, (17, 29)), (1, 1, (3, 3))] {
        check_with(&inputs(batch, SIZES, size, c), 0.5, 1e-4, concat);
    }
    check_threads(&inputs(2, SIZES, (37, 41), 3), concat);
    check_threads(&[random([2, 2, 13, 17, 5], 1)], |t, v| ops::resize(t, &v[0], 37, 41));
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    let x = Var::constant(random([1, 1, 4, 5, 2], 1));
    let e = ops::resize(&mut Tape::off(), &x, 0, 3).unwrap_err().to_string();
    assert!(e.contains("resize") && e.contains("0x3") && e.contains("(1, 1, 4, 5, 2)"), "{e}");
    let mut x = inputs(2, SIZES, (8, 9), 3);
    x[2] = random([2, 1, 2, 2, 3], 1);
    let vars: Vec<Var> = x.into_iter().map(Var::constant).collect();
    let e = concat(&mut Tape::off(), &vars).unwrap_err().to_string();
    assert!(e.contains("resize_concat") && e.contains("(2, 1, 2, 2, 3)"), "{e}");
}
