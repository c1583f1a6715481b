//! AdamW: Adam with decoupled weight decay (Loshchilov and Hutter, ICLR 2019), as PyTorch computes it.

use rayon::prelude::*;

use super::{math, simd};
use crate::{Error, Result, Tensor};

const CHUNK: usize = 16_384;

/// The constants of the optimizer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
}

impl Default for AdamW {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8 }
    }
}

/// A parameter with what belongs to it, all of one shape.
pub struct Parameter<'a> {
    /// Its numbers.
    pub value: &'a mut Tensor,
    /// Their gradient; `None` counts as zeros.
    pub gradient: Option<&'a Tensor>,
    /// The first moment.
    pub m: &'a mut Tensor,
    /// The second moment.
    pub v: &'a mut Tensor,
    /// How fast the numbers decay.
    pub weight_decay: f64,
}

/// What gradients are multiplied with before they are used.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scaling {
    /// The inverse of the factor that the loss was multiplied with.
    pub unscale: f32,
    /// The largest norm of all gradients together: longer ones are shortened to it.
    pub max_norm: Option<f32>,
}

impl Default for Scaling {
    fn default() -> Self {
        Self { unscale: 1.0, max_norm: None }
    }
}

impl Scaling {
    /// The factor of every gradient when their norm is `norm`, unscaled.
    fn factor(self, norm: f64) -> f32 {
        match self.max_norm.map(f64::from) {
            Some(most) if norm > most => self.unscale * (most / norm) as f32,
            _ => self.unscale,
        }
    }
}

/// What a step found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// The norm of all gradients together, unscaled but not shortened.
    pub norm: f32,
    /// Whether every gradient was finite; if not, the step changed nothing.
    pub finite: bool,
}

/// The numbers of a step, the same for all parameters.
pub(crate) struct Factors {
    pub rate: f32,
    pub unbias: f32,
    pub beta2: f32,
    pub eps: f32,
    pub c1: f32,
    pub c2: f32,
}

impl Factors {
    /// Those of step `t`, counted from 1.
    pub fn new(rule: &AdamW, lr: f64, t: u64) -> Self {
        let power = i32::try_from(t).unwrap_or(i32::MAX);
        Self {
            rate: (lr / (1.0 - rule.beta1.powi(power))) as f32,
            unbias: (1.0 - rule.beta2.powi(power)).sqrt().recip() as f32,
            beta2: rule.beta2 as f32,
            eps: rule.eps as f32,
            c1: (1.0 - rule.beta1) as f32,
            c2: (1.0 - rule.beta2) as f32,
        }
    }

    /// What weight decay leaves of a parameter.
    pub fn keep(lr: f64, weight_decay: f64) -> f32 {
        (1.0 - lr * weight_decay) as f32
    }
}

/// One step on all `parameters`, in place; `t` counts the steps from 1.
///
/// With g the gradient as `scaling` leaves it:
/// m ← β₁m + (1 − β₁)g, v ← β₂v + (1 − β₂)g²,
/// p ← p(1 − lr·decay) − lr · m/(1 − β₁ᵗ) / (√(v/(1 − β₂ᵗ)) + eps).
///
/// When a gradient is not finite, nothing is changed.
///
/// Moments smaller than [`math::TINY`] become 0: where a gradient vanishes they would decay into denormal
/// numbers, which slow a long run down several times over.
///
/// # Errors
/// When the shapes differ, or `t` is 0.
pub fn step(
    rule: &AdamW,
    parameters: &mut [Parameter<'_>],
    lr: f64,
    t: u64,
    scaling: Scaling,
) -> Result<Outcome> {
    check(parameters, t)?;
    let gradients = parameters.iter().filter_map(|p| p.gradient);
    let norm = gradients.map(|g| squares(g.f32(), scaling.unscale)).sum::<f64>().sqrt();
    // The square of a float never overflows here, so the sum is finite exactly if every gradient is.
    let outcome = Outcome { norm: norm as f32, finite: norm.is_finite() };
    if outcome.finite {
        let factors = Factors::new(rule, lr, t);
        for parameter in parameters {
            update(parameter, &factors, Factors::keep(lr, parameter.weight_decay), scaling.factor(norm));
        }
    }
    Ok(outcome)
}

/// Whether the shapes of each parameter fit, and `t` is a step's number.
pub(crate) fn check(parameters: &[Parameter<'_>], t: u64) -> Result<()> {
    for p in parameters {
        let shape = p.value.shape();
        let shapes = [shape, p.gradient.map_or(shape, Tensor::shape), p.m.shape(), p.v.shape()];
        if shapes.iter().any(|&s| s != shape) {
            return Err(Error::shape("adamw", "parameter, gradient and moments differ in shape", &shapes));
        }
    }
    if t == 0 {
        return Err(Error::Config("adamw: steps are counted from 1".into()));
    }
    Ok(())
}

/// Σ (x · scale)², in the order of chunks.
fn squares(x: &[f32], scale: f32) -> f64 {
    let sum = |x: &[f32]| {
        simd(
            #[inline(always)]
            || {
                let mut lanes = [0.0f64; 8];
                for x in x.chunks(lanes.len()) {
                    for (lane, &x) in lanes.iter_mut().zip(x) {
                        let x = f64::from(x * scale);
                        *lane += x * x;
                    }
                }
                lanes.iter().sum::<f64>()
            },
        )
    };
    x.par_chunks(CHUNK).map(sum).collect::<Vec<f64>>().iter().sum()
}

fn update(parameter: &mut Parameter<'_>, factors: &Factors, keep: f32, scale: f32) {
    let Factors { rate, unbias, beta2, eps, c1, c2 } = *factors;
    let zeros = parameter.gradient.is_none().then(|| Tensor::zeros(parameter.value.shape()));
    let gradient = parameter.gradient.or(zeros.as_ref()).map_or(&[][..], Tensor::f32);
    parameter
        .value
        .f32_mut()
        .par_chunks_mut(CHUNK)
        .zip(gradient.par_chunks(CHUNK))
        .zip(parameter.m.f32_mut().par_chunks_mut(CHUNK))
        .zip(parameter.v.f32_mut().par_chunks_mut(CHUNK))
        .for_each(|(((p, g), m), v)| {
            simd(
                #[inline(always)]
                || {
                    for (((p, &g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
                        let g = g * scale;
                        *m = math::flush(c1.mul_add(g - *m, *m));
                        // The square of anything smaller would be flushed anyway, or be denormal before that.
                        let s = if g.abs() < 1e-15 { 0.0 } else { g };
                        *v = math::flush((*v).mul_add(beta2, c2 * s * s));
                        let denominator = v.sqrt().mul_add(unbias, eps);
                        *p = (*p).mul_add(keep, -rate * (*m / denominator));
                    }
                },
            );
        });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A step on one parameter with the gradient `gradient`.
    fn one(
        [value, m, v]: [&mut Tensor; 3],
        gradient: &Tensor,
        lr: f64,
        weight_decay: f64,
        t: u64,
    ) -> Result<Outcome> {
        let gradient = Some(gradient);
        let parameters = &mut [Parameter { value, gradient, m, v, weight_decay }];
        step(&AdamW::default(), parameters, lr, t, Scaling::default())
    }

    #[test]
    fn five_steps_match_pytorch() {
        // p = torch.nn.Parameter(torch.tensor([0.5, -1.25, 2.0, 1e-3, -0.3]))
        // o = torch.optim.AdamW([p], lr=0.01, weight_decay=0.1)
        // for t in range(1, 6):
        //     p.grad = torch.tensor([0.1 * t, -0.2, 0.3 - 0.1 * t, 1e-6 * t, 5.0 / t]); o.step()
        // print(p.tolist(), o.state[p]['exp_avg'].tolist(), o.state[p]['exp_avg_sq'].tolist())
        let want: [[f32; 5]; 3] = [
            [0.449_094_36, -1.193_862_4, 1.962_049, -0.047_148_604, -0.342_424_1],
            [0.131_441, -0.081_902, -0.008_588, 1.314_41e-6, 0.857_8],
            [5.495_003_4e-4, 1.996_004_1e-4, 9.980_027e-5, 5.495_003e-14, 0.036_464_583],
        ];
        let mut p = Tensor::from_slice([5], &[0.5f32, -1.25, 2.0, 1e-3, -0.3]).unwrap();
        let (mut m, mut v) = (Tensor::zeros([5]), Tensor::zeros([5]));
        for t in 1..=5u8 {
            let x = f32::from(t);
            let grad = [0.1 * x, -0.2, 0.3 - 0.1 * x, 1e-6 * x, 5.0 / x];
            let grad = Tensor::from_slice([5], &grad).unwrap();
            one([&mut p, &mut m, &mut v], &grad, 0.01, 0.1, t.into()).unwrap();
        }
        for (got, want) in [p, m, v].iter().zip(want) {
            for (&got, want) in got.f32().iter().zip(want) {
                assert!((got - want).abs() <= 2e-6 * want.abs() + 1e-12, "{got} but {want}");
            }
        }
    }

    #[test]
    fn vanished_gradients_leave_no_denormal_numbers() {
        let start = [1.0f32, 1e-3, 1e-10, -1e-20, 1e-29];
        let (mut p, mut m) = (Tensor::zeros([5]), Tensor::from_slice([5], &start).unwrap());
        let mut v = Tensor::from_slice([5], &start.map(|x| x * x)).unwrap();
        for t in 1..=2000 {
            // A gradient whose square is denormal counts as none for the second moment.
            let grad = Tensor::from_slice([5], &[0.0f32, 0.0, 0.0, 0.0, 1e-20]).unwrap();
            one([&mut p, &mut m, &mut v], &grad, 1e-4, 0.0, t).unwrap();
            assert!(!m.f32().iter().chain(v.f32()).any(|x| x.is_subnormal()), "step {t}");
        }
        assert_eq!(m.f32()[0], 0.0);
    }

    #[test]
    fn misuse_is_an_error() {
        let run = |n: usize, t| {
            let (mut p, mut m, mut v) = (Tensor::zeros([3]), Tensor::zeros([n]), Tensor::zeros([3]));
            one([&mut p, &mut m, &mut v], &Tensor::zeros([3]), 0.1, 0.1, t)
        };
        assert!(run(3, 1).is_ok());
        assert!(run(4, 1).unwrap_err().to_string().contains("(4)"));
        assert!(run(3, 0).is_err());
    }
}
