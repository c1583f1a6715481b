//! `amdanet train`

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;

use super::progress::Progress;
use super::{Machine, Size, say};
use crate::data::{ClassSet, Dataset, Split};
use crate::evaluate::evaluate;
use crate::model::{Amdanet, Arch, Encoder};
use crate::train::{Config, Examples, Preset, Recipe, Trainer};
use crate::{Error, Result, checkpoint, config};

#[derive(Args)]
pub struct Train {
    /// Folder of the data set, in the flat layout
    #[arg(long)]
    data: PathBuf,
    /// Folder of the run: config.toml, metrics.jsonl and checkpoints/
    #[arg(long)]
    out: PathBuf,
    /// Classes and schedule of a known data set
    #[arg(long, value_enum)]
    preset: Option<Preset>,
    /// Learning rate of the published code or of the paper
    #[arg(long, value_enum, default_value_t)]
    recipe: Recipe,
    /// TOML file whose values replace those of preset and recipe
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Architecture
    #[arg(long, value_enum, default_value_t)]
    arch: Arch,
    /// Size of the encoder
    #[arg(long, value_enum, default_value_t)]
    encoder: Encoder,
    /// Height and width of the crops
    #[arg(long)]
    size: Option<Size>,
    /// Examples in a step
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Learning rate after the warm-up
    #[arg(long, value_name = "X")]
    lr: Option<f64>,
    /// Steps of linear warm-up
    #[arg(long, value_name = "STEPS")]
    warmup: Option<usize>,
    /// Number of steps
    #[arg(long, value_name = "N", conflicts_with = "epochs")]
    steps: Option<usize>,
    /// Number of passes through the training list
    #[arg(long, value_name = "N")]
    epochs: Option<f64>,
    /// Checkpoint to start from: a whole network, or an encoder, which goes into both streams
    #[arg(long, value_name = "WEIGHTS")]
    init: Option<PathBuf>,
    /// The same seed gives the same run
    #[arg(long)]
    seed: Option<u64>,
    #[command(flatten)]
    machine: Machine,
}

impl Train {
    pub fn run(self) -> Result<()> {
        self.machine.set_up()?;
        let train = Dataset::open(&self.data, Split::Train)?;
        let classes = self.classes(&train)?;
        let config = self.configure(classes.as_ref(), train.len())?;
        let classes = match classes {
            Some(classes) => classes,
            None => ClassSet::unnamed(config.model.classes)?,
        };
        let train = train.with_classes(classes.clone());
        let mut model = Amdanet::new(config.model.clone())?;
        model.params.initialise(config.run.seed);
        if let Some(path) = &self.init {
            checkpoint::load_into(&mut model, path)?;
        }
        let run = Run::create(&self.out, &config)?;
        let model = fit(model, &config, &train, &classes, &run)?;
        say(format!("weights in {}", run.last.display()));
        if let Ok(val) = Dataset::open(&self.data, Split::Val) {
            let val = val.with_classes(classes.clone());
            let result = evaluate(&model, &val, &classes, None, |_, _| ())?;
            say("on the val split:");
            super::eval::table(&result);
        }
        Ok(())
    }

    /// The classes of the preset, or those that the data set names.
    fn classes(&self, dataset: &Dataset) -> Result<Option<ClassSet>> {
        match self.preset {
            Some(preset) => ClassSet::preset(preset.name()).map(Some),
            None => Ok(dataset.classes().cloned()),
        }
    }

    /// Preset and recipe, then the file, then the flags.
    fn configure(&self, classes: Option<&ClassSet>, examples: usize) -> Result<Config> {
        let count = classes.map(ClassSet::len);
        let mut c = Config::new(self.preset, self.recipe, self.encoder, self.arch, count);
        if let Some(path) = &self.config {
            let text = fs::read_to_string(path).map_err(Error::io(path, "read"))?;
            let arch = config::overlay(&c, &text, path)?.model.arch;
            // The file may choose the architecture; the losses it leaves out are then those of its choice.
            c = Config::new(self.preset, self.recipe, self.encoder, arch, count);
            c = config::overlay(&c, &text, path)?;
        }
        if let Some(Size { height, width }) = self.size {
            (c.augment.height, c.augment.width) = (height, width);
        }
        c.run.batch = self.batch.unwrap_or(c.run.batch);
        c.optimizer.lr = self.lr.unwrap_or(c.optimizer.lr);
        c.optimizer.warmup_steps = self.warmup.unwrap_or(c.optimizer.warmup_steps);
        c.run.seed = self.seed.unwrap_or(c.run.seed);
        if self.steps == Some(0) {
            return Err(Error::Config("--steps 0: must be at least 1".into()));
        }
        c.run.steps = self.steps.unwrap_or(c.run.steps);
        if let Some(epochs) = self.epochs {
            (c.run.epochs, c.run.steps) = (epochs, 0);
        }
        c.validate()?;
        c.count_steps(examples);
        match count {
            Some(count) if count != c.model.classes => Err(Error::Config(format!(
                "model.classes = {}, but the data set has {count} classes",
                c.model.classes
            ))),
            _ => Ok(c),
        }
    }
}

/// The folder of a run.
pub struct Run {
    metrics: PathBuf,
    last: PathBuf,
}

impl Run {
    /// Makes the folder and writes the configuration into it.
    pub fn create(out: &Path, config: &Config) -> Result<Self> {
        let checkpoints = out.join("checkpoints");
        fs::create_dir_all(&checkpoints).map_err(Error::io(&checkpoints, "create the folder"))?;
        let last = checkpoints.join("last.safetensors");
        if last.exists() {
            let what = "holds a run already: choose another --out, or move it away";
            return Err(Error::file(out, what));
        }
        let path = out.join("config.toml");
        let text =
            toml::to_string_pretty(config).map_err(|e| Error::Config(format!("configuration: {e}")))?;
        fs::write(&path, text).map_err(Error::io(&path, "write"))?;
        Ok(Self { metrics: out.join("metrics.jsonl"), last })
    }
}

/// Trains to the end; batches are made on a thread of their own.
pub fn fit(
    model: Amdanet,
    config: &Config,
    dataset: &Dataset,
    classes: &ClassSet,
    run: &Run,
) -> Result<Amdanet> {
    let mut metrics = File::create(&run.metrics).map_err(Error::io(&run.metrics, "create"))?;
    let examples = Examples::new(dataset, config)?;
    let mut trainer = Trainer::new(model, config.clone());
    let mut progress = Progress::new("steps", config.run.steps);
    let mut mean = None;
    std::thread::scope(|scope| {
        // Two batches wait at most; the thread ends when the receiver is gone.
        let (sender, batches) = std::sync::mpsc::sync_channel(2);
        let examples = &examples;
        scope.spawn(move || {
            for step in 0..config.run.steps {
                if sender.send(examples.batch(step)).is_err() {
                    break;
                }
            }
        });
        for (step, batch) in batches.into_iter().enumerate() {
            let batch = batch?;
            let start = Instant::now();
            let done = trainer.step(&batch)?;
            let mut line = serde_json::json!({
                "step": step + 1, "epoch": examples.epoch(step), "lr": done.lr, "loss": done.loss,
                "seconds": start.elapsed().as_secs_f64(),
            });
            for (name, value) in &done.terms {
                line[*name] = (*value).into();
            }
            writeln!(metrics, "{line}").map_err(Error::io(&run.metrics, "write"))?;
            let smooth = mean.map_or(done.loss, |m: f32| m + 0.05 * (done.loss - m));
            mean = Some(smooth);
            progress.step(format!("loss {smooth:.3}"));
            if (step + 1) % config.run.checkpoint_every == 0 || step + 1 == config.run.steps {
                checkpoint::save(&run.last, &trainer.model, classes)?;
            }
        }
        Ok(trainer.model)
    })
}
