//! AdamW over the parameters of a network.

use crate::checkpoint::{Array, State};
use crate::cpu::adamw::AdamW;
use crate::nn::{Params, Role, Step};
use crate::{Device, Error, Result, Tensor};

/// What PyTorch calls the two moments.
const MOMENTS: [&str; 2] = ["exp_avg", "exp_avg_sq"];

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
            update.apply(params);
        }
        Ok(())
    }

    /// Both moments of every parameter that was trained, under its published name and in its published layout:
    /// `exp_avg.NAME` and `exp_avg_sq.NAME`.
    ///
    /// # Errors
    /// When a device reports one.
    pub fn state(&self, params: &Params) -> Result<State> {
        let mut state = State::new();
        for ((_, param), moments) in params.iter().zip(&self.moments) {
            let Some(moments) = moments else { continue };
            for (kind, moment) in MOMENTS.into_iter().zip(moments) {
                let moment = moment.to(&Device::Cpu)?;
                for (stream, name) in param.names.iter().enumerate() {
                    let array = Array { shape: param.published_shape(), data: param.export(&moment, stream) };
                    state.insert(format!("{kind}.{name}"), array);
                }
            }
        }
        Ok(state)
    }

    /// Takes up where an optimizer was after `steps` steps, with the [`Optimizer::state`] that it had.
    ///
    /// # Errors
    /// Names a moment that is missing or has another size than its parameter; or when a device reports an error.
    pub fn restore(&mut self, params: &Params, state: &State, steps: u64) -> Result<()> {
        let mut restored = Vec::with_capacity(params.len());
        for (_, param) in params.iter() {
            if param.role == Role::Statistic || steps == 0 {
                restored.push(None);
                continue;
            }
            let moment = |kind: &str| -> Result<Tensor> {
                let mut moment = Tensor::zeros(param.value.shape());
                for (stream, name) in param.names.iter().enumerate() {
                    let name = format!("{kind}.{name}");
                    let array = state.get(&name);
                    let array = array.ok_or_else(|| Error::Config(format!("{name} is missing")))?;
                    param.import_into(&mut moment, stream, &array.data)?;
                }
                moment.to(params.device())
            };
            restored.push(Some([moment(MOMENTS[0])?, moment(MOMENTS[1])?]));
        }
        (self.moments, self.steps) = (restored, steps);
        Ok(())
    }
}
