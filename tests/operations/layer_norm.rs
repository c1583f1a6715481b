use amdanet::{Shape, Tape, Tensor, Var, ops};

use crate::device;
use crate::gradient::{check, check_threads, random, relative_error};

fn cases() -> Vec<Shape> {
    vec![
        [1, 1, 1].into(),
        [2, 1, 7].into(),
        [1, 3, 5, 16].into(),
        [2, 3, 3, 5, 35].into(),
        [2, 300, 19].into(),
        [1, 1, 64].into(),
    ]
}

/// Values with a mean of 3, so that a careless variance would show.
fn inputs(shape: Shape) -> [Tensor; 3] {
    let mut x = random(shape, 1);
    x.f32_mut().iter_mut().for_each(|v| *v += 3.0);
    [x, random([shape[0], shape.last()], 2), random([shape[0], shape.last()], 3)]
}

#[test]
fn matches_a_plain_loop() {
    for shape in cases() {
        let [x, w, b] = inputs(shape);
        let (c, rows) = (shape.last(), x.len() / (shape[0] * shape.last()));
        let mut want = Vec::new();
        for (r, x) in x.f32().chunks(c).enumerate() {
            let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / c as f64;
            let variance = x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / c as f64;
            for (i, &v) in x.iter().enumerate() {
                let p = r / rows * c + i;
                let normal = (f64::from(v) - mean) / (variance + 1e-5).sqrt();
                want.push((normal * f64::from(w.f32()[p]) + f64::from(b.f32()[p])) as f32);
            }
        }
        let [x, w, b] = [x, w, b].map(Var::constant);
        let y = ops::layer_norm(&mut Tape::off(), &x, &w, &b, 1e-5).unwrap();
        assert!(relative_error(y.value().f32(), &want) < 2e-6, "{shape}");
    }
}

#[test]
fn gradients() {
    for shape in cases() {
        check(&inputs(shape), |t, v| ops::layer_norm(t, &v[0], &v[1], &v[2], 1e-5));
    }
    check_threads(&inputs([2, 700, 33].into()), |t, v| ops::layer_norm(t, &v[0], &v[1], &v[2], 1e-6));
}

#[test]
fn on_a_device() {
    let wide = [[2, 3, 513].into(), [1, 2, 1024].into(), [1, 70, 8].into(), [2, 40, 128].into()];
    for shape in cases().into_iter().chain(wide) {
        let [x, w, b] = inputs(shape);
        device::check(&[x], &[w, b], &[], |t, v, _| ops::layer_norm(t, &v[0], &v[1], &v[2], 1e-5));
    }
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    let [x, w, b] = [random([1, 4, 5], 1), random([1, 6], 2), random([1, 5], 3)].map(Var::constant);
    let e = ops::layer_norm(&mut Tape::off(), &x, &w, &b, 1e-5).unwrap_err().to_string();
    assert!(e.contains("layer_norm") && e.contains("(1, 4, 5)") && e.contains("(1, 6)"), "{e}");
}
