//! Odd sizes: nothing is padded or cropped to a multiple of 32.

use amdanet::model::{Amdanet, Arch, Encoder, Masking, ModelConfig, Output};
use amdanet::nn::Pass;
use amdanet::train::{LossWeights, Targets, losses};
use amdanet::{Device, Tensor, ops, verify};

const SEED: u64 = 2025;
const CLASSES: usize = 9;

/// Number `index` of the tensor `name` in the reference's formula, in [0, 1).
fn uniform(name: &str, index: usize) -> f64 {
    let start = 0xCBF2_9CE4_8422_2325u64;
    let hash = name.bytes().fold(start, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01B3)) ^ SEED;
    let mut z = hash.wrapping_add((index as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 40) as f64 / f64::from(1 << 24)
}

/// A picture `(1, B, H, W, 3)` whose numbers the formula counts in (B, 3, H, W); infrared repeats its first channel.
fn picture(name: &str, b: usize, h: usize, w: usize) -> Tensor {
    let pixels = h * w;
    let number = |i: usize| {
        let (c, pixel, sample) = (i % 3, i / 3 % pixels, i / (3 * pixels));
        let channel = if name == "input.ir" { 0 } else { c };
        uniform(name, (sample * 3 + channel) * pixels + pixel) as f32
    };
    let data: Vec<f32> = (0..b * pixels * 3).map(number).collect();
    Tensor::from_slice([1, b, h, w, 3], &data).unwrap()
}

fn nano(arch: Arch) -> Amdanet {
    let mut model = Amdanet::new(ModelConfig::new(Encoder::Nano, arch, CLASSES)).unwrap();
    verify::fill(&mut model.params, SEED).unwrap();
    model
}

fn forward(arch: Arch, b: usize, h: usize, w: usize) -> Output {
    let model = nano(arch);
    let (vi, ir) = (picture("input.vi", b, h, w), picture("input.ir", b, h, w));
    model.forward(&mut Pass::eval(&model.params), &vi, &ir).unwrap()
}

#[test]
fn every_size_from_32_on_works() {
    for (h, w) in [(75, 101), (33, 47), (32, 32), (96, 50)] {
        for arch in [Arch::Release, Arch::Paper] {
            let Output { logits, image } = forward(arch, 2, h, w);
            assert_eq!(*logits.shape(), [1, 2, h, w, CLASSES]);
            assert_eq!(*image.shape(), [1, 2, h, w, 3]);
            assert!(logits.value().f32().iter().all(|v| v.is_finite()), "{arch} {h}x{w}");
            assert!(image.value().f32().iter().all(|&v| v > 0.0 && v < 1.0), "{arch} {h}x{w}");
        }
    }
}

#[test]
fn a_side_below_32_is_refused() {
    let model = nano(Arch::Release);
    for (h, w) in [(31, 64), (64, 31), (1, 1)] {
        let (vi, ir) = (picture("input.vi", 1, h, w), picture("input.ir", 1, h, w));
        let e = model.forward(&mut Pass::eval(&model.params), &vi, &ir).err().unwrap().to_string();
        assert!(e.contains("at least 32"), "{e}");
    }
}

/// Architecture, height, width; of logits and of the image: norm, and dot product with the tensor `probe.NAME`.
///
/// ```python
/// import torch, golden, amdanet_ref as ref
/// for arch in ("release", "paper"):
///     for h, w in ((75, 101), (33, 47)):
///         model = ref.AMDANet(ref.Config.mit("nano", arch=arch)).double().eval()
///         golden.fill(model, 2025)
///         vi, ir, _, _ = golden.scene(1, h, w, 9, 2025)
///         with torch.no_grad():
///             for name, t in zip(("logits", "image"), model(vi, ir)):
///                 print(arch, h, w, name, golden.summary(name, t, 2025).tolist())
/// ```
type Case = (Arch, usize, usize, [f64; 2], [f64; 2]);
const ORACLE: [Case; 4] = [
    (Arch::Release, 75, 101, [165.021607298, -37.2077195608], [74.9089316012, 39.8747571511]),
    (Arch::Release, 33, 47, [83.0697664676, 58.1379240995], [34.1768359334, 19.9988216525]),
    (Arch::Paper, 75, 101, [422.492129305, 231.508241033], [58.0473122157, 27.4119759969]),
    (Arch::Paper, 33, 47, [165.523788529, 154.028748861], [25.3558654997, 10.0759012118]),
];

/// Norm, and dot product with the probe, which counts in (B, C, H, W).
fn summary(name: &str, x: &Tensor) -> [f64; 2] {
    let [h, w, c] = [2, 3, 4].map(|axis| x.dim(axis));
    let probe = |i: usize| 2.0 * uniform(&format!("probe.{name}"), (i % c) * h * w + i / c) - 1.0;
    let x = x.f32().iter().map(|&v| f64::from(v));
    let square: f64 = x.clone().map(|v| v * v).sum();
    [square.sqrt(), x.enumerate().map(|(i, v)| v * probe(i)).sum()]
}

#[test]
fn odd_sizes_agree_with_the_reference() {
    for (arch, h, w, logits, image) in ORACLE {
        let out = forward(arch, 1, h, w);
        for (name, value, want) in [("logits", out.logits, logits), ("image", out.image, image)] {
            let got = summary(name, value.value());
            for (got, expected) in got.into_iter().zip(want) {
                // A dot product with a probe is of the order of the norm, and may cancel.
                let error = (got - expected).abs() / want[0];
                assert!(error < 1e-5, "{arch} {h}x{w} {name}: {got} is not {expected}");
            }
        }
    }
}

#[test]
fn both_choices_of_masking_train_at_an_odd_size() {
    let (b, h, w) = (2, 75, 101);
    let (visible, infrared) = (picture("input.vi", b, h, w), picture("input.ir", b, h, w));
    let ids: Vec<u8> = (0..b * h * w).map(|i| (uniform("label", i) * CLASSES as f64) as u8).collect();
    let labels = Tensor::from_slice([b, h, w], &ids).unwrap();
    let valid = Tensor::from_slice([b, h, w], &vec![1u8; b * h * w]).unwrap();
    for arch in [Arch::Release, Arch::Paper] {
        let model = nano(arch);
        for choice in 0..2 {
            let shapes = model.mask_shapes(b, h, w, choice);
            let masks = shapes
                .into_iter()
                .zip(0..)
                .map(|(s, i)| ops::feature_mask(&Device::Cpu, s, 0.85, 1, i).unwrap())
                .collect();
            let mut pass = Pass::train(&model.params, 3);
            let masking = Masking { choice, masks };
            let output = model.forward_masked(&mut pass, &visible, &infrared, &masking).unwrap();
            let targets = Targets { visible: &visible, infrared: &infrared, labels: &labels, valid: &valid };
            let losses = losses(&mut pass.tape, &output, &targets, arch, &LossWeights::new(arch)).unwrap();
            let step = pass.backward(&losses.total, 1.0).unwrap();
            let mut trained = 0;
            for ((_, param), gradient) in model.params.iter().zip(&step.gradients) {
                let Some(gradient) = gradient else { continue };
                assert_eq!(gradient.shape(), param.value.shape());
                assert!(gradient.f32().iter().all(|v| v.is_finite()), "{arch} {choice} {:?}", param.names);
                trained += usize::from(gradient.f32().iter().any(|&v| v != 0.0));
            }
            let wanted = model.params.iter().filter(|(_, p)| p.role != amdanet::nn::Role::Statistic);
            assert_eq!(trained, wanted.count(), "{arch} {choice}: every parameter gets a gradient");
        }
    }
}
