use amdanet::{Result, Tape, Tensor, Var, ops};

use crate::device;
use crate::gradient::{check, check_threads, random, relative_error};

/// Batch, rows, columns, channels.
const CASES: [(usize, usize, usize, usize); 5] =
    [(1, 1, 1, 1), (3, 3, 5, 11), (1, 1, 7, 16), (2, 19, 31, 37), (1, 2, 3, 64)];

fn input((b, h, w, c): (usize, usize, usize, usize)) -> Tensor {
    random([2, b, h, w, c], 1)
}

fn channel_pool(tape: &mut Tape, x: &Var) -> Result<Var> {
    ops::pool(tape, x).map(|[channel, _]| channel)
}

fn spatial_pool(tape: &mut Tape, x: &Var) -> Result<Var> {
    ops::pool(tape, x).map(|[_, spatial]| spatial)
}

/// Both results, one after the other with as many numbers: C must be H·W.
fn both(tape: &mut Tape, x: &Var) -> Result<Var> {
    let [channel, spatial] = ops::pool(tape, x)?;
    let spatial = ops::reshape(tape, &spatial, channel.shape())?;
    ops::add(tape, &channel, spatial)
}

fn plain_channel(x: &Tensor) -> Vec<f32> {
    let (b, c, pixels) = (x.dim(1), x.shape().last(), x.dim(2) * x.dim(3));
    let mut y = vec![0.0; 4 * b * c];
    for (s, image, i) in (0..2).flat_map(|s| (0..b).flat_map(move |n| (0..c).map(move |i| (s, n, i)))) {
        let values = (0..pixels).map(|p| x.f32()[((s * b + image) * pixels + p) * c + i]);
        let mean = values.clone().map(f64::from).sum::<f64>() / pixels as f64;
        y[(image * 2 + s) * c + i] = mean as f32;
        y[((b + image) * 2 + s) * c + i] = values.fold(f32::NEG_INFINITY, f32::max);
    }
    y
}

fn plain_spatial(x: &Tensor) -> Vec<f32> {
    let c = x.shape().last();
    let pixels = x.len() / (2 * c);
    let stat = |at: usize| {
        let values = &x.f32()[at * c..(at + 1) * c];
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / c as f64;
        [mean as f32, values.iter().copied().fold(f32::NEG_INFINITY, f32::max)]
    };
    (0..pixels).flat_map(|p| [stat(p), stat(pixels + p)].concat()).collect()
}

#[test]
fn matches_a_plain_loop() {
    for case in CASES {
        let x = input(case);
        let v = Var::constant(x.clone());
        let [channel, spatial] = ops::pool(&mut Tape::off(), &v).unwrap();
        assert_eq!(*channel.shape(), [1, 2, case.0, 2 * case.3]);
        assert!(relative_error(channel.value().f32(), &plain_channel(&x)) < 1e-6, "{case:?}");
        assert_eq!(*spatial.shape(), [1, case.0, case.1, case.2, 4]);
        assert!(relative_error(spatial.value().f32(), &plain_spatial(&x)) < 1e-6, "{case:?}");
    }
}

/// Different multiples of 1/8, shuffled: a perturbation of the gradient check moves no maximum.
fn apart((b, h, w, c): (usize, usize, usize, usize)) -> Tensor {
    let mut x = Tensor::zeros([2, b, h, w, c]);
    let n = x.len();
    // 7919 is prime, and so coprime with the number of elements of every case.
    x.f32_mut().iter_mut().enumerate().for_each(|(i, v)| *v = (i * 7919 % n) as f32 * 0.125);
    x
}

#[test]
fn gradients() {
    for case in [(1, 1, 1, 1), (3, 3, 5, 11), (1, 1, 7, 16), (1, 2, 3, 64)] {
        check(&[apart(case)], |t, v| channel_pool(t, &v[0]));
        check(&[apart(case)], |t, v| spatial_pool(t, &v[0]));
    }
    check(&[apart((2, 2, 3, 6))], |t, v| both(t, &v[0]));
    check_threads(&[input((2, 29, 31, 19))], |t, v| channel_pool(t, &v[0]));
    check_threads(&[input((2, 29, 31, 19))], |t, v| spatial_pool(t, &v[0]));
}

#[test]
fn on_a_device() {
    // Pixels that lanes of one number, a group, a warp, several warps and more tiles than warps take; few and many.
    let more = [
        (1, 1, 1, 320),
        (3, 1, 1, 35),
        (3, 1, 37, 64),
        (2, 33, 40, 16),
        (1, 19, 31, 64),
        (2, 5, 9, 320),
        (1, 2, 3, 1030),
        (1, 1, 5, 2056),
    ];
    for case in CASES.into_iter().chain(more) {
        device::check(&[input(case)], &[], &[], |t, v, _| channel_pool(t, &v[0]));
        device::check(&[input(case)], &[], &[], |t, v, _| spatial_pool(t, &v[0]));
    }
    for case in [(3, 4, 4, 16), (1, 5, 7, 35), (2, 8, 8, 64), (1, 16, 20, 320)] {
        device::check(&[input(case)], &[], &[], |t, v, _| both(t, &v[0]));
    }
}

#[test]
fn the_first_of_equal_maxima_on_a_device() {
    for (pixels, c) in [(37, 64), (150, 5), (40, 300)] {
        let mut x = Tensor::full([2, 2, 1, pixels, c], 2.0);
        let ramp = |i: usize| if i % 7 == 3 { 3.0 } else { -1.0 };
        x.f32_mut().iter_mut().enumerate().for_each(|(i, v)| *v = ramp(i / 3));
        device::check(&[x.clone()], &[], &[], |t, v, _| channel_pool(t, &v[0]));
        device::check(&[x], &[], &[], |t, v, _| spatial_pool(t, &v[0]));
        let x = Tensor::full([2, 1, 1, pixels, c], -60000.0);
        device::check(&[x], &[], &[], |t, v, _| channel_pool(t, &v[0]));
    }
}

#[test]
fn the_first_of_equal_maxima_gets_the_gradient() {
    let mut tape = Tape::new();
    let x = tape.leaf(Tensor::full([2, 1, 20, 20, 3], 2.0));
    let y = channel_pool(&mut tape, &x).unwrap();
    let mut seed = Tensor::zeros(y.shape());
    seed.f32_mut()[6..].fill(1.0);
    let dx = tape.backward_with(&y, seed).unwrap().take(&x).unwrap();
    assert!(dx.f32().iter().enumerate().all(|(i, &v)| v == if i % 1200 < 3 { 1.0 } else { 0.0 }));

    let mut tape = Tape::new();
    let x = tape.leaf(Tensor::full([2, 1, 1, 1, 19], 2.0));
    let y = spatial_pool(&mut tape, &x).unwrap();
    let seed = Tensor::from_slice(y.shape(), &[0.0f32, 1.0, 0.0, 1.0]).unwrap();
    let dx = tape.backward_with(&y, seed).unwrap().take(&x).unwrap();
    assert!(dx.f32().iter().enumerate().all(|(i, &v)| v == if i % 19 == 0 { 1.0 } else { 0.0 }));
}

#[test]
fn nan_and_infinities_pass_through() {
    for at in [0, 299, 300] {
        let mut x = Tensor::full([2, 1, 20, 20, 9], f32::NEG_INFINITY);
        x.f32_mut()[at * 9 + 8] = f32::NAN;
        let x = Var::constant(x);
        let y = channel_pool(&mut Tape::off(), &x).unwrap();
        let maxima = &y.value().f32()[18..];
        assert!(maxima[8].is_nan() && maxima[7] == f32::NEG_INFINITY);
        let mut tape = Tape::new();
        let x = tape.leaf(x.into_value());
        let y = spatial_pool(&mut tape, &x).unwrap();
        let pixel = &y.value().f32()[at * 4..];
        assert!(pixel[1].is_nan() && pixel[3] == f32::NEG_INFINITY);
        tape.backward_with(&y, Tensor::full(y.shape(), 1.0)).unwrap();
    }
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    let x = Var::constant(random([1, 1, 4, 4, 5], 1));
    let e = ops::pool(&mut Tape::off(), &x).unwrap_err().to_string();
    assert!(e.contains("pool") && e.contains("(1, 1, 4, 4, 5)"), "{e}");
}
