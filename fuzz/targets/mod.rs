//! What is fuzzed: functions that take any bytes and must come back, without a panic.
//!
//! `scripts/fuzz` feeds them; `tests/fuzzed.rs` runs what it kept in `fuzz/corpus` again, without the fuzzer.

use std::path::PathBuf;
use std::sync::LazyLock;

use amdanet::infer::{Engine, Pairs, Pixels, Wanted};
use amdanet::model::ModelConfig;
use tempfile::TempDir;

mod checkpoint;
mod interface;
mod packed;
mod picture;
mod text;

/// Takes an input apart and tries it.
pub type Target = fn(&[u8]);

/// The targets by the names of their folders in `fuzz/corpus`.
pub const ALL: [(&str, Target); 5] = [
    ("checkpoint", checkpoint::run),
    ("packed", packed::run),
    ("picture", picture::run),
    ("text", text::run),
    ("interface", interface::run),
];

/// A file of this process for what is read from files alone.
fn scratch(name: &str) -> PathBuf {
    static FOLDER: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a folder for files"));
    FOLDER.path().join(name)
}

/// Computes a picture with a network that came out of a file, unless it is large.
fn compute(engine: &Engine) {
    const SIDE: usize = 32;
    if !is_small(engine.config()) {
        return;
    }
    let pixels = [100; 3 * SIDE * SIDE];
    let [visible, infrared] = [Pixels::Bytes(&pixels); 2];
    let pairs = Pairs { batch: 1, height: SIDE, width: SIDE, visible, infrared };
    let wanted = Wanted { image: true, logits: true, probabilities: true };
    if let Ok(output) = engine.session().run(&pairs, wanted) {
        assert!(output.labels.iter().all(|&label| usize::from(label) < engine.classes()));
    }
}

/// Whether a network computes a small picture in a moment.
fn is_small(config: &ModelConfig) -> bool {
    config.depths.iter().sum::<usize>() <= 16 && config.parameters_at_least() < 1e6
}

/// Gives a safetensors file the checksum that it should have, so that what is behind its check is reached too.
fn mend(file: &mut [u8]) {
    const BEFORE: &[u8] = b"\"checksum\":\"";
    let Some(len) = file.first_chunk().map(|len| u64::from_le_bytes(*len)) else { return };
    let Some(header) = usize::try_from(len).ok().and_then(|len| file.get(8..)?.get(..len)) else { return };
    let Some(at) = header.windows(BEFORE.len()).position(|bytes| bytes == BEFORE) else { return };
    let at = 8 + at + BEFORE.len();
    if at + 8 > 8 + header.len() {
        return;
    }
    file[at..at + 8].fill(b'0');
    let sum = format!("{:08x}", crc32c::crc32c(file));
    file[at..at + 8].copy_from_slice(sum.as_bytes());
}
