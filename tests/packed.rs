//! Packed models: the same bits as the checkpoint's, and files that cannot be used.

mod common;

use std::fs;
use std::path::Path;

use amdanet::checkpoint;
use amdanet::data::ClassSet;
use amdanet::infer::{Engine, Pairs, Wanted};
use amdanet::model::{Amdanet, Arch, Encoder, ModelConfig};
use amdanet::{Error, Tensor, verify};
use common::{nano, save, succeeds};

fn packed(path: &Path) -> Engine {
    let engine = Engine::consume(nano(Arch::Release, 9, 1)).unwrap();
    engine.save(path, &ClassSet::mfnet()).unwrap();
    engine
}

/// Every output, bit for bit.
fn bits(engine: &Engine) -> (Vec<u8>, Vec<u8>, Vec<u32>) {
    let [visible, infrared] = [3, 4].map(|seed| {
        let mut x = Tensor::scratch([1, 1, 75, 101, 3]);
        let numbers = amdanet::random::Stream::new(seed, 0);
        x.f32_mut().iter_mut().zip(0..).for_each(|(v, i)| *v = numbers.uniform(i));
        x
    });
    let wanted = Wanted { image: true, logits: true, probabilities: true };
    let mut session = engine.session();
    let output = session.run(&Pairs::new(&visible, &infrared).unwrap(), wanted).unwrap();
    let floats = [output.image, output.logits, output.probabilities].map(Option::unwrap).concat();
    (output.labels.to_vec(), output.fused.to_vec(), floats.iter().map(|v| v.to_bits()).collect())
}

#[test]
fn a_file_gives_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.packed");
    let base = |encoder, arch| ModelConfig { bn_eps: 0.01, ..ModelConfig::new(encoder, arch, 9) };
    let nano = base(Encoder::Nano, Arch::Release);
    let mut without = vec![ModelConfig { sci: false, ..nano.clone() }];
    without.push(ModelConfig { local_alignment: false, ..nano.clone() });
    without.push(ModelConfig { global_alignment: false, ..nano.clone() });
    // Sizes that fill no line of the cache, and no panel.
    without.push(ModelConfig { dims: [4, 12, 20, 36], heads: [1, 1, 2, 3], decoder_dim: 20, ..nano.clone() });
    let configs =
        [nano, base(Encoder::Nano, Arch::Paper), base(Encoder::B0, Arch::Release)].into_iter().chain(without);
    for config in configs {
        let mut model = Amdanet::new(config.clone()).unwrap();
        verify::fill(&mut model.params, 5).unwrap();
        let engine = Engine::consume(model).unwrap();
        engine.save(&path, &ClassSet::mfnet()).unwrap();
        let (opened, classes) = Engine::open(&path).unwrap();
        assert_eq!(*opened.config(), config);
        assert_eq!(classes, ClassSet::mfnet());
        assert!(bits(&opened) == bits(&engine), "{config:?}");
        // And again from what was opened; the old file stays in use while another takes its name.
        let before = fs::read(&path).unwrap();
        opened.save(&path, &classes).unwrap();
        assert!(fs::read(&path).unwrap() == before, "{config:?}");
        assert!(bits(&opened) == bits(&engine), "{config:?}");
    }
    let files: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(files, ["m.packed"]);
}

/// Opening must fail with one line that names the file; what it says.
#[track_caller]
fn refused(path: &Path) -> String {
    let Err(e) = Engine::open(path) else { panic!("{} was opened", path.display()) };
    let text = e.to_string();
    assert!(text.starts_with(path.to_str().unwrap()), "{text}");
    text
}

#[test]
fn truncated_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (path, cut) = (folder.path().join("m.packed"), folder.path().join("cut.packed"));
    packed(&path);
    let whole = fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let cuts = [0, 1, 7, 8, 9, 64, header - 1, header, header + 1, header + 64, whole.len() - 64];
    for len in cuts.into_iter().chain((1..40).map(|i| whole.len() * i / 40)).chain([whole.len() - 1]) {
        fs::write(&cut, &whole[..len]).unwrap();
        let text = refused(&cut);
        assert!(text.contains("amdanet convert"), "{len}: {text}");
    }
    fs::write(&cut, [&whole[..], &[0; 64]].concat()).unwrap();
    assert!(refused(&cut).contains("damaged or truncated"));
}

#[test]
fn flipped_bytes_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (path, bad) = (folder.path().join("m.packed"), folder.path().join("bad.packed"));
    packed(&path);
    let mut bytes = fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    // The length and the metadata byte by byte, then here and there, the data too.
    let places = (0..1600).step_by(3).chain((1600..header).step_by(997));
    for at in (0..8).chain(places).chain((header..bytes.len()).step_by(50_001)) {
        let old = bytes[at];
        bytes[at] ^= 1 << (at % 7);
        fs::write(&bad, &bytes).unwrap();
        let text = refused(&bad);
        assert!(text.contains("amdanet convert"), "{at}: {text}");
        bytes[at] = old;
    }
}

#[test]
fn files_of_other_kinds_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (path, other) = (folder.path().join("m.packed"), folder.path().join("other"));
    packed(&path);
    save(&other, &nano(Arch::Release, 9, 1));
    assert!(refused(&other).contains("is not a packed model: `amdanet convert"));
    for content in [&b""[..], b"text", &[0xFF; 4096], &[0; 4096]] {
        fs::write(&other, content).unwrap();
        refused(&other);
    }
    refused(folder.path());
    refused(&folder.path().join("none"));

    // Whatever reads checkpoints.
    let text = |e: Error| e.to_string();
    let errors = [
        text(checkpoint::load(&path, None).err().unwrap()),
        text(checkpoint::read(&path).err().unwrap()),
        text(checkpoint::load_into(&mut nano(Arch::Release, 9, 1), &path).unwrap_err()),
        text(checkpoint::convert(&path, &other, None).unwrap_err()),
    ];
    for text in errors {
        assert!(
            text.contains("m.packed: is a packed model") && text.contains("give the checkpoint"),
            "{text}"
        );
    }
}

#[test]
fn the_program_takes_packed_models() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (weights, packed, data) = (at("w.safetensors"), at("w.packed"), at("data"));
    succeeds(["synth", "--out", &data, "--pairs", "4", "--size", "64x96", "--seed", "3"]);
    let classes = amdanet::data::synth::CLASSES.len();
    save(Path::new(&weights), &nano(Arch::Release, classes, 1));
    let said = succeeds(["convert", &weights, &packed]);
    assert!(said.contains("w.packed: packed release network, encoder nano"), "{said}");
    let info = succeeds(["info", &packed]);
    assert!(info.starts_with("packed model for `run`") && info.contains("encoder nano"), "{info}");

    let (vi, ir) = (format!("{data}/Visible"), format!("{data}/Infrared"));
    let eval = |w: &str| succeeds(["eval", "--weights", w, "--data", &data, "--json"]);
    assert_eq!(eval(&weights), eval(&packed));
    for (w, out) in [(&weights, "a"), (&packed, "b")] {
        let run = ["run", "--visible", &vi, "--infrared", &ir, "--out", &at(out), "--weights", w];
        succeeds(run);
    }
    for kind in ["fused", "labels", "color", "overlay"] {
        for entry in fs::read_dir(folder.path().join("a").join(kind)).unwrap() {
            let entry = entry.unwrap();
            let other = folder.path().join("b").join(kind).join(entry.file_name());
            assert_eq!(fs::read(entry.path()).unwrap(), fs::read(other).unwrap());
        }
    }
    let bench = |w: &str, key: &str| {
        let bench = ["bench", "model", "--size", "64x64", "--runs", "1", "--warmup", "0"];
        let text = succeeds(bench.iter().chain(&["--json", "--weights", w]));
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert!(value[key].as_f64().unwrap() >= 0.0 && value["encoder"] == "nano", "{text}");
        succeeds(bench.iter().chain(&["--weights", w]))
    };
    assert!(bench(&weights, "packed_s").contains("\npacked in "));
    assert!(bench(&packed, "opened_s").contains("\nopened in "));

    let fails = |args: &[&str], parts: &[&str]| {
        let output = common::amdanet(args);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(parts.iter().all(|part| text.contains(part)) && !text.contains("panicked"), "{text}");
    };
    let train = ["train", "--data", &data, "--out", &at("run"), "--encoder", "nano", "--init", &packed];
    fails(&train, &["w.packed", "is a packed model", "give the checkpoint"]);
    fails(
        &["eval", "--data", &data, "--bn-eps", "0.1", "--weights", &packed],
        &["--bn-eps", "amdanet convert"],
    );
    fails(
        &["explain", "--visible", &vi, "--infrared", &ir, "--out", &at("x"), "--weights", &packed],
        &["is a packed model"],
    );
}
