use amdanet::ops::{self, Window};
use amdanet::{Tape, Tensor, Var};

use crate::device;
use crate::gradient::{check_with, random, relative_error};

/// Streams, batch, height, width, channels.
const CASES: [[usize; 5]; 6] = [
    [1, 1, 1, 1, 1],
    [2, 3, 1, 5, 33],
    [1, 2, 7, 1, 31],
    [2, 1, 11, 9, 40],
    [1, 1, 3, 4, 64],
    [2, 2, 17, 2, 3],
];

fn inputs([s, b, h, w, c]: [usize; 5]) -> [Tensor; 3] {
    [random([s, b, h, w, c], 1), random([s, 3, 3, c], 2), random([s, c], 3)]
}

/// The same as a dense convolution whose other weights are zero.
#[test]
fn is_a_dense_convolution_with_a_diagonal_weight() {
    for case @ [s, _, _, _, c] in CASES {
        let [x, w, b] = inputs(case);
        let mut dense = Tensor::zeros([s, c, 3, 3, c]);
        for (i, &v) in w.f32().iter().enumerate() {
            let (channel, tap, stream) = (i % c, i / c % 9, i / (9 * c));
            dense.f32_mut()[((stream * c + channel) * 9 + tap) * c + channel] = v;
        }
        let [x, w, b, dense] = [x, w, b, dense].map(Var::constant);
        let tape = &mut Tape::off();
        let sum = ops::conv(tape, &x, &dense, &b, Window { stride: 1, padding: 1 }).unwrap();
        let want = ops::gelu(tape, &sum).unwrap();
        let y = ops::depthwise_gelu(tape, &x, &w, &b).unwrap();
        assert!(relative_error(y.value().f32(), want.value().f32()) < 2e-6, "{case:?}");
    }
}

#[test]
fn gradients() {
    for case in CASES {
        check_with(&inputs(case), 0.1, 1e-3, |t, v| ops::depthwise_gelu(t, &v[0], &v[1], &v[2]));
    }
}

#[test]
fn on_a_device() {
    let more = [[2, 3, 33, 7, 8], [1, 2, 17, 20, 136], [1, 1, 35, 3, 20]];
    for case in CASES.into_iter().chain(more) {
        device::check(&inputs(case), &[], &[], |t, v, _| ops::depthwise_gelu(t, &v[0], &v[1], &v[2]));
    }
    // Where GELU is x itself or nothing, and its derivative one or zero.
    let mut large = inputs([1, 1, 5, 6, 8]);
    large[0].f32_mut().iter_mut().for_each(|x| *x *= 1000.0);
    device::check(&large, &[], &[], |t, v, _| ops::depthwise_gelu(t, &v[0], &v[1], &v[2]));
}
