//! Runs what fuzzing kept through the fuzz targets again: the seeds, what was interesting, and every input that once failed.

use std::path::Path;

#[path = "../fuzz/targets/mod.rs"]
mod targets;

#[track_caller]
fn replay(name: &str) {
    let (_, target) = targets::ALL.into_iter().find(|(known, _)| *known == name).unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut inputs: Vec<_> = folder.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    inputs.sort();
    assert!(!inputs.is_empty(), "{} is empty", folder.display());
    for input in inputs {
        let bytes = std::fs::read(&input).unwrap();
        let run = || target(&bytes);
        if let Err(panic) = std::panic::catch_unwind(run) {
            eprintln!("{} panics", input.display());
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn checkpoints() {
    replay("checkpoint");
}

#[test]
fn packed_models() {
    replay("packed");
}

#[test]
fn pictures() {
    replay("picture");
}

#[test]
fn text() {
    replay("text");
}

#[test]
fn the_interface() {
    replay("interface");
}
