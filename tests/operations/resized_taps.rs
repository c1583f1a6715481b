use amdanet::ops::{self, Window};
use amdanet::{Result, Tape, Tensor, Var};

use crate::device;
use crate::gradient::{check_threads, check_with, random, relative_error};

/// Batch, height, width, channels of a map, outputs; the sizes of the four maps.
type Case = ([usize; 5], [[usize; 2]; 4]);
const CASES: [Case; 4] = [
    ([1, 8, 12, 3, 5], [[2, 3], [1, 2], [1, 1], [1, 1]]),
    ([3, 13, 10, 2, 16], [[4, 3], [2, 2], [1, 1], [5, 7]]),
    ([1, 1, 1, 1, 1], [[1, 1], [1, 1], [1, 1], [1, 1]]),
    ([2, 33, 47, 4, 19], [[9, 12], [5, 6], [3, 3], [2, 2]]),
];

/// Four maps, both pictures side by side, weight, bias.
fn inputs([b, h, w, c, o]: [usize; 5], sizes: [[usize; 2]; 4]) -> Vec<Tensor> {
    let mut seed = 0;
    let mut next = |shape: [usize; 5]| {
        seed += 1;
        random(shape, seed)
    };
    let mut all: Vec<Tensor> = sizes.map(|[h, w]| next([2, b, h, w, c])).into();
    all.push(next([1, b, h, w, 6]));
    all.push(next([1, o, 3, 3, 8 * c + 6]));
    all.push(random([1, o], 99));
    all
}

/// The convolution as the fusion head computes it.
fn folded(tape: &mut Tape, v: &[Var], c: usize) -> Result<Var> {
    let mut taps = Vec::new();
    for level in 0..4 {
        let weight = ops::tap_weights(tape, &v[5], level * 2 * c, 2, c)?;
        taps.push(ops::linear(tape, &v[level], &weight, None)?);
    }
    let rest = ops::select_channels(tape, &v[5], 8 * c..8 * c + 6)?;
    let base = ops::conv(tape, &v[4], &rest, &v[6], Window { stride: 1, padding: 1 })?;
    ops::add_resized_taps(tape, base, [&taps[0], &taps[1], &taps[2], &taps[3]])
}

/// The published order: resize, concatenate, convolve.
#[test]
fn is_the_convolution_of_the_resized_maps() {
    for (case @ [b, h, w, c, _], sizes) in CASES {
        let tape = &mut Tape::off();
        let v: Vec<Var> = inputs(case, sizes).into_iter().map(Var::constant).collect();
        let mut all = Tensor::zeros([1, b, h, w, 8 * c + 6]);
        let mut put = |x: &[f32], from: usize, count: usize| {
            for (to, x) in all.f32_mut().chunks_exact_mut(8 * c + 6).zip(x.chunks_exact(count)) {
                to[from..from + count].copy_from_slice(x);
            }
        };
        for (level, map) in v[..4].iter().enumerate() {
            let large = ops::resize(tape, map, h, w).unwrap();
            let (first, second) = large.value().f32().split_at(b * h * w * c);
            put(first, 2 * level * c, c);
            put(second, (2 * level + 1) * c, c);
        }
        put(v[4].value().f32(), 8 * c, 6);
        let want =
            ops::conv(tape, &Var::constant(all), &v[5], &v[6], Window { stride: 1, padding: 1 }).unwrap();
        let y = folded(tape, &v, c).unwrap();
        assert!(relative_error(y.value().f32(), want.value().f32()) < 1e-6, "{case:?}");
    }
}

#[test]
fn gradients() {
    for (case, sizes) in CASES {
        let inputs = inputs(case, sizes);
        check_with(&inputs, 0.5, 1e-4, |t, v| folded(t, v, case[3]));
        check_threads(&inputs, |t, v| folded(t, v, case[3]));
    }
}

#[test]
fn on_a_device() {
    // Beside these: channels by the vector, more rows than a strip has, one map larger than the base.
    let more = [
        ([1, 70, 9, 0, 8], [[18, 3], [9, 2], [5, 1], [3, 9]]),
        ([3, 5, 66, 0, 16], [[2, 17], [5, 33], [11, 9], [1, 70]]),
        ([1, 3, 4, 0, 24], [[1, 1], [3, 4], [2, 2], [1, 2]]),
    ];
    for ([b, h, w, _, o], sizes) in CASES.into_iter().take(3).chain(more) {
        let mut inputs = vec![random([1, b, h, w, o], 9)];
        inputs.extend(sizes.iter().zip(1..).map(|(&[h, w], seed)| random([2, b, h, w, 9 * o], seed)));
        // The base is shared with its variable.
        device::check(&inputs, &[], &[], |t, v, _| {
            ops::add_resized_taps(t, v[0].clone(), [&v[1], &v[2], &v[3], &v[4]])
        });
        if o == 24 {
            // The buffer of the base is reused.
            device::check(&inputs, &[], &[], |t, v, _| {
                let base = ops::add(t, &v[0], v[0].clone())?;
                ops::add_resized_taps(t, base, [&v[1], &v[2], &v[3], &v[4]])
            });
        }
    }
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    let tape = &mut Tape::off();
    let base = Var::constant(random([1, 1, 4, 4, 2], 1));
    let map = Var::constant(random([2, 1, 2, 2, 17], 2));
    let e = ops::add_resized_taps(tape, base, [&map; 4]).unwrap_err().to_string();
    assert!(e.contains("add_resized_taps") && e.contains("(2, 1, 2, 2, 17)"), "{e}");
    let weight = Var::constant(random([1, 2, 3, 3, 10], 3));
    assert!(ops::tap_weights(tape, &weight, 6, 2, 3).is_err());
    assert!(ops::select_channels(tape, &weight, 9..11).is_err());
}
