//! Global alignment (eqs. 10-11): salient enhancement of each modality, then cross-modal attention twice.

use super::mit::ReducedAttention;
use crate::nn::{Linear, Pass, Scope};
use crate::{Result, Var, ops};

/// The module of one level.
pub struct GlobalAlignment {
    /// Both modalities' modules on the stream axis.
    salient: ReducedAttention,
    visible_to_infrared: ReducedAttention,
    infrared_to_visible: ReducedAttention,
    proj: Linear,
}

impl GlobalAlignment {
    /// The module `GEs.i` for a level with these channels, heads and spatial reduction.
    pub fn new(scope: &mut Scope, level: (usize, usize, usize)) -> Self {
        let cross = |scope: &mut Scope| ReducedAttention::new(scope, level, false, ["q1", "kv2"]);
        Self {
            salient: ReducedAttention::new(&mut scope.streams("SE_x1", "SE_x2"), level, false, ["q", "kv"]),
            visible_to_infrared: cross(&mut scope.child("CM_x1toX2")),
            infrared_to_visible: cross(&mut scope.child("CM_x2toX1")),
            proj: Linear::new(&mut scope.child("proj"), level.0, level.0, true),
        }
    }

    /// x `(2, B, H, W, C)` -> the fused features `(1, B, H, W, C)`.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn forward(&self, pass: &mut Pass, x: &Var) -> Result<Var> {
        let enhanced = attend(pass, &self.salient, x, x)?;
        let visible = ops::select(&mut pass.tape, &enhanced, 0)?;
        let infrared = ops::select(&mut pass.tape, &enhanced, 1)?;
        let middle = attend(pass, &self.visible_to_infrared, &visible, &infrared)?;
        let fused = attend(pass, &self.infrared_to_visible, &infrared, &middle)?;
        self.proj.forward(pass, &fused)
    }
}

/// proj(attend(x, source) + x).
fn attend(pass: &mut Pass, attention: &ReducedAttention, x: &Var, source: &Var) -> Result<Var> {
    let y = attention.attend(pass, x, source)?;
    let y = ops::add(&mut pass.tape, x, y)?;
    attention.project(pass, &y)
}
