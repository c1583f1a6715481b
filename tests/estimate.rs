//! How much memory a training takes, and what it says beforehand.

mod common;

use amdanet::data::synth;
use common::succeeds;

/// The megabytes before `unit` in the line that has it.
fn megabytes(text: &str, unit: &str) -> f64 {
    let line = text.lines().find(|line| line.contains(unit)).unwrap_or_else(|| panic!("{text}"));
    let words: Vec<_> = line.split(' ').collect();
    let at = words.iter().position(|word| ["MB", "GB"].contains(word)).unwrap();
    words[at - 1].parse::<f64>().unwrap() * if words[at] == "GB" { 1e3 } else { 1.0 }
}

#[test]
#[cfg(target_os = "linux")]
fn a_training_takes_what_it_says() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    synth::write(&folder.path().join("data"), 12, 1, 96, 128, &mut |_| ()).unwrap();
    let data = at("data");
    for (encoder, arch, size, batch) in [("nano", "release", "96x128", "4"), ("b0", "paper", "128x160", "2")]
    {
        let out = at(&format!("{encoder}-{arch}"));
        let text = succeeds([
            "train",
            "--data",
            &data,
            "--out",
            &out,
            "--encoder",
            encoder,
            "--arch",
            arch,
            "--size",
            size,
            "--batch",
            batch,
            "--steps",
            "3",
        ]);
        let (said, taken) = (megabytes(&text, "about "), megabytes(&text, "were taken at most"));
        let share = taken / said;
        assert!((0.85..=1.0).contains(&share), "{encoder} {arch}: {said} MB were said, {taken} taken");
    }
}
