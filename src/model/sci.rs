//! Semantic consistency inference (eqs. 1-5): suppresses what one stream says and the other contradicts.

use super::config::{Arch, ModelConfig};
use crate::nn::{Init, Layout, Linear, ParamId, Pass, Role, Scope};
use crate::{Result, Var, ops};

/// The module of one level.
pub struct Sci {
    reduce: Linear,
    score: Linear,
    lambda: ParamId,
    level: usize,
    tau: Option<f32>,
}

impl Sci {
    /// The module called `sci_i` of level `level`, counted from 0.
    pub fn new(scope: &mut Scope, config: &ModelConfig, level: usize) -> Self {
        let dim = config.dims[level];
        Self {
            level,
            reduce: Linear::new(&mut scope.child("mlp.0"), 2 * dim, dim, true),
            score: Linear::new(&mut scope.child("mlp.2"), dim, 1, true),
            lambda: scope.param("lambda_param", Layout::Scalar, [], Init::Constant(0.5), Role::NoDecay),
            tau: (config.arch == Arch::Paper).then_some(config.tau),
        }
    }

    /// x `(2, B, H, W, C)` -> the same shape. In release the streams come out exchanged.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn forward(&self, pass: &mut Pass, x: &Var) -> Result<Var> {
        let both = ops::concat_streams(&mut pass.tape, x)?;
        let hidden = self.reduce.forward(pass, &both)?;
        drop(both);
        let hidden = ops::relu(&mut pass.tape, &hidden)?;
        let score = self.score.forward(pass, &hidden)?;
        let m = ops::sigmoid(&mut pass.tape, &score)?;
        let m = pass.observe("mask", self.level, m);
        let lambda = pass.param(self.lambda);
        let y = ops::gate(&mut pass.tape, x, &m, &lambda, self.tau)?;
        pass.watched(self.lambda, y)
    }
}
