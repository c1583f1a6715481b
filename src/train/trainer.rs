//! The training step.

use super::config::Config;
use super::domain;
use super::loss_scale::LossScale;
use super::losses::{Targets, losses};
use super::optimizer::Optimizer;
use crate::checkpoint::{Meta, State};
use crate::cpu;
use crate::cpu::adamw::{AdamW, Scaling};
use crate::data::Batch;
use crate::model::{Amdanet, Masking};
use crate::nn::Pass;
use crate::random::Philox;
use crate::{Error, Result, ops};

/// A network in training.
pub struct Trainer {
    /// The network; its parameters change with each step.
    pub model: Amdanet,
    optimizer: Optimizer,
    scale: LossScale,
    /// Steps taken, those included that changed nothing because a gradient overflowed.
    steps: usize,
    config: Config,
}

/// What one step did.
#[derive(Clone, Debug)]
pub struct Progress {
    /// The weighted sum of the terms.
    pub loss: f32,
    /// Each term, by its name.
    pub terms: Vec<(&'static str, f32)>,
    /// The learning rate of the step.
    pub lr: f64,
    /// The factor that kept small gradients representable; 1 outside float16.
    pub loss_scale: f32,
    /// Whether a gradient overflowed: nothing was changed then, and the next step uses a smaller factor.
    pub skipped: bool,
}

impl Trainer {
    /// A network that has not been trained by this optimizer yet; `config` has its steps counted.
    pub fn new(model: Amdanet, config: Config) -> Self {
        let o = &config.optimizer;
        let rule = AdamW { beta1: o.beta1, beta2: o.beta2, eps: o.eps };
        let (optimizer, scale) =
            (Optimizer::new(&model.params, rule, o.weight_decay), LossScale::new(model.params.compute()));
        Self { model, optimizer, scale, steps: 0, config }
    }

    /// Steps taken so far: the number of the next batch.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// Everything beside the weights that the next steps depend on, as a checkpoint.
    ///
    /// # Errors
    /// When a device reports one.
    pub fn state(&self) -> Result<(State, Meta)> {
        let mut meta = Meta::new(self.model.config().clone());
        let entries = [
            ("steps", self.steps.to_string()),
            ("optimizer_steps", self.optimizer.steps().to_string()),
            ("loss_scale", self.scale.value().to_string()),
            ("clean_steps", self.scale.clean_steps().to_string()),
        ];
        meta.extra.extend(entries.map(|(key, value)| (key.to_string(), value)));
        Ok((self.optimizer.state(&self.model.params)?, meta))
    }

    /// Goes on where a trainer stopped whose weights the model has, and whose [`Trainer::state`] this is.
    ///
    /// # Errors
    /// When something is missing or of another size, or a device reports an error.
    pub fn restore(&mut self, state: &State, meta: &Meta) -> Result<()> {
        fn number<T: std::str::FromStr>(meta: &Meta, key: &str) -> Result<T> {
            let text = meta.extra.get(key).and_then(|text| text.parse().ok());
            text.ok_or_else(|| Error::Config(format!("its metadata has no number {key:?}")))
        }
        self.optimizer.restore(&self.model.params, state, number(meta, "optimizer_steps")?)?;
        let compute = self.model.params.compute();
        self.scale = LossScale::resume(compute, number(meta, "loss_scale")?, number(meta, "clean_steps")?);
        self.steps = number(meta, "steps")?;
        Ok(())
    }

    /// One step: two predictions, losses, gradients, AdamW; on the device of the parameters, wherever the batch is.
    ///
    /// # Errors
    /// When shapes do not fit, a label is not a class, or the loss is not finite (nothing is changed then).
    pub fn step(&mut self, batch: &Batch) -> Result<Progress> {
        cpu::on_pool(|| self.step_here(batch))
    }

    fn step_here(&mut self, batch: &Batch) -> Result<Progress> {
        let (step, seed) = (self.steps(), self.config.run.seed);
        let batch = batch.to(self.model.params.device())?;
        let arch = self.model.config().arch;
        let mut pass =
            Pass::train(&self.model.params, seed.wrapping_add(domain::DROP).wrapping_add(step as u64));
        let masking = self.draw_masks(&batch, step)?;
        let output = self.model.forward_masked(&mut pass, &batch.visible, &batch.infrared, &masking)?;
        drop(masking);
        let Batch { visible, infrared, labels, valid } = &batch;
        let targets = Targets { visible, infrared, labels, valid };
        let losses = losses(&mut pass.tape, &output, &targets, arch, &self.config.loss)?;
        drop(output);
        let (loss, terms) = losses.values()?;
        let (lr, loss_scale) = (self.config.lr(step), self.scale.value());
        if !loss.is_finite() {
            if self.scale.can_shrink() {
                self.scale.update(false);
                self.steps += 1;
                return Ok(Progress { loss, terms, lr, loss_scale, skipped: true });
            }
            let terms: Vec<String> = terms.iter().map(|(n, v)| format!("{n} {v}")).collect();
            return Err(Error::Config(format!(
                "the loss of step {} is {loss} ({}): lower the learning rate or look at the data",
                step + 1,
                terms.join(", ")
            )));
        }
        let taken = pass.backward(&losses.total, loss_scale)?;
        let scaling = Scaling { unscale: 1.0 / loss_scale, max_norm: None };
        let outcome = self.optimizer.step(&mut self.model.params, taken, lr, scaling)?;
        if !outcome.finite && !self.scale.can_shrink() {
            return Err(Error::Config(format!(
                "a gradient of step {} is not finite, though the loss is {loss}: lower the learning rate",
                step + 1
            )));
        }
        self.scale.update(outcome.finite);
        self.steps += 1;
        Ok(Progress { loss, terms, lr, loss_scale, skipped: !outcome.finite })
    }

    /// One of two choices, and element masks that keep a value with probability `mask_keep`; no masks where no term of
    /// the loss looks at masked features.
    fn draw_masks(&self, batch: &Batch, step: usize) -> Result<Masking> {
        let run = &self.config.run;
        let mut stream = Philox::new(run.seed.wrapping_add(domain::MASK), step as u64);
        let choice = stream.range(2);
        let seed = stream.u64();
        let shape = batch.visible.shape();
        if !self.config.loss.needs_masking() {
            return Ok(Masking { choice, masks: Vec::new() });
        }
        let keep = run.mask_keep as f32;
        let masks = self
            .model
            .mask_shapes(shape[1], shape[2], shape[3], choice)
            .into_iter()
            .enumerate()
            .map(|(level, shape)| ops::feature_mask(&batch.visible.device(), shape, keep, seed, level as u64))
            .collect::<Result<_>>()?;
        Ok(Masking { choice, masks })
    }
}
