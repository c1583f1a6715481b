//! Training learns, and what it learned survives a checkpoint.

mod common;

use amdanet::checkpoint::{self, Array, State};
use amdanet::data::{Dataset, Example, Split, batch, synth};
use amdanet::evaluate::predict;
use amdanet::model::{Amdanet, Arch, Encoder};
use amdanet::train::{Config, Examples, Recipe, Trainer};
use common::{amdanet, nano, save, succeeds, write_foreign};

#[test]
fn the_loss_falls_and_a_checkpoint_keeps_what_was_learned() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    synth::write(&data, 24, 1, 64, 96, &mut |_| ()).unwrap();
    let dataset = Dataset::open(&data, Split::Train).unwrap();
    let classes = dataset.classes().unwrap().clone();
    let mut config = Config::new(None, Recipe::Release, Encoder::Nano, Arch::Release, Some(classes.len()));
    (config.augment.height, config.augment.width) = (64, 96);
    config.augment.scales = vec![1.0, 1.25];
    (config.optimizer.lr, config.optimizer.warmup_steps) = (3e-3, 10);
    (config.run.batch, config.run.steps) = (4, 60);
    config.validate().unwrap();
    let mut model = Amdanet::new(config.model.clone()).unwrap();
    model.params.initialise(config.run.seed);
    let examples = Examples::new(&dataset, &config).unwrap();
    let mut trainer = Trainer::new(model, config.clone());
    let losses: Vec<f32> = (0..config.run.steps)
        .map(|step| trainer.step(&examples.batch(step).unwrap()).unwrap().loss)
        .collect();
    let mean = |losses: &[f32]| losses.iter().sum::<f32>() / losses.len() as f32;
    let (first, last) = (mean(&losses[..10]), mean(&losses[50..]));
    // It fell to 0.62 of what it was.
    assert!(last < 0.7 * first, "the loss went from {first} to {last} only");

    let path = folder.path().join("w.safetensors");
    checkpoint::save(&path, &trainer.model, &classes).unwrap();
    let loaded = checkpoint::load(&path, None).unwrap();
    assert_eq!(loaded.classes, classes);
    assert_eq!(loaded.model.config(), trainer.model.config());
    let test = Dataset::open(&data, Split::Test).unwrap().sample(0).unwrap();
    let input = batch(&[Example::whole(&test)]).unwrap();
    let bits = |model: &Amdanet| {
        let p = predict(model, &input.visible, &input.infrared).unwrap();
        let logits: Vec<u32> = p.logits.value().f32().iter().map(|v| v.to_bits()).collect();
        (logits, p.fused, p.labels)
    };
    assert!(bits(&loaded.model) == bits(&trainer.model), "a loaded network predicts something else");
}

/// The published tensors of a network.
fn tensors(model: &Amdanet) -> State {
    let array = |(id, stream, name): (_, _, &str)| {
        let param = model.params.get(id);
        let data = param.export(&param.value, stream);
        (name.to_string(), Array { shape: param.published_shape(), data })
    };
    model.params.published().map(array).collect()
}

#[test]
fn training_starts_from_an_encoder_in_both_streams() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    // One encoder in SegFormer's own names: the visible stream's of some network.
    let is_encoder = |name: &str| {
        let name = name.strip_prefix("backbone.")?;
        ["patch_embed", "block", "norm"].iter().any(|p| name.starts_with(p)).then(|| name.to_string())
    };
    let encoder: State = tensors(&nano(Arch::Release, 9, 77))
        .into_iter()
        .filter_map(|(name, array)| Some((is_encoder(&name)?, array)))
        .collect();
    assert!(encoder.len() > 50);
    write_foreign(&at("encoder.safetensors"), &encoder);
    synth::write(&at("data"), 8, 1, 64, 64, &mut |_| ()).unwrap();
    let train = |out: &str, init: &[&str]| {
        let (data, out) = (at("data"), at(out));
        let mut args = vec!["train", "--data", data.to_str().unwrap(), "--out", out.to_str().unwrap()];
        // A learning rate that leaves the numbers as they are, to nine digits.
        args.extend(["--encoder", "nano", "--size", "64x64", "--batch", "2", "--steps", "1"]);
        args.extend(["--lr", "1e-9", "--threads", "2"]);
        args.extend(init);
        succeeds(args);
        tensors(&checkpoint::load(&out.join("checkpoints/last.safetensors"), None).unwrap().model)
    };
    let path = at("encoder.safetensors");
    let (with, without) = (train("with", &["--init", path.to_str().unwrap()]), train("without", &[]));
    let same = |a: &Array, b: &Array| a.data.iter().zip(&b.data).all(|(a, b)| (a - b).abs() < 1e-6);
    for (name, array) in &encoder {
        for stream in ["backbone.", "backbone.extra_"] {
            let name = format!("{stream}{name}");
            assert!(same(&with[&name], array), "{name} is not the encoder's");
            if name.ends_with("attn.q.weight") {
                assert!(!same(&without[&name], array), "{name} would be so anyway");
            }
        }
    }
    // A whole network goes everywhere.
    let whole = nano(Arch::Release, synth::CLASSES.len(), 78);
    save(&at("whole.safetensors"), &whole);
    let from_whole = train("whole", &["--init", at("whole.safetensors").to_str().unwrap()]);
    for (name, array) in tensors(&whole).iter().filter(|(name, _)| !name.contains("running_")) {
        assert!(same(&from_whole[name], array), "{name}");
    }
}

#[test]
fn the_program_takes_all_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let (data, run) = (folder.path().join("data"), folder.path().join("run"));
    synth::write(&data, 8, 3, 40, 60, &mut |_| ()).unwrap();
    let toml = folder.path().join("c.toml");
    let mut args = vec!["train", "--encoder", "nano", "--size", "32x48", "--batch", "1", "--steps", "2"];
    args.extend(["--threads", "1", "--data", data.to_str().unwrap(), "--out", run.to_str().unwrap()]);
    args.extend(["--config", toml.to_str().unwrap()]);
    for (text, error) in [
        ("run.accumulate = 0", "run.accumulate = 0: must be 1 to 1024 micro-batches"),
        ("run.ema = 1.5", "run.ema = 1.5: must be at least 0 and below 1"),
        ("optimizer.max_norm = -2.0", "optimizer.max_norm = -2: must be positive, or 0 for no limit"),
        ("run.max_bad_step = 3", "unknown key run.max_bad_step: did you mean run.max_bad_steps?"),
    ] {
        std::fs::write(&toml, text).unwrap();
        let output = amdanet(&args);
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && text.contains(error), "{text}");
    }
    std::fs::write(&toml, "run.max_bad_steps = 7\n").unwrap();
    args.extend(["--accumulate", "3", "--clip-norm", "0.5", "--recompute", "--ema", "0.9"]);
    let text = succeeds(&args);
    assert!(text.contains("ema.safetensors"), "{text}");
    let config = std::fs::read_to_string(run.join("config.toml")).unwrap();
    for line in ["accumulate = 3", "max_norm = 0.5", "recompute = true", "ema = 0.9", "max_bad_steps = 7"] {
        assert!(config.lines().any(|l| l == line), "{line} is not in\n{config}");
    }
    let metrics = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines = metrics.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let steps: Vec<_> = lines.filter(|line| line.get("loss").is_some()).collect();
    assert_eq!(steps.len(), 2);
    for line in steps {
        assert!(line["gradient_norm"].as_f64().unwrap() > 0.0, "{line}");
    }
    let [raw, averaged] = ["last.safetensors", "ema.safetensors"].map(|name| {
        let path = run.join("checkpoints").join(name);
        tensors(&checkpoint::load(&path, None).unwrap().model)
    });
    assert!(raw != averaged);
}
