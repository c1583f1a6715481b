//! A run that is killed, starved or fed a damaged checkpoint goes on as if nothing had happened.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use amdanet::data::synth;
use amdanet::random::Philox;

const STEPS: usize = 12;

fn command(data: &Path, run: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_amdanet"));
    command.args(["train", "--encoder", "nano", "--size", "48x64", "--batch", "2", "--threads", "1"]);
    command.args(["--steps", &STEPS.to_string(), "--lr", "1e-3", "--config"]).arg(data.join("every.toml"));
    command.arg("--data").arg(data).arg("--out").arg(run).args(more);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A data set of scenes, and a configuration that writes a checkpoint after every step.
fn data(folder: &Path) -> PathBuf {
    let data = folder.join("data");
    synth::write(&data, 10, 5, 60, 80, &mut |_| ()).unwrap();
    // Nothing to measure at the end.
    fs::remove_file(data.join("val.txt")).unwrap();
    fs::write(data.join("every.toml"), "[run]\ncheckpoint_every = 1\n").unwrap();
    data
}

/// What a run measured, without times.
fn measured(run: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines()
        .map(|line| {
            let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
            line.as_object_mut().unwrap().remove("seconds");
            line
        })
        .collect()
}

fn weights(run: &Path) -> Vec<u8> {
    fs::read(run.join("checkpoints/last.safetensors")).unwrap()
}

fn steps(run: &Path) -> usize {
    fs::read_to_string(run.join("metrics.jsonl")).map_or(0, |text| text.lines().count())
}

fn wait(child: Child) -> (Option<i32>, String) {
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    (output.status.code(), text)
}

#[track_caller]
fn succeeds(mut command: Command) -> String {
    let (code, text) = wait(command.spawn().unwrap());
    assert_eq!(code, Some(0), "{text}");
    text
}

#[test]
fn killed_at_any_moment_it_goes_on_with_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let data = data(folder.path());
    let whole = folder.path().join("whole");
    let start = std::time::Instant::now();
    succeeds(command(&data, &whole, &[]));
    let time = start.elapsed();
    let run = folder.path().join("run");
    let mut draw = Philox::new(11, 0);
    let mut kills = 0;
    while kills < 20 {
        // A run that has come to its end is replaced by a new one.
        if run.join("config.toml").exists() && steps(&run) == STEPS {
            // It may have been killed between its last measurement and its last checkpoint.
            succeeds(command(&data, &run, &["--resume"]));
            assert!(measured(&run) == measured(&whole), "after {kills} kills");
            assert!(weights(&run) == weights(&whole), "after {kills} kills");
            fs::remove_dir_all(&run).unwrap();
        }
        let more: &[&str] = if run.join("config.toml").exists() { &["--resume"] } else { &[] };
        let mut child = command(&data, &run, more).spawn().unwrap();
        std::thread::sleep(time.mul_f32(0.5 * draw.f32()));
        child.kill().unwrap();
        let _ = wait(child);
        kills += 1;
    }
    let more: &[&str] = if run.join("config.toml").exists() { &["--resume"] } else { &[] };
    succeeds(command(&data, &run, more));
    assert!(measured(&run) == measured(&whole) && weights(&run) == weights(&whole));
}

#[test]
#[cfg(unix)]
fn told_to_end_it_saves_and_says_how_to_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let data = data(folder.path());
    let [whole, run] = ["whole", "run"].map(|name| folder.path().join(name));
    succeeds(command(&data, &whole, &[]));
    let child = command(&data, &run, &[]).spawn().unwrap();
    while steps(&run) < 2 {
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
    let (code, text) = wait(child);
    assert!(code == Some(0) && text.contains("--resume"), "{text}");
    assert!(steps(&run) < STEPS, "it was too late");
    // A folder with a run in it is not taken for a new one.
    let (code, text) = wait(command(&data, &run, &[]).spawn().unwrap());
    assert!(code == Some(1) && text.contains("--resume"), "{text}");
    let text = succeeds(command(&data, &run, &["--resume"]));
    assert!(text.contains("going on after step"), "{text}");
    assert!(measured(&run) == measured(&whole) && weights(&run) == weights(&whole));
}

#[test]
fn a_damaged_checkpoint_is_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let data = data(folder.path());
    let run = folder.path().join("run");
    succeeds(command(&data, &run, &[]));
    let (want, lines) = (weights(&run), measured(&run));
    let newest = run.join(format!("checkpoints/step-{STEPS}.safetensors"));
    let half = fs::read(&newest).unwrap();
    fs::write(&newest, &half[..half.len() / 2]).unwrap();
    let text = succeeds(command(&data, &run, &["--resume"]));
    assert!(text.contains("truncated") && text.contains("earlier checkpoint"), "{text}");
    assert!(weights(&run) == want && measured(&run) == lines);
    for step in [STEPS - 1, STEPS] {
        fs::write(run.join(format!("checkpoints/step-{step}.optimizer.safetensors")), b"").unwrap();
    }
    let (code, text) = wait(command(&data, &run, &["--resume"]).spawn().unwrap());
    assert!(code == Some(1) && text.contains("no checkpoint can be read"), "{text}");
}

#[test]
fn another_process_and_other_settings_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let data = data(folder.path());
    let run = folder.path().join("run");
    let (code, text) = wait(command(&data, &run, &["--resume"]).spawn().unwrap());
    assert!(code == Some(1) && text.contains("no run to resume"), "{text}");
    let mut first = command(&data, &run, &[]).spawn().unwrap();
    while steps(&run) < 1 {
        std::thread::sleep(Duration::from_millis(2));
    }
    let (code, text) = wait(command(&data, &run, &["--resume"]).spawn().unwrap());
    assert!(code == Some(1) && text.contains("another process"), "{text}");
    first.kill().unwrap();
    let _ = wait(first);
    let (code, text) = wait(command(&data, &run, &["--resume", "--seed", "5"]).spawn().unwrap());
    assert!(code == Some(1) && text.contains("seed = 0") && text.contains("seed = 5"), "{text}");
}
