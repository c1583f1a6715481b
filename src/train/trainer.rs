//! The training step.

use std::ops::Range;

use super::config::Config;
use super::diagnosis::first_not_finite;
use super::domain;
use super::ema::Ema;
use super::loss_scale::LossScale;
use super::losses::{Losses, Targets, losses};
use super::optimizer::Optimizer;
use crate::checkpoint::{Meta, State};
use crate::cpu;
use crate::cpu::adamw::{AdamW, Scaling};
use crate::data::Batch;
use crate::model::{Amdanet, Masking};
use crate::nn::{Pass, Step};
use crate::random::Philox;
use crate::{Error, Result, Tensor, ops};

/// A network in training.
pub struct Trainer {
    /// The network; its parameters change with each step.
    pub model: Amdanet,
    optimizer: Optimizer,
    scale: LossScale,
    ema: Option<Ema>,
    /// Steps taken, those included that changed nothing.
    steps: usize,
    /// Steps in a row until now that changed nothing, without a smaller loss scale as a remedy.
    bad_steps: usize,
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
    /// The norm of all gradients together, before it was limited; NaN when none was computed.
    pub gradient_norm: f32,
    /// The factor that kept small gradients representable; 1 outside float16.
    pub loss_scale: f32,
    /// Whether the loss or a gradient was not finite: nothing was changed then.
    pub skipped: bool,
    /// How many such steps there were in a row, this one included, that a smaller loss scale could not have helped.
    pub bad_steps: usize,
}

impl Trainer {
    /// A network that has not been trained by this optimizer yet; `config` has its steps counted.
    pub fn new(model: Amdanet, config: Config) -> Self {
        let o = &config.optimizer;
        let rule = AdamW { beta1: o.beta1, beta2: o.beta2, eps: o.eps };
        let (optimizer, scale) =
            (Optimizer::new(&model.params, rule, o.weight_decay), LossScale::new(model.params.compute()));
        let ema = (config.run.ema > 0.0).then(|| Ema::new(&model.params, config.run.ema));
        Self { model, optimizer, scale, ema, steps: 0, bad_steps: 0, config }
    }

    /// Steps taken so far: the number of the next batch.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// The network with its averaged weights, the one to measure and to use; `None` when none are kept.
    ///
    /// # Errors
    /// When the configuration is not usable.
    pub fn averaged(&self) -> Result<Option<Amdanet>> {
        let Some(ema) = &self.ema else { return Ok(None) };
        let mut model = Amdanet::new(self.model.config().clone())?;
        model.params = ema.apply(&self.model.params);
        Ok(Some(model))
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
            ("bad_steps", self.bad_steps.to_string()),
        ];
        meta.extra.extend(entries.map(|(key, value)| (key.to_string(), value)));
        let mut state = self.optimizer.state(&self.model.params)?;
        if let Some(ema) = &self.ema {
            ema.save(&self.model.params, &mut state)?;
        }
        Ok((state, meta))
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
        if let Some(ema) = &mut self.ema {
            ema.restore(&self.model.params, state)?;
        }
        let compute = self.model.params.compute();
        self.scale = LossScale::resume(compute, number(meta, "loss_scale")?, number(meta, "clean_steps")?);
        (self.steps, self.bad_steps) = (number(meta, "steps")?, number(meta, "bad_steps")?);
        Ok(())
    }

    /// One step: two predictions, losses and gradients of each micro-batch, AdamW; on the device of the parameters,
    /// wherever the batch is. The gradient of the step is the mean of those of its micro-batches.
    ///
    /// When the loss or a gradient is not finite, nothing is changed but the number of steps.
    ///
    /// # Errors
    /// When shapes do not fit, a label is not a class, or a device reports an error. And when the last
    /// `run.max_bad_steps` steps were not finite: names the first tensor of this step that was not.
    pub fn step(&mut self, batch: &Batch) -> Result<Progress> {
        cpu::on_pool(|| self.step_here(batch))
    }

    fn step_here(&mut self, batch: &Batch) -> Result<Progress> {
        let parts = self.parts(batch)?;
        let count = parts.len() as f32;
        let (lr, loss_scale) = (self.config.lr(self.steps), self.scale.value());
        let mut progress = Progress {
            loss: 0.0,
            terms: Vec::new(),
            lr,
            gradient_norm: f32::NAN,
            loss_scale,
            skipped: true,
            bad_steps: 0,
        };
        let mut sum: Option<Step> = None;
        for (i, part) in parts.iter().enumerate() {
            let mut pass = self.pass(i);
            let losses = self.losses(&mut pass, part, i)?;
            let (loss, terms) = losses.values()?;
            progress.add(loss / count, terms.into_iter().map(|(name, value)| (name, value / count)));
            if !loss.is_finite() {
                sum = None;
                break;
            }
            let step = pass.backward(&losses.total, loss_scale)?;
            match &mut sum {
                Some(sum) => sum.add(step)?,
                None => sum = Some(step),
            }
        }
        if let Some(sum) = sum {
            let max_norm = Some(self.config.optimizer.max_norm as f32).filter(|&norm| norm > 0.0);
            let scaling = Scaling { unscale: 1.0 / (loss_scale * count), max_norm };
            let outcome = self.optimizer.step(&mut self.model.params, sum, lr, scaling)?;
            (progress.gradient_norm, progress.skipped) = (outcome.norm, !outcome.finite);
        }
        self.finish(progress, batch)
    }

    /// Counts the step on `batch`, and learns from whether it was finite.
    fn finish(&mut self, mut progress: Progress, batch: &Batch) -> Result<Progress> {
        progress.bad_steps = match progress.skipped {
            false => 0,
            true if self.scale.can_shrink() => self.bad_steps,
            true => self.bad_steps + 1,
        };
        if progress.skipped && progress.bad_steps >= self.config.run.max_bad_steps {
            return Err(self.not_finite(&progress, batch)?);
        }
        if let (false, Some(ema)) = (progress.skipped, &mut self.ema) {
            ema.update(&self.model.params, self.optimizer.steps())?;
        }
        self.scale.update(!progress.skipped);
        (self.steps, self.bad_steps) = (self.steps + 1, progress.bad_steps);
        Ok(progress)
    }

    /// The error that ends a training of too many steps in a row that were not finite.
    fn not_finite(&self, progress: &Progress, batch: &Batch) -> Result<Error> {
        let terms: Vec<String> =
            progress.terms.iter().map(|(name, value)| format!("{name} {value}")).collect();
        let first = first_not_finite(self, batch)?;
        let first = first.as_deref().unwrap_or("nothing when the step was computed again");
        Ok(Error::Config(format!(
            "step {}: the loss or a gradient was not finite for {} steps in a row, none of which changed anything; \
             first of this step: {first}; loss {} ({}): lower the learning rate, limit the gradients (--clip-norm) or \
             look at the data",
            self.steps + 1,
            progress.bad_steps,
            progress.loss,
            terms.join(", ")
        )))
    }

    /// The micro-batches of a step, where the batch is.
    ///
    /// # Errors
    /// When the examples cannot be divided into `run.accumulate` equal parts.
    pub(super) fn parts(&self, batch: &Batch) -> Result<Vec<Batch>> {
        let count = self.config.run.accumulate;
        if count == 1 {
            return Ok(vec![batch.clone()]);
        }
        let examples = batch.labels.shape().first().copied().unwrap_or(0);
        if examples == 0 || !examples.is_multiple_of(count) {
            let why = format!("the examples of a step are {count} equal micro-batches (run.accumulate)");
            return Err(Error::shape("train", why, &[batch.labels.shape()]));
        }
        let each = examples / count;
        (0..count).map(|i| part(batch, i * each..(i + 1) * each)).collect()
    }

    /// The pass of micro-batch `i` of this step.
    pub(super) fn pass(&self, i: usize) -> Pass<'_> {
        let seed = self.config.run.seed.wrapping_add(domain::DROP).wrapping_add(self.number(i) as u64);
        let mut pass = Pass::train(&self.model.params, seed);
        pass.recompute = self.config.run.recompute;
        pass
    }

    /// The number of micro-batch `i` of this step among all of the run, which decides what is drawn for it.
    fn number(&self, i: usize) -> usize {
        self.steps * self.config.run.accumulate + i
    }

    /// What a loss is multiplied with before it is differentiated.
    pub(super) fn loss_scale(&self) -> f32 {
        self.scale.value()
    }

    /// Both predictions of micro-batch `i` of this step, and what they lose.
    pub(super) fn losses<'a>(&'a self, pass: &mut Pass<'a>, batch: &Batch, i: usize) -> Result<Losses> {
        let batch = batch.to(self.model.params.device())?;
        let masking = self.draw_masks(&batch, self.number(i))?;
        let output = self.model.forward_masked(pass, &batch.visible, &batch.infrared, &masking)?;
        drop(masking);
        let Batch { visible, infrared, labels, valid } = &batch;
        let targets = Targets { visible, infrared, labels, valid };
        losses(&mut pass.tape, &output, &targets, self.model.config().arch, &self.config.loss)
    }

    /// One of two choices, and element masks that keep a value with probability `mask_keep`; no masks where no term of
    /// the loss looks at masked features.
    fn draw_masks(&self, batch: &Batch, number: usize) -> Result<Masking> {
        let run = &self.config.run;
        let mut stream = Philox::new(run.seed.wrapping_add(domain::MASK), number as u64);
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

impl Progress {
    /// Adds what a micro-batch lost.
    fn add(&mut self, loss: f32, terms: impl Iterator<Item = (&'static str, f32)>) {
        self.loss += loss;
        if self.terms.is_empty() {
            self.terms = terms.collect();
        } else {
            self.terms.iter_mut().zip(terms).for_each(|(sum, (_, term))| sum.1 += term);
        }
    }
}

/// The examples `range` of a batch, sharing its buffers.
fn part(batch: &Batch, range: Range<usize>) -> Result<Batch> {
    let pictures = |x: &Tensor| match *x.shape() {
        [1, b, h, w, c] => x.reshape([b, h, w, c])?.narrow(range.clone())?.reshape([1, range.len(), h, w, c]),
        _ => Err(Error::shape("train", "pictures must be (1, B, H, W, 3)", &[x.shape()])),
    };
    Ok(Batch {
        visible: pictures(&batch.visible)?,
        infrared: pictures(&batch.infrared)?,
        labels: batch.labels.narrow(range.clone())?,
        valid: batch.valid.narrow(range.clone())?,
    })
}
