//! The folder of a run: its configuration, its measurements, its checkpoints. Whatever happens to the process, the
//! folder holds a run that can go on.

use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::{Config, Trainer};
use crate::checkpoint;
use crate::data::ClassSet;
use crate::files::{link_atomically, write_bytes};
use crate::{Error, Result};

/// The folder of a run, locked against other processes while this value lives.
///
/// `config.toml`; `metrics.jsonl`, a line for each step; `checkpoints/` with `step-N.safetensors` (weights),
/// `step-N.optimizer.safetensors` (everything else that the next step depends on), and `last.safetensors`, another name
/// of the newest weights. A checkpoint counts once both its files are there; they are written whole or not at all.
pub struct Run {
    root: PathBuf,
    metrics: File,
    keep: usize,
    _lock: File,
}

impl Run {
    /// Makes the folder `root` for a new run. `keep` checkpoints are kept, at least one.
    ///
    /// # Errors
    /// When the folder holds a run already or cannot be written.
    pub fn create(root: &Path, config: &Config, keep: usize) -> Result<Self> {
        if root.join("config.toml").exists() {
            let what = "holds a run already: --resume it, choose another --out, or move it away";
            return Err(Error::file(root, what));
        }
        let checkpoints = root.join("checkpoints");
        fs::create_dir_all(&checkpoints).map_err(Error::io(&checkpoints, "create the folder"))?;
        let lock = lock(root)?;
        write_bytes(&root.join("config.toml"), text(config)?.as_bytes())?;
        let path = root.join("metrics.jsonl");
        let metrics = File::create(&path).map_err(Error::io(&path, "create"))?;
        Ok(Self { root: root.into(), metrics, keep: keep.max(1), _lock: lock })
    }

    /// Goes on with the run in `root`: brings `trainer`, made with the run's configuration, to its newest checkpoint
    /// that can be read. `note` is told about checkpoints that cannot.
    ///
    /// # Errors
    /// When there is no run, it has another configuration, another process is at it, or no checkpoint can be read.
    pub fn resume(
        root: &Path,
        config: &Config,
        keep: usize,
        trainer: &mut Trainer,
        mut note: impl FnMut(String),
    ) -> Result<Self> {
        let path = root.join("config.toml");
        if !path.exists() {
            return Err(Error::file(root, "holds no run to resume: leave out --resume to start one"));
        }
        let lock = lock(root)?;
        let saved = fs::read_to_string(&path).map_err(Error::io(&path, "read"))?;
        let wanted = text(config)?;
        let difference = saved.lines().zip(wanted.lines()).find(|(saved, wanted)| saved != wanted);
        if let Some((saved, wanted)) = difference {
            let what = format!("says {saved:?}, but {wanted:?} was asked for: resume with the same settings");
            return Err(Error::file(path, what));
        }
        let run = |metrics| Self { root: root.into(), metrics, keep: keep.max(1), _lock: lock };
        let steps = checkpoints(root)?;
        let mut found = steps.is_empty();
        for &step in steps.iter().rev() {
            match restore(root, step, trainer) {
                Ok(()) => {
                    // The process may have ended before the newest weights got their second name.
                    let [weights, _] = paths(root, step);
                    link_atomically(&weights, &root.join("checkpoints/last.safetensors"))?;
                    found = true;
                    break;
                }
                Err(e) => note(format!("{e}; going back to an earlier checkpoint")),
            }
        }
        if !found {
            return Err(Error::file(root.join("checkpoints"), "no checkpoint can be read"));
        }
        Ok(run(shorten(&root.join("metrics.jsonl"), trainer.steps())?))
    }

    /// Appends a line to `metrics.jsonl`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn log(&mut self, line: &serde_json::Value) -> Result<()> {
        writeln!(self.metrics, "{line}").map_err(Error::io(self.root.join("metrics.jsonl"), "write"))
    }

    /// Writes a checkpoint; then older ones go, but for as many as are kept.
    ///
    /// # Errors
    /// When a file cannot be written: the checkpoints before are whole then.
    pub fn save(&self, trainer: &Trainer, classes: &ClassSet) -> Result<()> {
        let [weights, optimizer] = paths(&self.root, trainer.steps());
        let (state, meta) = trainer.state()?;
        checkpoint::write(&optimizer, &state, &meta)?;
        drop(state);
        checkpoint::save(&weights, &trainer.model, classes)?;
        link_atomically(&weights, &self.last())?;
        let steps = checkpoints(&self.root)?;
        for &old in &steps[..steps.len().saturating_sub(self.keep)] {
            for path in paths(&self.root, old) {
                fs::remove_file(&path).map_err(Error::io(&path, "remove"))?;
            }
        }
        Ok(())
    }

    /// The weights of the newest checkpoint.
    pub fn last(&self) -> PathBuf {
        self.root.join("checkpoints/last.safetensors")
    }
}

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

/// The steps whose checkpoints have both files, in order.
fn checkpoints(root: &Path) -> Result<Vec<usize>> {
    let folder = root.join("checkpoints");
    let mut steps = Vec::new();
    for entry in fs::read_dir(&folder).map_err(Error::io(&folder, "list"))? {
        let name = entry.map_err(Error::io(&folder, "list"))?.file_name();
        let step =
            name.to_str().and_then(|n| n.strip_prefix("step-")?.strip_suffix(".safetensors")?.parse().ok());
        steps.extend(step.filter(|&step| paths(root, step).iter().all(|path| path.exists())));
    }
    steps.sort_unstable();
    Ok(steps)
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

/// Opens the measurements for more, without those after step `steps`, which will be made again.
fn shorten(path: &Path, steps: usize) -> Result<File> {
    let text = if path.exists() {
        fs::read_to_string(path).map_err(Error::io(path, "read"))?
    } else {
        String::new()
    };
    let is_before = |line: &&str| {
        let line: Option<serde_json::Value> = serde_json::from_str(line).ok();
        line.and_then(|line| line["step"].as_u64()).is_some_and(|step| step <= steps as u64)
    };
    let mut kept: String = text.lines().filter(is_before).collect::<Vec<_>>().join("\n");
    if !kept.is_empty() {
        kept.push('\n');
    }
    write_bytes(path, kept.as_bytes())?;
    File::options().append(true).open(path).map_err(Error::io(path, "open"))
}
