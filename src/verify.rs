//! Holds the network against golden files: what a float64 reference computed from weights and inputs that are a
//! formula.
//!
//! For the tensor named NAME and its row-major element i, in 64-bit wrapping arithmetic:
//!
//! ```text
//! z = (fnv1a64(NAME) ^ seed) + (i + 1)·0x9E3779B97F4A7C15, then the mixing of splitmix64
//! u = (z >> 40) / 2²⁴ in [0, 1),  s = 2u − 1
//! ```
//!
//! Pictures are u; labels are floor(u·classes), 255 where u ≥ 0.97; masks are 1 where u > 0.15. A weight of two or
//! more dimensions is s·√(3 / fan_in), the weight of a norm 1 + 0.1s, a running mean 0.1s, a running variance
//! 1 + 0.2s, λ 0.5 + 0.1s, a bias 0.05s. A gradient, and what the optimizer did to a parameter, is stored as its norm
//! and its dot product with the tensor `probe.NAME` drawn as s.

use std::collections::BTreeMap;
use std::path::Path;

use crate::cpu;
use crate::cpu::adamw::{AdamW, Scaling};
use crate::infer::{Engine, Pairs, Wanted};
use crate::model::{Amdanet, Arch, Encoder, Masking, ModelConfig, Output};
use crate::nn::{Params, Pass};
use crate::train::{LossWeights, Optimizer, Targets, losses};
use crate::{DType, Device, Error, Precision, Result, Shape, Tensor};

/// The largest ‖x − reference‖ / ‖reference‖ of each group in float32.
///
/// A gradient, or a change of a parameter, is measured on the scale max(its norm, 1e-3 of the norm of all together):
/// a bias before a batch norm has no gradient, only the noise of the arithmetic.
pub mod tolerance {
    /// Outputs and losses.
    pub const OUTPUT: f64 = 1e-5;
    /// Outputs of encoders that are deeper than the small ones.
    pub const DEEP_OUTPUT: f64 = 1e-4;
    /// Gradients of the first step.
    pub const FIRST_GRADIENT: f64 = 2e-3;
    /// Gradients of later steps.
    pub const LATER_GRADIENT: f64 = 2e-2;
    /// What the optimizer did to a parameter.
    pub const CHANGE: f64 = 3e-2;
    /// Outputs after the steps.
    pub const AFTER: f64 = 1e-4;
    /// Outputs computed in tf32 or f16, which have 10 bits of mantissa.
    pub const HALF_OUTPUT: f64 = 1e-2;
    /// Outputs computed in bf16, which has three bits less.
    pub const BF16_OUTPUT: f64 = 8.0 * HALF_OUTPUT;
}

/// The worst error of a group of tensors.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Group {
    /// `logits`, `step 0 gradients`, …
    pub name: String,
    /// The largest relative error.
    pub error: f64,
    /// What it may be.
    pub tolerance: f64,
    /// How many tensors were compared.
    pub tensors: usize,
}

impl Group {
    /// Whether the error is within the tolerance; an error that is not a number is not.
    pub fn holds(&self) -> bool {
        self.error <= self.tolerance
    }
}

/// What [`verify`] found in one file.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Report {
    /// The groups, in the order of the computation.
    pub groups: Vec<Group>,
}

impl Report {
    /// Whether every group holds.
    pub fn holds(&self) -> bool {
        self.groups.iter().all(Group::holds)
    }

    fn add(&mut self, name: impl Into<String>, tolerance: f64, error: f64) {
        let name = name.into();
        let index = match self.groups.iter().position(|g| g.name == name) {
            Some(index) => index,
            None => {
                self.groups.push(Group { name, error: 0.0, tolerance, tensors: 0 });
                self.groups.len() - 1
            }
        };
        let group = &mut self.groups[index];
        // A NaN must come in and must stay: `f64::max` would drop it.
        if error.is_nan() || error > group.error {
            group.error = error;
        }
        group.tensors += 1;
    }
}

/// The number that element `index` of the tensor called `name` is drawn as: u in [0, 1).
fn uniform(hash: u64, index: u64) -> f64 {
    let mut z = hash.wrapping_add((index + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 40) as f64 / f64::from(1 << 24)
}

fn hash(name: &str, seed: u64) -> u64 {
    let start = 0xCBF2_9CE4_8422_2325u64;
    name.bytes().fold(start, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3)) ^ seed
}

/// Sets every parameter to the formula's numbers.
///
/// # Errors
/// Never, as long as parameters and their layouts agree.
pub fn fill(params: &mut Params, seed: u64) -> Result<()> {
    let list: Vec<_> = params.published().map(|(id, stream, name)| (id, stream, name.to_string())).collect();
    for (id, stream, name) in list {
        let shape = params.get(id).published_shape();
        let h = hash(&name, seed);
        let spread = (3.0 / shape.iter().skip(1).product::<usize>() as f64).sqrt();
        let value = |s: f64| match () {
            () if shape.len() >= 2 => s * spread,
            () if name.ends_with("running_mean") => 0.1 * s,
            () if name.ends_with("running_var") => 1.0 + 0.2 * s,
            () if name.ends_with("lambda_param") => 0.5 + 0.1 * s,
            () if name.ends_with("weight") => 1.0 + 0.1 * s,
            () => 0.05 * s,
        };
        let len = shape.iter().product::<usize>() as u64;
        let data: Vec<f32> = (0..len).map(|i| value(2.0 * uniform(h, i) - 1.0) as f32).collect();
        params.import(id, stream, &data)?;
    }
    Ok(())
}

/// What a golden file says about itself.
#[derive(serde::Deserialize)]
struct Header {
    config: Encoder,
    arch: Arch,
    seed: u64,
    batch: usize,
    height: usize,
    width: usize,
    classes: usize,
    stride: Option<usize>,
    steps: Option<usize>,
    lr: Option<f64>,
    eps: Option<f64>,
    weight_decay: Option<f64>,
}

/// The most pixels in the batch of a golden file.
const MOST_PIXELS: usize = 1 << 24;

/// A golden file in memory.
struct Golden {
    header: Header,
    tensors: BTreeMap<String, Vec<f32>>,
}

impl Golden {
    fn read(path: &Path) -> Result<Self> {
        let bad = |what: String| Error::file(path, format!("not a golden file: {what}"));
        let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
        let file = safetensors::SafeTensors::deserialize(&bytes).map_err(|e| bad(e.to_string()))?;
        let (_, metadata) =
            safetensors::SafeTensors::read_metadata(&bytes).map_err(|e| bad(e.to_string()))?;
        // Every value of the metadata is a piece of JSON.
        let mut fields = serde_json::Map::new();
        for (key, text) in metadata.metadata().iter().flatten() {
            let value = serde_json::from_str(text).map_err(|e| bad(format!("metadata {key}: {e}")))?;
            fields.insert(key.clone(), value);
        }
        let header: Header =
            serde_json::from_value(fields.into()).map_err(|e| bad(format!("metadata: {e}")))?;
        let Header { batch, height, width, .. } = header;
        let pixels = batch.checked_mul(height).and_then(|n| n.checked_mul(width));
        if !pixels.is_some_and(|n| (1..=MOST_PIXELS).contains(&n)) || header.stride == Some(0) {
            let stride = header.stride.unwrap_or(1);
            return Err(bad(format!("{batch} pictures of {height}x{width}, every {stride}-th pixel")));
        }
        let mut tensors = BTreeMap::new();
        for (name, view) in file.tensors() {
            if view.dtype() != safetensors::Dtype::F32 {
                return Err(bad(format!("{name} is not float32")));
            }
            let data = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            tensors.insert(name, data.collect());
        }
        Ok(Self { header, tensors })
    }

    /// A tensor of `len` numbers.
    fn get(&self, path: &Path, name: &str, len: usize) -> Result<&[f32]> {
        match self.tensors.get(name) {
            Some(t) if t.len() == len => Ok(t),
            Some(t) => Err(Error::file(path, format!("{name} holds {} numbers, expected {len}", t.len()))),
            None => Err(Error::file(path, format!("{name} is missing"))),
        }
    }
}

/// The inputs that the formula gives for a file.
struct Scene {
    visible: Tensor,
    infrared: Tensor,
    labels: Tensor,
    valid: Tensor,
}

impl Scene {
    fn of(h: &Header) -> Result<Self> {
        let (b, height, width) = (h.batch, h.height, h.width);
        let pixels = height * width;
        // The formula counts in (B, 3, H, W); infrared repeats its first channel.
        let picture = |name: &str, channel: &dyn Fn(usize) -> usize| {
            let hash = hash(name, h.seed);
            let data: Vec<f32> = (0..b * pixels * 3)
                .map(|i| {
                    let (c, pixel, sample) = (i % 3, i / 3 % pixels, i / (3 * pixels));
                    uniform(hash, ((sample * 3 + channel(c)) * pixels + pixel) as u64) as f32
                })
                .collect();
            Tensor::from_slice([1, b, height, width, 3], &data)
        };
        let label = hash("input.label", h.seed);
        let labels: Vec<u8> = (0..b * pixels)
            .map(|i| match uniform(label, i as u64) {
                u if u >= 0.97 => 255,
                u => (u * h.classes as f64) as u8,
            })
            .collect();
        let valid: Vec<u8> = (0..b * pixels).map(|i| u8::from(i % pixels / width >= height / 8)).collect();
        Ok(Self {
            visible: picture("input.vi", &|c| c)?,
            infrared: picture("input.ir", &|_| 0)?,
            labels: Tensor::from_slice([b, height, width], &labels)?,
            valid: Tensor::from_slice([b, height, width], &valid)?,
        })
    }
}

/// Computes what the golden file `path` holds on `device` and compares: everything in float32; in another precision,
/// which must be that of the device, the outputs and features of the evaluation.
///
/// # Errors
/// When the file cannot be read or does not hold what a golden file holds. A wrong result is no error: see
/// [`Report::holds`].
pub fn verify(path: &Path, device: &Device, precision: Precision) -> Result<Report> {
    cpu::on_pool(|| verify_here(path, device, precision))
}

fn verify_here(path: &Path, device: &Device, precision: Precision) -> Result<Report> {
    let golden = Golden::read(path)?;
    let h = &golden.header;
    let nothing_random =
        ModelConfig { drop_path: 0.0, dropout: 0.0, ..ModelConfig::new(h.config, h.arch, h.classes) };
    let mut model = Amdanet::new(nothing_random)?;
    fill(&mut model.params, h.seed)?;
    model.params.place(device, precision.dtype())?;
    let scene = Scene::of(h)?;
    let mut report = Report { groups: Vec::new() };
    let deep = !matches!(h.config, Encoder::Nano | Encoder::B0 | Encoder::B1);
    let output = match precision {
        Precision::F32 if deep => tolerance::DEEP_OUTPUT,
        Precision::F32 => tolerance::OUTPUT,
        Precision::Tf32 | Precision::F16 => tolerance::HALF_OUTPUT,
        Precision::Bf16 => tolerance::BF16_OUTPUT,
    };
    {
        let mut pass = Pass::observing(&model.params, &[]);
        let out = model.forward(&mut pass, &scene.visible, &scene.infrared)?;
        outputs(path, &golden, &out, "eval", output, &mut report)?;
        features(path, &golden, &pass, output, &mut report)?;
    }
    engine(path, &golden, &model, &scene, output, &mut report)?;
    if let Some(steps) = h.steps.filter(|_| precision == Precision::F32) {
        let before = model.params.clone();
        training(path, &golden, &mut model, &scene, steps, &mut report)?;
        changes(path, &golden, &model.params, &before, &mut report)?;
        let out = model.forward(&mut Pass::eval(&model.params), &scene.visible, &scene.infrared)?;
        outputs(path, &golden, &out, "after", tolerance::AFTER, &mut report)?;
    }
    Ok(report)
}

/// Compares logits and fused picture.
fn outputs(
    path: &Path,
    golden: &Golden,
    out: &Output,
    when: &str,
    tolerance: f64,
    report: &mut Report,
) -> Result<()> {
    for (name, value) in [("logits", &out.logits), ("image", &out.image)] {
        let ours = planes(&on_cpu(value.value())?, golden.header.stride.unwrap_or(1));
        let want = golden.get(path, &format!("{when}.{name}"), ours.len())?;
        let group = if when == "eval" { name.to_string() } else { format!("{name} after the steps") };
        report.add(group, tolerance, relative_error(&ours, want));
    }
    Ok(())
}

/// Compares logits and fused picture of the fused engine.
fn engine(
    path: &Path,
    golden: &Golden,
    model: &Amdanet,
    scene: &Scene,
    tolerance: f64,
    report: &mut Report,
) -> Result<()> {
    let wanted = Wanted { image: true, logits: true, probabilities: false };
    let mut session = Engine::new(model)?.session();
    let output = session.run(&Pairs::new(&scene.visible, &scene.infrared)?, wanted)?;
    let shape = scene.visible.shape();
    for (name, numbers) in [("logits", output.logits), ("image", output.image)] {
        let numbers = numbers.unwrap_or_default();
        let value = Tensor::from_slice(shape.with_last(numbers.len() * 3 / shape.len()), numbers)?;
        let ours = planes(&value, golden.header.stride.unwrap_or(1));
        let want = golden.get(path, &format!("eval.{name}"), ours.len())?;
        report.add(format!("{name} of the fused engine"), tolerance, relative_error(&ours, want));
    }
    Ok(())
}

/// Compares the aligned and the fused features that a pass has observed.
fn features(path: &Path, golden: &Golden, pass: &Pass, tolerance: f64, report: &mut Report) -> Result<()> {
    let mut compare = |group: &str, name: String, value: &Tensor| -> Result<()> {
        let ours = planes(&on_cpu(value)?, 1);
        let error = match golden.tensors.get(&format!("{name}.norm")) {
            Some(_) => {
                let want = f64::from(golden.get(path, &format!("{name}.norm"), 1)?[0]);
                (norm(&ours) - want).abs() / want
            }
            None => relative_error(&ours, golden.get(path, &name, ours.len())?),
        };
        report.add(group, tolerance, error);
        Ok(())
    };
    let observed = |name: &str, level: usize| {
        let map = pass.observed(&format!("{name}{}", level + 1));
        map.ok_or_else(|| Error::Config(format!("the network has no {name} features of level {}", level + 1)))
    };
    for level in 0..4 {
        let map = observed("aligned", level)?.value();
        for modality in 0..2 {
            let stream = map.narrow(modality..modality + 1)?;
            compare("aligned features", format!("eval.vision.{}", 2 * level + modality), &stream)?;
        }
    }
    for level in 0..4 {
        compare("fused features", format!("eval.fused.{level}"), observed("fused", level)?.value())?;
    }
    Ok(())
}

/// Takes the optimizer steps of the file, comparing losses and gradients.
fn training(
    path: &Path,
    golden: &Golden,
    model: &mut Amdanet,
    scene: &Scene,
    steps: usize,
    report: &mut Report,
) -> Result<()> {
    let h = &golden.header;
    let rule = AdamW { eps: h.eps.unwrap_or(1e-8), ..AdamW::default() };
    let mut optimizer = Optimizer::new(&model.params, rule, h.weight_decay.unwrap_or(0.01));
    for step in 0..steps {
        let choice = step % 2;
        let mut masks = masks(&model.mask_shapes(h.batch, h.height, h.width, choice), h.seed + step as u64)?;
        for mask in &mut masks {
            *mask = mask.to(model.params.device())?;
        }
        let mut pass = Pass::train(&model.params, 0);
        let masking = Masking { choice, masks };
        let out = model.forward_masked(&mut pass, &scene.visible, &scene.infrared, &masking)?;
        let device = model.params.device();
        let Scene { visible, infrared, labels, valid } = scene;
        let [visible, infrared, labels, valid] =
            &[visible.to(device)?, infrared.to(device)?, labels.to(device)?, valid.to(device)?];
        let targets = Targets { visible, infrared, labels, valid };
        let losses = losses(&mut pass.tape, &out, &targets, h.arch, &LossWeights::new(h.arch))?;
        drop(out);
        let (total, terms) = losses.values()?;
        for (name, value) in terms.iter().chain([&("total", total)]) {
            let want = f64::from(golden.get(path, &format!("step{step}.loss.{name}"), 1)?[0]);
            let error = (f64::from(*value) - want).abs() / want.abs();
            report.add(format!("step {step} losses"), tolerance::OUTPUT, error);
        }
        let taken = pass.backward(&losses.total, 1.0)?;
        let limit = if step == 0 { tolerance::FIRST_GRADIENT } else { tolerance::LATER_GRADIENT };
        let gradient = |id: usize, shape: Shape| match &taken.gradients[id] {
            Some(gradient) => on_cpu(gradient),
            None => Ok(Tensor::zeros(shape)),
        };
        let group = format!("step {step} gradients");
        summaries(
            path,
            golden,
            &model.params,
            (&format!("step{step}.grad."), &group, limit),
            gradient,
            report,
        )?;
        optimizer.step(&mut model.params, taken, h.lr.unwrap_or(2e-5), Scaling::default())?;
    }
    Ok(())
}

/// Compares what the steps did to the parameters.
fn changes(path: &Path, golden: &Golden, after: &Params, before: &Params, report: &mut Report) -> Result<()> {
    let values = |params: &Params| params.iter().map(|(_, p)| on_cpu(&p.value)).collect::<Result<Vec<_>>>();
    let (before, after_values) = (values(before)?, values(after)?);
    let change = |id: usize, _| {
        let mut change = after_values[id].clone();
        change.f32_mut().iter_mut().zip(before[id].f32()).for_each(|(a, &b)| *a -= b);
        Ok(change)
    };
    let group = ("after.delta.", "changes of parameters", tolerance::CHANGE);
    summaries(path, golden, after, group, change, report)
}

/// Compares norms and dot products with the probes of one tensor for each trained parameter.
fn summaries(
    path: &Path,
    golden: &Golden,
    params: &Params,
    (prefix, group, tolerance): (&str, &str, f64),
    tensor: impl Fn(usize, Shape) -> Result<Tensor>,
    report: &mut Report,
) -> Result<()> {
    let trained =
        || params.published().filter(|(id, _, _)| params.get(*id).role != crate::nn::Role::Statistic);
    let mut square = 0.0;
    for (_, _, name) in trained() {
        square += f64::from(golden.get(path, &format!("{prefix}{name}"), 2)?[0]).powi(2);
    }
    for (id, stream, name) in trained() {
        let param = params.get(id);
        let value = param.export(&tensor(id.0, param.value.shape())?, stream);
        let want = golden.get(path, &format!("{prefix}{name}"), 2)?;
        let probe = hash(&format!("probe.{name}"), golden.header.seed);
        let dot: f64 = value
            .iter()
            .enumerate()
            .map(|(i, &v)| f64::from(v) * (2.0 * uniform(probe, i as u64) - 1.0))
            .sum();
        let scale = f64::from(want[0]).max(1e-3 * square.sqrt());
        for (ours, &want) in [norm(&value), dot].into_iter().zip(want) {
            report.add(group, tolerance, (ours - f64::from(want)).abs() / scale);
        }
    }
    Ok(())
}

/// The numbers in float32, where they can be read.
fn on_cpu(x: &Tensor) -> Result<Tensor> {
    x.cast(DType::F32)?.to(&Device::Cpu)
}

/// The masks of a step: drawn in published order, where each modality is a tensor `(B, C, H, W)` of its own.
fn masks(shapes: &[[usize; 5]; 4], seed: u64) -> Result<Vec<Tensor>> {
    let mut number = 0;
    let mut list = Vec::with_capacity(4);
    for &[s, b, h, w, c] in shapes {
        let mut mask = Tensor::scratch_of([s, b, h, w, c], DType::U8);
        for stream in mask.as_mut_slice::<u8>().chunks_exact_mut(b * h * w * c) {
            let hash = hash(&format!("mask.{number}"), seed);
            number += 1;
            for (i, kept) in stream.iter_mut().enumerate() {
                let (channel, pixel, sample) = (i % c, i / c % (h * w), i / (c * h * w));
                let published = (sample * c + channel) * h * w + pixel;
                *kept = u8::from(uniform(hash, published as u64) > 0.15);
            }
        }
        list.push(mask);
    }
    Ok(list)
}

/// `(1, B, H, W, C)` -> the numbers of `(B, C, H, W)`, every `stride`-th row and column.
fn planes(x: &Tensor, stride: usize) -> Vec<f32> {
    let [_, b, h, w, c] = [0, 1, 2, 3, 4].map(|axis| x.dim(axis));
    let mut out = Vec::new();
    for (sample, channel) in (0..b).flat_map(|s| (0..c).map(move |c| (s, c))) {
        for y in (0..h).step_by(stride) {
            out.extend((0..w).step_by(stride).map(|x_| x.f32()[((sample * h + y) * w + x_) * c + channel]));
        }
    }
    out
}

fn norm(x: &[f32]) -> f64 {
    x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt()
}

/// ‖x − reference‖ / ‖reference‖.
fn relative_error(x: &[f32], reference: &[f32]) -> f64 {
    let difference: f64 = x.iter().zip(reference).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum();
    difference.sqrt() / norm(reference)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_that_is_no_number_is_never_forgotten() {
        for errors in [[f64::NAN, 0.0, 0.0], [0.0, f64::NAN, 0.0], [0.0, 2.0, 0.0]] {
            let mut report = Report { groups: Vec::new() };
            errors.iter().for_each(|&error| report.add("group", 1.0, error));
            assert!(!report.holds(), "{errors:?}");
            assert_eq!((report.groups.len(), report.groups[0].tensors), (1, 3));
        }
    }
}
