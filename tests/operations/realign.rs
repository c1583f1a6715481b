use amdanet::{Tape, Tensor, Var, ops};

use crate::device;
use crate::gradient::{check, check_threads, random, relative_error};

/// Batch, rows, columns, channels.
const CASES: [(usize, usize, usize, usize); 5] =
    [(1, 1, 1, 1), (3, 3, 5, 11), (1, 1, 7, 16), (2, 19, 17, 21), (1, 2, 3, 64)];

/// x, gate, channel, spatial; the weights in (0, 1), as a sigmoid leaves them.
fn inputs((b, h, w, c): (usize, usize, usize, usize)) -> [Tensor; 4] {
    let weights = |mut t: Tensor| {
        t.f32_mut().iter_mut().for_each(|v| *v = 0.5 + 0.45 * *v);
        t
    };
    let mut x = random([2, b, h, w, c], 1);
    x.f32_mut().iter_mut().for_each(|v| *v *= 2.0);
    [
        x,
        weights(random([1, b, h, w, c], 2)),
        weights(random([1, 1, b, 2 * c], 3)),
        weights(random([1, b, h, w, 2], 4)),
    ]
}

/// Runs `f(a, b, gate, channel weights, spatial weights)` for each pixel and channel.
fn plain(
    [x, gate, channel, spatial]: &[Tensor; 4],
    f: impl Fn(f64, f64, f64, [f64; 2], [f64; 2]) -> [f64; 2],
) -> Vec<f32> {
    let (c, half, pixels) = (x.shape().last(), x.len() / 2, x.dim(2) * x.dim(3));
    let at = |t: &Tensor, i: usize| f64::from(t.f32()[i]);
    let mut y = vec![0.0; x.len()];
    for i in 0..half {
        let (pixel, image) = (i / c, i / c / pixels);
        let w = [0, c].map(|from| at(channel, image * 2 * c + from + i % c));
        let s = [0, 1].map(|stream| at(spatial, 2 * pixel + stream));
        let out = f(at(x, i), at(x, half + i), at(gate, i), w, s);
        (y[i], y[half + i]) = (out[0] as f32, out[1] as f32);
    }
    y
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

#[test]
fn matches_a_plain_loop() {
    for case in CASES {
        let inputs = inputs(case);
        let [x, gate, channel, spatial] = inputs.clone().map(Var::constant);
        let want = plain(&inputs, |a, b, gate, w, s| {
            let (wa, wb) = (gate * w[0] * s[0], gate * w[1] * s[1]);
            let (a2, b2) = (a + wa * b, b + wb * a);
            [(a2, wa), (b2, wb)].map(|(x, w)| sigmoid(x * w - x) * x + x * w)
        });
        let y = ops::realign_release(&mut Tape::off(), &x, &gate, &channel, &spatial).unwrap();
        assert!(relative_error(y.value().f32(), &want) < 1e-6, "{case:?}");

        let want = plain(&inputs, |a, b, _, w, s| {
            let r = |x: f64, w: f64| sigmoid(w * x - x) * x + x;
            [r(a, w[0]) + r(a, s[0]), r(b, w[1]) + r(b, s[1])]
        });
        let y = ops::realign_paper(&mut Tape::off(), &x, &channel, &spatial).unwrap();
        assert!(relative_error(y.value().f32(), &want) < 1e-6, "{case:?}");
    }
}

#[test]
fn gradients() {
    for case in CASES {
        let [x, gate, channel, spatial] = inputs(case);
        let without_gate = [x.clone(), channel.clone(), spatial.clone()];
        check(&[x, gate, channel, spatial], |t, v| ops::realign_release(t, &v[0], &v[1], &v[2], &v[3]));
        check(&without_gate, |t, v| ops::realign_paper(t, &v[0], &v[1], &v[2]));
    }
    let [x, gate, channel, spatial] = inputs((2, 29, 23, 13));
    let without_gate = [x.clone(), channel.clone(), spatial.clone()];
    check_threads(&[x, gate, channel, spatial], |t, v| ops::realign_release(t, &v[0], &v[1], &v[2], &v[3]));
    check_threads(&without_gate, |t, v| ops::realign_paper(t, &v[0], &v[1], &v[2]));
}

#[test]
fn on_a_device() {
    let more = [
        (1, 1, 1, 320),
        (3, 1, 1, 35),
        (3, 1, 37, 64),
        (2, 33, 20, 16),
        (2, 5, 9, 320),
        (1, 1, 3, 1030),
        (1, 1, 3, 2056),
    ];
    for case in CASES.into_iter().chain(more) {
        let [x, gate, channel, spatial] = inputs(case);
        let without_gate = [x.clone(), channel.clone(), spatial.clone()];
        device::check(&[x, gate, channel, spatial], &[], &[], |t, v, _| {
            ops::realign_release(t, &v[0], &v[1], &v[2], &v[3])
        });
        device::check(&without_gate, &[], &[], |t, v, _| ops::realign_paper(t, &v[0], &v[1], &v[2]));
    }
    // Beyond what e^x can hold. σ′ = σ·(1 − σ) there magnifies the last bit of a σ near 1, which a device's division may
    // have other than the CPU's.
    let [mut x, gate, channel, spatial] = inputs((1, 2, 3, 16));
    x.f32_mut().iter_mut().for_each(|v| *v *= 150.0);
    let without_gate = [x.clone(), channel.clone(), spatial.clone()];
    device::check(&[x, gate, channel, spatial], &[], &[], |t, v, _| {
        ops::realign_release(t, &v[0], &v[1], &v[2], &v[3])
    });
    device::check_within(1e-4, &without_gate, &[], &[], |t, v, _| ops::realign_paper(t, &v[0], &v[1], &v[2]));
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    let [x, gate, channel, spatial] = inputs((2, 3, 4, 5)).map(Var::constant);
    let narrow = Var::constant(random([1, 1, 2, 5], 1));
    let e = ops::realign_paper(&mut Tape::off(), &x, &narrow, &spatial).unwrap_err().to_string();
    assert!(
        e.contains("realign_paper") && e.contains("(2, 2, 3, 4, 5)") && e.contains("(1, 1, 2, 5)"),
        "{e}"
    );
    let e = ops::realign_release(&mut Tape::off(), &x, &spatial, &channel, &spatial).unwrap_err().to_string();
    assert!(e.contains("realign_release") && e.contains("gate") && e.contains("(1, 2, 3, 4, 2)"), "{e}");
    ops::realign_release(&mut Tape::off(), &x, &gate, &channel, &spatial).unwrap();
}
