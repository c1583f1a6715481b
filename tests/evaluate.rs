//! Evaluation: its modes, its scores by hand, and the report.

mod common;

use std::fs;
use std::path::Path;

use amdanet::checkpoint;
use amdanet::data::{ClassSet, Dataset, Labels, Sample, Split, Stored, Values, synth, write_gray, write_rgb};
use amdanet::evaluate::{Modality, Modes, Options, Prediction, Predictor, Window, evaluate, predict};
use amdanet::metrics::{FusionMean, fusion_metrics, luminance};
use amdanet::model::{Amdanet, Arch};
use amdanet::report::Gallery;
use amdanet::{DType, Device, Result, Tape, Tensor, Var, ops};
use common::{amdanet, nano, succeeds};
use emulator::Emulator;
use serde_json::Value;

const HEIGHT: usize = 64;
const WIDTH: usize = 96;
const CLASSES: usize = synth::CLASSES.len();

/// A network of drawn numbers.
fn network() -> Amdanet {
    nano(Arch::Release, CLASSES, 4)
}

fn pair() -> [Tensor; 2] {
    let scene = synth::scene(1, 0, WIDTH, HEIGHT);
    let visible = scene.visible.iter().map(|&v| f32::from(v) / 255.0).collect();
    let infrared = scene.infrared.iter().flat_map(|&v| [f32::from(v) / 255.0; 3]).collect();
    [visible, infrared].map(|rgb: Vec<f32>| Tensor::from_slice([1, 1, HEIGHT, WIDTH, 3], &rgb).unwrap())
}

fn predict_with(model: &Amdanet, visible: &Tensor, infrared: &Tensor, modes: &Modes) -> Result<Prediction> {
    Predictor::new(model)?.predict(visible, infrared, modes)
}

fn windows(height: usize, width: usize, stride: usize) -> Modes {
    Modes { window: Some(Window { height, width, stride }), ..Modes::default() }
}

/// The columns `from..to` of x `(1, 1, H, W, C)`.
fn columns(x: &Tensor, from: usize, to: usize) -> Tensor {
    let (h, w, c) = (x.dim(2), x.dim(3), x.shape().last());
    let rows = x.f32().chunks_exact(w * c).flat_map(|row| &row[from * c..to * c]);
    Tensor::from_slice([1, 1, h, to - from, c], &rows.copied().collect::<Vec<_>>()).unwrap()
}

fn mirrored(x: &Tensor) -> Tensor {
    let (w, c) = (x.dim(3), x.shape().last());
    let rows = x.f32().chunks_exact(w * c);
    let values: Vec<f32> = rows.flat_map(|row| row.chunks_exact(c).rev().flatten()).copied().collect();
    Tensor::from_slice(x.shape(), &values).unwrap()
}

#[test]
fn a_window_of_the_pictures_size_is_the_whole_picture() {
    let (model, [visible, infrared]) = (network(), pair());
    let whole = predict(&model, &visible, &infrared).unwrap();
    for modes in [windows(HEIGHT, WIDTH, 32), windows(200, 100, 10)] {
        let window = predict_with(&model, &visible, &infrared, &modes).unwrap();
        assert_eq!(window.logits.value().f32(), whole.logits.value().f32());
        assert_eq!(window.image.f32(), whole.image.f32());
        assert_eq!((window.labels, window.fused), (whole.labels.clone(), whole.fused.clone()));
    }
}

#[test]
fn windows_are_averaged_where_they_overlap() {
    let (model, [visible, infrared]) = (network(), pair());
    // Higher than the picture, so columns alone are divided: 0 to 64, and 32 to 96.
    let all = predict_with(&model, &visible, &infrared, &windows(80, 64, 40)).unwrap();
    let parts = [0, 32]
        .map(|x| predict(&model, &columns(&visible, x, x + 64), &columns(&infrared, x, x + 64)).unwrap());
    for of in [|p: &Prediction| p.logits.value().clone(), |p: &Prediction| p.image.clone()] {
        let (all, [left, right]) = (of(&all), parts.each_ref().map(of));
        assert_eq!(columns(&all, 0, 32).f32(), columns(&left, 0, 32).f32());
        assert_eq!(columns(&all, 64, 96).f32(), columns(&right, 32, 64).f32());
        let (left, right) = (columns(&left, 32, 64), columns(&right, 0, 32));
        let mean: Vec<f32> = left.f32().iter().zip(right.f32()).map(|(a, b)| (a + b) / 2.0).collect();
        assert_eq!(columns(&all, 32, 64).f32(), mean);
    }
}

#[test]
fn with_mirroring_a_mirrored_pair_gives_the_mirrored_scores() {
    let (model, [visible, infrared]) = (network(), pair());
    let modes = Modes { flip: true, ..Modes::default() };
    let one = predict_with(&model, &visible, &infrared, &modes).unwrap();
    let other = predict_with(&model, &mirrored(&visible), &mirrored(&infrared), &modes).unwrap();
    assert_eq!(other.logits.value().f32(), mirrored(one.logits.value()).f32());
    // It is the mean of the two passes, and the fused picture that of the first.
    let plain = predict(&model, &visible, &infrared).unwrap();
    let turned = predict(&model, &mirrored(&visible), &mirrored(&infrared)).unwrap();
    let turned = mirrored(turned.logits.value());
    assert_ne!(turned.f32(), plain.logits.value().f32());
    let mean: Vec<f32> =
        plain.logits.value().f32().iter().zip(turned.f32()).map(|(a, b)| (a + b) / 2.0).collect();
    assert_eq!(one.logits.value().f32(), mean);
    assert_eq!(one.fused, plain.fused);
}

#[test]
fn scales_are_averaged_at_the_pictures_size() {
    let (model, [visible, infrared]) = (network(), pair());
    let resized = |x: &Tensor, h, w| {
        ops::resize(&mut Tape::off(), &Var::constant(x.clone()), h, w).unwrap().into_value()
    };
    let plain = predict(&model, &visible, &infrared).unwrap();
    let small = predict(&model, &resized(&visible, 48, 72), &resized(&infrared, 48, 72)).unwrap();
    let small = resized(small.logits.value(), HEIGHT, WIDTH);
    let scaled = |scales: &[f64]| {
        let modes = Modes { scales: scales.to_vec(), ..Modes::default() };
        predict_with(&model, &visible, &infrared, &modes).unwrap()
    };
    let alone = scaled(&[0.75]);
    assert_eq!(alone.logits.value().f32(), small.f32());
    let mean: Vec<f32> =
        small.f32().iter().zip(plain.logits.value().f32()).map(|(a, b)| (a + b) / 2.0).collect();
    let both = scaled(&[0.75, 1.0]);
    assert_eq!(both.logits.value().f32(), mean);
    assert!(alone.fused == plain.fused && both.fused == plain.fused);
}

#[test]
fn a_device_says_the_same() {
    let [visible, infrared] = pair();
    let [visible, infrared] = [columns(&visible, 0, 64), columns(&infrared, 0, 64)];
    let modes = Modes { flip: true, ..windows(64, 40, 24) };
    for (compute, tolerance) in [(DType::F32, 1e-5), (DType::F16, 1e-2)] {
        let (cpu, mut device) = (network(), network());
        device.params.place(&Device::Cuda(Emulator::new(Default::default())), compute).unwrap();
        for modes in [&Modes::default(), &modes] {
            let cpu = predict_with(&cpu, &visible, &infrared, modes).unwrap();
            let device = predict_with(&device, &visible, &infrared, modes).unwrap();
            let logits = device.logits.value().cast(DType::F32).unwrap().to(&Device::Cpu).unwrap();
            for (cpu, device) in [(cpu.logits.value(), &logits), (&cpu.image, &device.image)] {
                let norm = |x: f32, y: f32| f64::from(x - y).powi(2);
                let error: f64 = cpu.f32().iter().zip(device.f32()).map(|(&x, &y)| norm(x, y)).sum();
                let size: f64 = cpu.f32().iter().map(|&x| norm(x, 0.0)).sum();
                assert!((error / size).sqrt() < tolerance, "{compute}: {}", (error / size).sqrt());
            }
        }
    }
}

#[test]
fn impossible_modes_are_named() {
    let (model, [visible, infrared]) = (network(), pair());
    let scales = |scales: &[f64]| Modes { scales: scales.to_vec(), ..Modes::default() };
    for (modes, parts) in [
        (windows(16, 64, 8), ["windows of 16x64", "at least 32"]),
        (windows(64, 48, 0), ["stride of 0", "1 to 48"]),
        (windows(64, 48, 49), ["stride of 49", "no gaps"]),
        (scales(&[]), ["no scales", "at least one"]),
        (scales(&[1.0, 0.0]), ["scale 0", "up to 4"]),
        (scales(&[-1.0]), ["scale -1", "above 0"]),
        (scales(&[f64::NAN]), ["scale NaN", "above 0"]),
        (scales(&[1e9]), ["scale 1000000000", "up to 4"]),
        (scales(&[0.25]), ["24x16 pixels at scale 0.25", "at least 32"]),
    ] {
        let message = predict_with(&model, &visible, &infrared, &modes).err().unwrap().to_string();
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    }
    let narrow = columns(&infrared, 0, 64);
    assert!(predict_with(&model, &visible, &narrow, &windows(32, 32, 32)).is_err());
}

/// A data set of `pairs` scenes whose test split has them all.
fn scenes(folder: &Path, pairs: usize) -> Dataset {
    synth::write(folder, pairs, 3, HEIGHT, WIDTH, &mut |_| ()).unwrap();
    let names: Vec<String> = (0..pairs as u64).map(|i| synth::scene(3, i, 32, 32).name).collect();
    fs::write(folder.join("test.txt"), names.join("\n")).unwrap();
    Dataset::open(folder, Split::Test).unwrap()
}

#[test]
fn scores_by_hand() {
    let folder = tempfile::tempdir().unwrap();
    let (model, dataset) = (network(), scenes(folder.path(), 3));
    let classes = dataset.classes().unwrap().clone();
    let (mut labels, mut predicted, mut sure) = (Vec::new(), Vec::new(), Vec::new());
    let mut fusion = [FusionMean::default(); 2];
    let result = evaluate(&model, &dataset, &classes, &Options::default(), |sample, p| {
        labels.extend(sample.labels.ids.clone());
        predicted.extend(p.labels.clone());
        // Bins of probabilities of class 1, of 1024.
        for logits in p.logits.value().f32().chunks_exact(CLASSES) {
            let sum: f64 = logits.iter().map(|&v| f64::from(v).exp()).sum();
            sure.push((f64::from(logits[1]).exp() / sum * 1024.0).min(1023.0) as usize);
        }
        let (visible, infrared) = (sample.visible.to_rgb8(), luminance(&sample.infrared.to_rgb8()));
        let (min, max) = p.image.f32().iter().fold((1f32, 0f32), |(a, b), &v| (a.min(v), b.max(v)));
        let stretched = p.image.f32().iter().map(|v| ((v - min) / (max - min) * 255.0).round() as u8);
        for (mean, fused) in fusion.iter_mut().zip([&p.fused, &stretched.collect()]) {
            mean.add(fusion_metrics(fused, &visible, &infrared, WIDTH, HEIGHT).unwrap());
        }
    })
    .unwrap();

    let count = |f: &dyn Fn(usize, usize) -> bool| {
        labels.iter().zip(&predicted).filter(|&(&l, &p)| f(l.into(), p.into())).count() as f64
    };
    let occur: Vec<usize> = (0..CLASSES).filter(|&c| count(&|l, p| l == c || p == c) > 0.0).collect();
    let iou = |c: usize| count(&|l, p| l == c && p == c) / count(&|l, p| l == c || p == c);
    let miou = occur.iter().map(|&c| iou(c)).sum::<f64>() / occur.len() as f64;
    assert!((result.scores.miou.unwrap() - miou).abs() < 1e-12);
    let right = count(&|l, p| l == p) / labels.len() as f64;
    assert!((result.scores.pixel_accuracy.unwrap() - right).abs() < 1e-12);
    assert_eq!(result.confusion.count(1, 3) as f64, count(&|l, p| l == 1 && p == 3));
    // Precision and recall of every threshold, from the strictest.
    let positive = labels.iter().filter(|&&l| l == 1).count() as f64;
    let (mut ap, mut before) = (0.0, 0.0);
    for threshold in (0..1024).rev() {
        let called = sure.iter().zip(&labels).filter(|(bin, _)| **bin >= threshold);
        let (all, own) = called.fold((0.0, 0.0), |(n, own), (_, &l)| (n + 1.0, own + f64::from(l == 1)));
        if all > 0.0 {
            ap += (own - before) / positive * own / all;
            before = own;
        }
    }
    let ours = result.scores.classes[1].ap.unwrap();
    // The probabilities here are in float64: a pixel at the edge of a bin may be in its neighbour.
    assert!((ours - ap).abs() < 1e-3, "{ours} {ap}");

    let [plain, stretched] = fusion.map(|mean| mean.mean());
    assert_eq!((result.scores.fusion, result.fusion), (plain, [plain, stretched]));
    assert_ne!(plain, stretched);
    let options = Options { stretch: true, ..Options::default() };
    let again = evaluate(&model, &dataset, &classes, &options, |_, _| ()).unwrap();
    assert_eq!(again.scores.fusion, stretched);
    assert_eq!((again.scores.miou, again.fusion), (result.scores.miou, result.fusion));
}

#[test]
fn day_and_night_are_measured_on_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let (model, dataset) = (network(), scenes(folder.path(), 3));
    let classes = dataset.classes().unwrap().clone();
    let options = Options { blank: Some(Modality::Infrared), ..Options::default() };
    let all = evaluate(&model, &dataset, &classes, &options, |_, _| ()).unwrap();
    let pairs: Vec<_> = all.splits.iter().map(|(name, part)| (*name, part.pairs)).collect();
    assert_eq!((all.pairs, pairs), (3, vec![("day", 2), ("night", 1)]));
    fs::write(folder.path().join("test.txt"), "00001N").unwrap();
    let night = Dataset::open(folder.path(), Split::Test).unwrap();
    let night = evaluate(&model, &night, &classes, &options, |_, _| ()).unwrap();
    assert_eq!(night.scores, all.splits["night"].scores);
    assert_eq!(night.splits.len(), 1);
}

/// Names that would break a page if they were not escaped.
const CLASS_NAMES: [&str; 2] = ["<b>road & \"rail\"", "Fußgängerübergang mit sehr langem Namen"];
const PAIR_NAMES: [&str; 4] = ["<i>&\"1\"", "ночь", "plain", "ignored"];

/// Weights and a data set with such names, a black pair, ignored regions, and a pair that is ignored throughout.
fn awkward(folder: &Path) -> [String; 2] {
    let (data, weights) = (folder.join("data"), folder.join("w.safetensors"));
    let classes = ClassSet::new(CLASS_NAMES.map(String::from).to_vec(), vec![[0; 3], [9, 99, 200]]).unwrap();
    checkpoint::save(&weights, &nano(Arch::Release, 2, 1), &classes).unwrap();
    for (i, name) in PAIR_NAMES.iter().enumerate() {
        let scene = synth::scene(1, i as u64, WIDTH, HEIGHT);
        let path = |kind: &str| data.join(kind).join(format!("{name}.png"));
        let light = if i == 2 { 0 } else { 1 };
        let dim = |bytes: &[u8]| bytes.iter().map(|v| v * light).collect::<Vec<_>>();
        write_rgb(&path("Visible"), WIDTH, HEIGHT, &dim(&scene.visible)).unwrap();
        write_gray(&path("Infrared"), WIDTH, HEIGHT, &dim(&scene.infrared)).unwrap();
        let label = |(at, l): (usize, &u8)| if i == 3 || at < 1000 { 255 } else { u8::from(*l == 1) };
        let labels: Vec<u8> = scene.label.iter().enumerate().map(label).collect();
        write_gray(&path("Label"), WIDTH, HEIGHT, &labels).unwrap();
    }
    fs::write(data.join("test.txt"), PAIR_NAMES.join("\n")).unwrap();
    [weights, data].map(|path| path.to_str().unwrap().to_owned())
}

/// The text of a page without its tags, which must be balanced.
fn text_of(page: &str) -> String {
    const VOID: [&str; 2] = ["meta", "img"];
    let (mut open, mut text) = (Vec::new(), String::new());
    let mut parts = page.strip_prefix("<!DOCTYPE html>").unwrap().split('<');
    assert_eq!(parts.next(), Some(""));
    for part in parts {
        let (tag, after) = part.split_once('>').unwrap();
        // No quote is left open, so no attribute holds what ends a tag.
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
        match tag.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop(), Some(name)),
            None => {
                let name = tag.split(' ').next().unwrap();
                assert!(name.chars().all(|c| c.is_ascii_alphanumeric()), "{name}");
                if !VOID.contains(&name) {
                    open.push(name);
                }
            }
        }
        text.push_str(after);
    }
    assert!(open.is_empty(), "{open:?}");
    text
}

#[test]
fn the_report_is_whole_and_the_json_alone() {
    let folder = tempfile::tempdir().unwrap();
    let [weights, data] = awkward(folder.path());
    let path = folder.path().join("deep/report.html");
    let report = path.to_str().unwrap();
    let args = ["eval", "--weights", &weights, "--data", &data, "--report", report, "--device", "cpu"];
    let modes = ["--flip", "--window", "48x64", "--scales", "1,0.75", "--stretch", "--json"];
    let json: Value = serde_json::from_str(&succeeds(args.iter().chain(&modes))).unwrap();
    for key in ["miou", "macc", "map", "pixel_accuracy", "fwiou", "pairs"] {
        assert!(json[key].is_number(), "{key}: {json}");
    }
    assert_eq!(json["classes"][0]["name"], CLASS_NAMES[0]);
    for key in ["en", "sd", "sf", "scd"] {
        assert!(json["fusion"][key].is_number(), "{key}");
    }
    let options = serde_json::json!({
        "window": { "height": 48, "width": 64, "stride": 32 }, "flip": true, "scales": [1.0, 0.75],
        "blank": null, "stretch": true,
    });
    assert_eq!((&json["options"], &json["splits"]), (&options, &serde_json::json!({})));

    let page = fs::read_to_string(&path).unwrap();
    let text = text_of(&page);
    for id in ["summary", "classes", "confusion", "fusion", "splits", "best", "worst", "configuration"] {
        assert!(page.contains(&format!("<section id=\"{id}\">")), "{id}");
    }
    for outside in ["http", "<script", "<link", "@import", "url("] {
        assert!(!page.contains(outside), "{outside}");
    }
    let sources = page.split("src=\"").skip(1);
    assert!(
        sources
            .clone()
            .all(|s| s.starts_with("data:image/png;base64,") || s.starts_with("data:image/jpeg;base64,"))
    );
    // Three pairs have pixels that count, six pictures each.
    assert_eq!(sources.count(), 18);
    assert!(!text.contains("ignored mIoU") && page.matches("<article>").count() == 3);
    for name in CLASS_NAMES.iter().chain(&PAIR_NAMES[..3]) {
        let escaped =
            name.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;");
        assert!(page.contains(&escaped), "{escaped}");
    }
    assert!(!page.contains("<b>") && !page.contains("<i>"));
    let hash = amdanet::report::sha256(Path::new(&weights)).unwrap();
    for part in
        [&hash[..], "48x64 every 32 pixels", "mirrored too", "f32", "do not tell day from night", "cpu"]
    {
        assert!(text.contains(part), "{part}");
    }

    let table = succeeds(args);
    assert!(table.contains("not stretched") && table.contains(&format!("report: {report}")), "{table}");
    let files = fs::read_dir(path.parent().unwrap()).unwrap().count();
    assert_eq!(files, 1, "a temporary file was left");
}

#[test]
fn a_report_of_one_class_and_nothing_that_counts() {
    let folder = tempfile::tempdir().unwrap();
    let (data, weights) = (folder.path().join("data"), folder.path().join("w.safetensors"));
    common::save(&weights, &nano(Arch::Paper, 1, 1));
    let picture = |kind: &str| data.join(kind).join("only.png");
    write_rgb(&picture("Visible"), 32, 32, &[0; 32 * 32 * 3]).unwrap();
    write_gray(&picture("Infrared"), 32, 32, &[0; 32 * 32]).unwrap();
    fs::write(
        {
            fs::create_dir_all(&data).unwrap();
            data.join("test.txt")
        },
        "only",
    )
    .unwrap();
    for (label, articles) in [(255, 0), (0, 1)] {
        write_gray(&picture("Label"), 32, 32, &[label; 32 * 32]).unwrap();
        let path = folder.path().join("report.html");
        let [weights, data, report] = [&weights, &data, &path].map(|p| p.to_str().unwrap());
        succeeds(["eval", "--weights", weights, "--data", data, "--report", report]);
        let page = fs::read_to_string(&path).unwrap();
        text_of(&page);
        assert_eq!(page.matches("<article>").count(), articles);
        assert!(!page.contains("NaN") && !page.contains("id=\"worst\""));
    }
}

#[test]
fn a_gallery_keeps_both_ends() {
    let sample = |name: String| {
        let picture = Stored { width: 10, height: 1, values: Values::Rgb8(vec![128; 30]) };
        let labels = Labels { width: 10, height: 1, ids: vec![0; 10] };
        Sample { name, visible: picture.clone(), infrared: picture, labels }
    };
    let empty = Tensor::zeros([1, 1, 1, 1, 1]);
    // As many of ten pixels are right as the number says.
    let predicted = |right: usize| Prediction {
        labels: (0..10).map(|i| u8::from(i >= right)).collect(),
        fused: vec![0; 30],
        image: empty.clone(),
        logits: Var::constant(empty.clone()),
    };
    let mut gallery = Gallery::new(2, &[[0; 3], [255; 3]]);
    let names = |gallery: &Gallery| {
        let best: Vec<String> = gallery.best().iter().map(|s| s.name.clone()).collect();
        (best, gallery.worst().map(|s| s.name.clone()).collect::<Vec<_>>())
    };
    assert_eq!(names(&gallery), (vec![], vec![]));
    for right in [5, 9, 1, 4, 6, 3, 8, 2, 7] {
        gallery.add(&sample(right.to_string()), &predicted(right)).unwrap();
        if right == 1 {
            assert_eq!(names(&gallery), (vec!["9".into(), "5".into()], vec!["1".into()]));
        }
    }
    assert_eq!(names(&gallery), (vec!["9".into(), "8".into()], vec!["1".into(), "2".into()]));
}

#[test]
fn what_cannot_be_is_said_before_the_work() {
    let folder = tempfile::tempdir().unwrap();
    let [weights, data] = awkward(folder.path());
    let here = folder.path().to_str().unwrap();
    for (code, parts, extra) in [
        (2, ["--window", "--stride"], &["--stride", "8"][..]),
        (2, ["--window", "32 to 16384"], &["--window", "31x64"]),
        (1, ["stride of 41", "1 to 40"], &["--window", "40x48", "--stride", "41"]),
        (1, ["scale 0", "up to 4"], &["--scales", "1,0"]),
        (2, ["--scales", "invalid"], &["--scales", "1,x"]),
        (1, ["sample <i>", "38x26 pixels at scale 0.4"], &["--scales", "0.4"]),
        (1, [here, "is a folder"], &["--report", here]),
    ] {
        let args = ["eval", "--weights", &weights, "--data", &data, "--json"];
        let output = amdanet(args.iter().chain(extra));
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), text.lines().count()), (Some(code), 1), "{text}");
        assert!(output.stdout.is_empty() && parts.iter().all(|part| text.contains(part)), "{text}");
    }
}
