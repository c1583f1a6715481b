use amdanet::{Tape, Var, ops};

use crate::device;
use crate::gradient::{check, check_with, random, relative_error};

/// Streams, rows, inputs, outputs.
const CASES: [(usize, usize, usize, usize); 7] = [
    (1, 1, 1, 1),
    (2, 7, 5, 3),
    (1, 1601, 33, 17),
    (2, 50, 70, 301),
    (1, 3, 1, 5),
    (1, 1600, 4, 1030),
    (2, 3000, 8, 264),
];

#[test]
fn matches_a_plain_loop() {
    for (s, rows, i, o) in CASES {
        let (x, w, b) = (random([s, rows, i], 1), random([s, o, i], 2), random([s, o], 3));
        let mut want = vec![0.0; s * rows * o];
        for (n, y) in want.iter_mut().enumerate() {
            let (stream, row, out) = (n / (rows * o), n / o % rows, n % o);
            let (x, w) =
                (&x.f32()[(stream * rows + row) * i..][..i], &w.f32()[(stream * o + out) * i..][..i]);
            let dot: f64 = x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
            *y = (dot + f64::from(b.f32()[stream * o + out])) as f32;
        }
        let [x, w, b] = [x, w, b].map(Var::constant);
        let y = ops::linear(&mut Tape::off(), &x, &w, Some(&b)).unwrap();
        assert!(relative_error(y.value().f32(), &want) < 1e-6, "{s} {rows} {i} {o}");
    }
}

#[test]
fn gradients() {
    for (s, rows, i, o) in CASES {
        let inputs =
            [random([s, rows, i], 1), random([s, o, i], 2), random([s, o], 3), random([s, rows, o], 4)];
        check_with(&inputs, 0.5, 1e-4, |t, v| ops::linear_add(t, &v[0], &v[1], &v[2], &v[3]));
        check_with(&inputs[..2], 0.5, 1e-4, |t, v| ops::linear(t, &v[0], &v[1], None));
    }
}

#[test]
fn on_a_device() {
    for (s, rows, i, o) in CASES {
        let inputs =
            [random([s, rows, i], 1), random([s, o, i], 2), random([s, o], 3), random([s, rows, o], 4)];
        device::check(&inputs, &[], &[], |t, v, _| ops::linear_add(t, &v[0], &v[1], &v[2], &v[3]));
        device::check(&inputs[..2], &[], &[], |t, v, _| ops::linear(t, &v[0], &v[1], None));
    }
}

/// A gradient that two operations give is a sum, which the second one to come makes.
#[test]
fn adds_to_the_gradient_of_another() {
    for (s, rows, c) in [(2, 7, 5), (1, 40, 64), (2, 3, 520)] {
        let activations = [random([s, rows, c], 1), random([s, c, c], 2), random([s, c], 3)];
        let parameters = [random([s, c], 5), random([s, c], 6)];
        let linear = |t: &mut Tape, v: &[Var]| {
            let y = ops::linear(t, &v[0], &v[1], Some(&v[2]))?;
            ops::add(t, &v[0], y)
        };
        let norm = |t: &mut Tape, v: &[Var]| {
            let y = ops::layer_norm(t, &v[0], &v[1], &v[2], 1e-5)?;
            ops::add(t, &v[0], y)
        };
        let x = &activations[..1];
        check_with(&activations, 0.5, 1e-4, linear);
        check(&[x, &parameters].concat(), norm);
        device::check(&activations, &[], &[], |t, v, _| linear(t, v));
        device::check(x, &parameters, &[], |t, v, _| norm(t, v));
    }
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    let x = Var::constant(random([1, 4, 5], 1));
    let w = Var::constant(random([1, 3, 6], 2));
    let e = ops::linear(&mut Tape::off(), &x, &w, None).unwrap_err().to_string();
    assert!(e.contains("linear") && e.contains("(1, 4, 5)") && e.contains("(1, 3, 6)"), "{e}");
}
