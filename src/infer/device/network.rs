//! The network as launches on a device: the same order as [`crate::infer::network`], with the device's fused kernels.

use super::recorder::Recorder;
use super::weights::{Attention, Block, Global, Level, Linear, Local, Norm, Sci, Weights};
use crate::cpu::conv::Window;
use crate::cuda::scores::Resized;
use crate::cuda::windows::Windows;
use crate::cuda::{
    attention, conv, depthwise, elementwise, fuse, gate, layer_norm, linear, pool, realign, scores, spatial,
};
use crate::model::Arch;
use crate::{Result, Tensor};

/// Scores come in units of ln 2, and the kernel takes e^(scale·score).
const SCALE: f32 = std::f32::consts::LN_2;

/// Numbers of the pictures, two pairs of 480×640, up to which the levels' parts of the heads are computed beside the
/// next levels. Larger pictures fill a device, and the buffers of both would take memory.
const MOST_BESIDE: usize = 2 * 2 * 480 * 640 * 3;

/// Where the results go, on the device.
pub struct Outputs {
    /// The class of each pixel, U8 `(B, H, W)`.
    pub labels: Tensor,
    /// The fused pictures, U8 `(B, H, W, 3)`.
    pub fused: Tensor,
    /// As [`crate::infer::Output`].
    pub image: Option<Tensor>,
    /// As [`crate::infer::Output`].
    pub logits: Option<Tensor>,
    /// As [`crate::infer::Output`].
    pub probabilities: Option<Tensor>,
}

/// One forward pass.
pub struct Forward<'a> {
    /// The weights.
    pub weights: &'a Weights,
    /// What the launches are noted by, if they are.
    pub recorder: &'a Recorder,
}

impl Forward<'_> {
    /// pictures `(2, B, H, W, 3)`, bytes of which 255 is 1, or float32.
    pub fn run(&self, pictures: &Tensor, out: &mut Outputs) -> Result<()> {
        let config = &self.weights.config;
        let paper = config.arch == Arch::Paper;
        let beside = pictures.len() <= MOST_BESIDE;
        let mut streams = pictures.clone();
        let (mut segments, mut taps) = (Vec::with_capacity(4), Vec::with_capacity(4));
        for (i, level) in self.weights.levels.iter().enumerate() {
            let label = |what: &str| self.recorder.label(format!("level {} {what}", i + 1));
            label("patch embedding");
            let (kernel, stride) = if i == 0 { (7, 4) } else { (3, 2) };
            let window = Window { stride, padding: kernel / 2 };
            let x = conv::infer(&streams, &level.embed.weight, level.embed.bias.as_ref(), kernel, window)?;
            let mut x = norm(&x, &level.embed_norm)?;
            label("semantic consistency");
            if !paper {
                x = self.consistency(level.sci.as_ref(), x)?;
            }
            for b in &level.blocks {
                x = block(b, x, &label)?;
            }
            label("norm");
            x = norm(&x, &level.norm)?;
            label("semantic consistency");
            if paper {
                x = self.consistency(level.sci.as_ref(), x)?;
            }
            label("local alignment");
            let aligned = level.local.as_ref().map_or_else(|| Ok(x.clone()), |local| align(local, &x))?;
            let mut for_heads = || {
                label("global alignment");
                segments.push(segment(level, &aligned)?);
                label("fusion taps");
                let points = &level.points;
                let points = linear::side_by_side(&aligned, &points.weight, points.bias.as_ref())?;
                taps.push(apply(&points, &level.taps)?);
                Ok(())
            };
            // Nothing but the heads needs this, and a few pictures leave a device room for more.
            if beside {
                self.recorder.aside(&mut for_heads)?
            } else {
                for_heads()?
            }
            streams = if paper { x } else { aligned };
        }
        drop(streams);
        if beside {
            self.recorder.join();
        }
        self.recorder.label("segmentation head".into());
        let ([fine, b, c, d], [ta, tb, tc, td]) = (&segments[..], &taps[..]) else {
            unreachable!("four levels")
        };
        let hidden = scores::sum(fine, [b, c, d])?;
        let points = apply(&hidden, &self.weights.predict)?;
        let Outputs { labels, fused, image, logits, probabilities } = out;
        let resized = Resized { labels, logits: logits.as_mut(), probabilities: probabilities.as_mut() };
        scores::labels(&points, config.classes, resized)?;
        self.recorder.label("fusion head".into());
        fuse::forward(pictures, [ta, tb, tc, td], &self.weights.fuse, fused, image.as_mut())
    }

    fn consistency(&self, sci: Option<&Sci>, x: Tensor) -> Result<Tensor> {
        let Some(sci) = sci else { return Ok(x) };
        let config = &self.weights.config;
        let hidden = both(&sci.reduce, &x)?;
        let tau = (config.arch == Arch::Paper).then_some(config.tau);
        gate::scored(&x, &hidden, (&sci.score.0, sci.score.1), sci.lambda, tau)
    }
}

fn apply(x: &Tensor, layer: &Linear) -> Result<Tensor> {
    linear::apply(x, &layer.weight, layer.bias.as_ref(), None, false)
}

/// layer(x) + residual
fn add(x: &Tensor, layer: &Linear, residual: &Tensor) -> Result<Tensor> {
    linear::apply(x, &layer.weight, layer.bias.as_ref(), Some(residual), false)
}

fn norm(x: &Tensor, norm: &Norm) -> Result<Tensor> {
    layer_norm::infer(x, &norm.weight, &norm.bias, norm.eps, None)
}

fn sum(mut x: Tensor, y: &Tensor) -> Result<Tensor> {
    elementwise::add_assign(&mut x, y)?;
    Ok(x)
}

/// Each stream of `x` alone.
fn halves(x: &Tensor) -> Result<[Tensor; 2]> {
    Ok([x.narrow(0..1)?, x.narrow(1..2)?])
}

/// ReLU(a·W_a + b·W_b + bias) of the two streams of x.
fn both([first, second]: &[Linear; 2], x: &Tensor) -> Result<Tensor> {
    let [a, b] = halves(x)?;
    let hidden = apply(&a, first)?;
    linear::apply(&b, &second.weight, second.bias.as_ref(), Some(&hidden), true)
}

/// The keys and values of x `(S, B, H, W, C)`: `(S, B, keys, 2C)`. With `windows`, the rows of x are in their order, each a
/// patch of the convolution.
fn keys(attention: &Attention, x: &Tensor, windows: bool) -> Result<Tensor> {
    let [s, b, h, w, c] = [0, 1, 2, 3, 4].map(|axis| x.dim(axis));
    let kv = match &attention.reduction {
        None => apply(x, &attention.kv)?,
        Some((layer, after)) => {
            let sr = attention.sr;
            let window = Window { stride: sr, padding: 0 };
            // Each window as an image.
            let images =
                if windows { x.reshape([s, b * (h / sr) * (w / sr), sr, sr, c])? } else { x.clone() };
            let reduced = conv::infer(&images, &layer.weight, layer.bias.as_ref(), sr, window)?;
            apply(&norm(&reduced, after)?, &attention.kv)?
        }
    };
    kv.reshape([s, b, kv.len() / (s * b * 2 * c), 2 * c])
}

/// `(S, B, H, W, C)` as `(S, B, N, C)`.
fn tokens(x: &Tensor) -> Result<Tensor> {
    x.reshape([x.dim(0), x.dim(1), x.dim(2) * x.dim(3), x.dim(4)])
}

/// The attention of `x` to `source`, up to its projection, in the shape of x. With `windows`, the rows of both are in their
/// order, and those of the result are in the map's.
fn attend(a: &Attention, x: &Tensor, source: &Tensor, windows: Option<Windows>) -> Result<Tensor> {
    let q = tokens(&apply(x, &a.q)?)?;
    let kv = keys(a, source, windows.is_some())?;
    attention::infer(&q, &kv, a.heads, SCALE, windows)?.reshape(x.shape())
}

/// A transformer block.
fn block(b: &Block, x: Tensor, label: &impl Fn(&str)) -> Result<Tensor> {
    label("block attention");
    let attended = {
        // Where windows of the reduction cover x, the norm puts their rows one after another: its patches.
        let (norm, windows) = (&b.norm1, Windows::of(x.shape(), b.attention.sr));
        let normed = layer_norm::infer(&x, &norm.weight, &norm.bias, norm.eps, windows)?;
        attend(&b.attention, &normed, &normed, windows)?
    };
    let x = add(&attended, &b.proj, &x)?;
    drop(attended);
    label("block Mix-FFN");
    let hidden = apply(&norm(&x, &b.norm2)?, &b.fc1)?;
    let mixed = depthwise::forward(&hidden, &b.depthwise[0], &b.depthwise[1])?;
    drop(hidden);
    add(&mixed, &b.fc2, &x)
}

/// Local alignment.
fn align(local: &Local, x: &Tensor) -> Result<Tensor> {
    let pooled = pool::forward(x)?;
    let [first, second] = &local.channel;
    let hidden = linear::apply(&pooled.channel, &first.weight, first.bias.as_ref(), None, true);
    // Means and maxima are rows of one stream.
    let channel = apply(&hidden?, second)?;
    let weights = match local.wide {
        false => spatial::pointwise(&pooled.spatial, &local.spatial)?,
        true => spatial::wide(&pooled.spatial, &local.spatial)?,
    };
    let gate = match &local.gate {
        Some((first, second)) => Some(apply(&both(first, x)?, second)?),
        None => None,
    };
    realign::raw(x, gate.as_ref(), &channel, &weights)
}

/// Global alignment, and the level's part of the segmentation head's hidden layer, `(1, B, H, W, D)`.
fn segment(level: &Level, x: &Tensor) -> Result<Tensor> {
    let Some(Global { salient, salient_proj, cross }) = &level.global else {
        let [a, b] = halves(x)?;
        return apply(&sum(a, &b)?, &level.segment);
    };
    let attended = sum(attend(salient, x, x, None)?, x)?;
    let enhanced = apply(&attended, salient_proj)?;
    drop(attended);
    let [visible, infrared] = halves(&enhanced)?;
    let middle = sum(attend(&cross[0], &visible, &infrared, None)?, &visible)?;
    let last = sum(attend(&cross[1], &infrared, &middle, None)?, &infrared)?;
    apply(&last, &level.segment)
}
