//! Dynamic loss scaling: keeps the small gradients of half precision above its smallest number.

use crate::DType;

/// Steps without an overflow after which the scale doubles.
const PATIENCE: u32 = 2000;
/// The clean steps of a scale that never changes, where they are written down.
const UNSCALED: u32 = u32::MAX;

/// The factor that the loss is multiplied with before it is differentiated, and the gradients divided by afterwards.
///
/// It doubles after 2000 steps without an overflow. When a gradient overflows, the step is skipped and the scale
/// halved. Only float16 needs it: the others have float32's range, and a scale of 1.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct LossScale {
    value: f32,
    /// Steps since the last change; `None` when nothing is scaled.
    clean: Option<u32>,
}

impl LossScale {
    /// What activations of type `compute` need.
    pub fn new(compute: DType) -> Self {
        match compute {
            DType::F16 => Self { value: 65536.0, clean: Some(0) },
            _ => Self { value: 1.0, clean: None },
        }
    }

    /// One that was written down as its factor and the number of clean steps, on a pass of type `compute`. It begins
    /// anew when only one of the two, the pass now or the one before, needs scaling.
    pub fn resume(compute: DType, value: f32, clean: u32) -> Self {
        match Self::new(compute).clean {
            Some(_) if clean != UNSCALED => Self { value, clean: Some(clean) },
            _ => Self::new(compute),
        }
    }

    /// Steps since the last change; the largest number when nothing is scaled.
    pub fn clean_steps(self) -> u32 {
        self.clean.unwrap_or(UNSCALED)
    }

    /// The factor.
    pub fn value(self) -> f32 {
        self.value
    }

    /// Whether a smaller factor may help after an overflow.
    pub fn can_shrink(self) -> bool {
        self.clean.is_some() && self.value > 1.0
    }

    /// Learns from a step: whether all gradients were finite.
    pub fn update(&mut self, finite: bool) {
        let Some(clean) = &mut self.clean else { return };
        if !finite {
            (self.value, *clean) = ((self.value * 0.5).max(1.0), 0);
        } else if *clean + 1 == PATIENCE {
            // The largest float16 is 65504, so a larger scale than 2²⁴ can only overflow.
            (self.value, *clean) = ((self.value * 2.0).min(16_777_216.0), 0);
        } else {
            *clean += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_after_clean_steps_and_shrinks_at_an_overflow() {
        let mut scale = LossScale::new(DType::F16);
        for _ in 0..PATIENCE - 1 {
            scale.update(true);
        }
        assert_eq!(scale.value(), 65536.0);
        scale.update(true);
        assert_eq!(scale.value(), 131_072.0);
        scale.update(false);
        assert_eq!(scale.value(), 65536.0);
        for _ in 0..PATIENCE - 1 {
            scale.update(true);
        }
        assert_eq!(scale.value(), 65536.0, "an overflow starts the count anew");
        for _ in 0..40 {
            scale.update(false);
        }
        assert!(scale.value() == 1.0 && !scale.can_shrink());

        let mut none = LossScale::new(DType::BF16);
        none.update(false);
        assert!(none.value() == 1.0 && !none.can_shrink());
    }

    #[test]
    fn goes_on_as_it_was_written_down() {
        let resumed =
            |compute, scale: LossScale| LossScale::resume(compute, scale.value(), scale.clean_steps());
        let mut scale = LossScale::new(DType::F16);
        scale.update(false);
        scale.update(true);
        assert_eq!(resumed(DType::F16, scale), scale);
        let none = LossScale::new(DType::F32);
        assert_eq!(resumed(DType::BF16, scale), none);
        assert_eq!(resumed(DType::F32, none), none);
        assert_eq!(resumed(DType::F16, none), LossScale::new(DType::F16));
    }
}
