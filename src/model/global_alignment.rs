//! Global alignment (eqs. 10-11): salient enhancement of each modality, then cross-modal attention twice.

use super::config::ModelConfig;
use super::mit::ReducedAttention;
use crate::nn::{Linear, Pass, Scope};
use crate::{Result, Var, ops};

/// The module of one level.
pub struct GlobalAlignment {
    /// None in a network without global alignment.
    attention: Option<Attention>,
    proj: Linear,
}

struct Attention {
    /// Both modalities' modules on the stream axis.
    salient: ReducedAttention,
    visible_to_infrared: ReducedAttention,
    infrared_to_visible: ReducedAttention,
}

impl GlobalAlignment {
    /// The module `GEs.i` of level `level`, counted from 0.
    pub fn new(scope: &mut Scope, config: &ModelConfig, level: usize) -> Self {
        let dim = config.dims[level];
        let shape = (dim, config.heads[level], config.sr[level]);
        let cross = |scope: &mut Scope| ReducedAttention::new(scope, shape, false, ["q1", "kv2"]);
        let attention = config.global_alignment.then(|| Attention {
            salient: ReducedAttention::new(&mut scope.streams("SE_x1", "SE_x2"), shape, false, ["q", "kv"]),
            visible_to_infrared: cross(&mut scope.child("CM_x1toX2")),
            infrared_to_visible: cross(&mut scope.child("CM_x2toX1")),
        });
        Self { attention, proj: Linear::new(&mut scope.child("proj"), dim, dim, true) }
    }

    /// x `(2, B, H, W, C)` -> the fused features `(1, B, H, W, C)`.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn forward(&self, pass: &mut Pass, x: &Var) -> Result<Var> {
        let fused = match &self.attention {
            Some(attention) => attention.forward(pass, x)?,
            None => {
                let [visible, infrared] = streams(pass, x)?;
                ops::add(&mut pass.tape, &visible, infrared)?
            }
        };
        self.proj.forward(pass, &fused)
    }
}

impl Attention {
    fn forward(&self, pass: &mut Pass, x: &Var) -> Result<Var> {
        let enhanced = attend(pass, &self.salient, x, x)?;
        let [visible, infrared] = streams(pass, &enhanced)?;
        let middle = attend(pass, &self.visible_to_infrared, &visible, &infrared)?;
        attend(pass, &self.infrared_to_visible, &infrared, &middle)
    }
}

fn streams(pass: &mut Pass, x: &Var) -> Result<[Var; 2]> {
    Ok([ops::select(&mut pass.tape, x, 0)?, ops::select(&mut pass.tape, x, 1)?])
}

/// proj(attend(x, source) + x).
fn attend(pass: &mut Pass, attention: &ReducedAttention, x: &Var, source: &Var) -> Result<Var> {
    let y = attention.attend(pass, x, source)?;
    let y = ops::add(&mut pass.tape, x, y)?;
    attention.project(pass, &y)
}
