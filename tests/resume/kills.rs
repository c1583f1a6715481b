//! Ends that come from outside.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use amdanet::random::Philox;

use super::{STEPS, command, command_of, same, steps, succeeds, temporary, undisturbed, wait, wait_for};

/// The steps whose losses TensorBoard shows: a START takes away what came before it of its step and later ones.
fn shown(run: &Path) -> Vec<u8> {
    let files = fs::read_dir(run).unwrap().map(|file| file.unwrap().path());
    let is_events =
        |path: &&Path| path.file_name().unwrap().to_str().unwrap().starts_with("events.out.tfevents");
    let mut files: Vec<_> = files.filter(|path| is_events(&path.as_path())).collect();
    files.sort();
    let mut shown = Vec::new();
    for file in files {
        let bytes = fs::read(file).unwrap();
        let mut rest = &bytes[..];
        // The last record can be half of one.
        while let Some((length, more)) = rest.split_first_chunk() {
            let length = u64::from_le_bytes(*length) as usize;
            let Some(event) = more.get(4..4 + length) else { break };
            rest = more.get(length + 8..).unwrap_or_default();
            // The time is a key and 8 bytes, the step a key and, below 128, a byte.
            let (step, what) = (event[10], event[11]);
            if what == 7 << 3 | 2 {
                shown.retain(|&before| before < step);
            } else if event.windows(10).any(|bytes| bytes == b"loss/total") {
                shown.push(step);
            }
        }
    }
    shown
}

#[test]
fn killed_at_any_moment_it_goes_on_with_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let [data, whole] = undisturbed();
    let run = folder.path().join("run");
    let options = ["--keep", "1"];
    // It takes as long as another whole run.
    let start = Instant::now();
    succeeds(command(data, &folder.path().join("other"), &options));
    let time = start.elapsed();
    let go_on = || {
        let resume = if run.join("config.toml").exists() { &["--resume"][..] } else { &[] };
        command(data, &run, &[&options, resume].concat())
    };
    let finish = || {
        succeeds(go_on());
        same(&run, whole);
        assert_eq!(shown(&run), (1..=STEPS as u8).collect::<Vec<_>>());
        assert!(temporary(&run).is_empty());
    };
    let mut draw = Philox::new(11, 0);
    for _ in 0..20 {
        // A run that has come to its end is replaced by a new one.
        if steps(&run) == STEPS {
            finish();
            fs::remove_dir_all(&run).unwrap();
        }
        let mut child = go_on().spawn().unwrap();
        std::thread::sleep(time.mul_f32(0.5 * draw.f32()));
        child.kill().unwrap();
        let _ = wait(child);
    }
    finish();
}

fn signal(child: &std::process::Child, name: &str) {
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
}

#[test]
#[cfg(unix)]
fn told_to_end_it_saves_and_says_how_to_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let [data, whole] = undisturbed();
    let run = folder.path().join("run");
    let child = command(data, &run, &[]).spawn().unwrap();
    wait_for(2, &run);
    signal(&child, "TERM");
    let (code, text) = wait(child);
    assert!(code == Some(0) && text.contains("all saved"), "{text}");
    assert!(steps(&run) < STEPS, "it was too late");
    let line = text.lines().find(|line| line.ends_with("--resume")).unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-c", line]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let text = succeeds(shell);
    assert!(text.contains("going on after step"), "{text}");
    same(&run, whole);
}

#[test]
#[cfg(unix)]
fn told_twice_it_ends_at_once_and_goes_on_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let [data, _] = undisturbed();
    let [whole, run] = ["whole", "run"].map(|name| folder.path().join(name));
    // Large enough for both signals to come within a step.
    let command = |run: &Path, more: &[&str]| command_of("160x224", 4, data, run, more);
    succeeds(command(&whole, &[]));
    let child = command(&run, &[]).spawn().unwrap();
    wait_for(1, &run);
    std::thread::sleep(Duration::from_millis(80));
    for _ in 0..2 {
        signal(&child, "INT");
        std::thread::sleep(Duration::from_millis(20));
    }
    let (code, text) = wait(child);
    assert_eq!(code, Some(130), "{text}");
    succeeds(command(&run, &["--resume"]));
    same(&run, &whole);
}
