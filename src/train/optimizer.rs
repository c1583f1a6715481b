//! AdamW over the parameters of a network.

use crate::cpu::adamw::{self, AdamW, Outcome, Parameter, Scaling};
use crate::nn::{Params, Role, Step};
use crate::{DType, Result, Tensor, cuda};

/// AdamW with its two moments for each parameter. Weights of linear and convolution layers decay, nothing else does.
pub struct Optimizer {
    rule: AdamW,
    weight_decay: f64,
    /// Number of steps taken.
    steps: u64,
    /// First and second moment, made at the first step.
    moments: Vec<Option<[Tensor; 2]>>,
}

impl Optimizer {
    /// No step taken yet.
    pub fn new(params: &Params, rule: AdamW, weight_decay: f64) -> Self {
        Self { rule, weight_decay, steps: 0, moments: vec![None; params.len()] }
    }

    /// Number of steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// One step at learning rate `lr`, where the parameters are. One that the loss does not depend on has a gradient of
    /// zero, and its weight still decays. When a gradient is not finite, nothing is changed and no step is counted.
    ///
    /// # Errors
    /// When a gradient does not fit its parameter, or a device reports an error.
    pub fn step(&mut self, params: &mut Params, step: Step, lr: f64, scaling: Scaling) -> Result<Outcome> {
        let device = params.device().clone();
        let mut parameters = Vec::with_capacity(params.len());
        for (((role, value), gradient), moments) in
            params.values_mut().zip(&step.gradients).zip(&mut self.moments)
        {
            let weight_decay = match role {
                Role::Weight => self.weight_decay,
                Role::NoDecay => 0.0,
                Role::Statistic => continue,
            };
            if moments.is_none() {
                let zeros = || Tensor::zeros_on(&device, value.shape(), DType::F32);
                *moments = Some([zeros()?, zeros()?]);
            }
            let Some([m, v]) = moments else { continue };
            parameters.push(Parameter { value, gradient: gradient.as_ref(), m, v, weight_decay });
        }
        let t = self.steps + 1;
        let outcome = match parameters.first().is_none_or(|p| p.value.is_on_cpu()) {
            true => adamw::step(&self.rule, &mut parameters, lr, t, scaling)?,
            false => cuda::adamw::step(&self.rule, &mut parameters, lr, t, scaling)?,
        };
        if outcome.finite {
            self.steps = t;
            for update in &step.statistics {
                update.apply(params);
            }
        }
        Ok(outcome)
    }
}
