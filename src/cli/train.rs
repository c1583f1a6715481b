//! `amdanet train`

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use clap::Args;

use super::bench::resident_peak;
use super::progress::Progress;
use super::validation::Validation;
use super::{Data, Machine, Size, say, warn};
use crate::data::{ClassSet, Dataset, Split};
use crate::model::{Amdanet, Arch, Encoder};
use crate::train::{Best, Config, Estimate, Examples, Part, Preset, Recipe, Run, Time, Trainer, estimate};
use crate::{Error, Result, checkpoint, config};

#[derive(Args)]
pub struct Train {
    #[command(flatten)]
    data: Data,
    /// Folder of the run: config.toml, metrics.jsonl, checkpoints/ and event files for TensorBoard
    #[arg(long)]
    out: PathBuf,
    /// Classes and schedule of a known data set [default: of the one whose layout DATA has]
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
    /// Examples that are computed at once
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Batches in a step, whose gradients are averaged: a larger step in the memory of one batch
    #[arg(long, value_name = "N")]
    accumulate: Option<usize>,
    /// Shorten the gradients to this norm where they are longer; 0: as they are
    #[arg(long, value_name = "X")]
    clip_norm: Option<f64>,
    /// Compute encoder blocks again in backward instead of keeping them: less memory, more time, the same bits
    #[arg(long)]
    recompute: bool,
    /// Keep a moving average of the weights too, in checkpoints/ema.safetensors; 0.999 or so, nearer to 1 for longer runs
    #[arg(long, value_name = "DECAY")]
    ema: Option<f64>,
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
    /// A part to leave out; fdam is local and global alignment together
    #[arg(long, value_enum, value_name = "PART")]
    without: Vec<Part>,
    /// The weight of a term of the loss, as cr=0; 0 switches the term off
    #[arg(long, value_name = "TERM=X", value_parser = loss_weight)]
    loss_weight: Vec<(String, f32)>,
    /// Checkpoint to start from: a whole network, or an encoder, which goes into both streams
    #[arg(long, value_name = "WEIGHTS")]
    init: Option<PathBuf>,
    /// Go on with the run in --out, from its newest checkpoint, bit for bit as if it had never stopped
    #[arg(long)]
    resume: bool,
    /// How many checkpoints are kept, beside that of the best evaluation
    #[arg(long, value_name = "N", default_value_t = 2)]
    keep: usize,
    /// Steps between evaluations; 0 measures at the end alone [default: an epoch, rounded up to whole checkpoints]
    #[arg(long, value_name = "N")]
    eval_every: Option<usize>,
    /// Split that evaluations measure, val or test; checkpoints/best.safetensors has the highest mIoU there
    #[arg(long, value_name = "SPLIT", default_value = "val")]
    best_by: Split,
    /// The same seed gives the same run
    #[arg(long)]
    seed: Option<u64>,
    #[command(flatten)]
    machine: Machine,
}

impl Train {
    pub fn run(mut self) -> Result<()> {
        let device = self.machine.set_up()?;
        let train = self.data.open(Split::Train)?;
        // A published data set, as it is, brings its own schedule.
        let published = train.classes().is_some() && train.classes() == train.layout().classes().as_ref();
        self.preset = self.preset.or(Preset::of(train.layout()).filter(|_| published));
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
        let compute = self.machine.precision.dtype();
        model.params.place(&device, compute)?;
        let (data, machine) = (train.fingerprint(), self.machine.describe(&device));
        let mut validation = self.validation(&config, &classes, train.len())?;
        self.introduce(&config, &model, &train, validation.as_ref(), &machine)?;
        let measured = validation.as_ref().map(Validation::dataset);
        say(format!("memory    {}", memory(estimate(&config, &device, compute, &train, measured)?)));
        let mut trainer = Trainer::new(model, config.clone());
        let mut run = if self.resume {
            let run = Run::resume(&self.out, &config, &data, &machine, self.keep, &mut trainer, warn)?;
            say(format!("going on after step {}", trainer.steps()));
            run
        } else {
            Run::create(&self.out, &config, &data, &machine, self.keep)?
        };
        if let Some(best) = run.best().filter(|best| best.split != self.best_by.to_string()) {
            let Best { split, miou, .. } = best;
            warn(format!(
                "the best so far, mIoU {miou:.4} on {split}, no longer counts: --best-by has changed"
            ));
        }
        let complete = trainer.steps() == config.run.steps;
        match fit(trainer, &config, &train, &classes, validation.as_mut(), &mut run)? {
            End::Done(_) if complete => {
                say(format!("the run is complete: all {} steps are taken", config.run.steps))
            }
            End::Done(_) => {}
            End::Stopped(steps) => {
                say(format!("stopped after step {steps}, all saved; to go on:\n{}", resume_command()));
                return Ok(());
            }
        }
        if let Some((validation, result)) = validation.as_ref().and_then(|v| Some((v, v.newest()?))) {
            say(format!("on the {} split:", validation.split()));
            super::eval::table(result);
        }
        say(format!("weights in {}", run.last().display()));
        if config.run.ema > 0.0 {
            say(format!("averaged weights, the ones to measure and use, in {}", run.averaged().display()));
        }
        if let Some(Best { step, split, miou }) = run.best() {
            let path = run.best_weights();
            say(format!(
                "the best, mIoU {:.2} % on {split} after step {step}, in {}",
                100.0 * miou,
                path.display()
            ));
        }
        match resident_peak() {
            0 => {}
            peak => say(format!("{} of memory were taken at most", amount(peak as usize))),
        }
        Ok(())
    }

    /// What is measured during the training: the split of `--best-by`, if there is one.
    fn validation(&self, config: &Config, classes: &ClassSet, examples: usize) -> Result<Option<Validation>> {
        let split = self.best_by;
        let dataset = match (split, self.data.open(split)) {
            (_, Ok(dataset)) => dataset,
            (Split::Val, Err(e)) => {
                warn(format!("nothing is measured, and no checkpoint will be the best: {e}"));
                return Ok(None);
            }
            (_, Err(e)) => return Err(e),
        };
        let other = match split {
            Split::Train => {
                return Err(Error::Config("--best-by train: must be val or test".into()));
            }
            Split::Val => self.data.open(Split::Test).ok(),
            Split::Test => None,
        };
        if split == Split::Test {
            warn("the test split chooses the best checkpoint: its score there is too good to report".into());
        } else if other.is_some_and(|other| other.names().eq(dataset.names())) {
            warn(
                "val and test list the same pairs: the best checkpoint's score there is too good to report"
                    .into(),
            );
        }
        let every = self.eval_every.unwrap_or_else(|| Validation::default_every(config, examples));
        Ok(Some(Validation::new(dataset.with_classes(classes.clone()), classes.clone(), every)))
    }

    /// What is going to happen.
    fn introduce(
        &self,
        config: &Config,
        model: &Amdanet,
        train: &Dataset,
        validation: Option<&Validation>,
        machine: &str,
    ) -> Result<()> {
        let (m, r, a) = (&config.model, &config.run, &config.augment);
        let measured = validation.map_or("nothing to measure".into(), Validation::describe);
        say(format!("data      {}", self.data.describe()?));
        say(format!("measured  {measured}"));
        let parameters = model.params.count() as f64 / 1e6;
        let (arch, encoder, classes) = (m.arch, m.encoder_name(), m.classes);
        say(format!("network   {arch} {encoder}, {parameters:.2} million parameters, {classes} classes"));
        let epochs = (r.steps * r.examples()) as f64 / train.len() as f64;
        let (steps, examples, height, width) = (r.steps, r.examples(), a.height, a.width);
        let preset = self.preset.map_or(String::new(), |preset| format!(", preset {}", preset.name()));
        say(format!(
            "training  {steps} steps of {examples} crops of {height}x{width}: {epochs:.1} epochs{preset}"
        ));
        let warmup = config.optimizer.warmup_steps;
        let short = if warmup < r.steps { "" } else { ", never reached: --warmup shortens the way there" };
        say(format!("rate      {} after {warmup} steps of warm-up{short}", config.optimizer.lr));
        say(format!("machine   {machine}"));
        say(format!("run       {}", self.out.display()));
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
        c.run.accumulate = self.accumulate.unwrap_or(c.run.accumulate);
        c.run.recompute |= self.recompute;
        c.run.ema = self.ema.unwrap_or(c.run.ema);
        c.optimizer.max_norm = self.clip_norm.unwrap_or(c.optimizer.max_norm);
        c.optimizer.lr = self.lr.unwrap_or(c.optimizer.lr);
        if let Some(steps) = self.warmup {
            c.optimizer.warmup_steps = steps;
            if steps == 0 {
                // Not "as many as the epochs say".
                c.optimizer.warmup_epochs = 0.0;
            }
        }
        c.run.seed = self.seed.unwrap_or(c.run.seed);
        self.without.iter().for_each(|&part| c.leave_out(part));
        for (term, weight) in &self.loss_weight {
            c.loss.set(term, *weight)?;
        }
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

/// What a training takes, in words.
fn memory(Estimate { host, device }: Estimate) -> String {
    match device {
        Some(device) => {
            format!("about {} of the device's at most, {} of the host's", amount(device), amount(host))
        }
        None => format!("about {} at most", amount(host)),
    }
}

fn amount(bytes: usize) -> String {
    match bytes as f64 / 1e9 {
        gb if gb < 1.0 => format!("{:.0} MB", 1e3 * gb),
        gb => format!("{gb:.2} GB"),
    }
}

/// A term and its weight, written `cr=0`.
fn loss_weight(text: &str) -> Result<(String, f32), String> {
    let parsed = text.split_once('=').and_then(|(term, weight)| Some((term.into(), weight.parse().ok()?)));
    parsed.ok_or_else(|| "a weight is written TERM=X, as cr=0".into())
}

/// How a training ended.
pub enum End {
    /// All steps were taken; with the averaged weights where an average is kept.
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
    mut validation: Option<&mut Validation>,
    run: &mut Run,
) -> Result<End> {
    let stop = stop_signal()?;
    let examples = Examples::new(dataset, config)?;
    let (first, steps) = (trainer.steps(), config.run.steps);
    let mut progress = Progress::new("steps", steps);
    progress.skip(first);
    let (mut loss, mut speed) = (Mean::default(), Mean::default());
    let (mut computed, mut waited) = (0.0, 0.0);
    std::thread::scope(|scope| {
        let mut batches = examples.feed(scope, first..steps)?;
        let mut stopped = false;
        loop {
            // Between two steps. When there is something to measure, everything is saved.
            let step = trainer.steps();
            let due = |v: &&mut Validation| v.is_due(step, steps) && !run.is_evaluated(step, v.split());
            if let Some(validation) = validation.as_deref_mut().filter(due) {
                if stopped {
                    return Ok(End::Stopped(step));
                }
                let averaged = trainer.averaged()?;
                let model = averaged.as_ref().unwrap_or(&trainer.model);
                validation.measure(model, step, run, &mut progress)?;
                stopped = stop.load(Relaxed);
            }
            if step == steps {
                let averaged = trainer.averaged()?;
                if computed > 0.0 {
                    let share = 100.0 * waited / (computed + waited);
                    progress.note(format!(
                        "{computed:.1} s in steps, {waited:.1} s ({share:.1} %) in waiting for data"
                    ));
                }
                return Ok(End::Done(Box::new(averaged.unwrap_or(trainer.model))));
            }
            if stopped {
                return Ok(End::Stopped(step));
            }
            let Some((batch, wait_seconds)) = batches.next() else {
                return Err(Error::Config("the reading thread ended".into()));
            };
            let batch = batch.map_err(|e| run.rescue(&trainer, classes, e))?;
            let start = Instant::now();
            let done = trainer.step(&batch).map_err(|e| run.rescue(&trainer, classes, e))?;
            let time = Time { seconds: start.elapsed().as_secs_f64(), wait_seconds };
            let pairs_per_second = config.run.examples() as f64 / time.total();
            let (epoch, step) = (examples.epoch(step), step + 1);
            run.log(step, epoch, &done, time, pairs_per_second)
                .map_err(|e| run.rescue(&trainer, classes, e))?;
            (computed, waited) = (computed + time.seconds, waited + wait_seconds);
            stopped = stop.load(Relaxed);
            let measured = validation.as_deref().is_some_and(|v| v.is_due(step, steps));
            if stopped || measured || step == steps || step.is_multiple_of(config.run.checkpoint_every) {
                run.save(&trainer, classes)?;
            }
            if done.loss.is_finite() {
                loss.add(done.loss.into());
            }
            speed.add(pairs_per_second);
            let bad = match done.bad_steps {
                0 => String::new(),
                bad => format!(", {bad} steps in a row not finite and skipped"),
            };
            let (loss, speed) = (loss.value(), speed.value());
            progress.step(format!("loss {loss:.3}, lr {:.2e}, {speed:.2} pairs/s{bad}", done.lr));
        }
    })
}

/// A mean that forgets what is long past.
#[derive(Default)]
struct Mean(Option<f64>);

impl Mean {
    fn add(&mut self, value: f64) {
        self.0 = Some(self.0.map_or(value, |mean| mean + 0.05 * (value - mean)));
    }

    fn value(&self) -> f64 {
        self.0.unwrap_or(f64::NAN)
    }
}

/// The command that goes on with this run, for a shell.
fn resume_command() -> String {
    let mut arguments: Vec<String> =
        std::env::args_os().map(|argument| quoted(&argument.to_string_lossy())).collect();
    if !arguments.iter().any(|argument| argument == "--resume") {
        arguments.push("--resume".into());
    }
    arguments.join(" ")
}

/// An argument as a shell reads it.
fn quoted(argument: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./:=,+@%".contains(c);
    if !argument.is_empty() && argument.chars().all(plain) {
        argument.into()
    } else {
        format!("'{}'", argument.replace('\'', r"'\''"))
    }
}

/// Becomes true at Ctrl-C or when the process is asked to end; a second Ctrl-C ends it at once.
fn stop_signal() -> Result<&'static AtomicBool> {
    static STOP: AtomicBool = AtomicBool::new(false);
    static INSTALLED: OnceLock<Result<(), String>> = OnceLock::new();
    let handler = || {
        if STOP.swap(true, Relaxed) {
            std::process::exit(130);
        }
        warn(
            "ending after this step or evaluation; once more ends at once, without what is not saved".into(),
        );
    };
    let installed = INSTALLED.get_or_init(|| ctrlc::set_handler(handler).map_err(|e| e.to_string()));
    installed.clone().map_err(|e| Error::Config(format!("signals cannot be handled: {e}")))?;
    Ok(&STOP)
}
