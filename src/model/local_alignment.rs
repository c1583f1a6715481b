//! Local alignment, "pooling attention" (eqs. 6-9): channel and spatial weights realign the two streams.

use super::config::{Arch, ModelConfig};
use crate::nn::{Conv, Linear, Pass, Scope, fan_out};
use crate::ops::{self, Window};
use crate::{Result, Var};

/// How the four maps of spatial statistics become two maps of weights.
enum Spatial {
    /// release: 1×1 convolution 4 -> 16, ReLU, 1×1 convolution 16 -> 2.
    Pointwise(Linear, Linear),
    /// paper: one 7×7 convolution 4 -> 2.
    Wide(Conv),
}

/// The module of one level.
pub struct LocalAlignment {
    channel: [Linear; 2],
    spatial: Spatial,
    /// release only.
    gate: Option<[Linear; 2]>,
    level: usize,
}

impl LocalAlignment {
    /// The module `LEs.i` of level `level`, counted from 0.
    pub fn new(scope: &mut Scope, config: &ModelConfig, level: usize) -> Self {
        let (arch, dim) = (config.arch, config.dims[level]);
        let mut weights = scope.child("fuse_sc");
        let mut cha = weights.child("cha.mlp");
        let channel = [
            Linear::new(&mut cha.child(0), 2 * dim, dim / 2, true),
            Linear::new(&mut cha.child(2), dim / 2, 2 * dim, true),
        ];
        let mut sap = weights.child("sap.mlp");
        let spatial = match arch {
            Arch::Release => Spatial::Pointwise(
                Linear::pointwise(&mut sap.child(0), 4, 16, fan_out(16, 1)),
                Linear::pointwise(&mut sap.child(2), 16, 2, fan_out(2, 1)),
            ),
            Arch::Paper => {
                let window = Window { stride: 1, padding: 3 };
                Spatial::Wide(Conv::new(&mut sap.child(0), 4, 2, 7, window, fan_out(2, 7)))
            }
        };
        let gate = (arch == Arch::Release).then(|| {
            [
                Linear::new(&mut scope.child("gate.0"), 2 * dim, dim / 2, true),
                Linear::new(&mut scope.child("gate.2"), dim / 2, dim, true),
            ]
        });
        Self { channel, spatial, gate, level }
    }

    /// x `(2, B, H, W, C)` -> the same shape.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn forward(&self, pass: &mut Pass, x: &Var) -> Result<Var> {
        let [pooled, statistics] = ops::pool(&mut pass.tape, x)?;
        let pooled = mlp(pass, &self.channel, &pooled)?;
        let shape = pooled.shape();
        let rows = ops::reshape(&mut pass.tape, &pooled, [2, 1, shape[2], shape[3]])?;
        let [mean, max] = [0, 1].map(|row| ops::select(&mut pass.tape, &rows, row));
        let sum = ops::add(&mut pass.tape, &mean?, max?)?;
        let channel = ops::sigmoid(&mut pass.tape, &sum)?;

        let spatial = match &self.spatial {
            Spatial::Pointwise(first, second) => {
                let hidden = first.forward(pass, &statistics)?;
                let hidden = ops::relu(&mut pass.tape, &hidden)?;
                second.forward(pass, &hidden)?
            }
            Spatial::Wide(conv) => conv.forward(pass, &statistics)?,
        };
        let spatial = ops::sigmoid(&mut pass.tape, &spatial)?;
        let spatial = pass.observe("spatial", self.level, spatial);

        match &self.gate {
            None => ops::realign_paper(&mut pass.tape, x, &channel, &spatial),
            Some(gate) => {
                let both = ops::concat_streams(&mut pass.tape, x)?;
                let gate = mlp(pass, gate, &both)?;
                drop(both);
                let gate = ops::sigmoid(&mut pass.tape, &gate)?;
                let gate = pass.observe("gate", self.level, gate);
                ops::realign_release(&mut pass.tape, x, &gate, &channel, &spatial)
            }
        }
    }
}

/// Linear, ReLU, linear.
fn mlp(pass: &mut Pass, [first, second]: &[Linear; 2], x: &Var) -> Result<Var> {
    let hidden = first.forward(pass, x)?;
    let hidden = ops::relu(&mut pass.tape, &hidden)?;
    second.forward(pass, &hidden)
}
