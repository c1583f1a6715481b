//! The network against the golden files of the reference.

use std::path::{Path, PathBuf};

use amdanet::{Device, Precision};

#[path = "common/device.rs"]
mod device;
use device::device;

/// The files that come with the project, and those in the folder that `AMDANET_GOLDENS` names.
fn files() -> Vec<PathBuf> {
    // Asked when it runs, because the tests may have been moved to another machine.
    let root = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let own = Path::new(&root).join("tests/golden");
    let more = std::env::var_os("AMDANET_GOLDENS").map(PathBuf::from);
    let mut files: Vec<PathBuf> = [Some(own), more]
        .into_iter()
        .flatten()
        .flat_map(|folder| std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
        .collect();
    files.sort();
    assert!(files.len() >= 2, "the project's own golden files are missing");
    files
}

fn holds(device: &Device, precision: Precision) {
    for path in files() {
        let start = std::time::Instant::now();
        let report = amdanet::verify::verify(&path, device, precision).unwrap();
        println!("{} in {precision:?} on {device:?}, {:.1?}", path.display(), start.elapsed());
        for group in &report.groups {
            println!("  {} {:.2e} of {:.0e}", group.name, group.error, group.tolerance);
        }
        assert!(report.holds(), "{} in {precision:?}: {:#?}", path.display(), report.groups);
    }
}

#[test]
fn every_file_holds() {
    holds(&Device::Cpu, Precision::F32);
}

#[test]
fn every_file_holds_on_a_device() {
    holds(&device(Precision::F32), Precision::F32);
}

// A test each, because the emulator computes on one thread.

#[test]
fn evaluations_hold_on_a_device_in_tf32() {
    holds(&device(Precision::Tf32), Precision::Tf32);
}

#[test]
fn evaluations_hold_on_a_device_in_f16() {
    holds(&device(Precision::F16), Precision::F16);
}

#[test]
fn evaluations_hold_on_a_device_in_bf16() {
    holds(&device(Precision::Bf16), Precision::Bf16);
}
