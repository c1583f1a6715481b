//! Grad-CAM and the maps of the gates.

mod common;

use amdanet::data::{read_rgb, synth};
use amdanet::explain::{Cam, Layer, gates, grad_cam};
use amdanet::model::{Amdanet, Arch, Encoder, ModelConfig};
use amdanet::nn::Pass;
use amdanet::{Tensor, random};
use common::{amdanet, nano, save, succeeds};

const H: usize = 64;
const W: usize = 96;
const CLASSES: usize = 5;

fn pictures() -> [Tensor; 2] {
    [1, 2].map(|seed| {
        let mut x = Tensor::scratch([1, 1, H, W, 3]);
        let numbers = random::Stream::new(seed, 0);
        x.f32_mut().iter_mut().zip(0..).for_each(|(v, i)| *v = numbers.uniform(i));
        x
    })
}

/// Every third pixel.
fn pixels() -> Vec<bool> {
    (0..H * W).map(|i| i % 3 == 0).collect()
}

/// The sum that Grad-CAM differentiates.
fn summed_logit(model: &Amdanet, [vi, ir]: &[Tensor; 2], class: usize) -> f64 {
    let logits = model.forward(&mut Pass::eval(&model.params), vi, ir).unwrap().logits;
    let scores = logits.value().f32().chunks_exact(CLASSES).zip(pixels()).filter(|(_, chosen)| *chosen);
    scores.map(|(scores, _)| f64::from(scores[class])).sum()
}

fn cam(model: &Amdanet, [vi, ir]: &[Tensor; 2], layer: &str, class: usize) -> Cam {
    let layers = [Layer::named(layer).unwrap()];
    grad_cam(model, vi, ir, &layers, class, &pixels()).unwrap().remove(0)
}

/// A layer's last operation adds a bias to each channel, so the derivative with respect to the bias is the gradient
/// summed over the grid: the channel's weight times the number of its places.
#[test]
fn weights_agree_with_numeric_derivatives() {
    let pictures = pictures();
    for (arch, layer, bias) in [
        (Arch::Release, "fused1", "backbone.GEs.0.proj.bias"),
        (Arch::Release, "fused3", "backbone.GEs.2.proj.bias"),
        (Arch::Release, "encoded2.infrared", "backbone.extra_norm2.bias"),
        (Arch::Paper, "fused4", "backbone.GEs.3.proj.bias"),
        (Arch::Paper, "encoded3.visible", "backbone.norm3.bias"),
    ] {
        let mut model = nano(arch, CLASSES, 7);
        let found = model.params.published().find(|(_, _, name)| *name == bias);
        let (id, stream, _) = found.unwrap();
        let cam = cam(&model, &pictures, layer, 2);
        let (places, channels) = (cam.map.height * cam.map.width, cam.weights.len());
        let scale = cam.weights.iter().fold(0.0f64, |most, w| most.max(f64::from(w.abs())));
        assert!(scale > 0.0, "{arch} {layer}");
        for channel in [0, 3, channels - 1] {
            const STEP: f32 = 4e-3;
            let mut at = |step: f32| {
                model.params.value_mut(id).f32_mut()[stream * channels + channel] += step;
                let sum = summed_logit(&model, &pictures, 2);
                model.params.value_mut(id).f32_mut()[stream * channels + channel] -= step;
                sum
            };
            let numeric = (at(STEP) - at(-STEP)) / f64::from(2.0 * STEP) / places as f64;
            let error = (numeric - f64::from(cam.weights[channel])).abs() / scale;
            assert!(error < 0.01, "{arch} {layer} {channel}: {} is not {numeric}", cam.weights[channel]);
        }
    }
}

#[test]
fn a_map_is_the_positive_part_of_the_weighted_activations() {
    let (model, pictures) = (nano(Arch::Release, CLASSES, 3), pictures());
    let cam = cam(&model, &pictures, "aligned2.infrared", 1);
    assert_eq!((cam.map.height, cam.map.width, cam.weights.len()), (H / 8, W / 8, 32));
    let mut pass = Pass::observing(&model.params, &[]);
    model.forward(&mut pass, &pictures[0], &pictures[1]).unwrap();
    let activations = pass.observed("aligned2").unwrap().value().narrow(1..2).unwrap();
    for (row, &value) in activations.f32().chunks_exact(32).zip(&cam.map.values) {
        let sum: f32 = row.iter().zip(&cam.weights).map(|(a, w)| a * w).sum();
        assert!((sum.max(0.0) - value).abs() <= 1e-6 * (1.0 + value), "{sum} {value}");
    }
}

/// Without local alignment both names stand for one value, whose gradient comes from the heads and the next level.
#[test]
fn layers_that_follow_each_other_have_passes_of_their_own() {
    let config =
        ModelConfig { local_alignment: false, ..ModelConfig::new(Encoder::Nano, Arch::Release, CLASSES) };
    let mut model = Amdanet::new(config).unwrap();
    model.params.initialise(5);
    let names = ["encoded2.visible", "aligned2.visible", "fused4", "fused1"];
    let layers = names.map(|name| Layer::named(name).unwrap());
    let [vi, ir] = pictures();
    let cams = grad_cam(&model, &vi, &ir, &layers, 0, &pixels()).unwrap();
    assert_eq!(cams.iter().map(|cam| cam.map.name.as_str()).collect::<Vec<_>>(), names);
    assert_eq!(cams[0].weights, cams[1].weights);
    assert_eq!(cams[0].map.values, cams[1].map.values);
}

#[test]
fn gates_have_their_shapes_and_ranges() {
    let [vi, ir] = pictures();
    for (arch, kinds) in [
        (Arch::Release, &["mask", "spatial", "gate"][..]),
        (Arch::Paper, &["mask", "similarity", "inconsistent", "spatial"]),
    ] {
        let model = nano(arch, CLASSES, 3);
        let found = gates(&model, &vi, &ir).unwrap();
        assert_eq!(found.labels.len(), H * W);
        for map in &found.maps {
            let level = map.name.trim_start_matches(char::is_alphabetic)[..1].parse::<usize>().unwrap();
            let side = |n: usize| n >> (level + 1);
            assert_eq!((map.height, map.width), (side(H), side(W)), "{}", map.name);
            let low = if map.name.starts_with("similarity") { -1.0001 } else { 0.0 };
            let (least, most) = map.range();
            assert!(low <= least && most <= 1.0001, "{}: {least} to {most}", map.name);
            if map.name.starts_with("inconsistent") {
                assert!(map.values.iter().all(|&v| v == 0.0 || v == 1.0));
            }
        }
        let mut names: Vec<_> = found
            .maps
            .iter()
            .map(|map| map.name.split(|c: char| c.is_ascii_digit()).next().unwrap())
            .collect();
        names.dedup();
        assert_eq!(names, kinds, "{arch}");
    }
}

#[test]
fn the_command_writes_pictures_and_names_what_it_does_not_know() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    synth::write(&folder.path().join("data"), 3, 1, H, W, &mut |_| ()).unwrap();
    let name = std::fs::read_to_string(at("data/test.txt")).unwrap().lines().next().unwrap().to_string();
    save(at("w.safetensors").as_ref(), &nano(Arch::Paper, CLASSES, 3));
    let (weights, out) = (at("w.safetensors"), at("out"));
    let (vi, ir) = (at(&format!("data/Visible/{name}.png")), at(&format!("data/Infrared/{name}.png")));
    let command = ["explain", "--weights", &weights, "--visible", &vi, "--infrared", &ir, "--out", &out];
    let with = |more: &[&'static str]| [&command[..], more].concat();
    let unknown = amdanet(with(&["--class", "dog"]));
    let error = String::from_utf8(unknown.stderr).unwrap();
    assert!(!unknown.status.success() && error.contains("\"dog\": the classes are "), "{error}");
    let unknown = amdanet(with(&["--layer", "help"]));
    let error = String::from_utf8(unknown.stderr).unwrap();
    assert!(error.contains("\"help\": the layers are encoded1.visible, "), "{error}");

    let class = "class 4";
    let json = succeeds(with(&["--class", class, "--layer", "aligned1.visible", "--json"]));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["classes"][0]["name"], class);
    let count = json["classes"][0]["predicted_pixels"].as_u64().unwrap();
    assert_eq!(json["classes"][0]["summed_over"], if count == 0 { "all" } else { "predicted" });
    assert_eq!(json["maps"].as_array().unwrap().len(), 4 * 5);
    for file in
        ["gradcam/4_class_4.aligned1.visible.png", "gates/similarity2.png", "gates/spatial4.infrared.png"]
    {
        let picture = read_rgb(&folder.path().join("out").join(file), Default::default()).unwrap();
        assert_eq!((picture.height, picture.width), (H, W), "{file}");
    }
    for sheet in ["gradcam/4_class_4.png", "gates/mask.png", "gates/similarity.png", "gates/spatial.png"] {
        assert!(folder.path().join("out").join(sheet).exists(), "{sheet}");
    }
    assert!(!folder.path().join("out/gates/gate.png").exists(), "paper has no such gate");
}
