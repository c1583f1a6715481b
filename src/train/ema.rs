//! An exponential moving average of the weights.

use super::optimizer::{export, import};
use crate::checkpoint::State;
use crate::nn::{Params, Role};
use crate::{Result, Tensor, ops};

/// What the averages are called in the optimizer's file.
const KIND: &str = "ema";

/// average ← average + (1 − d)·(weight − average) after each step that changed the weights, from the weights that
/// training starts with. d = min(decay, (1 + t)/(10 + t)) at step t, counted from 1, so that the first weights are soon
/// forgotten.
///
/// Running statistics of batch norms are not averaged again: a network with averaged weights has the newest ones.
pub struct Ema {
    decay: f64,
    /// In the order of the parameters; `None` for a running statistic.
    averages: Vec<Option<Tensor>>,
}

impl Ema {
    /// Averages that start with `params`.
    pub fn new(params: &Params, decay: f64) -> Self {
        let averages =
            params.iter().map(|(_, p)| (p.role != Role::Statistic).then(|| p.value.clone())).collect();
        Self { decay, averages }
    }

    /// Learns from the weights after step `t`, counted from 1.
    ///
    /// # Errors
    /// When a device reports one.
    pub fn update(&mut self, params: &Params, t: u64) -> Result<()> {
        let t = t as f64;
        let rest = 1.0 - self.decay.min((1.0 + t) / (10.0 + t));
        for (average, (_, param)) in self.averages.iter_mut().zip(params.iter()) {
            let Some(average) = average else { continue };
            ops::update_running(average, &param.value, rest as f32)?;
        }
        Ok(())
    }

    /// `params` with the averages in the place of the weights.
    pub fn apply(&self, params: &Params) -> Params {
        let mut averaged = params.clone();
        for ((_, value), average) in averaged.values_mut().zip(&self.averages) {
            if let Some(average) = average {
                *value = average.clone();
            }
        }
        averaged
    }

    /// Adds every average to `state`, as `ema.NAME`.
    ///
    /// # Errors
    /// When a device reports one.
    pub fn save(&self, params: &Params, state: &mut State) -> Result<()> {
        for (average, (_, param)) in self.averages.iter().zip(params.iter()) {
            if let Some(average) = average {
                export(state, KIND, param, average)?;
            }
        }
        Ok(())
    }

    /// Takes the averages from `state`.
    ///
    /// # Errors
    /// Names one that is missing or has another size; or when a device reports an error.
    pub fn restore(&mut self, params: &Params, state: &State) -> Result<()> {
        let restored = params.iter().map(|(_, param)| match param.role {
            Role::Statistic => Ok(None),
            _ => import(state, KIND, param, params.device()).map(Some),
        });
        self.averages = restored.collect::<Result<_>>()?;
        Ok(())
    }
}
