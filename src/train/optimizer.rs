//! AdamW over the parameters of a network.

use std::collections::BTreeMap;

use crate::checkpoint::{Array, State};
use crate::cpu::adamw::{self, AdamW, Outcome, Parameter, Scaling};
use crate::nn::{Param, Params, Role, Step};
use crate::{DType, Device, Error, Result, Tensor, cuda};

/// What PyTorch calls the two moments.
const MOMENTS: [&str; 2] = ["exp_avg", "exp_avg_sq"];

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
        // All that can fail comes before anything is changed.
        let mut running = BTreeMap::new();
        for update in &step.statistics {
            update.apply(params, &mut running)?;
        }
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
            for (id, value) in running {
                *params.value_mut(id) = value;
            }
        }
        Ok(outcome)
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
                export(&mut state, kind, param, moment)?;
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
            let moment = |kind| import(state, kind, param, params.device());
            restored.push(Some([moment(MOMENTS[0])?, moment(MOMENTS[1])?]));
        }
        (self.moments, self.steps) = (restored, steps);
        Ok(())
    }
}

/// Writes `value`, of the shape of `param`, as `KIND.NAME` for each published name.
pub(super) fn export(state: &mut State, kind: &str, param: &Param, value: &Tensor) -> Result<()> {
    let value = value.to(&Device::Cpu)?;
    for (stream, name) in param.names.iter().enumerate() {
        let array = Array { shape: param.published_shape(), data: param.export(&value, stream) };
        state.insert(format!("{kind}.{name}"), array);
    }
    Ok(())
}

/// The reverse of [`export`], on `device`.
///
/// # Errors
/// Names what is missing or has another size.
pub(super) fn import(state: &State, kind: &str, param: &Param, device: &Device) -> Result<Tensor> {
    let mut value = Tensor::zeros(param.value.shape());
    for (stream, name) in param.names.iter().enumerate() {
        let name = format!("{kind}.{name}");
        let array = state.get(&name).ok_or_else(|| Error::Config(format!("{name} is missing")))?;
        param.import_into(&mut value, stream, &array.data)?;
    }
    value.to(device)
}
