//! AdamW over the parameters of a network.

use crate::cpu::adamw::AdamW;
use crate::nn::{Params, Role, Step};
use crate::{Result, Tensor};

/// AdamW with its two moments for each parameter. Weights of linear and convolution layers decay, nothing else does.
pub struct Optimizer {
    rule: AdamW,
    weight_decay: f64,
    /// Number of steps taken.
    steps: u64,
    /// First and second moment, made when the first gradient arrives.
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

    /// One step at learning rate `lr`. A parameter that the loss does not depend on has a gradient of zero, and its
    /// weight still decays.
    ///
    /// # Errors
    /// When a gradient does not fit its parameter.
    pub fn step(&mut self, params: &mut Params, step: Step, lr: f64) -> Result<()> {
        self.steps += 1;
        let roles: Vec<_> = params.iter().map(|(id, p)| (id, p.role)).collect();
        for (((id, role), gradient), moments) in roles.into_iter().zip(step.gradients).zip(&mut self.moments)
        {
            let decay = match role {
                Role::Weight => self.weight_decay,
                Role::NoDecay => 0.0,
                Role::Statistic => continue,
            };
            let value = params.value_mut(id);
            let shape = value.shape();
            let gradient = gradient.unwrap_or_else(|| Tensor::zeros(shape));
            let [m, v] = moments.get_or_insert_with(|| [Tensor::zeros(shape), Tensor::zeros(shape)]);
            self.rule.step(value, &gradient, m, v, lr, decay, self.steps)?;
        }
        for update in &step.statistics {
            update.apply(params)?;
        }
        Ok(())
    }
}
