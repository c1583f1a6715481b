//! `amdanet train`

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use clap::Args;

use super::progress::Progress;
use super::{Machine, Size, say};
use crate::data::{ClassSet, Dataset, Split};
use crate::evaluate::{Options, evaluate};
use crate::model::{Amdanet, Arch, Encoder};
use crate::train::{Config, Examples, Preset, Recipe, Run, Trainer};
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
    /// Go on with the run in --out, from its newest checkpoint, bit for bit as if it had never stopped
    #[arg(long)]
    resume: bool,
    /// How many checkpoints are kept
    #[arg(long, value_name = "N", default_value_t = 2)]
    keep: usize,
    /// The same seed gives the same run
    #[arg(long)]
    seed: Option<u64>,
    #[command(flatten)]
    machine: Machine,
}

impl Train {
    pub fn run(self) -> Result<()> {
        let device = self.machine.set_up()?;
        let train = Dataset::open(&self.data, Split::Train)?;
        let classes = self.classes(&train)?;
        let config = self.configure(classes.as_ref(), train.len())?;
        let classes = match classes {
            Some(classes) => classes,
            None => ClassSet::unnamed(config.model.classes)?,
        };
        let train = train.with_classes(classes.clone());
        let mut model = Amdanet::new(config.model.clone())?;
        // A run that goes on may have stopped before its first checkpoint.
        model.params.initialise(config.run.seed);
        if let Some(path) = &self.init {
            checkpoint::load_into(&mut model, path)?;
        }
        model.params.place(&device, self.machine.precision.dtype())?;
        let mut trainer = Trainer::new(model, config.clone());
        let mut run = if self.resume {
            let note = |line| drop(writeln!(std::io::stderr(), "{line}"));
            let run = Run::resume(&self.out, &config, self.keep, &mut trainer, note)?;
            say(format!("going on after step {}", trainer.steps()));
            run
        } else {
            Run::create(&self.out, &config, self.keep)?
        };
        let model = match fit(trainer, &config, &train, &classes, &mut run)? {
            End::Done(model) => model,
            End::Stopped(steps) => {
                say(format!("stopped after step {steps}, all saved: the same command with --resume goes on"));
                return Ok(());
            }
        };
        say(format!("weights in {}", run.last().display()));
        if let Ok(val) = Dataset::open(&self.data, Split::Val) {
            let val = val.with_classes(classes.clone());
            let result = evaluate(&model, &val, &classes, &Options::default(), |_, _| ())?;
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

/// How a training ended.
pub enum End {
    /// All steps were taken.
    Done(Box<Amdanet>),
    /// It was interrupted after this many steps, and everything is saved.
    Stopped(usize),
}

/// Trains to the end, or until the process is told to stop; batches are made on a thread of their own.
pub fn fit(
    mut trainer: Trainer,
    config: &Config,
    dataset: &Dataset,
    classes: &ClassSet,
    run: &mut Run,
) -> Result<End> {
    let stop = stop_signal()?;
    let examples = Examples::new(dataset, config)?;
    let first = trainer.steps();
    let mut progress = Progress::new("steps", config.run.steps);
    progress.skip(first);
    let mut mean = None;
    std::thread::scope(|scope| {
        // Two batches wait at most; the thread ends when the receiver is gone.
        let (sender, batches) = std::sync::mpsc::sync_channel(2);
        let examples = &examples;
        scope.spawn(move || {
            for step in first..config.run.steps {
                if sender.send(examples.batch(step)).is_err() {
                    break;
                }
            }
        });
        for (step, batch) in (first..).zip(batches) {
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
            if done.loss_scale != 1.0 {
                (line["loss_scale"], line["skipped"]) = (done.loss_scale.into(), done.skipped.into());
            }
            run.log(&line)?;
            let smooth = mean.map_or(done.loss, |m: f32| m + 0.05 * (done.loss - m));
            mean = Some(smooth);
            progress.step(format!("loss {smooth:.3}"));
            let (last, stopped) = (step + 1 == config.run.steps, stop.load(Relaxed));
            if (step + 1) % config.run.checkpoint_every == 0 || last || stopped {
                run.save(&trainer, classes)?;
            }
            if stopped && !last {
                return Ok(End::Stopped(step + 1));
            }
        }
        Ok(End::Done(Box::new(trainer.model)))
    })
}

/// Becomes true at Ctrl-C or when the process is asked to end; a second Ctrl-C ends it at once.
fn stop_signal() -> Result<&'static AtomicBool> {
    static STOP: AtomicBool = AtomicBool::new(false);
    static INSTALLED: OnceLock<Result<(), String>> = OnceLock::new();
    let handler = || {
        if STOP.swap(true, Relaxed) {
            std::process::exit(130);
        }
    };
    let installed = INSTALLED.get_or_init(|| ctrlc::set_handler(handler).map_err(|e| e.to_string()));
    installed.clone().map_err(|e| Error::Config(format!("signals cannot be handled: {e}")))?;
    Ok(&STOP)
}
