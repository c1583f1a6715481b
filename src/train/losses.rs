//! The loss of a training step (eqs. 14-16).

use serde::{Deserialize, Serialize};

use crate::model::{Arch, MaskedOutput};
use crate::ops::{self, FusionTarget};
use crate::{Device, Result, Tape, Tensor, Var};

/// The weight of each term; a term with weight 0 is not computed.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LossWeights {
    /// Cross-entropy of the segmentation.
    pub seg: f32,
    /// Fusion loss of the picture.
    pub fus: f32,
    /// Cross-entropy of the segmentation from masked features (release).
    pub seg_masked: f32,
    /// Fusion loss of the picture from masked features (release).
    pub fus_masked: f32,
    /// Dice loss of the segmentation (release).
    pub dice: f32,
    /// Dice loss of the segmentation from masked features (release).
    pub dice_masked: f32,
    /// Consistency of the masked with the plain segmentation (paper).
    pub cr: f32,
}

impl Default for LossWeights {
    fn default() -> Self {
        Self::new(Arch::default())
    }
}

impl LossWeights {
    /// The published weights.
    pub fn new(arch: Arch) -> Self {
        let none = Self {
            seg: 1.0,
            fus: 0.5,
            seg_masked: 0.0,
            fus_masked: 0.0,
            dice: 0.0,
            dice_masked: 0.0,
            cr: 0.0,
        };
        match arch {
            Arch::Release => Self { seg_masked: 0.25, fus_masked: 0.25, dice: 2.0, dice_masked: 0.5, ..none },
            Arch::Paper => Self { cr: 0.5, ..none },
        }
    }

    /// Whether any term looks at masked features.
    pub fn needs_masking(&self) -> bool {
        [self.seg_masked, self.fus_masked, self.dice_masked, self.cr].iter().any(|&w| w != 0.0)
    }
}

/// What a batch is compared with.
pub struct Targets<'a> {
    /// `(1, B, H, W, 3)` in [0, 1].
    pub visible: &'a Tensor,
    /// `(1, B, H, W, 3)` in [0, 1].
    pub infrared: &'a Tensor,
    /// Class ids as bytes `(B, H, W)`, 255 ignored.
    pub labels: &'a Tensor,
    /// Bytes `(B, H, W)`: 1 inside the picture, 0 where a crop padded.
    pub valid: &'a Tensor,
}

/// The terms of the loss and their weighted sum.
pub struct Losses {
    /// The weighted sum.
    pub total: Var,
    /// Each term that was computed, by its name in [`LossWeights`], without its weight.
    pub terms: Vec<(&'static str, Var)>,
}

impl Losses {
    /// The weighted sum and the terms as numbers.
    ///
    /// # Errors
    /// When a device reports one.
    pub fn values(&self) -> Result<(f32, Vec<(&'static str, f32)>)> {
        let number = |x: &Var| -> Result<f32> { Ok(x.value().to(&Device::Cpu)?.item()) };
        let terms = self.terms.iter().map(|(name, term)| Ok((*name, number(term)?)));
        Ok((number(&self.total)?, terms.collect::<Result<_>>()?))
    }
}

/// Computes every term whose weight is not zero.
///
/// # Errors
/// When shapes do not fit or a label is not a class.
pub fn losses(
    tape: &mut Tape,
    output: &MaskedOutput,
    targets: &Targets,
    arch: Arch,
    weights: &LossWeights,
) -> Result<Losses> {
    let Targets { visible, infrared, labels, valid } = targets;
    let (plain, masked) = (&output.plain, &output.masked);
    let target = match arch {
        Arch::Release => FusionTarget::LargerGradient,
        Arch::Paper => FusionTarget::BrighterSource,
    };
    let mut list: Vec<(&'static str, f32, Var)> = Vec::new();
    let wanted = |w: f32| w != 0.0;
    if wanted(weights.seg) {
        list.push(("seg", weights.seg, ops::cross_entropy(tape, &plain.logits, labels)?));
    }
    if wanted(weights.fus) {
        let loss = ops::fusion_loss(tape, &plain.image, visible, infrared, valid, target)?;
        list.push(("fus", weights.fus, loss));
    }
    if wanted(weights.seg_masked) {
        let loss = ops::cross_entropy(tape, &masked.logits, labels)?;
        list.push(("seg_masked", weights.seg_masked, loss));
    }
    if wanted(weights.fus_masked) {
        // When the masks spare the fusion head, both pictures are one variable, and so are their losses.
        let same = list.iter().find(|term| term.0 == "fus" && masked.image.is(&plain.image));
        let loss = match same {
            Some((_, _, loss)) => loss.clone(),
            None => ops::fusion_loss(tape, &masked.image, visible, infrared, valid, target)?,
        };
        list.push(("fus_masked", weights.fus_masked, loss));
    }
    if wanted(weights.dice) {
        list.push(("dice", weights.dice, ops::dice(tape, &plain.logits, labels)?));
    }
    if wanted(weights.dice_masked) {
        list.push(("dice_masked", weights.dice_masked, ops::dice(tape, &masked.logits, labels)?));
    }
    if wanted(weights.cr) {
        let loss = ops::consistency(tape, &masked.logits, &plain.logits.detach(), labels)?;
        list.push(("cr", weights.cr, loss));
    }
    let terms = list.iter().map(|(name, _, loss)| (*name, loss.clone())).collect();
    let weighted: Vec<(f32, Var)> = list.into_iter().map(|(_, weight, loss)| (weight, loss)).collect();
    Ok(Losses { total: ops::weighted_sum(tape, &weighted)?, terms })
}
