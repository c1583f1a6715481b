//! The folder of a run: its configuration, its measurements, its checkpoints. Whatever happens to the process, the
//! folder holds a run that can go on.

use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{Config, Events, Progress, Trainer};
use crate::checkpoint;
use crate::data::{ClassSet, Split, Tile};
use crate::evaluate::Evaluation;
use crate::files::{is_temporary, link_atomically, write_bytes};
use crate::{Error, Result};

/// The folder of a run, locked against other processes while this value lives.
///
/// - `config.toml`: every setting; its first line says what the run was begun on.
/// - `metrics.jsonl`: a line for each step: `step` (steps taken, this one included), `epoch`, `lr`, `loss`, each term of
///   the loss by its name, `gradient_norm` (of all gradients together, null if one overflowed), `seconds` (of the step),
///   `wait_seconds` (for its examples), `pairs_per_second` (of both); in float16 and where a step was not finite also
///   `loss_scale`, `skipped` and `bad_steps` (in a row). An evaluation has a line of its own, with `split`, `miou` and the other keys of `amdanet eval --json`, the `step` that it came after,
///   and `best`: whether it is the best so far.
/// - `events.out.tfevents.*`: the same for TensorBoard, and pictures.
/// - `checkpoints/`: `step-N.safetensors` (weights), `step-N.optimizer.safetensors` (everything else that the next step
///   depends on); `last.safetensors`, another name of the newest weights; `best.safetensors`, the weights of the best
///   evaluation, with its `step`, `split` and `miou` in the metadata. With `run.ema` there are `step-N.ema.safetensors`
///   and `ema.safetensors` too: averaged weights, which are what is evaluated; training goes on from the others. A checkpoint counts once both its files are there;
///   all are written whole or not at all, and carry a checksum.
///
/// A checkpoint goes before everything else: when metrics or events cannot be written, the training ends, but whoever
/// writes them saves a checkpoint first. Of the step after which it happened, a line can then be missing.
pub struct Run {
    root: PathBuf,
    metrics: File,
    events: Events,
    keep: usize,
    best: Option<Best>,
    /// Step and split of the newest evaluation.
    evaluated: Option<(usize, String)>,
    _lock: File,
}

/// Seconds of a step.
#[derive(Clone, Copy, Debug)]
pub struct Time {
    /// Computing.
    pub seconds: f64,
    /// Waiting for its examples before that.
    pub wait_seconds: f64,
}

impl Time {
    /// Both.
    pub fn total(self) -> f64 {
        self.seconds + self.wait_seconds
    }
}

/// The best evaluation of a run.
#[derive(Clone, PartialEq, Debug)]
pub struct Best {
    /// The steps that were taken before.
    pub step: usize,
    /// The split that was measured.
    pub split: String,
    /// Its mIoU, 0 to 1.
    pub miou: f64,
}

impl Run {
    /// Makes the folder `root` for a new run with `data` ([`fingerprint`](crate::data::Dataset::fingerprint)) on `machine` (a
    /// few words on device and precision). The newest `keep` checkpoints are kept, at least one, and that of the best
    /// evaluation.
    ///
    /// # Errors
    /// When the folder holds a run already or cannot be written.
    pub fn create(root: &Path, config: &Config, data: &str, machine: &str, keep: usize) -> Result<Self> {
        // An empty file is no measurement.
        let measured = fs::metadata(root.join("metrics.jsonl")).is_ok_and(|file| file.len() > 0);
        if measured || root.join("config.toml").exists() || root.join(LAST).exists() {
            let what = "holds a run already: --resume it, choose another --out, or move it away";
            return Err(Error::file(root, what));
        }
        let checkpoints = root.join("checkpoints");
        fs::create_dir_all(&checkpoints).map_err(Error::io(&checkpoints, "create the folder"))?;
        let lock = lock(root)?;
        let text = format!("{BEGUN_ON}{machine}\n{TRAINED_ON}{data}\n{}", text(config)?);
        write_bytes(&root.join("config.toml"), text.as_bytes())?;
        let path = root.join("metrics.jsonl");
        let metrics = File::create(&path).map_err(Error::io(&path, "create"))?;
        let events = Events::create(root, 1)?;
        let root = root.into();
        Ok(Self { root, metrics, events, keep: keep.max(1), best: None, evaluated: None, _lock: lock })
    }

    /// Goes on with the run in `root`: brings `trainer`, made with the run's configuration, to its newest checkpoint
    /// that can be read. `note` is told about files that cannot, and about another machine.
    ///
    /// # Errors
    /// When there is no run, it has another configuration or other data, another process is at it, or no checkpoint can be
    /// read.
    pub fn resume(
        root: &Path,
        config: &Config,
        data: &str,
        machine: &str,
        keep: usize,
        trainer: &mut Trainer,
        mut note: impl FnMut(String),
    ) -> Result<Self> {
        let path = root.join("config.toml");
        if !path.exists() {
            return Err(Error::file(root, "holds no run to resume: leave out --resume to start one"));
        }
        let lock = lock(root)?;
        compare(&path, config, data, machine, &mut note)?;
        remove_temporary(root)?;
        let mut unreadable = Vec::new();
        let steps = checkpoints(root)?;
        // It may have ended before its first checkpoint; but then nothing has the name of the newest.
        let mut found = steps.is_empty() && !root.join(LAST).exists();
        for &step in steps.iter().rev() {
            match restore(root, step, trainer) {
                Ok(()) => {
                    found = true;
                    break;
                }
                Err(e) => {
                    unreadable.extend(matches!(e, Error::File { .. }).then_some(step));
                    note(format!("{e}; going back to an earlier checkpoint"));
                }
            }
        }
        if !found {
            let what = "no checkpoint can be read: train on from last or best.safetensors, if they can, with --init in \
                        another --out";
            return Err(Error::file(root.join("checkpoints"), what));
        }
        let step = trainer.steps();
        let prepare = || {
            for path in unreadable.iter().flat_map(|&step| paths(root, step)) {
                // Out of the way, so that it is not counted among those that are kept.
                let aside = path.with_extension("damaged");
                fs::rename(&path, &aside).map_err(Error::io(&path, "rename"))?;
                note(format!("{} is now {}", path.display(), aside.display()));
            }
            if step > 0 {
                // The process may have ended before the newest weights got their second name.
                link_atomically(&paths(root, step)[0], &root.join(LAST))?;
                let averaged = averaged_path(root, step);
                if averaged.exists() {
                    link_atomically(&averaged, &root.join(AVERAGED))?;
                }
            }
            let (metrics, lines) = shorten(&root.join("metrics.jsonl"), step)?;
            let best = recall_best(root, &lines, &mut note);
            let evaluation = lines.iter().rev().find_map(evaluation);
            let evaluated = evaluation.map(|(best, _)| (best.step, best.split));
            let events = Events::create(root, step + 1)?;
            Ok(Self { root: root.into(), metrics, events, keep: keep.max(1), best, evaluated, _lock: lock })
        };
        prepare().map_err(|e| explain(root, e))
    }

    /// Writes down what step `step`, counted from 1, did: to `metrics.jsonl` and for TensorBoard.
    ///
    /// # Errors
    /// When it cannot be written; [`Run::rescue`] saves the training then.
    pub fn log(
        &mut self,
        step: usize,
        epoch: usize,
        done: &Progress,
        time: Time,
        pairs_per_second: f64,
    ) -> Result<()> {
        let mut line = json!({
            "step": step, "epoch": epoch, "lr": done.lr, "loss": done.loss, "gradient_norm": done.gradient_norm,
            "seconds": time.seconds, "wait_seconds": time.wait_seconds, "pairs_per_second": pairs_per_second,
        });
        let norm = f64::from(done.gradient_norm);
        let mut scalars: Vec<(String, f64)> =
            vec![("loss/total".into(), done.loss.into()), ("train/lr".into(), done.lr)];
        scalars.extend(norm.is_finite().then(|| ("train/gradient_norm".into(), norm)));
        scalars.push(("train/pairs_per_second".into(), pairs_per_second));
        for (name, value) in &done.terms {
            line[*name] = (*value).into();
            scalars.push((format!("loss/{name}"), (*value).into()));
        }
        if done.loss_scale != 1.0 || done.skipped {
            line["loss_scale"] = done.loss_scale.into();
            (line["skipped"], line["bad_steps"]) = (done.skipped.into(), done.bad_steps.into());
            scalars.push(("train/loss_scale".into(), done.loss_scale.into()));
        }
        let written = self.write_line(&line);
        let scalars = scalars.iter().map(|(tag, value)| (tag.as_str(), *value));
        written.and(self.events.scalars(step, scalars))
    }

    /// Writes down an evaluation after step `step`, of which there is a checkpoint; `sheet` shows some of its pictures.
    /// If it is the best of its split so far, its weights become `best.safetensors`.
    ///
    /// # Errors
    /// When something cannot be written.
    pub fn evaluated(&mut self, step: usize, split: Split, result: &Evaluation, sheet: &Tile) -> Result<()> {
        let root = self.root.clone();
        self.write_evaluation(step, split, result, sheet).map_err(|e| explain(&root, e))
    }

    fn write_evaluation(
        &mut self,
        step: usize,
        split: Split,
        result: &Evaluation,
        sheet: &Tile,
    ) -> Result<()> {
        let (scores, split) = (&result.scores, split.to_string());
        let best = scores.miou.map(|miou| Best { step, split: split.clone(), miou });
        let old = self.best.as_ref().filter(|old| old.split == split);
        if let Some(best) = best.filter(|new| old.is_none_or(|old| new.miou > old.miou)) {
            write_best(&self.root, &best)?;
            self.best = Some(best);
            self.remove_old()?;
        }
        let mut scalars = Vec::new();
        let mut score = |name: &str, value: Option<f64>| {
            scalars.extend(value.map(|value| (format!("{split}/{name}"), value)));
        };
        score("miou", scores.miou);
        score("macc", scores.macc);
        score("map", scores.map);
        score("pixel_accuracy", scores.pixel_accuracy);
        for class in &scores.classes {
            score(&format!("iou/{}", class.name), class.iou);
        }
        self.events.scalars(step, scalars.iter().map(|(tag, value)| (tag.as_str(), *value)))?;
        self.events.picture(step, &format!("{split}/pictures"), sheet)?;
        let mut line = serde_json::to_value(result).map_err(|e| Error::Config(format!("JSON: {e}")))?;
        let best = self.best.as_ref().is_some_and(|best| best.step == step && best.split == split);
        (line["step"], line["split"], line["best"]) = (step.into(), split.clone().into(), best.into());
        // The last thing of all: an evaluation without this line is made again.
        self.write_line(&line)?;
        self.evaluated = Some((step, split));
        Ok(())
    }

    fn write_line(&mut self, line: &Value) -> Result<()> {
        let path = self.root.join("metrics.jsonl");
        self.metrics.write_all(format!("{line}\n").as_bytes()).map_err(Error::io(path, "write"))
    }

    /// Writes a checkpoint; then older ones go, but for as many as are kept and that of the best evaluation.
    ///
    /// # Errors
    /// When a file cannot be written: the checkpoints before are whole then.
    pub fn save(&self, trainer: &Trainer, classes: &ClassSet) -> Result<()> {
        // The measurements before a checkpoint are on the disk when it is; but it does not depend on them.
        let synced = self.metrics.sync_data().map_err(Error::io(self.root.join("metrics.jsonl"), "write"));
        let save = || {
            let [weights, optimizer] = paths(&self.root, trainer.steps());
            let (state, meta) = trainer.state()?;
            checkpoint::write(&optimizer, &state, &meta)?;
            drop(state);
            if let Some(averaged) = trainer.averaged()? {
                let path = averaged_path(&self.root, trainer.steps());
                checkpoint::save(&path, &averaged, classes)?;
                link_atomically(&path, &self.averaged())?;
            }
            checkpoint::save(&weights, &trainer.model, classes).inspect_err(|_| {
                if !weights.exists() {
                    // Half a checkpoint only takes room. If this fails too, it still does not count.
                    let _ = fs::remove_file(&optimizer);
                }
            })?;
            link_atomically(&weights, &self.last())?;
            self.remove_old()
        };
        save().and(synced).map_err(|e| explain(&self.root, e))
    }

    /// Saves a checkpoint before a training ends with `error`, which did not touch `trainer`; the error with what is safe.
    pub fn rescue(&self, trainer: &Trainer, classes: &ClassSet, error: Error) -> Error {
        if trainer.steps() > 0 {
            // If this fails too, the checkpoint before it is what the error names.
            let _ = self.save(trainer, classes);
        }
        explain(&self.root, error)
    }

    /// Removes the checkpoints that are not kept, and what is left of halves.
    fn remove_old(&self) -> Result<()> {
        let whole = checkpoints(&self.root)?;
        let Some(newest) = whole.last() else { return Ok(()) };
        let kept = &whole[whole.len().saturating_sub(self.keep)..];
        let best = self.best.as_ref().map(|best| best.step);
        for step in steps(&self.root)? {
            if step < *newest && !kept.contains(&step) && best != Some(step) {
                let files = paths(&self.root, step).into_iter().chain([averaged_path(&self.root, step)]);
                for path in files.filter(|path| path.exists()) {
                    fs::remove_file(&path).map_err(Error::io(&path, "remove"))?;
                }
            }
        }
        Ok(())
    }

    /// Whether there is an evaluation of `split` after step `step`.
    pub fn is_evaluated(&self, step: usize, split: Split) -> bool {
        self.evaluated.as_ref().is_some_and(|(s, name)| *s == step && *name == split.to_string())
    }

    /// The best evaluation so far.
    pub fn best(&self) -> Option<&Best> {
        self.best.as_ref()
    }

    /// The weights of the newest checkpoint.
    pub fn last(&self) -> PathBuf {
        self.root.join(LAST)
    }

    /// The averaged weights of the newest checkpoint, where an average is kept.
    pub fn averaged(&self) -> PathBuf {
        self.root.join(AVERAGED)
    }

    /// The weights of the best evaluation.
    pub fn best_weights(&self) -> PathBuf {
        self.root.join(BEST)
    }
}

const LAST: &str = "checkpoints/last.safetensors";
const AVERAGED: &str = "checkpoints/ema.safetensors";
const BEST: &str = "checkpoints/best.safetensors";
/// The first line of `config.toml` begins with this.
const BEGUN_ON: &str = "# begun on ";
const TRAINED_ON: &str = "# trained on ";

fn text(config: &Config) -> Result<String> {
    toml::to_string_pretty(config).map_err(|e| Error::Config(format!("configuration: {e}")))
}

fn lock(root: &Path) -> Result<File> {
    let path = root.join("lock");
    let file = File::create(&path).map_err(Error::io(&path, "create"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::file(root, "another process is training in this folder")),
        Err(TryLockError::Error(e)) => Err(Error::io(path, "lock")(e)),
    }
}

/// Weights and optimizer of a checkpoint.
fn paths(root: &Path, step: usize) -> [PathBuf; 2] {
    let folder = root.join("checkpoints");
    [
        folder.join(format!("step-{step}.safetensors")),
        folder.join(format!("step-{step}.optimizer.safetensors")),
    ]
}

/// The averaged weights of a checkpoint, if there are any.
fn averaged_path(root: &Path, step: usize) -> PathBuf {
    root.join(format!("checkpoints/step-{step}.ema.safetensors"))
}

/// The steps of which there is a file, in order.
fn steps(root: &Path) -> Result<Vec<usize>> {
    let folder = root.join("checkpoints");
    let mut steps = Vec::new();
    for entry in fs::read_dir(&folder).map_err(Error::io(&folder, "list"))? {
        let name = entry.map_err(Error::io(&folder, "list"))?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("step-")?.strip_suffix(".safetensors"));
        let number = number.map(|number| number.trim_end_matches(".optimizer").trim_end_matches(".ema"));
        steps.extend(number.and_then(|number| number.parse::<usize>().ok()));
    }
    steps.sort_unstable();
    steps.dedup();
    Ok(steps)
}

/// The steps whose checkpoints have both files, in order.
fn checkpoints(root: &Path) -> Result<Vec<usize>> {
    let whole = |&step: &usize| paths(root, step).iter().all(|path| path.exists());
    Ok(steps(root)?.into_iter().filter(whole).collect())
}

/// Holds the configuration of a run against the one that was asked for; another machine is worth a note alone.
fn compare(
    path: &Path,
    config: &Config,
    data: &str,
    machine: &str,
    note: &mut impl FnMut(String),
) -> Result<()> {
    let saved = fs::read_to_string(path).map_err(Error::io(path, "read"))?;
    let noted = |what: &str| saved.lines().find_map(|line| line.strip_prefix(what));
    let (begun_on, trained_on) = (noted(BEGUN_ON).unwrap_or(machine), noted(TRAINED_ON).unwrap_or(data));
    if trained_on != data {
        let what = format!(
            "the run was trained on {trained_on}, and the data set has {data}: resume with the same list, in its \
             order, and the same classes"
        );
        return Err(Error::file(path, what));
    }
    let wanted = text(config)?;
    let [saved, wanted] = [&saved, &wanted].map(|text| text.lines().filter(|line| !line.starts_with('#')));
    let difference = saved.zip(wanted).find(|(saved, wanted)| saved != wanted);
    if let Some((saved, wanted)) = difference {
        let what = format!("says {saved:?}, but {wanted:?} was asked for: resume with the same settings");
        return Err(Error::file(path, what));
    }
    if begun_on != machine {
        note(format!("the run was begun on {begun_on} and goes on on {machine}: it will have other bits"));
    }
    Ok(())
}

/// Removes what a process that was killed had not finished.
fn remove_temporary(root: &Path) -> Result<()> {
    for folder in [root.to_path_buf(), root.join("checkpoints")] {
        for entry in fs::read_dir(&folder).map_err(Error::io(&folder, "list"))? {
            let path = entry.map_err(Error::io(&folder, "list"))?.path();
            if is_temporary(&path) {
                fs::remove_file(&path).map_err(Error::io(&path, "remove"))?;
            }
        }
    }
    Ok(())
}

/// An error of the disk, with what is safe and how to go on.
fn explain(root: &Path, error: Error) -> Error {
    let Error::Io { path, action, source } = error else { return error };
    let remedy = match source.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "make room on the disk",
        ErrorKind::FileTooLarge => "allow larger files",
        _ => "mend this",
    };
    let from = match checkpoints(root).ok().and_then(|steps| steps.last().copied()) {
        Some(step) => format!("goes on after step {step}, which is saved"),
        None => "begins anew".into(),
    };
    Error::file(
        path,
        format!("cannot {action}: {source}; {remedy}, then the same command with --resume {from}"),
    )
}

fn restore(root: &Path, step: usize, trainer: &mut Trainer) -> Result<()> {
    let [weights, optimizer] = paths(root, step);
    let (state, meta) = checkpoint::read(&optimizer)?;
    let meta = meta.ok_or_else(|| Error::file(&optimizer, "was not written by this program"))?;
    checkpoint::load_into(&mut trainer.model, &weights)?;
    trainer.restore(&state, &meta).map_err(|e| Error::file(&optimizer, e.to_string()))?;
    if trainer.steps() == step {
        Ok(())
    } else {
        Err(Error::file(&optimizer, format!("is of step {}, not {step}", trainer.steps())))
    }
}

/// Writes the weights of a checkpoint that were measured, averaged ones if there are any, once more, with what they were
/// measured at.
fn write_best(root: &Path, best: &Best) -> Result<()> {
    let [weights, _] = paths(root, best.step);
    let weights = Some(averaged_path(root, best.step)).filter(|path| path.exists()).unwrap_or(weights);
    let (state, meta) = checkpoint::read(&weights)?;
    let mut meta = meta.ok_or_else(|| Error::file(&weights, "was not written by this program"))?;
    let entries =
        [("step", best.step.to_string()), ("split", best.split.clone()), ("miou", best.miou.to_string())];
    meta.extra.extend(entries.map(|(key, value)| (key.to_string(), value)));
    checkpoint::write(root.join(BEST), &state, &meta)
}

fn read_best(path: &Path) -> Result<Best> {
    let (_, meta) = checkpoint::read(path)?;
    let entries = meta.map(|meta| meta.extra).unwrap_or_default();
    let best = || {
        let [step, split, miou] = ["step", "split", "miou"].map(|key| entries.get(key));
        Some(Best { step: step?.parse().ok()?, split: split?.clone(), miou: miou?.parse().ok()? })
    };
    best().ok_or_else(|| Error::file(path, "its metadata does not say what it was measured at"))
}

/// The best evaluation so far: what `best.safetensors` says, or, when it cannot be read, what the measurements say of a
/// checkpoint that is still there.
fn recall_best(root: &Path, lines: &[Value], note: &mut impl FnMut(String)) -> Option<Best> {
    let path = root.join(BEST);
    if path.exists() {
        match read_best(&path) {
            Ok(best) => return Some(best),
            Err(e) => note(format!("{e}; going back to the measurements for the best checkpoint")),
        }
    }
    let best = |line| evaluation(line).and_then(|(evaluation, best)| best.then_some(evaluation));
    let best = lines.iter().rev().find_map(best)?;
    match write_best(root, &best) {
        Ok(()) => Some(best),
        Err(e) => {
            note(format!("{e}; the next evaluation will be the best"));
            None
        }
    }
}

/// What a line of the measurements says of an evaluation, and whether it was the best then; none if it is of a step.
fn evaluation(line: &Value) -> Option<(Best, bool)> {
    let (step, split) = (line["step"].as_u64()? as usize, line["split"].as_str()?.to_string());
    Some((Best { step, split, miou: line["miou"].as_f64().unwrap_or(0.0) }, line["best"] == true))
}

/// Opens the measurements for more, without those after step `steps`, which will be made again; and those that stay.
fn shorten(path: &Path, steps: usize) -> Result<(File, Vec<Value>)> {
    let bytes = match fs::read(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Vec::new(),
        read => read.map_err(Error::io(path, "read"))?,
    };
    let (mut kept, mut lines) = (Vec::new(), Vec::new());
    for text in bytes.split(|&byte| byte == b'\n') {
        // The last line may be half of one.
        let Ok(line) = serde_json::from_slice::<Value>(text) else { continue };
        if line["step"].as_u64().is_some_and(|step| step <= steps as u64) {
            kept.extend_from_slice(text);
            kept.push(b'\n');
            lines.push(line);
        }
    }
    write_bytes(path, &kept)?;
    Ok((File::options().append(true).open(path).map_err(Error::io(path, "open"))?, lines))
}
