use amdanet::ops::BatchNorm;
use amdanet::{Device, Shape, Tape, Tensor, Var, ops};

use crate::device;
use crate::gradient::{check, check_threads, random, relative_error};

const EPS: f32 = 1e-3;

fn cases() -> Vec<Shape> {
    vec![
        [1, 1, 1, 2, 1].into(),
        [1, 1, 1, 3, 1].into(),
        [2, 3, 3, 5, 11].into(),
        [1, 2, 1, 7, 16].into(),
        [2, 1, 20, 31, 5].into(),
    ]
}

/// x, weight and bias such that no value comes near the kink of the ReLU, while both its sides occur: the rows
/// alternate between two clusters.
fn inputs(shape: Shape) -> [Tensor; 3] {
    let (s, c) = (shape[0], shape.last());
    let mut x = random(shape, 1);
    for (row, x) in x.f32_mut().chunks_mut(c).enumerate() {
        let cluster = if row % 2 == 0 { 3.0 } else { 1.0 };
        x.iter_mut().for_each(|v| *v = cluster + 0.2 * *v);
    }
    let mut weight = random([s, c], 2);
    weight.f32_mut().iter_mut().for_each(|v| *v = v.signum() * (1.0 + 0.3 * v.abs()));
    let mut bias = random([s, c], 3);
    bias.f32_mut().iter_mut().for_each(|v| *v *= 0.1);
    [x, weight, bias]
}

fn running(shape: Shape) -> [Tensor; 2] {
    let stats = [shape[0], shape.last()];
    let mut variance = random(stats, 5);
    variance.f32_mut().iter_mut().for_each(|v| *v = 1.0 + 0.3 * *v);
    let mut mean = random(stats, 4);
    mean.f32_mut().iter_mut().for_each(|v| *v = 2.0 + 0.1 * *v);
    [mean, variance]
}

/// Mean, biased variance and unbiased variance of each stream and channel.
fn plain_statistics(x: &Tensor) -> [Vec<f64>; 3] {
    let (s, c) = (x.dim(0), x.shape().last());
    let rows = x.len() / (s * c);
    let mut out = [vec![], vec![], vec![]];
    for (stream, channel) in (0..s).flat_map(|s| (0..c).map(move |c| (s, c))) {
        let value = |r: usize| f64::from(x.f32()[(stream * rows + r) * c + channel]);
        let mean = (0..rows).map(value).sum::<f64>() / rows as f64;
        let squares: f64 = (0..rows).map(|r| (value(r) - mean).powi(2)).sum();
        out[0].push(mean);
        out[1].push(squares / rows as f64);
        out[2].push(squares / (rows as f64 - 1.0));
    }
    out
}

fn plain(x: &Tensor, weight: &Tensor, bias: &Tensor, mean: &[f64], variance: &[f64]) -> Vec<f32> {
    let (s, c) = (x.dim(0), x.shape().last());
    let rows = x.len() / (s * c);
    (0..x.len())
        .map(|i| {
            let p = i / (rows * c) * c + i % c;
            let normal = (f64::from(x.f32()[i]) - mean[p]) / (variance[p] + f64::from(EPS)).sqrt();
            let z = normal * f64::from(weight.f32()[p]) + f64::from(bias.f32()[p]);
            assert!(z.abs() > 0.05, "{z} is near the kink");
            z.max(0.0) as f32
        })
        .collect()
}

fn to_f32(x: &[f64]) -> Vec<f32> {
    x.iter().map(|&v| v as f32).collect()
}

#[test]
fn matches_a_plain_loop() {
    for shape in cases() {
        let [x, w, b] = inputs(shape);
        let [mean, variance, unbiased] = plain_statistics(&x);
        let vars = [&x, &w, &b].map(|t| Var::constant(t.clone()));
        let (y, statistics) =
            ops::batch_norm_relu(&mut Tape::off(), &vars[0], &vars[1], &vars[2], BatchNorm::Train, EPS)
                .unwrap();
        let want = plain(&x, &w, &b, &mean, &variance);
        assert!(relative_error(y.value().f32(), &want) < 2e-6, "{shape}");
        let statistics = statistics.unwrap();
        assert!(relative_error(statistics.mean.f32(), &to_f32(&mean)) < 1e-6, "{shape}");
        assert!(relative_error(statistics.variance.f32(), &to_f32(&unbiased)) < 1e-5, "{shape}");

        let [m, v] = running(shape);
        let mode = BatchNorm::Eval { mean: &m, variance: &v };
        let (y, statistics) =
            ops::batch_norm_relu(&mut Tape::off(), &vars[0], &vars[1], &vars[2], mode, EPS).unwrap();
        let as_f64 = |t: &Tensor| t.f32().iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
        let want = plain(&x, &w, &b, &as_f64(&m), &as_f64(&v));
        assert!(relative_error(y.value().f32(), &want) < 2e-6, "{shape}");
        assert!(statistics.is_none());
    }
}

#[test]
fn gradients() {
    // Two values are always normalised to ±1: the first case has no gradient to compare with.
    for shape in cases().into_iter().skip(1) {
        check(&inputs(shape), |t, v| {
            Ok(ops::batch_norm_relu(t, &v[0], &v[1], &v[2], BatchNorm::Train, EPS)?.0)
        });
        let [mean, variance] = running(shape);
        check(&inputs(shape), |t, v| {
            let mode = BatchNorm::Eval { mean: &mean, variance: &variance };
            Ok(ops::batch_norm_relu(t, &v[0], &v[1], &v[2], mode, EPS)?.0)
        });
    }
    check_threads(&inputs([2, 3, 20, 31, 16].into()), |t, v| {
        Ok(ops::batch_norm_relu(t, &v[0], &v[1], &v[2], BatchNorm::Train, EPS)?.0)
    });
}

#[test]
fn unusable_inputs_are_errors() {
    let run = |x: Tensor, mode: BatchNorm| {
        let [x, w, b] = [x, random([1, 4], 1), random([1, 4], 2)].map(Var::constant);
        ops::batch_norm_relu(&mut Tape::off(), &x, &w, &b, mode, EPS).map(|_| ()).map_err(|e| e.to_string())
    };
    let e = run(random([1, 1, 1, 1, 4], 3), BatchNorm::Train).unwrap_err();
    assert!(e.contains("more than one value") && e.contains("(1, 1, 1, 1, 4)"), "{e}");
    let (mean, variance) = (Tensor::zeros([1, 4]), Tensor::full([1, 4], 1.0));
    run(random([1, 1, 1, 1, 4], 3), BatchNorm::Eval { mean: &mean, variance: &variance }).unwrap();
    let e = run(random([1, 2, 2, 2, 5], 3), BatchNorm::Train).unwrap_err();
    assert!(e.contains("(1, 2, 2, 2, 5)"), "{e}");
    let e = run(random([1, 2, 2, 2, 4], 3), BatchNorm::Eval { mean: &mean, variance: &Tensor::zeros([4]) });
    assert!(e.unwrap_err().contains("running"));
}

#[test]
fn on_a_device() {
    let more = [[1, 2, 9, 70, 16].into(), [1, 3, 11, 4, 64].into(), [2, 1, 3, 7, 35].into()];
    let wide = [[1, 1, 4, 1, 1].into(), [1, 1, 5, 1, 520].into(), [1, 1, 1, 4, 2056].into()];
    for shape in cases().into_iter().chain(more).chain(wide) {
        let [x, w, b] = inputs(shape);
        // Mean and slope take up two of the gradient's dimensions: of two or three rows next to nothing is left.
        if shape.len() / w.len() > 3 {
            device::check(std::slice::from_ref(&x), &[w.clone(), b.clone()], &[], |t, v, _| {
                Ok(ops::batch_norm_relu(t, &v[0], &v[1], &v[2], BatchNorm::Train, EPS)?.0)
            });
        }
        device::check(&[x], &[w, b], &running(shape), |t, v, constants| {
            let mode = BatchNorm::Eval { mean: &constants[0], variance: &constants[1] };
            Ok(ops::batch_norm_relu(t, &v[0], &v[1], &v[2], mode, EPS)?.0)
        });
    }
}

/// A large mean, many rows, and a first row that is far from it.
#[test]
fn statistics_on_a_device() {
    for (rows, c) in [(7000, 1), (3001, 16), (2999, 35), (2100, 64)] {
        let shape = Shape::from([2, 1, 1, rows, c]);
        let mut x = random(shape, 7);
        x.f32_mut().iter_mut().for_each(|v| *v += 1000.0);
        x.f32_mut()[..c].fill(900.0);
        let [mean, _, unbiased] = plain_statistics(&x);
        for device in device::all() {
            let [x, w, b] = [x.clone(), random([2, c], 2), random([2, c], 3)]
                .map(|t| Var::constant(t.to(device).unwrap()));
            let (_, statistics) =
                ops::batch_norm_relu(&mut Tape::off(), &x, &w, &b, BatchNorm::Train, EPS).unwrap();
            let statistics = statistics.unwrap();
            let [m, v] = [&statistics.mean, &statistics.variance].map(|t| t.to(&Device::Cpu).unwrap());
            assert!(relative_error(m.f32(), &to_f32(&mean)) < 1e-7, "{c}");
            assert!(relative_error(v.f32(), &to_f32(&unbiased)) < 1e-5, "{c}");

            // Into running statistics that somebody else holds too.
            let before = random([2, c], 4).to(device).unwrap();
            let (mut running, mut want) = (before.clone(), before.to(&Device::Cpu).unwrap());
            ops::update_running(&mut running, &statistics.mean, 0.1).unwrap();
            ops::update_running(&mut running, &statistics.mean, 0.1).unwrap();
            ops::update_running(&mut want, &m, 0.1).unwrap();
            ops::update_running(&mut want, &m, 0.1).unwrap();
            assert!(relative_error(running.to(&Device::Cpu).unwrap().f32(), want.f32()) < 1e-6);
            assert_eq!(before.to(&Device::Cpu).unwrap().f32(), random([2, c], 4).f32());
        }
    }
}
