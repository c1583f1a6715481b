//! `amdanet bench ablation`

use std::path::PathBuf;
use std::time::Instant;

use clap::{Args, ValueEnum};

use super::progress::Progress;
use super::{Data, Machine, Size, say, say_json};
use crate::data::{ClassSet, Dataset, Split};
use crate::evaluate::{Evaluation, Options, evaluate};
use crate::model::{Amdanet, Arch, Encoder};
use crate::train::{Config, Examples, Part, Recipe, Trainer};
use crate::{Device, Error, Result, checkpoint};

#[derive(Args)]
pub struct Ablation {
    #[command(flatten)]
    data: Data,
    /// What is varied: parts (the paper's Table 5), losses and masking (its Table 6)
    #[arg(long, value_enum, value_delimiter = ',', default_value = "parts")]
    rows: Vec<Rows>,
    /// Steps for each variant
    #[arg(long, value_name = "N", default_value_t = 300)]
    steps: usize,
    /// Runs of each variant: with the seeds 0 to N - 1
    #[arg(long, value_name = "N", default_value_t = 1)]
    seeds: u64,
    /// Split that the variants are measured on
    #[arg(long, default_value = "test")]
    split: Split,
    /// Architecture
    #[arg(long, value_enum, default_value_t)]
    arch: Arch,
    /// Size of the encoder
    #[arg(long, value_enum, default_value = "nano")]
    encoder: Encoder,
    /// Height and width of the crops
    #[arg(long, default_value = "96x128")]
    size: Size,
    /// Examples in a step
    #[arg(long, value_name = "N", default_value_t = 4)]
    batch: usize,
    /// Learning rate after the warm-up
    #[arg(long, value_name = "X", default_value_t = 3e-3)]
    lr: f64,
    /// Steps of linear warm-up
    #[arg(long, value_name = "STEPS", default_value_t = 30)]
    warmup: usize,
    /// Encoder to start from, as for `amdanet train`
    #[arg(long, value_name = "WEIGHTS")]
    init: Option<PathBuf>,
    /// One JSON object on standard output
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    machine: Machine,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Rows {
    /// The network without each of its parts, and without all of them
    Parts,
    /// The loss without each of its terms but the segmentation's own
    Losses,
    /// Other shares of features that masking keeps
    Masking,
}

/// Shares of features that masking keeps, beside the published 0.85.
const MASK_KEEP: [f64; 4] = [0.95, 0.75, 0.5, 0.25];

/// One way to train.
struct Variant {
    /// The flags of `amdanet train` that train it, or the line of its configuration.
    name: String,
    config: Config,
}

/// One trained network.
struct Outcome {
    parameters: usize,
    /// Mean seconds of a step.
    seconds: f64,
    /// The loss, meaned over the last tenth of the steps.
    loss: f64,
    result: Evaluation,
}

impl Ablation {
    pub fn run(&self) -> Result<()> {
        let device = self.machine.set_up()?;
        if self.steps == 0 || self.seeds == 0 {
            let (steps, seeds) = (self.steps, self.seeds);
            return Err(Error::Config(format!("--steps {steps} --seeds {seeds}: must be at least 1")));
        }
        let train = self.data.open(Split::Train)?;
        let test = self.data.open(self.split)?;
        let classes = train.classes().cloned().ok_or_else(|| {
            Error::file(&self.data.root, "has no classes.toml: an ablation needs the names of the classes")
        })?;
        let variants = self.variants(classes.len())?;
        let mut progress = Progress::new("trainings", variants.len() * self.seeds as usize);
        let mut rows = Vec::new();
        for variant in variants {
            let outcomes = (0..self.seeds)
                .map(|seed| {
                    let outcome = self.train(&variant.config, seed, &device, [&train, &test], &classes)?;
                    progress.step(&variant.name);
                    Ok(outcome)
                })
                .collect::<Result<Vec<_>>>()?;
            rows.push((variant.name, outcomes));
        }
        drop(progress);
        self.report(&rows)
    }

    /// The published network first, then what differs from it in one thing.
    fn variants(&self, classes: usize) -> Result<Vec<Variant>> {
        let mut whole = Config::new(None, Recipe::Release, self.encoder, self.arch, Some(classes));
        (whole.augment.height, whole.augment.width) = (self.size.height, self.size.width);
        (whole.run.batch, whole.run.steps) = (self.batch, self.steps);
        (whole.optimizer.lr, whole.optimizer.warmup_steps) = (self.lr, self.warmup);
        whole.validate()?;
        let mut variants = vec![Variant { name: "everything".into(), config: whole.clone() }];
        let mut vary = |name: String, change: &dyn Fn(&mut Config)| {
            let mut config = whole.clone();
            change(&mut config);
            variants.push(Variant { name, config });
        };
        if self.rows.contains(&Rows::Parts) {
            for parts in [
                &[Part::Sci][..],
                &[Part::Mfml],
                &[Part::Local],
                &[Part::Global],
                &[Part::Fdam],
                &[Part::Sci, Part::Mfml],
                &[Part::Mfml, Part::Fdam],
                &[Part::Sci, Part::Fdam],
                &[Part::Sci, Part::Mfml, Part::Fdam],
            ] {
                let flags = parts.iter().map(|part| format!("--without {}", part.name()));
                let name = flags.collect::<Vec<_>>().join(" ");
                vary(name, &|config| parts.iter().for_each(|&part| config.leave_out(part)));
            }
        }
        if self.rows.contains(&Rows::Losses) {
            for (term, weight) in whole.loss.terms() {
                if weight != 0.0 && term != "seg" {
                    vary(format!("--loss-weight {term}=0"), &|config| drop(config.loss.set(term, 0.0)));
                }
            }
        }
        if self.rows.contains(&Rows::Masking) {
            for keep in MASK_KEEP {
                vary(format!("run.mask_keep = {keep}"), &|config| config.run.mask_keep = keep);
            }
        }
        Ok(variants)
    }

    fn train(
        &self,
        config: &Config,
        seed: u64,
        device: &Device,
        [train, test]: [&Dataset; 2],
        classes: &ClassSet,
    ) -> Result<Outcome> {
        let mut config = config.clone();
        config.run.seed = seed;
        let mut model = Amdanet::new(config.model.clone())?;
        model.params.initialise(seed);
        if let Some(path) = &self.init {
            checkpoint::load_into(&mut model, path)?;
        }
        model.params.place(device, self.machine.precision.dtype())?;
        let parameters = model.params.count();
        let examples = Examples::new(train, &config)?;
        let mut trainer = Trainer::new(model, config.clone());
        let last = (self.steps / 10).max(1);
        let (mut seconds, mut loss) = (0.0, 0.0);
        for step in 0..self.steps {
            let batch = examples.batch(step)?;
            let start = Instant::now();
            let done = trainer.step(&batch)?;
            seconds += start.elapsed().as_secs_f64() / self.steps as f64;
            if step + last >= self.steps {
                loss += f64::from(done.loss) / last as f64;
            }
        }
        let result = evaluate(&trainer.model, test, classes, &Options::default(), |_, _| ())?;
        Ok(Outcome { parameters, seconds, loss, result })
    }

    fn report(&self, rows: &[(String, Vec<Outcome>)]) -> Result<()> {
        if self.json {
            let runs = |outcomes: &[Outcome]| -> Vec<_> {
                let run = |(seed, o): (usize, &Outcome)| {
                    serde_json::json!({
                        "seed": seed, "miou": o.result.scores.miou, "macc": o.result.scores.macc,
                        "pixel_accuracy": o.result.scores.pixel_accuracy, "fusion": o.result.scores.fusion,
                        "loss": o.loss, "seconds_per_step": o.seconds,
                    })
                };
                outcomes.iter().enumerate().map(run).collect()
            };
            let variants: Vec<_> = rows
                .iter()
                .map(|(name, outcomes)| {
                    let parameters = outcomes.first().map(|o| o.parameters);
                    serde_json::json!({ "variant": name, "parameters": parameters, "runs": runs(outcomes) })
                })
                .collect();
            return say_json(&serde_json::json!({
                "arch": self.arch, "encoder": self.encoder, "steps": self.steps, "batch": self.batch,
                "size": format!("{}x{}", self.size.height, self.size.width), "variants": variants,
            }));
        }
        say(format!(
            "{} {}, {} steps of {} pairs, {} seeds; means over the seeds",
            self.encoder, self.arch, self.steps, self.batch, self.seeds
        ));
        say(format!(
            "{:<54} {:>10} {:>7} {:>15} {:>7} {:>6} {:>6} {:>6} {:>6} {:>7}",
            "variant", "parameters", "mIoU %", "min to max", "mAcc %", "EN", "SD", "SF", "SCD", "ms/step"
        ));
        for (name, outcomes) in rows {
            let mean =
                |of: &dyn Fn(&Outcome) -> f64| outcomes.iter().map(of).sum::<f64>() / outcomes.len() as f64;
            let percent = |value: Option<f64>| 100.0 * value.unwrap_or(f64::NAN);
            let miou = |o: &Outcome| percent(o.result.scores.miou);
            let (least, most) = outcomes
                .iter()
                .map(miou)
                .fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)));
            let fusion = |of: fn(&crate::metrics::FusionMetrics) -> f64| {
                mean(&|o| o.result.scores.fusion.as_ref().map_or(f64::NAN, of))
            };
            say(format!(
                "{name:<54} {:>10} {:>7.2} {:>15} {:>7.2} {:>6.3} {:>6.2} {:>6.2} {:>6.3} {:>7.1}",
                outcomes[0].parameters,
                mean(&miou),
                format!("{least:.2} to {most:.2}"),
                mean(&|o| percent(o.result.scores.macc)),
                fusion(|f| f.en),
                fusion(|f| f.sd),
                fusion(|f| f.sf),
                fusion(|f| f.scd),
                1e3 * mean(&|o| o.seconds)
            ));
        }
        Ok(())
    }
}
