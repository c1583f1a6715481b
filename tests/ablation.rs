//! Networks and trainings without some of their parts.

mod common;

use amdanet::checkpoint;
use amdanet::data::{Batch, ClassSet, synth};
use amdanet::model::{Amdanet, Arch, Encoder, Masking, ModelConfig};
use amdanet::nn::{Pass, Role};
use amdanet::train::{Config, Part, Recipe, Trainer};
use amdanet::{Tensor, random};
use common::{amdanet, succeeds};

const H: usize = 64;
const W: usize = 64;
const CLASSES: usize = 4;
const PARTS: [Part; 5] = [Part::Sci, Part::Mfml, Part::Fdam, Part::Local, Part::Global];

fn config(arch: Arch, parts: &[Part]) -> Config {
    let mut config = Config::new(None, Recipe::Release, Encoder::Nano, arch, Some(CLASSES));
    (config.augment.height, config.augment.width, config.run.steps) = (H, W, 10);
    parts.iter().for_each(|&part| config.leave_out(part));
    config
}

fn model(config: &ModelConfig) -> Amdanet {
    let mut model = Amdanet::new(config.clone()).unwrap();
    model.params.initialise(1);
    model
}

fn picture(seed: u64) -> Tensor {
    let mut x = Tensor::scratch([1, 1, H, W, 3]);
    let numbers = random::Stream::new(seed, 0);
    x.f32_mut().iter_mut().zip(0..).for_each(|(v, i)| *v = numbers.uniform(i));
    x
}

fn batch() -> Batch {
    let ids: Vec<u8> = (0..H * W).map(|i| (i / 9 % CLASSES) as u8).collect();
    Batch {
        visible: picture(1),
        infrared: picture(2),
        labels: Tensor::from_slice([1, H, W], &ids).unwrap(),
        valid: Tensor::from_slice([1, H, W], &vec![1u8; H * W]).unwrap(),
    }
}

/// What a pass makes of two pictures, with what was observed on the way.
fn observe<'a>(model: &'a Amdanet, visible: &Tensor, infrared: &Tensor) -> (Pass<'a>, Tensor) {
    let mut pass = Pass::observing(&model.params, &[]);
    let logits = model.forward(&mut pass, visible, infrared).unwrap().logits;
    (pass, logits.into_value())
}

fn observed(model: &Amdanet, visible: &Tensor, infrared: &Tensor, name: &str) -> Tensor {
    observe(model, visible, infrared).0.observed(name).unwrap().value().clone()
}

#[test]
fn a_part_that_is_left_out_has_no_parameters_and_the_rest_trains() {
    for arch in [Arch::Release, Arch::Paper] {
        let whole = model(&config(arch, &[]).model).params.count();
        for part in PARTS {
            let config = config(arch, &[part]);
            let before = model(&config.model);
            let names: Vec<_> = before.params.published().map(|(_, _, name)| name.to_string()).collect();
            let has = |prefix: &str| names.iter().any(|name| name.starts_with(prefix));
            assert_eq!(has("backbone.sci_"), part != Part::Sci, "{part:?}");
            assert_eq!(has("backbone.LEs."), !matches!(part, Part::Local | Part::Fdam), "{part:?}");
            assert_eq!(has("backbone.GEs.0.SE_"), !matches!(part, Part::Global | Part::Fdam), "{part:?}");
            assert_eq!(before.params.count() == whole, part == Part::Mfml, "{part:?}");
            let costs = before.costs(H, W);
            assert_eq!(costs.iter().map(|cost| cost.parameters).sum::<usize>(), before.params.count());
            assert!(config.model.parameters_at_least() < before.params.count() as f64, "{part:?}");

            let mut trainer = Trainer::new(model(&config.model), config);
            let done = trainer.step(&batch()).unwrap();
            assert!(done.loss.is_finite());
            let masked = |(name, _): &(&str, f32)| name.ends_with("_masked") || *name == "cr";
            assert_eq!(done.terms.iter().any(masked), part != Part::Mfml, "{part:?}");
            for ((_, old), (_, new)) in before.params.iter().zip(trainer.model.params.iter()) {
                let changed = old.value.f32() != new.value.f32();
                assert!(changed || old.role == Role::Statistic, "{arch} {part:?}: {:?} stays", old.names);
            }
        }
    }
}

/// With λ = 0 the paper's module changes nothing, and that is what a network without it computes.
#[test]
fn without_consistency_inference_the_streams_pass_as_they_are() {
    let (vi, ir) = (picture(1), picture(2));
    let mut whole = model(&config(Arch::Paper, &[]).model);
    let mut without = model(&config(Arch::Paper, &[Part::Sci]).model);
    let lambdas: Vec<_> =
        whole.params.published().filter(|(_, _, name)| name.ends_with("lambda_param")).map(|p| p.0).collect();
    lambdas.into_iter().for_each(|id| whole.params.value_mut(id).f32_mut()[0] = 0.0);
    // The same numbers under the same names.
    for (id, stream, name) in without.params.clone().published() {
        let (from, _, _) = whole.params.published().find(|(_, _, other)| *other == name).unwrap();
        let param = whole.params.get(from);
        without.params.import(id, stream, &param.export(&param.value, stream)).unwrap();
    }
    assert_eq!(observe(&whole, &vi, &ir).1.f32(), observe(&without, &vi, &ir).1.f32());

    // Release exchanges the streams with it, and does not without it.
    let visible_of_encoder = |parts: &[Part], ir: &Tensor| {
        let model = model(&config(Arch::Release, parts).model);
        observed(&model, &vi, ir, "encoded1").narrow(0..1).unwrap().f32().to_vec()
    };
    let (one, other) = (picture(3), picture(4));
    assert_eq!(visible_of_encoder(&[Part::Sci], &one), visible_of_encoder(&[Part::Sci], &other));
    assert_ne!(visible_of_encoder(&[], &one), visible_of_encoder(&[], &other));
}

#[test]
fn without_alignment_features_are_passed_on_and_projected() {
    let (vi, ir) = (picture(1), picture(2));
    for arch in [Arch::Release, Arch::Paper] {
        let model = model(&config(arch, &[Part::Fdam, Part::Sci]).model);
        let (pass, _) = observe(&model, &vi, &ir);
        let value = |name: &str| pass.observed(name).unwrap().value().clone();
        let (encoded, aligned, fused) = (value("encoded2"), value("aligned2"), value("fused2"));
        assert_eq!(encoded.f32(), aligned.f32());
        let param = |name: &str| {
            let (id, _, _) = model.params.published().find(|(_, _, other)| *other == name).unwrap();
            model.params.get(id).value.f32().to_vec()
        };
        let (weight, bias) = (param("backbone.GEs.1.proj.weight"), param("backbone.GEs.1.proj.bias"));
        let c = fused.shape().last();
        let (a, b) = aligned.f32().split_at(aligned.len() / 2);
        for (pixel, y) in fused.f32().chunks_exact(c).enumerate() {
            let sum = |i: usize| a[pixel * c + i] + b[pixel * c + i];
            for (o, &y) in y.iter().enumerate() {
                let want: f32 = (0..c).map(|i| weight[o * c + i] * sum(i)).sum::<f32>() + bias[o];
                assert!((want - y).abs() < 1e-5, "{arch} {pixel} {o}: {y} is not {want}");
            }
        }
    }
}

#[test]
fn without_masks_both_predictions_are_one() {
    for arch in [Arch::Release, Arch::Paper] {
        let model = model(&config(arch, &[Part::Mfml]).model);
        let mut pass = Pass::train(&model.params, 1);
        let masking = Masking { choice: 1, masks: Vec::new() };
        let output = model.forward_masked(&mut pass, &picture(1), &picture(2), &masking).unwrap();
        assert!(output.plain.logits.is(&output.masked.logits));
        assert!(output.plain.image.is(&output.masked.image));
    }
}

#[test]
fn a_checkpoint_remembers_what_was_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    let (vi, ir) = (picture(1), picture(2));
    for arch in [Arch::Release, Arch::Paper] {
        for parts in [&[Part::Sci][..], &[Part::Fdam], &[Part::Sci, Part::Fdam]] {
            let saved = model(&config(arch, parts).model);
            checkpoint::save(&path, &saved, &ClassSet::unnamed(CLASSES).unwrap()).unwrap();
            let loaded = checkpoint::load(&path, None).unwrap().model;
            assert_eq!(loaded.config(), saved.config());
            assert_eq!(observe(&loaded, &vi, &ir).1.f32(), observe(&saved, &vi, &ir).1.f32());
            let mut whole = model(&config(arch, &[]).model);
            let error = checkpoint::load_into(&mut whole, &path).unwrap_err().to_string();
            assert!(error.contains("missing") && error.contains("parts that were left out"), "{error}");
        }
    }
    let text = succeeds(["info", path.to_str().unwrap()]);
    assert!(
        text.contains("without semantic consistency inference, local alignment, global alignment"),
        "{text}"
    );
}

#[test]
fn every_row_is_a_command() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    synth::write(&folder.path().join("data"), 8, 1, H, W, &mut |_| ()).unwrap();
    let (data, out) = (at("data"), at("run"));
    let train =
        ["train", "--data", &data, "--out", &out, "--encoder", "nano", "--steps", "1", "--batch", "1"];
    let train = [&train[..], &["--size", "64x64"]].concat();
    let wrong = amdanet([&train[..], &["--loss-weight", "cs=0"]].concat());
    let error = String::from_utf8(wrong.stderr).unwrap();
    assert!(error.contains("no term \"cs\" in the loss: the terms are seg, fus, "), "{error}");
    for weight in ["cr", "cr=x", "cr=-1", "cr=nan", "cr=inf"] {
        assert!(!amdanet([&train[..], &["--loss-weight", weight]].concat()).status.success(), "{weight}");
    }
    let flags =
        ["--without", "sci", "--without", "local", "--loss-weight", "dice=0", "--loss-weight", "seg=0.5"];
    succeeds([&train[..], &flags].concat());
    let text = std::fs::read_to_string(at("run/config.toml")).unwrap();
    for line in
        ["sci = false", "local_alignment = false", "global_alignment = true", "dice = 0.0", "seg = 0.5"]
    {
        assert!(text.lines().any(|l| l == line), "{line}: {text}");
    }
    let metrics = std::fs::read_to_string(at("run/metrics.jsonl")).unwrap();
    let line: serde_json::Value = serde_json::from_str(metrics.lines().next().unwrap()).unwrap();
    assert!(line["dice"].is_null() && line["dice_masked"].is_number(), "{line}");

    let bench = ["bench", "ablation", "--data", &data, "--steps", "1", "--batch", "1", "--size", "64x64"];
    let rows = ["--rows", "parts,losses,masking", "--arch", "paper", "--json"];
    let json: serde_json::Value = serde_json::from_str(&succeeds([&bench[..], &rows].concat())).unwrap();
    let names: Vec<_> =
        json["variants"].as_array().unwrap().iter().map(|v| v["variant"].as_str().unwrap()).collect();
    assert_eq!(names.len(), 1 + 9 + 2 + 4, "{names:?}");
    assert!(names.contains(&"--without sci --without mfml --without fdam"), "{names:?}");
    assert!(names.contains(&"--loss-weight cr=0") && names.contains(&"run.mask_keep = 0.5"), "{names:?}");
    for variant in json["variants"].as_array().unwrap() {
        let run = &variant["runs"][0];
        assert!(run["miou"].is_number() && run["fusion"]["scd"].is_number(), "{variant}");
        assert!(run["seconds_per_step"].as_f64().unwrap() > 0.0);
    }
}
