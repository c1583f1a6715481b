use amdanet::{Tape, Tensor, Var, ops};

use crate::device;
use crate::gradient::{check, check_threads, random, relative_error};

/// Batch, rows, columns, channels.
const CASES: [(usize, usize, usize, usize); 5] =
    [(1, 1, 1, 3), (3, 3, 5, 11), (1, 1, 7, 16), (2, 13, 17, 37), (1, 2, 2, 64)];

const TAU: f32 = 0.4;

/// x, m, λ. The cosine of each pixel is far from the threshold, on either side of it.
fn inputs((b, h, w, c): (usize, usize, usize, usize)) -> [Tensor; 3] {
    let mut x = random([2, b, h, w, c], 1);
    let half = x.len() / 2;
    let (first, second) = x.f32_mut().split_at_mut(half);
    for (pixel, (a, b)) in first.chunks_mut(c).zip(second.chunks_mut(c)).enumerate() {
        let sign = if pixel % 3 == 1 { -1.0 } else { 1.0 };
        a.iter_mut().for_each(|v| *v += 0.5 * v.signum());
        b.iter_mut().zip(a).for_each(|(b, a)| *b = sign * *a + 0.3 * *b);
    }
    let mut m = random([1, b, h, w, 1], 2);
    m.f32_mut().iter_mut().for_each(|v| *v = 0.5 + 0.4 * *v);
    [x, m, Tensor::scalar(0.7)]
}

fn plain(x: &Tensor, m: &Tensor, lambda: f64, tau: Option<f64>) -> Vec<f32> {
    let (c, half) = (x.shape().last(), x.len() / 2);
    let mut y = vec![0.0; x.len()];
    for (pixel, &m) in m.f32().iter().enumerate() {
        let [a, b] = [0, half]
            .map(|at| x.f32()[at + pixel * c..][..c].iter().map(|&v| f64::from(v)).collect::<Vec<_>>());
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let cosine = dot(&a, &b) / (dot(&a, &a).sqrt().max(1e-8) * dot(&b, &b).sqrt().max(1e-8));
        for i in 0..c {
            let (y0, y1) = match tau {
                None => {
                    let d = lambda * f64::from(m) * (b[i] - a[i]);
                    (b[i] - d, a[i] + d)
                }
                Some(tau) => {
                    assert!((cosine - tau).abs() > 0.1);
                    let g = if cosine < tau { 1.0 } else { 0.0 };
                    let d = g * lambda * f64::from(m) * (a[i] - b[i]);
                    (a[i] - d, b[i] + d)
                }
            };
            (y[pixel * c + i], y[half + pixel * c + i]) = (y0 as f32, y1 as f32);
        }
    }
    y
}

#[test]
fn matches_a_plain_loop() {
    for case in CASES {
        for tau in [None, Some(TAU)] {
            let [x, m, lambda] = inputs(case);
            let want = plain(&x, &m, f64::from(lambda.item()), tau.map(f64::from));
            let [x, m, lambda] = [x, m, lambda].map(Var::constant);
            let y = ops::gate(&mut Tape::off(), &x, &m, &lambda, tau).unwrap();
            assert!(relative_error(y.value().f32(), &want) < 1e-6, "{case:?} {tau:?}");
        }
    }
}

#[test]
fn gradients() {
    for case in CASES {
        for tau in [None, Some(TAU)] {
            // The first case is one pixel that the gate keeps closed: m and λ have no gradient there.
            check(&inputs(case), |t, v| ops::gate(t, &v[0], &v[1], &v[2], tau));
        }
    }
    check_threads(&inputs((2, 13, 31, 19)), |t, v| ops::gate(t, &v[0], &v[1], &v[2], Some(TAU)));
}

#[test]
fn on_a_device() {
    // Chosen so that the sums in the gradients of m and λ do not cancel by chance.
    let more = [
        (1, 1, 1, 312),
        (3, 1, 1, 35),
        (3, 1, 37, 64),
        (2, 33, 20, 16),
        (2, 5, 9, 320),
        (1, 1, 3, 1030),
        (1, 1, 4, 2056),
    ];
    for case in CASES.into_iter().chain(more) {
        for tau in [None, Some(TAU)] {
            let [x, m, lambda] = inputs(case);
            device::check(&[x, m], &[lambda], &[], |t, v, _| ops::gate(t, &v[0], &v[1], &v[2], tau));
        }
    }
}

#[test]
fn a_vector_of_zeros_passes_the_gate() {
    // Its cosine is 0, below the threshold; without the bound on the norm it would be 0/0.
    let [mut x, m, lambda] = inputs((1, 1, 1, 5));
    x.f32_mut()[..5].fill(0.0);
    let b = x.f32()[5..].to_vec();
    let step = lambda.item() * m.item();
    let [x, m, lambda] = [x, m, lambda].map(Var::constant);
    let y = ops::gate(&mut Tape::off(), &x, &m, &lambda, Some(TAU)).unwrap();
    let want: Vec<f32> = b.iter().map(|b| step * b).chain(b.iter().map(|b| b - step * b)).collect();
    assert!(relative_error(y.value().f32(), &want) < 1e-6);
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    let [x, m, lambda] = [random([2, 1, 2, 2, 5], 1), random([1, 1, 2, 2, 5], 2), Tensor::scalar(1.0)];
    let [x, m, lambda] = [x, m, lambda].map(Var::constant);
    let e = ops::gate(&mut Tape::off(), &x, &m, &lambda, None).unwrap_err().to_string();
    assert!(e.contains("gate") && e.contains("(2, 1, 2, 2, 5)") && e.contains("(1, 1, 2, 2, 5)"), "{e}");
}
