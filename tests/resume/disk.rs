//! Disks that are full. Where nothing can be mounted, a limit on the size of files has to do: that test always runs.
#![cfg(target_os = "linux")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use super::{checkpoints, command, fails, kill_after, result, same, steps, succeeds, temporary, undisturbed};

#[test]
fn files_that_may_not_grow_end_a_run_that_goes_on_later() {
    let folder = tempfile::tempdir().unwrap();
    let [data, whole] = undisturbed();
    let run = folder.path().join("run");
    let options = ["--keep", "1"];
    kill_after(3, command(data, &run, &options), &run);
    let go_on = || command(data, &run, &[&options[..], &["--resume"]].concat());
    // At most 4 or 8 MB, as the shell counts; the optimizer's file has 12.
    let mut limited = Command::new("sh");
    limited.args(["-c", "trap '' XFSZ; ulimit -f 8000; exec \"$@\"", "sh"]);
    let unlimited = go_on();
    limited.arg(unlimited.get_program()).args(unlimited.get_args());
    limited.stdout(Stdio::piped()).stderr(Stdio::piped());
    let text = fails(limited);
    assert!(text.contains("optimizer.safetensors: cannot write: File too large"), "{text}");
    assert!(
        text.contains("allow larger files, then the same command with --resume goes on after step"),
        "{text}"
    );
    assert!(temporary(&run).is_empty());
    for (path, _) in checkpoints(&run) {
        amdanet::checkpoint::read(path).unwrap();
    }
    succeeds(go_on());
    same(&run, whole);
}

/// A small file system in memory, mounted while this lives.
struct Disk<'a>(&'a Path);

impl<'a> Disk<'a> {
    /// None where the system does not allow it.
    fn mount(at: &'a Path, megabytes: usize) -> Option<Self> {
        fs::create_dir(at).unwrap();
        let size = format!("size={megabytes}m");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(at).output();
        mount.is_ok_and(|output| output.status.success()).then_some(Self(at))
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

#[test]
fn a_full_disk_ends_a_run_that_goes_on_when_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    // A checkpoint has 18 MB.
    let Some(_disk) = Disk::mount(&disk, 100) else {
        println!("nothing can be mounted here: the limit on the size of files is tested instead");
        return;
    };
    let [data, whole] = undisturbed();
    let (run, other) = (disk.join("run"), disk.join("other"));
    let options = ["--keep", "1"];
    // Room for one checkpoint, and then for its successor's optimizer alone.
    fs::write(&other, vec![0; 66 << 20]).unwrap();
    let text = fails(command(data, &run, &options));
    assert!(text.contains("step-2.safetensors: cannot write: No space left on device"), "{text}");
    assert!(
        text.contains("make room on the disk, then the same command with --resume goes on after step 1"),
        "{text}"
    );
    assert!(temporary(&run).is_empty());
    let names: Vec<_> =
        checkpoints(&run).iter().map(|(path, _)| path.file_name().unwrap().to_owned()).collect();
    assert_eq!(names, ["last.safetensors", "step-1.optimizer.safetensors", "step-1.safetensors"]);
    let go_on = || command(data, &run, &[&options[..], &["--resume"]].concat());
    // As often as one likes.
    fails(go_on());
    fs::remove_file(&other).unwrap();
    succeeds(go_on());
    same(&run, whole);
}

#[test]
fn measurements_that_cannot_be_written_do_not_cost_the_training() {
    let folder = tempfile::tempdir().unwrap();
    let [data, whole] = undisturbed();
    let run = folder.path().join("run");
    fs::create_dir(&run).unwrap();
    symlink("/dev/full", run.join("metrics.jsonl")).unwrap();
    let text = fails(command(data, &run, &[]));
    assert!(text.contains("metrics.jsonl: cannot write: No space left on device"), "{text}");
    assert!(
        text.contains("make room on the disk, then the same command with --resume goes on after step 1"),
        "{text}"
    );
    fs::remove_file(run.join("metrics.jsonl")).unwrap();
    succeeds(command(data, &run, &["--resume"]));
    // Only the line that could not be written is missing.
    assert_eq!(steps(&run), steps(whole) - 1);
    let (run, whole) = (result(&run), result(whole));
    assert!(run.0 == whole.0[1..] && run.1 == whole.1 && run.2 == whole.2);
}
