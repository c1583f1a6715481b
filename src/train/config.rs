//! Everything that a training run can be told, with the published recipes as defaults.

use serde::{Deserialize, Serialize};

use super::losses::LossWeights;
use crate::data::Layout;
use crate::model::{Arch, Encoder, ModelConfig};
use crate::{Error, Result};

/// A data set with published numbers of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// MFNet: 9 classes.
    Mfnet,
    /// FMB: 15 classes.
    Fmb,
    /// PST900: 5 classes.
    Pst900,
}

impl Preset {
    /// The data set that is published in this layout.
    pub fn of(layout: Layout) -> Option<Self> {
        match layout {
            Layout::Flat => None,
            Layout::Mfnet => Some(Self::Mfnet),
            Layout::Fmb => Some(Self::Fmb),
            Layout::Pst900 => Some(Self::Pst900),
        }
    }

    /// The name of the preset: `mfnet`, `fmb` or `pst900`.
    pub fn name(self) -> &'static str {
        ["mfnet", "fmb", "pst900"][self as usize]
    }
}

/// Where a learning rate comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Recipe {
    /// The published code.
    #[default]
    Release,
    /// The paper's text.
    Paper,
}

/// AdamW and its schedule.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerConfig {
    /// Learning rate after the warm-up.
    pub lr: f64,
    /// Decay of the weights of linear and convolution layers.
    pub weight_decay: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Steps of linear warm-up from 0; when 0, `warmup_epochs` counts.
    pub warmup_steps: usize,
    /// Epochs of linear warm-up.
    pub warmup_epochs: f64,
    /// Exponent of the decay (1 − step/total)^power.
    pub power: f64,
    /// The largest norm of all gradients together: longer ones are shortened to it. 0, the published recipe: no limit.
    pub max_norm: f64,
}

/// What a training example looks like.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AugmentConfig {
    /// Height of the crop.
    pub height: usize,
    /// Width of the crop.
    pub width: usize,
    /// Probability of mirroring.
    pub mirror: f64,
    /// Scales, one of which is chosen for each example.
    pub scales: Vec<f64>,
}

/// The run itself.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunConfig {
    /// Examples that are computed at once: a micro-batch.
    pub batch: usize,
    /// Micro-batches in a step, whose gradients are averaged. The mean of their gradients is not quite that of one batch
    /// of all their examples: batch norms see each micro-batch alone, cross entropy divides by the labelled pixels of
    /// each, and dice is computed of each.
    pub accumulate: usize,
    /// Steps; when 0, `epochs` counts.
    pub steps: usize,
    /// Passes through the training list.
    pub epochs: f64,
    /// Decides everything that is drawn: parameters, order, augmentation, masks, dropout.
    pub seed: u64,
    /// Probability that a masked feature is kept.
    pub mask_keep: f64,
    /// Steps between checkpoints.
    pub checkpoint_every: usize,
    /// Whether encoder blocks are computed again in backward instead of being kept: less memory, more time, the same
    /// bits.
    pub recompute: bool,
    /// Decay of the moving average of the weights, which is kept beside them; 0: none is kept.
    pub ema: f64,
    /// So many steps in a row may have a loss or gradient that is not finite, and change nothing; then training stops.
    pub max_bad_steps: usize,
}

impl RunConfig {
    /// Examples of a step.
    pub fn examples(&self) -> usize {
        self.batch * self.accumulate
    }
}

/// A whole configuration, the sections of the TOML file.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `[model]`
    pub model: ModelConfig,
    /// `[loss]`
    pub loss: LossWeights,
    /// `[optimizer]`
    pub optimizer: OptimizerConfig,
    /// `[augment]`
    pub augment: AugmentConfig,
    /// `[run]`
    pub run: RunConfig,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            lr: 6.3e-5,
            weight_decay: 0.01,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            warmup_steps: 0,
            warmup_epochs: 50.0,
            power: 0.9,
            max_norm: 0.0,
        }
    }
}

impl Default for AugmentConfig {
    fn default() -> Self {
        let scales = vec![0.5, 0.75, 1.0, 1.25, 1.5, 1.75];
        Self { height: 480, width: 640, mirror: 0.5, scales }
    }
}

impl Default for RunConfig {
    fn default() -> Self {
        Self {
            batch: 6,
            accumulate: 1,
            steps: 0,
            epochs: 350.0,
            seed: 0,
            mask_keep: 0.85,
            checkpoint_every: 500,
            recompute: false,
            ema: 0.0,
            max_bad_steps: 20,
        }
    }
}

impl Config {
    /// The published numbers for a data set (`None`: MFNet's, with `classes` of your own).
    pub fn new(
        preset: Option<Preset>,
        recipe: Recipe,
        encoder: Encoder,
        arch: Arch,
        classes: Option<usize>,
    ) -> Self {
        let mut config = Self { loss: LossWeights::new(arch), ..Self::default() };
        let known = match preset {
            None | Some(Preset::Mfnet) => 9,
            Some(Preset::Fmb) => {
                config.optimizer.lr = 3e-5;
                15
            }
            Some(Preset::Pst900) => {
                config.run.epochs = 300.0;
                config.optimizer.warmup_epochs = 75.0;
                config.augment.scales.push(2.0);
                5
            }
        };
        if recipe == Recipe::Paper {
            config.optimizer.lr = 6e-5;
        }
        config.model = ModelConfig::new(encoder, arch, classes.unwrap_or(known));
        config
    }

    /// Sets `steps` and `warmup_steps` from the epochs where they are 0, for `examples` examples.
    pub fn count_steps(&mut self, examples: usize) {
        let per_epoch = examples as f64 / self.run.examples().max(1) as f64;
        if self.run.steps == 0 {
            self.run.steps = (self.run.epochs * per_epoch).ceil().max(1.0) as usize;
        }
        if self.optimizer.warmup_steps == 0 {
            self.optimizer.warmup_steps = (self.optimizer.warmup_epochs * per_epoch).round() as usize;
        }
    }

    /// Checks every number that a run relies on.
    ///
    /// # Errors
    /// Names the first number that cannot be used.
    pub fn validate(&self) -> Result<()> {
        self.model.validate()?;
        let (o, a, r) = (&self.optimizer, &self.augment, &self.run);
        let side = crate::model::SMALLEST_SIDE;
        let largest = crate::model::LARGEST_SIDE;
        let (smallest, most) = (a.height.min(a.width), a.height.max(a.width));
        let wrong = [
            (!(1..=1024).contains(&r.batch), format!("run.batch = {}: must be 1 to 1024", r.batch)),
            (
                !(1..=1024).contains(&r.accumulate),
                format!("run.accumulate = {}: must be 1 to 1024 micro-batches", r.accumulate),
            ),
            (!(0.0..1.0).contains(&r.ema), format!("run.ema = {}: must be at least 0 and below 1", r.ema)),
            (r.max_bad_steps == 0, "run.max_bad_steps = 0: must be at least 1".into()),
            (
                !(0.0..=f64::from(f32::MAX)).contains(&o.max_norm),
                format!("optimizer.max_norm = {}: must be positive, or 0 for no limit", o.max_norm),
            ),
            (!(0.0..=1.0).contains(&r.mask_keep), format!("run.mask_keep = {}: must be 0 to 1", r.mask_keep)),
            (r.checkpoint_every == 0, "run.checkpoint_every = 0: must be at least 1".into()),
            (!(r.epochs > 0.0 || r.steps > 0), format!("run.epochs = {}: must be positive", r.epochs)),
            (smallest < side, format!("augment.height and width must be at least {side}, not {smallest}")),
            (most > largest, format!("augment.height and width must be at most {largest}, not {most}")),
            (!(0.0..=1.0).contains(&a.mirror), format!("augment.mirror = {}: must be 0 to 1", a.mirror)),
            (
                a.scales.is_empty() || a.scales.iter().any(|s| !(0.05..=8.0).contains(s)),
                format!("augment.scales = {:?}: one or more of 0.05 to 8", a.scales),
            ),
            (!(o.lr > 0.0 && o.lr < 1.0), format!("optimizer.lr = {}: must be above 0 and below 1", o.lr)),
            (
                !(0.0..1.0).contains(&o.beta1)
                    || !(0.0..1.0).contains(&o.beta2)
                    || o.eps.is_nan()
                    || o.eps <= 0.0,
                "optimizer: beta1 and beta2 must be at least 0 and below 1, eps positive".into(),
            ),
            (
                !(o.weight_decay >= 0.0 && o.power >= 0.0 && o.warmup_epochs >= 0.0),
                "optimizer: weight_decay, power and warmup_epochs must not be negative".into(),
            ),
        ];
        match wrong.into_iter().find(|(wrong, _)| *wrong) {
            Some((_, what)) => Err(Error::Config(what)),
            None => self.loss.validate(),
        }
    }

    /// The learning rate of step `step`, counted from 0: linear warm-up from 0, times (1 − step/total)^power.
    pub fn lr(&self, step: usize) -> f64 {
        let o = &self.optimizer;
        let warmup = ((step + 1) as f64 / o.warmup_steps.max(1) as f64).min(1.0);
        let rest = 1.0 - step as f64 / self.run.steps.max(1) as f64;
        o.lr * warmup * rest.max(0.0).powf(o.power)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schedule_warms_up_and_decays() {
        let mut config = Config::new(Some(Preset::Mfnet), Recipe::Release, Encoder::B4, Arch::Release, None);
        config.count_steps(784);
        assert_eq!((config.run.steps, config.optimizer.warmup_steps), (45_734, 6533));
        config.run.steps = 100;
        config.optimizer.warmup_steps = 10;
        assert!((config.lr(0) - 6.3e-6).abs() < 1e-12);
        assert!((config.lr(50) - 6.3e-5 * 0.5f64.powf(0.9)).abs() < 1e-12);
        assert_eq!(config.lr(100), 0.0);
    }

    #[test]
    fn a_step_of_several_micro_batches_counts_once() {
        let mut config = Config::default();
        (config.run.batch, config.run.accumulate, config.run.epochs) = (4, 3, 2.0);
        config.optimizer.warmup_epochs = 0.5;
        config.count_steps(120);
        assert_eq!((config.run.steps, config.optimizer.warmup_steps), (20, 5));
    }

    #[test]
    fn numbers_that_cannot_be_used_are_named() {
        let error = |change: fn(&mut Config)| {
            let mut config = Config::default();
            change(&mut config);
            config.validate().unwrap_err().to_string()
        };
        Config::default().validate().unwrap();
        assert!(error(|c| c.run.accumulate = 0).contains("run.accumulate = 0: must be 1 to 1024"));
        assert!(error(|c| c.run.ema = 1.0).contains("run.ema = 1: must be"));
        assert!(error(|c| c.run.ema = f64::NAN).contains("run.ema = NaN"));
        assert!(error(|c| c.run.max_bad_steps = 0).contains("run.max_bad_steps = 0"));
        assert!(error(|c| c.optimizer.max_norm = -1.0).contains("optimizer.max_norm = -1"));
        assert!(error(|c| c.augment.width = 100_000).contains("must be at most 16384, not 100000"));
        assert!(error(|c| c.loss.seg = f32::NAN).contains("loss weight seg = NaN: must be 0 or more"));
        assert!(error(|c| c.optimizer.max_norm = f64::INFINITY).contains("optimizer.max_norm = inf"));
    }
}
