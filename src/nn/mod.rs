//! Layers: their parameters and names, nothing else.

mod params;
mod pass;

pub use params::{Init, Layout, Param, ParamId, Params, Role, Scope};
pub use pass::{Pass, RunningUpdate, Step};

use crate::ops::{self, Window};
use crate::{Result, Var};

/// y = x·Wᵀ + b for S streams; also the 1×1 convolutions.
pub struct Linear {
    weight: ParamId,
    bias: Option<ParamId>,
}

impl Linear {
    /// A linear layer: weight `(O, I)`, normal with standard deviation 0.02 (the published truncation at ±2, a
    /// hundred standard deviations, never cuts); bias 0.
    pub fn new(scope: &mut Scope, inputs: usize, outputs: usize, bias: bool) -> Self {
        let init = Init::Normal(0.02);
        let weight = scope.param("weight", Layout::Same, [outputs, inputs], init, Role::Weight);
        Self { weight, bias: bias.then(|| zeros(scope, "bias", outputs)) }
    }

    /// A 1×1 convolution: the same with the published weight `(O, I, 1, 1)`, normal.
    pub fn pointwise(scope: &mut Scope, inputs: usize, outputs: usize, std: f32) -> Self {
        let init = Init::Normal(std);
        let weight = scope.param("weight", Layout::Pointwise, [outputs, inputs], init, Role::Weight);
        Self { weight, bias: Some(zeros(scope, "bias", outputs)) }
    }

    /// x `(S, …, I)` -> `(S, …, O)`.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn forward(&self, pass: &mut Pass, x: &Var) -> Result<Var> {
        let weight = pass.weight(self.weight)?;
        let bias = self.bias.map(|b| pass.weight(b)).transpose()?;
        let y = ops::linear(&mut pass.tape, x, &weight, bias.as_ref())?;
        pass.watched(self.weight, y)
    }

    /// x·Wᵀ + b + residual.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn forward_add(&self, pass: &mut Pass, x: &Var, residual: &Var) -> Result<Var> {
        let Some(bias) = self.bias else {
            let y = self.forward(pass, x)?;
            return ops::add(&mut pass.tape, residual, y);
        };
        let (weight, bias) = (pass.weight(self.weight)?, pass.weight(bias)?);
        let y = ops::linear_add(&mut pass.tape, x, &weight, &bias, residual)?;
        pass.watched(self.weight, y)
    }
}

/// Layer norm over the channels.
pub struct LayerNorm {
    weight: ParamId,
    bias: ParamId,
    eps: f32,
}

impl LayerNorm {
    /// Weight 1, bias 0.
    pub fn new(scope: &mut Scope, channels: usize, eps: f32) -> Self {
        Self { weight: ones(scope, "weight", channels), bias: zeros(scope, "bias", channels), eps }
    }

    /// x `(S, …, C)`.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn forward(&self, pass: &mut Pass, x: &Var) -> Result<Var> {
        let (weight, bias) = (pass.param(self.weight), pass.param(self.bias));
        let y = ops::layer_norm(&mut pass.tape, x, &weight, &bias, self.eps)?;
        pass.watched(self.weight, y)
    }
}

/// Batch norm followed by ReLU, as everywhere in this network.
pub struct BatchNormRelu {
    params: [ParamId; 4],
    eps: f32,
    momentum: f32,
}

impl BatchNormRelu {
    /// Weight 1, bias 0, running mean 0 and variance 1.
    pub fn new(scope: &mut Scope, channels: usize, eps: f32, momentum: f32) -> Self {
        let statistic = |scope: &mut Scope, leaf, value| {
            scope.param(leaf, Layout::Same, [channels], Init::Constant(value), Role::Statistic)
        };
        let (weight, bias) = (ones(scope, "weight", channels), zeros(scope, "bias", channels));
        let (mean, variance) = (statistic(scope, "running_mean", 0.0), statistic(scope, "running_var", 1.0));
        Self { params: [weight, bias, mean, variance], eps, momentum }
    }

    /// x `(S, B, H, W, C)`; for `repeats` see [`Pass::batch_norm_relu`].
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn forward(&self, pass: &mut Pass, x: &Var, repeats: usize) -> Result<Var> {
        let y = pass.batch_norm_relu(x, self.params, self.eps, self.momentum, repeats)?;
        pass.watched(self.params[0], y)
    }
}

/// A convolution with a dense kernel.
pub struct Conv {
    weight: ParamId,
    bias: ParamId,
    window: Window,
}

impl Conv {
    /// k×k, normal with standard deviation `std`; bias 0.
    pub fn new(scope: &mut Scope, inputs: usize, outputs: usize, k: usize, window: Window, std: f32) -> Self {
        let shape = [outputs, k, k, inputs];
        let weight = scope.param("weight", Layout::Conv, shape, Init::Normal(std), Role::Weight);
        Self { weight, bias: zeros(scope, "bias", outputs), window }
    }

    /// x `(S, B, H, W, I)` -> `(S, B, H', W', O)`.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn forward(&self, pass: &mut Pass, x: &Var) -> Result<Var> {
        let weight = self.weight(pass)?;
        self.forward_with(pass, x, &weight)
    }

    /// The weight `(S, O, k, k, I)`.
    ///
    /// # Errors
    /// When a device reports one.
    pub fn weight(&self, pass: &mut Pass) -> Result<Var> {
        pass.weight(self.weight)
    }

    /// [`Conv::forward`] with another weight: a part of its own.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn forward_with(&self, pass: &mut Pass, x: &Var, weight: &Var) -> Result<Var> {
        let bias = pass.weight(self.bias)?;
        let y = ops::conv(&mut pass.tape, x, weight, &bias, self.window)?;
        pass.watched(self.weight, y)
    }
}

/// Depthwise 3×3 convolution, then GELU.
pub struct DepthwiseGelu {
    weight: ParamId,
    bias: ParamId,
}

impl DepthwiseGelu {
    /// Normal with standard deviation √(2 / 9); bias 0.
    pub fn new(scope: &mut Scope, channels: usize) -> Self {
        let init = Init::Normal((2.0f32 / 9.0).sqrt());
        let weight = scope.param("weight", Layout::Depthwise, [3, 3, channels], init, Role::Weight);
        Self { weight, bias: zeros(scope, "bias", channels) }
    }

    /// x `(S, B, H, W, C)`.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn forward(&self, pass: &mut Pass, x: &Var) -> Result<Var> {
        let (weight, bias) = (pass.weight(self.weight)?, pass.weight(self.bias)?);
        let y = ops::depthwise_gelu(&mut pass.tape, x, &weight, &bias)?;
        pass.watched(self.weight, y)
    }
}

/// A vector of zeros that is trained without decay.
pub fn zeros(scope: &mut Scope, leaf: &str, channels: usize) -> ParamId {
    scope.param(leaf, Layout::Same, [channels], Init::Constant(0.0), Role::NoDecay)
}

fn ones(scope: &mut Scope, leaf: &str, channels: usize) -> ParamId {
    scope.param(leaf, Layout::Same, [channels], Init::Constant(1.0), Role::NoDecay)
}

/// Standard deviation √(2 / fan_out) of a k×k convolution.
pub fn fan_out(outputs: usize, k: usize) -> f32 {
    (2.0 / (outputs * k * k) as f32).sqrt()
}

/// Standard deviation √(2 / fan_in) of a k×k convolution (Kaiming).
pub fn fan_in(inputs: usize, k: usize) -> f32 {
    (2.0 / (inputs * k * k) as f32).sqrt()
}
