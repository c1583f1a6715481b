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

impl AdamW {
    /// One step on one parameter, in place; `t` counts the steps from 1, and all four tensors have one shape.
    ///
    /// m ← β₁m + (1 − β₁)g, v ← β₂v + (1 − β₂)g²,
    /// p ← p(1 − lr·decay) − lr · m/(1 − β₁ᵗ) / (√(v/(1 − β₂ᵗ)) + eps).
    ///
    /// Moments smaller than [`math::TINY`] become 0: where a gradient vanishes they would decay into denormal
    /// numbers, which slow a long run down several times over.
    ///
    /// # Errors
    /// When the shapes differ, or `t` is 0.
    #[expect(clippy::too_many_arguments, reason = "the optimizer's state is three tensors and three numbers")]
    pub fn step(
        &self,
        param: &mut Tensor,
        grad: &Tensor,
        m: &mut Tensor,
        v: &mut Tensor,
        lr: f64,
        weight_decay: f64,
        t: u64,
    ) -> Result<()> {
        let shapes = [param.shape(), grad.shape(), m.shape(), v.shape()];
        if shapes.iter().any(|&s| s != shapes[0]) {
            return Err(Error::shape("adamw", "parameter, gradient and moments differ in shape", &shapes));
        }
        if t == 0 {
            return Err(Error::Config("adamw: steps are counted from 1".into()));
        }
        let power = i32::try_from(t).unwrap_or(i32::MAX);
        let rate = (lr / (1.0 - self.beta1.powi(power))) as f32;
        let unbias = (1.0 - self.beta2.powi(power)).sqrt().recip() as f32;
        let keep = (1.0 - lr * weight_decay) as f32;
        let (b2, eps) = (self.beta2 as f32, self.eps as f32);
        let (c1, c2) = ((1.0 - self.beta1) as f32, (1.0 - self.beta2) as f32);
        param
            .f32_mut()
            .par_chunks_mut(CHUNK)
            .zip(grad.f32().par_chunks(CHUNK))
            .zip(m.f32_mut().par_chunks_mut(CHUNK))
            .zip(v.f32_mut().par_chunks_mut(CHUNK))
            .for_each(|(((p, g), m), v)| {
                simd(
                    #[inline(always)]
                    || {
                        for (((p, &g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
                            *m = math::flush(c1.mul_add(g - *m, *m));
                            // The square of anything smaller would be flushed anyway, or be denormal before that.
                            let s = if g.abs() < 1e-15 { 0.0 } else { g };
                            *v = math::flush((*v).mul_add(b2, c2 * s * s));
                            let denominator = v.sqrt().mul_add(unbias, eps);
                            *p = (*p).mul_add(keep, -rate * (*m / denominator));
                        }
                    },
                );
            });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            AdamW::default().step(&mut p, &grad, &mut m, &mut v, 0.01, 0.1, t.into()).unwrap();
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
            AdamW::default().step(&mut p, &grad, &mut m, &mut v, 1e-4, 0.0, t).unwrap();
            assert!(!m.f32().iter().chain(v.f32()).any(|x| x.is_subnormal()), "step {t}");
        }
        assert_eq!(m.f32()[0], 0.0);
    }

    #[test]
    fn misuse_is_an_error() {
        let run = |n: usize, t| {
            let (mut p, mut m, mut v) = (Tensor::zeros([3]), Tensor::zeros([n]), Tensor::zeros([3]));
            AdamW::default().step(&mut p, &Tensor::zeros([3]), &mut m, &mut v, 0.1, 0.1, t)
        };
        assert!(run(3, 1).is_ok());
        assert!(run(4, 1).unwrap_err().to_string().contains("(4)"));
        assert!(run(3, 0).is_err());
    }
}
