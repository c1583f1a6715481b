//! Files that are not what was written.

use std::fs;
use std::path::Path;

use super::{STEPS, checkpoints, command, fails, kill_after, same, steps, succeeds, undisturbed};

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    // Not in place: the file may have a second name.
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
}

fn flip(bytes: &mut [u8]) {
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
}

#[test]
fn a_damaged_checkpoint_is_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let [data, whole] = undisturbed();
    let run = folder.path().join("run");
    succeeds(command(data, &run, &[]));
    let newest = |kind: &str| run.join(format!("checkpoints/step-{STEPS}{kind}.safetensors"));
    let cut = |bytes: &mut Vec<u8>| bytes.truncate(bytes.len() / 2);
    for (kind, change_it, what) in [
        ("", &cut as &dyn Fn(&mut Vec<u8>), "truncated"),
        (".optimizer", &cut, "truncated"),
        ("", &|bytes| flip(bytes), "checksum"),
        (".optimizer", &|bytes| flip(bytes), "checksum"),
    ] {
        change(&newest(kind), change_it);
        let text = succeeds(command(data, &run, &["--resume"]));
        assert!(text.contains(what) && text.contains("going back to an earlier checkpoint"), "{text}");
        assert!(text.contains(&format!("going on after step {}", STEPS - 1)), "{text}");
        same(&run, whole);
        // It is out of the way, for people to look at.
        assert!(newest(kind).with_extension("damaged").exists());
    }
    for (path, _) in checkpoints(&run) {
        if path.to_str().unwrap().ends_with(".optimizer.safetensors") {
            fs::write(path, b"").unwrap();
        }
    }
    let before = checkpoints(&run);
    let text = fails(command(data, &run, &["--resume"]));
    assert!(text.contains("no checkpoint can be read"), "{text}");
    assert!(checkpoints(&run) == before, "a file was touched");
    // Without its checkpoints, a run is not taken for one that has not begun.
    for (path, _) in before.iter().filter(|(path, _)| path.file_stem().unwrap() != "last") {
        fs::remove_file(path).unwrap();
    }
    let text = fails(command(data, &run, &["--resume"]));
    assert!(text.contains("no checkpoint can be read") && text.contains("--init"), "{text}");
    fs::remove_file(run.join("config.toml")).unwrap();
    let text = fails(command(data, &run, &[]));
    assert!(text.contains("holds a run already"), "{text}");
    assert_eq!(steps(&run), STEPS);
}

#[test]
fn the_best_checkpoint_is_the_last_resort() {
    let folder = tempfile::tempdir().unwrap();
    let [data, _] = undisturbed();
    let [whole, run] = ["whole", "run"].map(|name| folder.path().join(name));
    let options = ["--eval-every", "6", "--keep", "2"];
    succeeds(command(data, &whole, &options));
    kill_after(9, command(data, &run, &options), &run);
    for (path, _) in checkpoints(&run) {
        let name = path.file_name().unwrap().to_str().unwrap();
        if name.starts_with("step-") && !name.starts_with("step-6.") {
            change(&path, |bytes| flip(bytes));
        }
    }
    // The only evaluation so far was that of step 6, and it can be had back from the measurements.
    change(&run.join("checkpoints/best.safetensors"), |bytes| flip(bytes));
    change(&run.join("metrics.jsonl"), |bytes| bytes.extend(b"\xff\x00{\"step\": 3"));
    let text = succeeds(command(data, &run, &[&options[..], &["--resume"]].concat()));
    assert!(
        text.contains("going on after step 6") && text.contains("going back to the measurements"),
        "{text}"
    );
    same(&run, &whole);
}

#[test]
fn another_list_is_another_training() {
    let folder = tempfile::tempdir().unwrap();
    let (data, run) = (super::data(folder.path()), folder.path().join("run"));
    let whole = succeeds(command(&data, &run, &[]));
    assert!(!whole.contains("going on"), "{whole}");
    let list = data.join("train.txt");
    let names = fs::read_to_string(&list).unwrap();
    let turned: Vec<&str> = names.lines().rev().collect();
    fs::write(&list, turned.join("\n")).unwrap();
    let text = fails(command(&data, &run, &["--resume"]));
    assert!(text.contains("the run was trained on 6 pairs (") && text.contains("the same list"), "{text}");
    fs::write(&list, names).unwrap();
    succeeds(command(&data, &run, &["--resume"]));
}
