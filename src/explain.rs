//! What a network looks at: Grad-CAM, as in section 4.4 of the paper, and the maps of its own gates.

use std::collections::BTreeMap;

use crate::model::{Amdanet, Arch};
use crate::nn::Pass;
use crate::{DType, Device, Error, Result, Tape, Tensor, Var, cpu, ops};

/// A number for each pixel of some grid.
#[derive(Clone, PartialEq, Debug)]
pub struct Map {
    /// What it shows.
    pub name: String,
    /// Rows.
    pub height: usize,
    /// Numbers in a row.
    pub width: usize,
    /// `(height, width)`, row-major.
    pub values: Vec<f32>,
}

/// Activations that Grad-CAM can look at: `fused1`, `aligned2.visible`, …
///
/// `encodedN` is what the encoder's blocks of level N give, `alignedN` what local alignment makes of it, `fusedN` what
/// the segmentation head sees. The first two have a part for each stream, named after the encoder it comes from. In
/// release the streams are exchanged before the blocks of each level, so at levels 1 and 3 the visible encoder carries
/// mostly what the infrared picture shows, and the infrared encoder the other.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Layer {
    /// The name that a pass observes it under.
    value: String,
    stream: Option<usize>,
}

const STREAMS: [&str; 2] = ["visible", "infrared"];

impl Layer {
    /// All of them, finest level first.
    pub fn all() -> Vec<Self> {
        let part = |level: usize, value: &str, stream| Self { value: format!("{value}{level}"), stream };
        (1..=4)
            .flat_map(|level| {
                let both = |value| [0, 1].map(|stream| part(level, value, Some(stream)));
                [both("encoded"), both("aligned")].into_iter().flatten().chain([part(level, "fused", None)])
            })
            .collect()
    }

    /// The four that the segmentation head sees.
    pub fn fused() -> Vec<Self> {
        Self::all().into_iter().filter(|layer| layer.stream.is_none()).collect()
    }

    /// The layer called `name`.
    ///
    /// # Errors
    /// Lists the layers when there is none of that name.
    pub fn named(name: &str) -> Result<Self> {
        let all = Self::all();
        let names: Vec<_> = all.iter().map(Self::to_string).collect();
        all.into_iter().find(|layer| layer.to_string() == name).ok_or_else(|| {
            Error::Config(format!("there is no layer {name:?}: the layers are {}", names.join(", ")))
        })
    }

    /// Layers of one group never follow each other, so that one pass gives the gradients of all.
    fn group(&self) -> &str {
        if self.stream.is_none() { "fused" } else { &self.value }
    }
}

impl std::fmt::Display for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.stream {
            Some(stream) => write!(f, "{}.{}", self.value, STREAMS[stream]),
            None => f.write_str(&self.value),
        }
    }
}

/// What a layer contributes to a class.
#[derive(Clone, PartialEq, Debug)]
pub struct Cam {
    /// The layer.
    pub layer: Layer,
    /// For each channel the mean over the grid of the gradient.
    pub weights: Vec<f32>,
    /// max(Σ weight·activation, 0) on the layer's grid.
    pub map: Map,
}

/// Grad-CAM: for each layer, in order, the channels weighted with the mean of the gradient of the class's logit summed
/// over `pixels`, `(H, W)`, one truth value for each pixel of the picture.
///
/// The pictures are `(1, 1, H, W, 3)` in [0, 1]. Batch norms use their running statistics, and nothing is dropped.
///
/// # Errors
/// When the pictures' shapes differ, `pixels` has another size, there is no such class, or a device reports an error.
pub fn grad_cam(
    model: &Amdanet,
    visible: &Tensor,
    infrared: &Tensor,
    layers: &[Layer],
    class: usize,
    pixels: &[bool],
) -> Result<Vec<Cam>> {
    let classes = model.config().classes;
    if class >= classes || 3 * pixels.len() != visible.len() {
        let what = format!("class {class} of {classes}, {} pixels of {:?}", pixels.len(), visible.shape());
        return Err(Error::Config(format!("Grad-CAM: {what} do not fit")));
    }
    let mut groups: BTreeMap<&str, Vec<&Layer>> = BTreeMap::new();
    for layer in layers {
        groups.entry(layer.group()).or_default().push(layer);
    }
    let mut cams = BTreeMap::new();
    for group in groups.values() {
        let gradients = cpu::on_pool(|| gradients(model, visible, infrared, group, class, pixels))?;
        for (layer, activation, gradient) in gradients {
            cams.insert(layer, cam(layer, &activation, &gradient)?);
        }
    }
    Ok(layers.iter().filter_map(|layer| cams.get(layer).cloned()).collect())
}

/// Activations and gradients `(H_i, W_i, C_i)` of the layers.
fn gradients<'a>(
    model: &Amdanet,
    visible: &Tensor,
    infrared: &Tensor,
    layers: &[&'a Layer],
    class: usize,
    pixels: &[bool],
) -> Result<Vec<(&'a Layer, Tensor, Tensor)>> {
    let leaves: Vec<_> = layers.iter().map(|layer| layer.value.clone()).collect();
    let mut pass = Pass::observing(&model.params, &leaves);
    let logits = model.forward(&mut pass, visible, infrared)?.logits;
    let observed: Vec<_> =
        layers.iter().filter_map(|layer| Some((*layer, pass.observed(&layer.value)?.clone()))).collect();
    let (classes, mut seed) = (logits.shape().last(), Tensor::zeros(logits.shape()));
    for (scores, &chosen) in seed.f32_mut().chunks_exact_mut(classes).zip(pixels) {
        scores[class] = if chosen { 1.0 } else { 0.0 };
    }
    let seed = seed.to(model.params.device())?.cast(logits.value().dtype())?;
    let mut gradients = pass.tape.backward_with(&logits, seed)?;
    let mut leaves: BTreeMap<&str, Tensor> = BTreeMap::new();
    for (layer, leaf) in &observed {
        if let Some(gradient) = gradients.take(leaf) {
            leaves.insert(&layer.value, gradient);
        }
    }
    let part = |layer: &Layer, x: &Tensor| -> Result<Tensor> {
        let stream = layer.stream.unwrap_or(0);
        let x = on_host(x)?.narrow(stream..stream + 1)?;
        x.reshape([x.dim(2), x.dim(3), x.dim(4)])
    };
    observed
        .iter()
        .map(|(layer, leaf)| {
            let activation = part(layer, leaf.value())?;
            let gradient = match leaves.get(layer.value.as_str()) {
                Some(gradient) => part(layer, gradient)?,
                None => Tensor::zeros(activation.shape()),
            };
            Ok((*layer, activation, gradient))
        })
        .collect()
}

fn cam(layer: &Layer, activation: &Tensor, gradient: &Tensor) -> Result<Cam> {
    let [height, width, channels] = [0, 1, 2].map(|axis| activation.dim(axis));
    let mut sums = vec![0.0f64; channels];
    for row in gradient.f32().chunks_exact(channels) {
        sums.iter_mut().zip(row).for_each(|(sum, &g)| *sum += f64::from(g));
    }
    let weights: Vec<f32> = sums.iter().map(|sum| (sum / (height * width) as f64) as f32).collect();
    let dot = |a: &[f32]| a.iter().zip(&weights).map(|(a, w)| a * w).sum::<f32>().max(0.0);
    let values = activation.f32().chunks_exact(channels).map(dot).collect();
    Ok(Cam { layer: layer.clone(), weights, map: Map { name: layer.to_string(), height, width, values } })
}

/// A prediction with the maps of the gates that led to it.
pub struct Gates {
    /// The class of each pixel, `(H, W)`.
    pub labels: Vec<u8>,
    /// The maps, all levels of a kind together, finest first; see [`gates`].
    pub maps: Vec<Map>,
}

/// The kinds of maps that [`gates`] gives, with what they show.
pub const KINDS: [(&str, &str); 5] = [
    ("mask", "M of semantic consistency inference (eq. 2), 0 to 1"),
    ("similarity", "S, the cosine of the two streams (eq. 1), -1 to 1"),
    ("inconsistent", "g of semantic consistency inference: 1 where S is below the threshold"),
    ("spatial", "the spatial weights of local alignment (eq. 8), 0 to 1, one map for each stream"),
    ("gate", "G of local alignment, 0 to 1, the mean of its channels"),
];

/// Labels a pair and shows its gates: `maskN`, `spatialN.visible`, `spatialN.infrared`; in release `gateN`, in paper
/// `similarityN` and `inconsistentN`; those of parts that the network has. The pictures are `(1, 1, H, W, 3)` in [0, 1].
///
/// # Errors
/// When the pictures' shapes differ, a side is below 32, or a device reports an error.
pub fn gates(model: &Amdanet, visible: &Tensor, infrared: &Tensor) -> Result<Gates> {
    cpu::on_pool(|| {
        let mut pass = Pass::observing(&model.params, &[]);
        let logits = model.forward(&mut pass, visible, infrared)?.logits;
        let labels = ops::argmax(&mut Tape::off(), &logits)?.to(&Device::Cpu)?.as_slice::<u8>().to_vec();
        let mut maps = Vec::new();
        for (kind, _) in KINDS {
            for level in 1..=4 {
                maps.extend(gate_maps(model, &pass, kind, level)?);
            }
        }
        Ok(Gates { labels, maps })
    })
}

fn gate_maps(model: &Amdanet, pass: &Pass, kind: &str, level: usize) -> Result<Vec<Map>> {
    let config = model.config();
    let of_encoded = matches!(kind, "similarity" | "inconsistent");
    if of_encoded && (config.arch == Arch::Release || !config.sci) {
        return Ok(Vec::new());
    }
    let value = if of_encoded { "encoded" } else { kind };
    let Some(x) = pass.observed(&format!("{value}{level}")) else { return Ok(Vec::new()) };
    let x = on_host(x.value())?;
    let (height, width, channels) = (x.dim(2), x.dim(3), x.dim(4));
    let map = |part: &str, values| Map { name: format!("{kind}{level}{part}"), height, width, values };
    let rows = || x.f32().chunks_exact(channels);
    Ok(match kind {
        "spatial" => {
            let stream = |s: usize| map(&format!(".{}", STREAMS[s]), rows().map(|row| row[s]).collect());
            vec![stream(0), stream(1)]
        }
        "similarity" | "inconsistent" => {
            let pairs = rows().zip(rows().skip(height * width));
            let similarity = pairs.map(|(a, b)| cosine(a, b));
            let values = match kind {
                "similarity" => similarity.collect(),
                _ => similarity.map(|s| f32::from(u8::from(s < config.tau))).collect(),
            };
            vec![map("", values)]
        }
        _ => vec![map("", rows().map(|row| row.iter().sum::<f32>() / channels as f32).collect())],
    })
}

/// Equation 1, with norms of at least 1e-8.
fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
    (dot(a, b) / (dot(a, a).sqrt().max(1e-8) * dot(b, b).sqrt().max(1e-8))) as f32
}

fn on_host(x: &Tensor) -> Result<Tensor> {
    x.to(&Device::Cpu)?.cast(DType::F32)
}

impl Map {
    /// The least number and the largest.
    pub fn range(&self) -> (f32, f32) {
        self.values.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(a, b), &v| (a.min(v), b.max(v)))
    }

    /// The mean.
    pub fn mean(&self) -> f32 {
        (self.values.iter().map(|&v| f64::from(v)).sum::<f64>() / self.values.len().max(1) as f64) as f32
    }

    /// The map at another size, bilinear with half-pixel centres as in the heads.
    ///
    /// # Errors
    /// When a side is 0.
    pub fn resized(&self, height: usize, width: usize) -> Result<Self> {
        let x = Tensor::from_slice([1, 1, self.height, self.width, 1], &self.values)?;
        let x = ops::resize(&mut Tape::off(), &Var::constant(x), height, width)?;
        Ok(Self { name: self.name.clone(), height, width, values: x.value().f32().to_vec() })
    }

    /// The map stretched to 0 … 1; 0 everywhere if it is the same everywhere.
    pub fn stretched(&self) -> Self {
        let (least, most) = self.range();
        let scale = if most > least { 1.0 / (most - least) } else { 0.0 };
        let values = self.values.iter().map(|v| (v - least) * scale).collect();
        Self { name: self.name.clone(), values, ..*self }
    }

    /// The map, whose numbers are 0 to 1, in colours over a grey version of a picture of its size: 8-bit RGB. `alpha` is
    /// the share of the colours.
    pub fn over(&self, rgb: &[u8], alpha: f32) -> Vec<u8> {
        let mut out = Vec::with_capacity(rgb.len());
        for (&[r, g, b], &value) in rgb.as_chunks::<3>().0.iter().zip(&self.values) {
            let grey = 0.299 * f32::from(r) + 0.587 * f32::from(g) + 0.114 * f32::from(b);
            let mix = |color: f32| (grey + alpha * (color - grey)).round() as u8;
            out.extend(heat(value).map(mix));
        }
        out
    }
}

/// Ten equidistant colours of matplotlib's inferno, whose lightness grows evenly.
const INFERNO: [[u8; 3]; 10] = [
    [0x00, 0x00, 0x04],
    [0x1b, 0x0c, 0x41],
    [0x4a, 0x0c, 0x6b],
    [0x78, 0x1c, 0x6d],
    [0xa5, 0x2c, 0x60],
    [0xcf, 0x44, 0x46],
    [0xed, 0x69, 0x25],
    [0xfb, 0x9b, 0x06],
    [0xf7, 0xd1, 0x3d],
    [0xfc, 0xff, 0xa4],
];

/// The colour of a number from 0 to 1, each channel 0 to 255.
fn heat(value: f32) -> [f32; 3] {
    let place = value.clamp(0.0, 1.0) * (INFERNO.len() - 1) as f32;
    let first = (place as usize).min(INFERNO.len() - 2);
    let share = place - first as f32;
    let [from, to] = [INFERNO[first], INFERNO[first + 1]].map(|color| color.map(f32::from));
    std::array::from_fn(|i| from[i] + share * (to[i] - from[i]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_run_from_dark_to_light() {
        let light: Vec<f32> =
            (0..=20).map(|i| heat(i as f32 / 20.0)).map(|[r, g, b]| 0.3 * r + 0.6 * g + 0.1 * b).collect();
        assert!(light.is_sorted(), "{light:?}");
        assert_eq!(heat(-1.0), heat(0.0));
        assert_eq!(heat(f32::INFINITY), heat(1.0));
        assert_eq!(heat(1.0), [252.0, 255.0, 164.0]);
    }

    #[test]
    fn maps_stretch_and_lie_over_grey() {
        let map = Map { name: "m".into(), height: 1, width: 2, values: vec![2.0, 4.0] };
        assert_eq!((map.range(), map.mean()), ((2.0, 4.0), 3.0));
        let stretched = map.stretched();
        assert_eq!(stretched.values, [0.0, 1.0]);
        let over = stretched.over(&[100, 100, 100, 255, 0, 0], 0.5);
        assert_eq!(over, [50, 50, 52, 164, 166, 120]);
        let flat = Map { values: vec![3.0, 3.0], ..map };
        assert_eq!(flat.stretched().values, [0.0, 0.0]);
        assert_eq!(flat.resized(3, 5).unwrap().values, [3.0; 15]);
    }
}
