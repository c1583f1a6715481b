//! What several tests need.

#![allow(dead_code, reason = "no test needs all of it")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

use amdanet::checkpoint::{self, State};
use amdanet::data::ClassSet;
use amdanet::model::{Amdanet, Arch, Encoder, ModelConfig};

/// A nano network with numbers drawn from `seed`.
pub fn nano(arch: Arch, classes: usize, seed: u64) -> Amdanet {
    let mut model = Amdanet::new(ModelConfig::new(Encoder::Nano, arch, classes)).unwrap();
    model.params.initialise(seed);
    model
}

/// Writes a network as this program does, its classes without names of their own.
pub fn save(path: &Path, model: &Amdanet) {
    checkpoint::save(path, model, &ClassSet::unnamed(model.config().classes).unwrap()).unwrap();
}

/// Writes tensors as another program would: safetensors without metadata.
pub fn write_foreign(path: &Path, state: &State) {
    let (mut header, mut data) = (BTreeMap::new(), Vec::new());
    for (name, array) in state {
        let start = data.len();
        data.extend(array.data.iter().flat_map(|v| v.to_le_bytes()));
        let info = serde_json::json!({
            "dtype": "F32", "shape": array.shape, "data_offsets": [start, data.len()],
        });
        header.insert(name, info);
    }
    let header = serde_json::to_vec(&header).unwrap();
    std::fs::write(path, [&(header.len() as u64).to_le_bytes(), &header[..], &data].concat()).unwrap();
}

/// Runs the program.
pub fn amdanet<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    Command::new(env!("CARGO_BIN_EXE_amdanet")).args(args).output().unwrap()
}

/// Runs the program, which must succeed; what it wrote to standard output.
#[track_caller]
pub fn succeeds<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> String {
    let output = amdanet(args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
