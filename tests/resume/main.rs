//! A run that is killed, starved or fed a damaged checkpoint goes on as if nothing had happened.

mod damage;
mod disk;
mod kills;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use amdanet::data::synth;
use serde_json::Value;

const STEPS: usize = 12;

/// Trains for 12 steps; a checkpoint is written after each, and each epoch of 4 is measured.
fn command(data: &Path, run: &Path, more: &[&str]) -> Command {
    command_of("48x64", STEPS, data, run, more)
}

fn command_of(size: &str, steps: usize, data: &Path, run: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_amdanet"));
    command.args(["train", "--encoder", "nano", "--size", size, "--batch", "2", "--threads", "1"]);
    command.args(["--steps", &steps.to_string(), "--lr", "1e-3", "--config"]).arg(data.join("every.toml"));
    command.arg("--data").arg(data).arg("--out").arg(run).args(more);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A data set of scenes, and a configuration that writes a checkpoint after every step.
fn data(folder: &Path) -> PathBuf {
    // With a blank in its name, which a shell must not stumble over.
    let data = folder.join("the data");
    synth::write(&data, 10, 5, 60, 80, &mut |_| ()).unwrap();
    fs::write(data.join("every.toml"), "[run]\ncheckpoint_every = 1\n").unwrap();
    data
}

/// A data set, and a run on it that nothing happened to: made once, for all tests.
fn undisturbed() -> &'static [PathBuf; 2] {
    static MADE: OnceLock<[PathBuf; 2]> = OnceLock::new();
    MADE.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("resume");
        let _ = fs::remove_dir_all(&folder);
        let (data, run) = (data(&folder), folder.join("run"));
        succeeds(command(&data, &run, &[]));
        [data, run]
    })
}

fn lines(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
    // The last line can be half of one while the run is being written.
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// The steps that the run has taken.
fn steps(run: &Path) -> usize {
    lines(run).iter().filter(|line| line.get("loss").is_some()).count()
}

/// Everything that a run leaves behind: measurements without times, the newest weights and the best.
fn result(run: &Path) -> (Vec<Value>, Vec<u8>, Vec<u8>) {
    let mut lines = lines(run);
    for line in lines.iter_mut().filter_map(Value::as_object_mut) {
        line.remove("seconds");
        line.remove("pairs_per_second");
        line.remove("wait_seconds");
    }
    let weights = |name: &str| fs::read(run.join(format!("checkpoints/{name}.safetensors"))).unwrap();
    (lines, weights("last"), weights("best"))
}

/// Whether two runs left the same behind.
#[track_caller]
fn same(run: &Path, whole: &Path) {
    let ((a, b), (lines, whole_lines)) = ((result(run), result(whole)), (steps(run), steps(whole)));
    assert_eq!(lines, whole_lines);
    assert!(a.0 == b.0, "other measurements");
    assert!(a.1 == b.1, "other weights");
    assert!(a.2 == b.2, "another best checkpoint");
}

fn wait(child: Child) -> (Option<i32>, String) {
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    assert!(!text.contains("panicked"), "{text}");
    (output.status.code(), text)
}

#[track_caller]
fn succeeds(mut command: Command) -> String {
    let (code, text) = wait(command.spawn().unwrap());
    assert_eq!(code, Some(0), "{text}");
    text
}

#[track_caller]
fn fails(mut command: Command) -> String {
    let (code, text) = wait(command.spawn().unwrap());
    assert_eq!(code, Some(1), "{text}");
    text
}

/// Starts the command and kills it once `wanted` steps have been taken.
fn kill_after(wanted: usize, mut command: Command, run: &Path) {
    let mut child = command.spawn().unwrap();
    wait_for(wanted, run);
    child.kill().unwrap();
    let _ = wait(child);
    assert!(steps(run) < STEPS, "it was too late");
}

fn wait_for(wanted: usize, run: &Path) {
    while steps(run) < wanted {
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The files in a folder of checkpoints that nobody should find there.
fn temporary(run: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(run.join("checkpoints")).unwrap().chain(fs::read_dir(run).unwrap());
    files.map(|file| file.unwrap().path()).filter(|path| amdanet::files::is_temporary(path)).collect()
}

/// The checkpoints of a run: names and content.
fn checkpoints(run: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let files = fs::read_dir(run.join("checkpoints")).unwrap().map(|file| file.unwrap().path());
    let mut files: Vec<_> = files.map(|path| (path.clone(), fs::read(path).unwrap())).collect();
    files.sort();
    files
}

#[test]
fn another_process_and_other_settings_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let [data, _] = undisturbed();
    let run = folder.path().join("run");
    let text = fails(command(data, &run, &["--resume"]));
    assert!(text.contains("no run to resume"), "{text}");
    let mut first = command(data, &run, &[]).spawn().unwrap();
    wait_for(1, &run);
    let text = fails(command(data, &run, &["--resume"]));
    assert!(text.contains("another process"), "{text}");
    first.kill().unwrap();
    let _ = wait(first);
    let text = fails(command(data, &run, &["--resume", "--seed", "5"]));
    assert!(text.contains("seed = 0") && text.contains("seed = 5"), "{text}");
    // A folder with a run in it is not taken for a new one.
    let text = fails(command(data, &run, &[]));
    assert!(text.contains("holds a run already") && text.contains("--resume"), "{text}");

    let config = fs::read_to_string(run.join("config.toml")).unwrap();
    assert!(config.starts_with("# begun on cpu, f32\n"), "{config}");
    fs::write(run.join("config.toml"), config.replace("cpu, f32", "some GPU, bf16")).unwrap();
    let text = succeeds(command(data, &run, &["--resume"]));
    assert!(text.contains("begun on some GPU, bf16 and goes on on cpu, f32"), "{text}");
    let text = succeeds(command(data, &run, &["--resume"]));
    assert!(text.contains("the run is complete: all 12 steps"), "{text}");
}

#[test]
fn what_chooses_the_best_checkpoint_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let data = data(folder.path());
    let run = folder.path().join("run");
    let text = fails(command(&data, &run, &["--best-by", "train"]));
    assert!(text.contains("must be val or test"), "{text}");
    kill_after(2, command(&data, &run, &["--best-by", "test", "--eval-every", "1"]), &run);
    fs::copy(data.join("val.txt"), data.join("test.txt")).unwrap();
    let text = succeeds(command(&data, &run, &["--resume", "--eval-every", "6"]));
    assert!(text.contains("val and test list the same pairs"), "{text}");
    assert!(text.contains("on test, no longer counts"), "{text}");
    let lines = lines(&run);
    let measured: Vec<_> = lines.iter().filter(|line| line["split"] == "val").collect();
    assert_eq!(measured.iter().map(|line| line["step"].as_u64().unwrap()).collect::<Vec<_>>(), [6, 12]);
    let best = measured.iter().rev().find(|line| line["best"] == true).unwrap();
    let best_of_all = measured.iter().map(|line| line["miou"].as_f64().unwrap()).fold(0.0, f64::max);
    assert_eq!(best["miou"], best_of_all);
    let (_, meta) = amdanet::checkpoint::read(run.join("checkpoints/best.safetensors")).unwrap();
    let extra = meta.unwrap().extra;
    assert_eq!(
        (extra["step"].clone(), extra["miou"].clone()),
        (best["step"].to_string(), best_of_all.to_string())
    );

    fs::remove_file(data.join("val.txt")).unwrap();
    let other = folder.path().join("other");
    let text = succeeds(command(&data, &other, &[]));
    assert!(
        text.contains("nothing is measured") && !other.join("checkpoints/best.safetensors").exists(),
        "{text}"
    );
    let text = succeeds(command(&data, &folder.path().join("third"), &["--best-by", "test"]));
    assert!(text.contains("too good to report") && text.contains("on the test split"), "{text}");
}
