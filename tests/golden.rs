//! The network against the golden files of the reference.

use std::path::{Path, PathBuf};

use amdanet::{Device, Precision};

/// The files that come with the project, and those in the folder that `AMDANET_GOLDENS` names.
fn files() -> Vec<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let more = std::env::var_os("AMDANET_GOLDENS").map(PathBuf::from);
    let mut files: Vec<PathBuf> = [Some(own), more]
        .into_iter()
        .flatten()
        .flat_map(|folder| std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
        .collect();
    files.sort();
    files
}

#[test]
fn every_golden_file_holds() {
    let files = files();
    assert!(files.len() >= 2, "the project's own golden files are missing");
    for path in files {
        let report = amdanet::verify::verify(&path, &Device::Cpu, Precision::F32).unwrap();
        for group in &report.groups {
            println!("{}: {} {:.2e} of {:.0e}", path.display(), group.name, group.error, group.tolerance);
        }
        assert!(report.holds(), "{}: {:#?}", path.display(), report.groups);
    }
}
