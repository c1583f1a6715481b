//! What nvcc made of the kernels, and that each file of them has its launcher.

use std::fs;
use std::path::Path;

use amdanet::cuda::kernels::{ARCHS, KERNELS, NVCC, PTXAS};

/// Kernels that may spill registers or use local memory, and why.
const ALLOWED: &[(&str, &str)] = &[];

/// Files in `kernels/` without a launcher of their name in `src/cuda/`.
const NO_LAUNCHER: &[&str] = &[];

#[test]
fn registers_suffice() {
    if NVCC.is_empty() {
        let required = std::env::var_os("AMDANET_REQUIRE_NVCC").is_some_and(|v| !v.is_empty() && v != "0");
        assert!(!required, "this build has no kernels, and AMDANET_REQUIRE_NVCC is set");
        println!("skipped: this build has no kernels");
        return;
    }
    let mut spilling = Vec::new();
    for line in PTXAS.lines() {
        let parts: Vec<&str> = line.split(' ').collect();
        let [_, kernel, _, registers, stack, stores, loads] = parts[..] else { panic!("{line}") };
        assert_ne!(registers, "0", "{line}");
        if [stack, stores, loads] != ["0"; 3] {
            spilling.push((kernel, line));
        }
    }
    let unexpected: Vec<&str> = spilling
        .iter()
        .filter(|(kernel, _)| ALLOWED.iter().all(|(allowed, _)| allowed != kernel))
        .map(|(_, line)| *line)
        .collect();
    assert!(
        unexpected.is_empty(),
        "file, kernel, architecture, registers, bytes of stack, spill stores, spill loads:\n{}",
        unexpected.join("\n")
    );
    // What is allowed spills on sm_90a; a build for other architectures tells nothing of it.
    for (allowed, _) in ALLOWED.iter().filter(|_| ARCHS.contains(&"90a")) {
        assert!(spilling.iter().any(|(kernel, _)| kernel == allowed), "{allowed} needs no permission");
    }
}

#[test]
fn every_kernel_is_there_for_every_architecture() {
    for (file, image, names) in KERNELS {
        assert!(!image.is_empty() && image.as_ptr().addr() % 16 == 0, "{file}");
        for name in *names {
            let start = format!("{file} {name} ");
            let archs: Vec<&str> = PTXAS
                .lines()
                .filter_map(|line| line.strip_prefix(&start)?.split(' ').next()?.strip_prefix("sm_"))
                .collect();
            assert_eq!(archs, ARCHS, "{name}");
        }
    }
    let mut names: Vec<&str> = KERNELS.iter().flat_map(|(_, _, names)| *names).copied().collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count, "two kernels have one name");
}

#[test]
fn every_file_of_kernels_has_a_launcher() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for entry in fs::read_dir(root.join("kernels")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "cu") {
            let stem = path.file_stem().unwrap().to_str().unwrap();
            let launcher = root.join(format!("src/cuda/{stem}.rs")).exists();
            assert_ne!(launcher, NO_LAUNCHER.contains(&stem), "{stem}");
        }
    }
}
