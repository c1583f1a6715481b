//! The program from the outside: what it writes, and that bad input is one line and an exit code, never a panic.

mod common;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use amdanet::checkpoint::{self, Array, State};
use amdanet::data::{Limits, read_labels, synth, write_gray, write_rgb};
use amdanet::model::Arch;
use common::{amdanet, nano, save, succeeds, write_foreign};
use serde_json::Value;
use tempfile::TempDir;

/// A folder that is gone after the test, and paths in it.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.at(name).to_str().unwrap().to_owned()
    }

    /// A nano network for the classes of the synthetic scenes.
    fn weights(&self) -> String {
        save(&self.at("w.safetensors"), &nano(Arch::Release, synth::CLASSES.len(), 1));
        self.text("w.safetensors")
    }

    /// A data set of `pairs` scenes, 64 pixels high and 96 wide.
    fn scenes(&self, pairs: usize) -> String {
        let (path, pairs) = (self.text("data"), pairs.to_string());
        succeeds(["synth", "--out", &path, "--pairs", &pairs, "--size", "64x96", "--seed", "3"]);
        path
    }

    /// Scene `index` as NAME.png in the folders `vi` and `ir`.
    fn pair(&self, name: &str, index: u64, width: usize, height: usize) {
        let scene = synth::scene(1, index, width, height);
        write_rgb(&self.at(&format!("vi/{name}.png")), width, height, &scene.visible).unwrap();
        write_gray(&self.at(&format!("ir/{name}.png")), width, height, &scene.infrared).unwrap();
    }
}

/// Runs the program, which must end with `code` and one line `error: …` that contains each of `parts`.
#[track_caller]
fn fails<S: AsRef<OsStr>>(code: i32, parts: &[&str], args: impl IntoIterator<Item = S>) {
    let output = amdanet(args);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(!text.contains("panicked"), "{text}");
    let is_progress = |l: &&str| ["pairs ", "steps ", "scenes "].iter().any(|what| l.starts_with(what));
    let lines: Vec<&str> = text.lines().filter(|l| !is_progress(l)).collect();
    let [line] = lines[..] else { panic!("one line was expected: {text}") };
    assert!(line.starts_with("error: "), "{line}");
    for part in parts {
        assert!(line.contains(part), "expected {part:?} in: {line}");
    }
}

fn json(text: &str) -> Value {
    let value: Value =
        serde_json::from_str(text).unwrap_or_else(|e| panic!("not one JSON object: {e}: {text}"));
    assert!(value.is_object());
    value
}

fn positive(value: &Value) -> f64 {
    let number = value.as_f64().unwrap_or_else(|| panic!("not a number: {value}"));
    assert!(number > 0.0, "{number}");
    number
}

fn run_args<'a>(weights: &'a str, visible: &'a str, infrared: &'a str, out: &'a str) -> Vec<&'a str> {
    vec!["run", "--weights", weights, "--visible", visible, "--infrared", infrared, "--out", out]
}

fn train_args<'a>(data: &'a str, out: &'a str) -> Vec<&'a str> {
    let mut args = vec!["train", "--data", data, "--out", out, "--encoder", "nano", "--size", "64x96"];
    args.extend(["--batch", "2", "--steps", "4", "--lr", "1e-3", "--warmup", "2"]);
    args
}

#[test]
fn train_and_eval() {
    let folder = Folder::new();
    let (data, run) = (folder.scenes(8), folder.text("run"));
    succeeds(train_args(&data, &run));
    let metrics = fs::read_to_string(folder.at("run/metrics.jsonl")).unwrap();
    // Four steps, and the evaluation at the end.
    assert_eq!(metrics.lines().count(), 5);
    let evaluation = json(metrics.lines().last().unwrap());
    assert!(evaluation["step"] == 4 && evaluation["split"] == "val" && evaluation["best"] == true);
    positive(&evaluation["miou"]);
    for (line, step) in metrics.lines().take(4).zip(1..) {
        let line = json(line);
        assert_eq!(line["step"], step);
        // Six names are trained on, two in each step.
        assert_eq!(line["epoch"], (step - 1) * 2 / 6);
        for key in ["lr", "loss", "seg", "fus", "seg_masked", "fus_masked", "dice", "dice_masked"] {
            positive(&line[key]);
        }
        for key in ["gradient_norm", "seconds", "pairs_per_second"] {
            positive(&line[key]);
        }
    }
    let config = fs::read_to_string(folder.at("run/config.toml")).unwrap();
    assert!(config.contains("height = 64") && config.contains("steps = 4"), "{config}");

    let weights = folder.text("run/checkpoints/last.safetensors");
    let eval = ["eval", "--weights", &weights, "--data", &data];
    let result = json(&succeeds(eval.iter().chain(&["--json"])));
    for key in ["miou", "macc", "map", "pixel_accuracy"] {
        let score = result[key].as_f64().unwrap();
        assert!((0.0..=1.0).contains(&score), "{key} {score}");
    }
    let classes = result["classes"].as_array().unwrap();
    let names: Vec<_> = classes.iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(names, synth::CLASSES);
    assert!(classes.iter().all(|c| c.get("iou").is_some() && c.get("accuracy").is_some()));
    assert!(classes.iter().any(|c| c["iou"].is_number() && c["accuracy"].is_number()));
    for key in ["en", "sd", "sf"] {
        positive(&result["fusion"][key]);
    }
    assert!(result["fusion"]["scd"].is_number());
    let table = succeeds(eval);
    assert!(synth::CLASSES.iter().all(|c| table.contains(c)) && table.contains("pixel accuracy"), "{table}");

    // The run is not overwritten.
    let before = fs::read(&weights).unwrap();
    fails(1, &[&run, "holds a run already", "--out"], train_args(&data, &run));
    assert_eq!(fs::read(&weights).unwrap(), before);
}

#[test]
fn the_paper_trains_too() {
    let folder = Folder::new();
    let (data, run) = (folder.scenes(4), folder.text("run"));
    succeeds(train_args(&data, &run).iter().chain(&["--arch", "paper", "--recipe", "paper"]));
    let metrics = fs::read_to_string(folder.at("run/metrics.jsonl")).unwrap();
    let line = json(metrics.lines().next().unwrap());
    for key in ["seg", "fus", "cr"] {
        positive(&line[key]);
    }
    assert!(line.get("dice").is_none(), "{line}");
}

#[test]
fn a_file_that_chooses_the_architecture_chooses_its_losses() {
    let folder = Folder::new();
    let (data, run, file) = (folder.scenes(4), folder.text("run"), folder.text("c.toml"));
    fs::write(&file, "[model]\narch = \"paper\"\n").unwrap();
    succeeds(train_args(&data, &run).iter().chain(&["--config", &file[..]]));
    let metrics = fs::read_to_string(folder.at("run/metrics.jsonl")).unwrap();
    let line = json(metrics.lines().next().unwrap());
    positive(&line["cr"]);
    assert!(line.get("dice").is_none(), "{line}");
}

#[test]
fn run_writes_what_it_can() {
    let folder = Folder::new();
    let sizes = [("a", 96, 64), ("b", 101, 75), ("c", 33, 47)];
    for ((name, w, h), index) in sizes.iter().zip(0..) {
        folder.pair(name, index, *w, *h);
    }
    write_rgb(&folder.at("vi/lonely.png"), 32, 32, &[0; 32 * 32 * 3]).unwrap();
    write_gray(&folder.at("ir/alone.png"), 32, 32, &[0; 32 * 32]).unwrap();
    let (weights, out) = (folder.weights(), folder.text("out"));
    let (vi, ir) = (folder.text("vi"), folder.text("ir"));
    let output = amdanet(run_args(&weights, &vi, &ir, &out));
    let notes = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{notes}");
    let lines: Vec<&str> = notes.lines().collect();
    assert_eq!(lines.len(), 2, "{notes}");
    assert!(lines[0].contains("lonely.png") && lines[0].contains("no infrared"), "{notes}");
    assert!(lines[1].contains("alone.png") && lines[1].contains("no visible"), "{notes}");
    for (name, w, h) in sizes {
        let file = |kind: &str| folder.at(&format!("out/{kind}/{name}.png"));
        for kind in ["fused", "color", "overlay"] {
            let picture = image::open(file(kind)).unwrap();
            assert_eq!((picture.width(), picture.height()), (w as u32, h as u32), "{kind}/{name}");
            assert_eq!(picture.color(), image::ColorType::Rgb8);
        }
        let labels = read_labels(&file("labels"), Limits::default()).unwrap();
        assert_eq!((labels.width, labels.height), (w, h));
        assert!(labels.ids.iter().all(|&id| usize::from(id) < synth::CLASSES.len()));
    }
    assert_eq!(fs::read_dir(folder.at("out/fused")).unwrap().count(), sizes.len());

    // Two files, and one kind of result alone.
    let (v, i, some) = (folder.text("vi/a.png"), folder.text("ir/a.png"), folder.text("some"));
    succeeds(run_args(&weights, &v, &i, &some).iter().chain(&["--save", "labels", "--threads", "1"]));
    let kinds: Vec<_> = fs::read_dir(&some).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(kinds, ["labels"]);
    assert_eq!(
        fs::read(folder.at("some/labels/a.png")).unwrap(),
        fs::read(folder.at("out/labels/a.png")).unwrap()
    );
}

#[test]
fn pictures_that_cannot_be_used() {
    let folder = Folder::new();
    folder.pair("a", 0, 96, 64);
    folder.pair("small", 1, 40, 31);
    let weights = folder.weights();
    let (visible, infrared, out) = (folder.text("vi/a.png"), folder.text("ir/a.png"), folder.text("out"));
    let bad = |visible: &str, infrared: &str, parts: &[&str]| {
        fails(1, parts, run_args(&weights, visible, infrared, &out));
    };
    bad(&folder.text("none.png"), &infrared, &["none.png", "No such file"]);
    bad(&visible, &folder.text("none.png"), &["none.png", "No such file"]);
    bad(&visible, &folder.text("ir"), &["is a folder", "two files or two folders"]);
    bad(&visible, &folder.text("ir/small.png"), &["a.png: 96×64", "small.png has 40×31", "resize"]);
    bad(&folder.text("vi/small.png"), &folder.text("ir/small.png"), &["small.png", "40x31", "at least 32"]);
    bad(&weights, &infrared, &["w.safetensors", "not a picture"]);

    let whole = fs::read(&visible).unwrap();
    fs::write(folder.at("cut.png"), &whole[..whole.len() / 2]).unwrap();
    bad(&folder.text("cut.png"), &infrared, &["cut.png", "PNG"]);
    for (name, width, height, part) in
        [("zero.bmp", 0, 64, "0x64"), ("huge.bmp", 30_000, 30_000, "--max-pixels")]
    {
        // A picture that is all header.
        let mut bmp = b"BM".to_vec();
        bmp.extend([54u32, 0, 54, 40].into_iter().flat_map(u32::to_le_bytes));
        bmp.extend([width, height].into_iter().flat_map(i32::to_le_bytes));
        bmp.extend([1, 0, 24, 0]);
        bmp.extend([0; 24]);
        fs::write(folder.at(name), bmp).unwrap();
        bad(&folder.text(name), &infrared, &[name, part]);
    }
    let limited = |most: &'static str| {
        run_args(&weights, &visible, &infrared, &out)
            .into_iter()
            .chain(["--max-pixels", most])
            .collect::<Vec<_>>()
    };
    fails(1, &["a.png", "96×64", "limit of 6143", "--max-pixels"], limited("6143"));
    succeeds(limited("6144"));
}

#[test]
fn labels_that_are_no_class_are_named_with_their_place() {
    let folder = Folder::new();
    let (data, weights) = (folder.scenes(4), folder.weights());
    for entry in fs::read_dir(folder.at("data/Label")).unwrap() {
        let path = entry.unwrap().path();
        let mut labels = read_labels(&path, Limits::default()).unwrap();
        labels.ids[3 * 96 + 5] = 8;
        write_gray(&path, 96, 64, &labels.ids).unwrap();
    }
    let parts = ["Label", ".png: label 8 at x 5, y 3", "8 classes", "relabel"];
    fails(1, &parts, train_args(&data, &folder.text("run")));
    fails(1, &parts, ["eval", "--weights", &weights, "--data", &data]);
}

#[test]
fn data_sets_that_are_not_complete() {
    let folder = Folder::new();
    let (data, weights) = (folder.scenes(4), folder.weights());
    fails(1, &["none", "No such file"], train_args(&folder.text("none"), &folder.text("run")));
    fs::write(folder.at("data/test.txt"), "nobody\n").unwrap();
    fails(1, &["nobody"], ["eval", "--weights", &weights, "--data", &data]);
    fs::remove_dir_all(folder.at("data/Infrared")).unwrap();
    fails(1, &["data", "no folder Infrared"], train_args(&data, &folder.text("run")));
    assert!(!folder.at("run").exists());
}

/// The parts of a safetensors file: the header and the data.
fn parts(path: &str) -> (Value, Vec<u8>) {
    let bytes = fs::read(path).unwrap();
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    (serde_json::from_slice(&bytes[8..8 + len]).unwrap(), bytes[8 + len..].to_vec())
}

fn join(header: &Value, data: &[u8]) -> Vec<u8> {
    let header = serde_json::to_vec(header).unwrap();
    [&(header.len() as u64).to_le_bytes(), &header[..], data].concat()
}

#[test]
fn checkpoints_that_cannot_be_used() {
    let folder = Folder::new();
    folder.pair("a", 0, 96, 64);
    let (weights, out) = (folder.weights(), folder.text("out"));
    let (visible, infrared) = (folder.text("vi"), folder.text("ir"));
    let run = |name: &str, parts: &[&str]| {
        let path = folder.text(name);
        fails(1, &[&[name], parts].concat(), run_args(&path, &visible, &infrared, &out));
        fails(1, parts, ["info", &path]);
        assert!(!folder.at("out/fused").exists());
    };
    run("missing.safetensors", &["No such file"]);

    let bytes = fs::read(&weights).unwrap();
    fs::write(folder.at("cut.safetensors"), &bytes[..bytes.len() / 2]).unwrap();
    run("cut.safetensors", &["truncated"]);
    let mut long = bytes.clone();
    long[..8].copy_from_slice(&(1u64 << 63).to_le_bytes());
    fs::write(folder.at("long.safetensors"), long).unwrap();
    run("long.safetensors", &["header of 9223372036854775808 bytes", "damaged"]);

    let (header, data) = parts(&weights);
    let name = "backbone.norm1.weight";
    let [start, end] = [0, 1].map(|i| header[name]["data_offsets"][i].as_u64().unwrap());
    for (file, offsets) in [
        ("overlap.safetensors", [start - 4, end - 4]),
        ("outside.safetensors", [start, data.len() as u64 + 64]),
        ("far.safetensors", [1 << 62, (1 << 62) + end - start]),
    ] {
        let mut bad = header.clone();
        bad[name]["data_offsets"] = offsets.to_vec().into();
        fs::write(folder.at(file), join(&bad, &data)).unwrap();
        run(file, &["header"]);
    }
    // Numbers that would take all memory, if a network of them was made before its tensors are looked at.
    let dims = |numbers: &str| format!("\"decoder_dim\":{numbers}");
    for (numbers, part) in [("1000000000000", "at most 2e9"), ("20000", "describes a network of more than")] {
        let mut bad = header.clone();
        let model = bad["__metadata__"]["model"].as_str().unwrap();
        assert!(model.contains(&dims("32")));
        assert!(header["__metadata__"]["checksum"].is_string());
        bad["__metadata__"]["model"] = model.replace(&dims("32"), &dims(numbers)).into();
        // Whoever means harm leaves out the checksum.
        bad["__metadata__"].as_object_mut().unwrap().remove("checksum");
        fs::write(folder.at("vast.safetensors"), join(&bad, &data)).unwrap();
        run("vast.safetensors", &[part]);
    }

    let (state, meta) = checkpoint::read(&weights).unwrap();
    let meta = meta.unwrap();
    let write = |file: &str, change: &dyn Fn(&mut State)| {
        let mut state = state.clone();
        change(&mut state);
        checkpoint::write(folder.at(file), &state, &meta).unwrap();
    };
    write("lacks.safetensors", &|s| drop(s.remove(name)));
    run("lacks.safetensors", &["1 missing", name, "[16]"]);
    write("more.safetensors", &|s| {
        drop(s.insert("aux_head.x".into(), Array { shape: vec![1], data: vec![0.0] }))
    });
    run("more.safetensors", &["1 not expected", "aux_head.x [1]"]);
    write("shape.safetensors", &|s| s.get_mut(name).unwrap().shape = vec![4, 4]);
    run("shape.safetensors", &["1 of another shape", name, "[4, 4]", "[16]"]);

    let encoder = |name: &str| ["patch_embed", "block", "norm"].iter().any(|p| name.starts_with(p));
    let encoder = state.iter().filter_map(|(name, array)| {
        Some((name.strip_prefix("backbone.").filter(|n| encoder(n))?.to_owned(), array.clone()))
    });
    write_foreign(&folder.at("encoder.safetensors"), &encoder.collect());
    run("encoder.safetensors", &["an encoder without heads", "--init"]);
}

#[test]
fn a_pickle_that_calls_a_function_is_refused() {
    let folder = Folder::new();
    let marker = folder.at("ran");
    let text = |t: &str| [b"X".as_slice(), &(t.len() as u32).to_le_bytes(), t.as_bytes()].concat();
    // torch.save's magic number, version and system, then the object.
    let mut file = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}".to_vec();
    file.extend(text("little_endian"));
    file.extend(b"\x88s.\x80\x02");
    file.extend(format!("cos\nsystem\n(S'touch {}'\ntR.", marker.display()).bytes());
    file.extend(b"\x80\x02](e.");
    fs::write(folder.at("evil.pth"), file).unwrap();
    let (evil, out) = (folder.text("evil.pth"), folder.text("out.safetensors"));
    fails(1, &["evil.pth", "os.system"], ["convert", &evil, &out]);
    fails(1, &["evil.pth", "os.system"], ["info", &evil]);
    assert!(!marker.exists() && !Path::new(&out).exists());
}

#[test]
fn configurations() {
    let folder = Folder::new();
    let (data, run, file) = (folder.scenes(4), folder.text("run"), folder.text("c.toml"));
    let with = |text: &str| {
        fs::write(&file, text).unwrap();
        train_args(&data, &run).into_iter().chain(["--config", &file]).map(String::from).collect::<Vec<_>>()
    };
    let cases = [
        (
            "[optimizer]\nwarmup_stesp = 3\n",
            "line 2: unknown key optimizer.warmup_stesp: did you mean optimizer.warmup_steps?",
        ),
        ("[augment]\nscales = []\n", "augment.scales = []"),
        ("[run]\nmask_keep = 1.5\n", "run.mask_keep = 1.5: must be 0 to 1"),
        ("[model]\ndims = [4000000000, 64, 128, 256]\n", "dims = [4000000000, 64, 128, 256]"),
        ("[model]\nclasses = 3\n", "model.classes = 3, but the data set has 8 classes"),
        ("[optimizer]\nlr = \"fast\"\n", "line 2"),
        ("[loss]\nseg = -1.0\n", "loss weight seg = -1: must be 0 or more"),
    ];
    for (text, part) in cases {
        fails(1, &[part], with(text));
    }
    fails(1, &["nowhere.toml"], train_args(&data, &run).iter().chain(&["--config", "nowhere.toml"]));
    assert!(!folder.at("run").exists());
    succeeds(with("[run]\nseed = 5\ncheckpoint_every = 1\n[loss]\ndice = 0.0\n"));
    let metrics = fs::read_to_string(folder.at("run/metrics.jsonl")).unwrap();
    assert!(!metrics.contains("\"dice\"") && metrics.contains("\"dice_masked\""), "{metrics}");
}

#[test]
fn folders_that_cannot_be_written() {
    let folder = Folder::new();
    folder.pair("a", 0, 64, 64);
    let (data, weights) = (folder.scenes(4), folder.weights());
    fs::write(folder.at("file"), "").unwrap();
    let below = folder.text("file/out");
    let parts = ["file/out", "Not a directory"];
    fails(1, &parts, run_args(&weights, &folder.text("vi"), &folder.text("ir"), &below));
    fails(1, &parts, train_args(&data, &below));
    fails(1, &parts, ["synth", "--out", &below, "--pairs", "3"]);
    fails(1, &parts, ["demo", "--out", &below, "--steps", "3", "--pairs", "8"]);
    fails(1, &parts, ["convert", &weights, &below]);
}

#[test]
fn what_others_made_stays() {
    let folder = Folder::new();
    folder.pair("a", 0, 64, 64);
    let (data, weights, root) = (folder.scenes(4), folder.weights(), folder.text(""));
    // Labels beside the pictures may be made by hand, and the pictures may have the name of a result.
    let (vi, ir) = (folder.text("vi"), folder.text("ir"));
    fs::create_dir(folder.at("labels")).unwrap();
    fails(1, &["labels", "beside", "--out"], run_args(&weights, &vi, &ir, &root));
    fs::rename(folder.at("vi"), folder.at("color")).unwrap();
    let (visible, infrared) = (folder.text("color/a.png"), folder.text("ir/a.png"));
    let args = run_args(&weights, &visible, &infrared, &root);
    fails(1, &["color", "would be overwritten"], args.into_iter().chain(["--save", "color"]));
    fs::rename(folder.at("color"), folder.at("vi")).unwrap();
    fs::remove_dir(folder.at("labels")).unwrap();
    succeeds(run_args(&weights, &vi, &ir, &root));

    fails(1, &["data", "not empty"], ["synth", "--out", &data, "--pairs", "4"]);
    fs::create_dir(folder.at("shown")).unwrap();
    fs::write(folder.at("shown/demo.txt"), "mine").unwrap();
    fails(1, &["demo.txt", "choose another --out"], ["demo", "--out", &folder.text("shown"), "--steps", "3"]);
    assert_eq!(fs::read(folder.at("shown/demo.txt")).unwrap(), b"mine");
}

#[test]
fn labels_of_other_classes_are_no_measure() {
    let folder = Folder::new();
    let (data, weights) = (folder.scenes(4), folder.text("w.safetensors"));
    save(&folder.at("w.safetensors"), &nano(Arch::Release, 5, 1));
    fails(1, &["8 classes (", "the network 5"], ["eval", "--weights", &weights, "--data", &data]);
}

#[test]
fn numbers_that_cannot_be_used() {
    let (folder, nothing) = (Folder::new(), "nothing");
    let bench = ["bench", "model", "--encoder", "nano", "--size", "64x64"];
    let and = |more: &[&'static str]| bench.iter().chain(more).copied().collect::<Vec<_>>();
    fails(1, &["--batch 0"], and(&["--batch", "0"]));
    fails(1, &["--batch 1000000000000"], and(&["--batch", "1000000000000"]));
    fails(1, &["--runs 0"], and(&["--runs", "0"]));
    fails(1, &["--threads 0", "1 to 1024"], and(&["--threads", "0"]));
    fails(1, &["classes = 0", "1 to 255"], and(&["--classes", "0"]));
    fails(1, &["classes = 256", "1 to 255"], ["info", "--encoder", "nano", "--classes", "256"]);
    fails(2, &["--device", "auto, cpu, cuda and cuda:N"], and(&["--device", "gpu"]));
    fails(2, &["--device", "cuda:x"], and(&["--device", "cuda:x"]));
    fails(1, &["--precision bf16", "computes in f32"], and(&["--device", "cpu", "--precision", "bf16"]));
    fails(2, &["--precision", "possible values"], and(&["--precision", "f64"]));
    fails(2, &["--encoder", "b9", "possible values"], ["info", "--encoder", "b9"]);
    fails(2, &["--out", "required"], ["synth", "--pairs", "3"]);
    fails(2, &["--pairs", "0"], ["synth", "--out", nothing, "--pairs", "0"]);
    fails(2, &["--size", "10x10", "32"], ["synth", "--out", nothing, "--pairs", "1", "--size", "10x10"]);
    fails(2, &["HEIGHTxWIDTH"], ["synth", "--out", nothing, "--pairs", "1", "--size", "big"]);
    fails(2, &["no split \"tset\""], ["eval", "--weights", nothing, "--data", nothing, "--split", "tset"]);
    fails(2, &["paint"], ["paint"]);
    let (data, run) = (folder.scenes(4), folder.text("run"));
    for (flag, value, part) in [
        ("--batch", "0", "run.batch = 0"),
        ("--lr", "nan", "optimizer.lr = NaN"),
        ("--steps", "0", "--steps 0"),
        ("--threads", "0", "--threads 0"),
    ] {
        fails(1, &[part], ["train", "--encoder", "nano", "--data", &data, "--out", &run, flag, value]);
    }
    let help = amdanet(["--help"]);
    assert!(help.status.success() && String::from_utf8_lossy(&help.stdout).contains("train"));
    assert_eq!(amdanet::<&str>([]).status.code(), Some(2));
}

#[test]
fn info() {
    let info = json(&succeeds(["info", "--encoder", "b4", "--json"]));
    assert_eq!(info["parameters"], 135_735_452);
    let gflop = info["gflop"].as_f64().unwrap();
    assert!((gflop - 336.9).abs() < 0.1, "{gflop}");
    assert_eq!(
        (&info["arch"], &info["encoder"], &info["classes"]),
        (&"release".into(), &"b4".into(), &9.into())
    );

    let folder = Folder::new();
    let info = json(&succeeds(["info", &folder.weights(), "--json", "--size", "64x96"]));
    let count = nano(Arch::Release, synth::CLASSES.len(), 1).params.count();
    assert_eq!((&info["parameters"], &info["encoder"]), (&count.into(), &"nano".into()));
    assert_eq!(info["class_names"][1], "class 1");
}

#[test]
fn bench() {
    let common = ["--encoder", "nano", "--size", "64x64", "--runs", "3", "--warmup", "0", "--batch", "2,1"];
    for (what, key) in [("model", "latency_ms"), ("train", "step_ms")] {
        let result = json(&succeeds(["bench", what].iter().chain(&common).chain(&["--json"])));
        for (row, batch) in result["batches"].as_array().unwrap().iter().zip(1..=2) {
            assert_eq!(row["batch"], batch);
            let times = ["min", "q1", "median", "q3", "max"].map(|k| positive(&row[key][k]));
            assert!(times.is_sorted(), "{result}");
            assert!((positive(&row["pairs_per_second"]) * times[2] / 1e3 - f64::from(batch)).abs() < 1e-6);
        }
        assert_eq!((&result["batch"], &result[key]), (&1.into(), &result["batches"][0][key]));
        // Weights alone are half a megabyte of numbers.
        assert!(positive(&result["tensor_peak_bytes"]) > 2e6);
        assert!(positive(&result["peak_bytes"]) > 2e6);
        assert!(result["device_peak_bytes"].is_null() || result["device"] != "Cpu");
        let table = succeeds(["bench", what].iter().chain(&common));
        for part in ["pairs/s", "batch 1 ", "batch 2 ", "peak memory", "energy"] {
            assert!(table.contains(part), "{part}: {table}");
        }
    }
}

#[test]
fn bench_from_files_to_files() {
    let folder = Folder::new();
    folder.pair("a", 0, 96, 64);
    let (weights, vi, ir) = (folder.weights(), folder.text("vi/a.png"), folder.text("ir/a.png"));
    let repeats = ["--runs", "2", "--warmup", "0", "--end-to-end"];
    let files = ["bench", "model", "--weights", &weights, "--visible", &vi, "--infrared", &ir];
    let result = json(&succeeds(files.iter().chain(&repeats).chain(&["--json"])));
    assert_eq!((&result["encoder"], &result["size"]), (&"nano".into(), &"64x96".into()));
    positive(&result["end_to_end_ms"]["median"]);
    assert!(succeeds(files.iter().chain(&repeats)).contains("from files to files"));
    fails(2, &["--weights", "--encoder"], files.iter().chain(&["--encoder", "b0"]));
    fails(2, &["--infrared"], files[..6].iter());
    fails(
        1,
        &["vi/b.png", "read"],
        ["bench", "model", "--visible", &folder.text("vi/b.png"), "--infrared", &ir],
    );
}

#[test]
fn bench_kernels() {
    let kernels = ["bench", "kernels", "--encoder", "nano", "--size", "64x64"];
    let and = |more: &[&'static str]| kernels.iter().chain(more).copied().collect::<Vec<_>>();
    let result = json(&succeeds(and(&["--list", "--json"])));
    for part in ["inference", "training_step"] {
        let rows = result[part].as_array().unwrap();
        assert!(rows.len() > 20 && rows.iter().any(|row| row["operations"].as_u64() > Some(0)), "{part}");
        // Without a device there are no times.
        assert!(rows.iter().all(|row| positive(&row["count"]) >= 1.0 && row["milliseconds"].is_null()));
    }
    assert!(result["device"].is_null() && result["copy_bytes_per_second"].is_null());
    let table = succeeds(and(&["--list"]));
    assert!(table.contains("training step: ") && table.contains("layer_norm"), "{table}");
    fails(1, &["--batch", "one size"], and(&["--list", "--batch", "1,2"]));
    fails(2, &["--list", "--svg"], and(&["--list", "--svg", "x.svg"]));
    fails(1, &["CUDA device", "--list"], and(&["--device", "cpu"]));
}

#[test]
fn verify() {
    let golden = |arch: &str| format!("{}/tests/golden/nano_{arch}.safetensors", env!("CARGO_MANIFEST_DIR"));
    let (release, paper) = (golden("release"), golden("paper"));
    let result = json(&succeeds(["verify", "--json", &release, &paper]));
    for file in [&release, &paper] {
        assert_eq!(result[file]["verdict"], "ok");
        assert!(result[file]["groups"].as_array().unwrap().len() >= 8);
    }

    let folder = Folder::new();
    let changed = folder.text("changed.safetensors");
    let (header, mut data) = parts(&paper);
    // One gradient of the last step, doubled.
    let place = &header["step2.grad.backbone.LEs.0.fuse_sc.cha.mlp.0.weight"]["data_offsets"];
    let at = place[0].as_u64().unwrap() as usize;
    let number = f32::from_le_bytes(data[at..at + 4].try_into().unwrap());
    data[at..at + 4].copy_from_slice(&(2.0 * number).to_le_bytes());
    fs::write(&changed, join(&header, &data)).unwrap();
    let output = amdanet(["verify", &changed]);
    let table = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(table.contains("changed.safetensors: FAILED"), "{table}");
    let wrong: Vec<&str> = table.lines().filter(|l| l.contains("<- too large")).collect();
    assert!(matches!(wrong[..], [line] if line.contains("step 2 gradients")), "{table}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "error: 1 of 1 golden files do not hold\n");

    // Headers that ask for nonsense.
    for (key, value) in
        [("stride", "0"), ("height", "16384"), ("batch", "0"), ("classes", "0"), ("height", "8")]
    {
        let mut bad = header.clone();
        bad["__metadata__"][key] = value.into();
        if key == "height" && value == "16384" {
            bad["__metadata__"]["batch"] = "16384".into();
        }
        fs::write(&changed, join(&bad, &data)).unwrap();
        fails(1, &[], ["verify", &changed]);
    }
    fails(1, &["nothing", "No such file"], ["verify", "nothing"]);
}

#[test]
fn a_converted_checkpoint_gives_the_same_bytes() {
    let folder = Folder::new();
    folder.pair("a", 1, 101, 75);
    let (state, _) = checkpoint::read(folder.weights()).unwrap();
    write_foreign(&folder.at("foreign.safetensors"), &state);
    let (foreign, own) = (folder.text("foreign.safetensors"), folder.text("own.safetensors"));
    let line = succeeds(["convert", &foreign, &own]);
    assert!(line.contains("release network, encoder nano, 8 classes"), "{line}");
    let (vi, ir) = (folder.text("vi"), folder.text("ir"));
    for (weights, out) in [(&foreign, "one"), (&own, "two")] {
        succeeds(run_args(weights, &vi, &ir, &folder.text(out)));
    }
    for kind in ["fused", "labels", "color", "overlay"] {
        let [one, two] = ["one", "two"].map(|o| fs::read(folder.at(&format!("{o}/{kind}/a.png"))).unwrap());
        assert!(one == two, "{kind}");
    }
    let other = succeeds(["convert", &foreign, &own, "--bn-eps", "0.01"]);
    assert!(other.contains("own.safetensors"));
    let eps = json(&succeeds(["info", &own, "--json"]))["bn_eps"].as_f64().unwrap();
    assert!((eps - 0.01).abs() < 1e-7, "{eps}");
}

#[test]
fn demo() {
    let folder = Folder::new();
    let out = folder.text("demo");
    let demo = ["demo", "--steps", "3", "--pairs", "8", "--out", &out];
    for _ in 0..2 {
        // The second replaces what the first left.
        let text = succeeds(demo);
        assert!(text.contains("infrared blanked") && text.contains("visible blanked"), "{text}");
        let sheet = image::open(folder.at("demo/contact_sheet.png")).unwrap();
        assert!(sheet.width() > 5 * 128 && sheet.height() > 96, "{}x{}", sheet.width(), sheet.height());
        fs::remove_file(folder.at("demo/contact_sheet.png")).unwrap();
    }
    // What somebody else put there stays.
    fs::create_dir_all(folder.at("mine/data")).unwrap();
    fs::write(folder.at("mine/data/precious"), "").unwrap();
    fails(1, &["mine/data", "no demonstration made it", "--out"], ["demo", "--out", &folder.text("mine")]);
    assert!(folder.at("mine/data/precious").exists());
}

#[test]
fn a_closed_pipe_is_no_panic() {
    let folder = Folder::new();
    folder.pair("a", 0, 64, 64);
    folder.pair("b", 1, 64, 64);
    fs::remove_file(folder.at("ir/b.png")).unwrap();
    let (weights, out) = (folder.weights(), folder.text("out"));
    let (vi, ir) = (folder.text("vi"), folder.text("ir"));
    for args in [
        vec!["info", "--encoder", "nano"],
        vec!["info", "--encoder", "nano", "--json"],
        vec!["--help"],
        run_args(&weights, &vi, &ir, &out),
    ] {
        // Nobody will ever read.
        let pipe = || {
            let (reader, writer) = std::io::pipe().unwrap();
            drop(reader);
            writer
        };
        let mut command = Command::new(env!("CARGO_BIN_EXE_amdanet"));
        command.args(&args).stdin(Stdio::null());
        let output = command.stdout(pipe()).stderr(Stdio::piped()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !text.contains("panicked"), "{args:?}: {text}");
        let status = command.stdout(pipe()).stderr(pipe()).status().unwrap();
        assert!(status.success(), "{args:?}: {status}");
    }
    assert!(folder.at("out/fused/a.png").exists());
}

#[test]
fn devices_are_listed() {
    let found = json(&succeeds(["devices", "--json"]));
    positive(&found["cpu"]["cores"]);
    assert!(found["cpu"]["name"].as_str().is_some_and(|name| !name.is_empty()));
    let (cuda, text) = (&found["cuda"], succeeds(["devices"]));
    assert!(text.starts_with("cpu: ") && text.contains("this build has "), "{text}");
    // Either there is a driver, or it says what is missing.
    assert_ne!(cuda["driver"].is_null(), cuda["missing"].is_null(), "{found}");
    if cuda["nvcc"].is_null() {
        assert!(text.contains("run scripts/nvcc"), "{text}");
    } else {
        assert!(text.contains("sm_"), "{text}");
    }
    if let Some(missing) = cuda["missing"].as_str() {
        assert!(text.contains(missing), "{text}");
    }
}

#[test]
fn a_device_that_cannot_be_used() {
    let bench = ["bench", "model", "--encoder", "nano", "--size", "64x64", "--runs", "1", "--warmup", "0"];
    let and = |more: &[&'static str]| bench.iter().chain(more).copied().collect::<Vec<_>>();
    fails(1, &["cuda:1023: ", "--device cpu"], and(&["--device", "cuda:1023"]));
    // Without a driver, `auto` is the CPU, and a precision that only a device has says why there is none.
    let found = json(&succeeds(["devices", "--json"]));
    if let Some(missing) = found["cuda"]["missing"].as_str() {
        let why = missing.strip_prefix("CUDA: ").unwrap();
        fails(1, &["cuda:0: ", why, "--device cpu"], and(&["--device", "cuda"]));
        fails(1, &["--precision f16", "computes in f32", "cuda:0: ", why], and(&["--precision", "f16"]));
        succeeds(and(&["--device", "auto"]));
    }
}

/// A data set that lies as FMB is published brings FMB's classes and learning rate; one with classes of its own does not.
#[test]
fn a_published_layout_brings_its_schedule() {
    let folder = tempfile::tempdir().unwrap();
    let (data, run) = (folder.path().join("data"), |name: &str| folder.path().join(name));
    amdanet::data::synth::write_as(amdanet::data::Layout::Fmb, &data, 8, 1, 32, 32, &mut |_| ()).unwrap();
    let train = |out: &Path| {
        let small =
            ["--encoder", "nano", "--size", "32x32", "--batch", "2", "--steps", "1", "--threads", "1"];
        let mut args = vec!["train", "--data", data.to_str().unwrap(), "--out", out.to_str().unwrap()];
        args.extend(small);
        succeeds(args)
    };
    let config =
        |out: &Path| -> toml::Table { fs::read_to_string(out.join("config.toml")).unwrap().parse().unwrap() };
    assert!(!train(&run("own")).contains("preset"));
    assert_eq!(config(&run("own"))["optimizer"]["lr"].as_float(), Some(6.3e-5));
    fs::remove_file(data.join("classes.toml")).unwrap();
    let said = train(&run("published"));
    assert!(
        said.contains("preset fmb")
            && said.contains("FMB's layout, 7 train, no val split of its own, 1 test"),
        "{said}"
    );
    let config = config(&run("published"));
    assert_eq!(config["optimizer"]["lr"].as_float(), Some(3e-5));
    assert_eq!(config["model"]["classes"].as_integer(), Some(15));
}
