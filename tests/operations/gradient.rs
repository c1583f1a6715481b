//! Numeric gradient checks.

use amdanet::{Result, Shape, Tape, Tensor, Var};

/// Numbers in [-1, 1) that depend on `seed` and the index alone (splitmix64).
pub fn random(shape: impl Into<Shape>, seed: u64) -> Tensor {
    let shape = shape.into();
    let data: Vec<f32> = (0..shape.len() as u64)
        .map(|i| {
            let mut z = seed
                .wrapping_mul(0xD134_2543_DE82_EF95)
                .wrapping_add((i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            ((z ^ (z >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect();
    Tensor::from_slice(shape, &data).unwrap()
}

/// Σ a·b in f64.
pub fn dot(a: &Tensor, b: &Tensor) -> f64 {
    a.f32().iter().zip(b.f32()).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// ‖a − b‖ / ‖b‖ in f64.
pub fn relative_error(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |f: &dyn Fn(usize) -> f64| (0..b.len()).map(f).map(|v| v * v).sum::<f64>().sqrt();
    square(&|i| f64::from(a[i]) - f64::from(b[i])) / square(&|i| f64::from(b[i])).max(1e-30)
}

/// x + h·d.
fn moved(x: &Tensor, d: &Tensor, h: f64) -> Tensor {
    let data: Vec<f32> =
        x.f32().iter().zip(d.f32()).map(|(&x, &d)| (f64::from(x) + h * f64::from(d)) as f32).collect();
    Tensor::from_slice(x.shape(), &data).unwrap()
}

/// Checks the backward of `f` with respect to each input, along three random directions.
///
/// The derivative of Σ y·probe along a direction is estimated by central differences at two distances, extrapolated
/// (Richardson), with all sums in f64, and compared with the dot product of the tape's gradient and the direction.
/// Also checks that an input which needs no gradient changes nothing for the others.
pub fn check(inputs: &[Tensor], f: impl Fn(&mut Tape, &[Var]) -> Result<Var>) {
    check_with(inputs, 0.02, 2e-3, f);
}

/// [`check`] with the distance `step` and the tolerance chosen: for functions with kinks near the inputs, or linear.
pub fn check_with(
    inputs: &[Tensor],
    step: f64,
    tolerance: f64,
    f: impl Fn(&mut Tape, &[Var]) -> Result<Var>,
) {
    let run = |values: &[Tensor], needs: &dyn Fn(usize) -> bool| {
        let mut tape = Tape::new();
        let vars: Vec<Var> = values
            .iter()
            .enumerate()
            .map(|(i, v)| if needs(i) { tape.leaf(v.clone()) } else { Var::constant(v.clone()) })
            .collect();
        let y = f(&mut tape, &vars).unwrap();
        (tape, vars, y)
    };
    let (tape, vars, y) = run(inputs, &|_| true);
    let probe = random(y.shape(), 99);
    let mut gradients = tape.backward_with(&y, probe.clone()).unwrap();
    let all: Vec<Tensor> =
        vars.iter().map(|v| gradients.take(v).expect("a gradient for every input")).collect();
    for (i, x) in inputs.iter().enumerate() {
        for direction in 0..3 {
            let d = random(x.shape(), 1000 + 10 * i as u64 + direction);
            let value = |h: f64| {
                let mut at = inputs.to_vec();
                at[i] = moved(x, &d, h);
                dot(run(&at, &|_| false).2.value(), &probe)
            };
            let slope = |h: f64| (value(h) - value(-h)) / (2.0 * h);
            let numeric = (4.0 * slope(step / 2.0) - slope(step)) / 3.0;
            let analytic = dot(&all[i], &d);
            // The scale of a random projection of the gradient, so that a chance cancellation is no failure.
            let scale = dot(&all[i], &all[i]).sqrt().max(1e-3);
            let error = (numeric - analytic).abs() / scale;
            assert!(
                error < tolerance,
                "input {i}, direction {direction}: {analytic} but numerically {numeric}"
            );
        }
        let (tape, vars, y) = run(inputs, &|j| j == i);
        let alone = tape.backward_with(&y, probe.clone()).unwrap().take(&vars[i]).unwrap();
        assert_eq!(alone.f32(), all[i].f32(), "the gradient of input {i} depends on which others are needed");
    }
}

/// Checks that the output and every gradient of `f` have the same bits on one thread and on three.
pub fn check_threads(inputs: &[Tensor], f: impl Fn(&mut Tape, &[Var]) -> Result<Var> + Sync) {
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut tape = Tape::new();
            let vars: Vec<Var> = inputs.iter().map(|x| tape.leaf(x.clone())).collect();
            let y = f(&mut tape, &vars).unwrap();
            let mut gradients = tape.backward_with(&y, random(y.shape(), 99)).unwrap();
            let mut all = vec![y.value().clone()];
            all.extend(vars.iter().map(|v| gradients.take(v).unwrap()));
            all
        })
    };
    for (i, (one, three)) in run(1).iter().zip(run(3)).enumerate() {
        let bits = |t: &Tensor| t.f32().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert!(bits(one) == bits(&three), "result {i} depends on the number of threads");
    }
}
