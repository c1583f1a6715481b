//! What is text: the configuration of a run, classes, and the measurements of a run that goes on. The first byte says which.

use std::fs;
use std::path::Path;
use std::sync::{LazyLock, Mutex, PoisonError};

use amdanet::config::overlay;
use amdanet::data::ClassSet;
use amdanet::model::{Amdanet, Arch, Encoder, ModelConfig};
use amdanet::train::{Config, Run, Trainer};

use super::scratch;

pub fn run(data: &[u8]) {
    let Some((&mode, bytes)) = data.split_first() else { return };
    match mode {
        b'c' => classes(bytes),
        b'r' => resume("config.toml", bytes),
        b'l' => resume("metrics.jsonl", bytes),
        _ => {
            let Ok(text) = std::str::from_utf8(bytes) else { return };
            if let Ok(config) = overlay(&Config::default(), text, Path::new("fuzzed")) {
                settle(config);
            }
        }
    }
}

/// What is done with a configuration before anything is computed.
fn settle(mut config: Config) {
    let validated = config.validate();
    config.count_steps(100);
    if validated.is_ok() && config.validate().is_ok() {
        for step in [0, 1, config.run.steps / 2, config.run.steps] {
            assert!(config.lr(step).is_finite(), "the learning rate of step {step} of {config:?}");
        }
    }
}

fn classes(bytes: &[u8]) {
    let path = scratch("classes.toml");
    fs::write(&path, bytes).expect("writing a file");
    if let Ok(set) = ClassSet::from_toml(&path) {
        assert!((1..=255).contains(&set.len()));
    }
}

/// Goes on with a run before its first checkpoint, one file of which holds `bytes`.
fn resume(name: &str, bytes: &[u8]) {
    static TRAINER: LazyLock<Mutex<(Trainer, Config)>> = LazyLock::new(|| {
        let model = ModelConfig::new(Encoder::Nano, Arch::Release, 5);
        let config = Config { model: model.clone(), ..Config::default() };
        Mutex::new((Trainer::new(Amdanet::new(model).expect("a network"), config.clone()), config))
    });
    let (trainer, config) = &mut *TRAINER.lock().unwrap_or_else(PoisonError::into_inner);
    let root = scratch("run");
    let _ = fs::remove_dir_all(&root);
    drop(Run::create(&root, config, "no pairs", "cpu", 1).expect("a run"));
    fs::write(root.join(name), bytes).expect("writing a file");
    let _ = Run::resume(&root, config, "no pairs", "cpu", 1, trainer, |_| ());
}
