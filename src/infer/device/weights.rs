//! The packed weights on a device: row-major, in the type of its products, both streams one after the other.

use crate::cuda;
use crate::infer::pack::{self, Spatial};
use crate::infer::product::{PANEL, Packed};
use crate::infer::vector;
use crate::model::ModelConfig;
use crate::{DType, Device, Result, Tensor};

/// A linear layer or a convolution.
pub struct Linear {
    /// `(S, outputs, inputs)`; a convolution's inputs are followed by zeros up to a multiple of 16 bytes.
    pub weight: Tensor,
    /// `(S, outputs)`.
    pub bias: Option<Tensor>,
}

/// A layer norm, float32 `(S, C)`.
pub struct Norm {
    /// Factors.
    pub weight: Tensor,
    /// Offsets.
    pub bias: Tensor,
    /// ε under the root.
    pub eps: f32,
}

/// As [`pack::Attention`].
pub struct Attention {
    /// The queries, scaled by log₂e/√d.
    pub q: Linear,
    /// What makes the keys fewer.
    pub reduction: Option<(Linear, Norm)>,
    /// Keys and values side by side.
    pub kv: Linear,
    /// Heads.
    pub heads: usize,
    /// The reduction of each side.
    pub sr: usize,
}

/// As [`pack::Block`].
pub struct Block {
    /// Before the attention.
    pub norm1: Norm,
    /// The attention.
    pub attention: Attention,
    /// Its projection.
    pub proj: Linear,
    /// Before the Mix-FFN.
    pub norm2: Norm,
    /// C -> hidden.
    pub fc1: Linear,
    /// The 3×3 convolution in between: `(S, 3, 3, hidden)` and `(S, hidden)`.
    pub depthwise: [Tensor; 2],
    /// hidden -> C.
    pub fc2: Linear,
}

/// As [`pack::Sci`].
pub struct Sci {
    /// The first layer's parts for either stream.
    pub reduce: [Linear; 2],
    /// The second layer's weight, float32 `(C)`, and bias.
    pub score: (Tensor, f32),
    /// λ.
    pub lambda: f32,
}

/// As [`pack::Local`].
pub struct Local {
    /// Both layers of the channel weights.
    pub channel: [Linear; 2],
    /// The spatial weights as `cuda::spatial` wants them.
    pub spatial: Tensor,
    /// Whether they are a 7×7 convolution.
    pub wide: bool,
    /// release: the first layer's parts for either stream, and the second layer.
    pub gate: Option<([Linear; 2], Linear)>,
}

/// As [`pack::Global`].
pub struct Global {
    /// Salient enhancement.
    pub salient: Attention,
    /// Its projections.
    pub salient_proj: Linear,
    /// Cross-modal attention in both directions.
    pub cross: [Attention; 2],
}

/// As [`pack::Level`].
pub struct Level {
    /// Patch embedding.
    pub embed: Linear,
    /// Its norm.
    pub embed_norm: Norm,
    /// The blocks.
    pub blocks: Vec<Block>,
    /// After the blocks.
    pub norm: Norm,
    /// Semantic consistency.
    pub sci: Option<Sci>,
    /// Local alignment.
    pub local: Option<Local>,
    /// Global alignment.
    pub global: Option<Global>,
    /// To the segmentation head's hidden layer.
    pub segment: Linear,
    /// To the fusion head's channels.
    pub points: Linear,
    /// To the taps of its convolution.
    pub taps: Linear,
}

/// As [`pack::Weights`].
pub struct Weights {
    /// The network's numbers.
    pub config: ModelConfig,
    /// The levels, finest first.
    pub levels: Vec<Level>,
    /// The last layer of the segmentation head, with outputs of zeros up to a multiple of 16 bytes.
    pub predict: Linear,
    /// The end of the fusion head as `cuda::fuse` wants it.
    pub fuse: Tensor,
}

/// Takes packed weights to a device.
struct Mover<'a> {
    device: &'a Device,
    dtype: DType,
}

impl Weights {
    /// Copies `packed` to `device`, in `dtype`.
    ///
    /// # Errors
    /// When the device has not enough memory, or reports another error.
    pub fn new(packed: &pack::Weights, device: &Device, dtype: DType) -> Result<Self> {
        let mover = Mover { device, dtype };
        Ok(Self {
            levels: packed.levels.iter().map(|level| mover.level(level)).collect::<Result<_>>()?,
            predict: mover.padded(std::slice::from_ref(&packed.predict), (mover.lanes(), 1))?,
            fuse: mover.fuse(packed)?,
            config: packed.config.clone(),
        })
    }
}

impl Mover<'_> {
    /// Numbers in 16 bytes.
    fn lanes(&self) -> usize {
        16 / self.dtype.size()
    }

    fn floats(&self, shape: impl Into<crate::Shape>, numbers: &[f32]) -> Result<Tensor> {
        Tensor::from_slice(shape, numbers)?.to(self.device)
    }

    fn typed(&self, shape: impl Into<crate::Shape>, numbers: &[f32]) -> Result<Tensor> {
        Tensor::from_slice(shape, numbers)?.cast(self.dtype)?.to(self.device)
    }

    fn linear(&self, streams: &[Packed]) -> Result<Linear> {
        self.padded(streams, (1, 1))
    }

    fn conv(&self, streams: &[Packed]) -> Result<Linear> {
        self.padded(streams, (1, self.lanes()))
    }

    fn one(&self, layer: &Packed) -> Result<Linear> {
        self.linear(std::slice::from_ref(layer))
    }

    fn two(&self, [a, b]: &[Packed; 2]) -> Result<[Linear; 2]> {
        Ok([self.one(a)?, self.one(b)?])
    }

    /// With zeros up to multiples of these numbers of outputs and inputs.
    fn padded(&self, streams: &[Packed], (outputs, inputs): (usize, usize)) -> Result<Linear> {
        let (k, n) = (streams[0].k(), streams[0].n());
        let (row, rows) = (k.next_multiple_of(inputs), n.next_multiple_of(outputs));
        let mut weight = vec![0.0; streams.len() * rows * row];
        let mut bias = streams[0].view().bias.map(|_| vec![0.0; streams.len() * rows]);
        for (s, layer) in streams.iter().enumerate() {
            let view = layer.view();
            for (j, row) in weight[s * rows * row..].chunks_exact_mut(row).take(n).enumerate() {
                row.iter_mut().take(k).enumerate().for_each(|(i, v)| *v = view.number(i, j));
            }
            if let (Some(bias), Some(from)) = (&mut bias, view.bias) {
                bias[s * rows..][..n].copy_from_slice(&from[..n]);
            }
        }
        let bias = bias.map(|bias| self.typed([streams.len(), rows], &bias)).transpose()?;
        Ok(Linear { weight: self.typed([streams.len(), rows, row], &weight)?, bias })
    }

    fn norm(&self, streams: &[vector::Norm]) -> Result<Norm> {
        let shape = [streams.len(), streams[0].weight.len()];
        let all = |part: fn(&vector::Norm) -> &[f32]| -> Vec<f32> {
            streams.iter().flat_map(|norm| part(norm).iter().copied()).collect()
        };
        Ok(Norm {
            weight: self.floats(shape, &all(|norm| &norm.weight))?,
            bias: self.floats(shape, &all(|norm| &norm.bias))?,
            eps: streams[0].eps,
        })
    }

    fn attention(&self, packed: &pack::Attention) -> Result<Attention> {
        let reduction =
            packed.reduction.as_ref().map(|(conv, norm)| Ok((self.conv(conv)?, self.norm(norm)?)));
        Ok(Attention {
            q: self.linear(&packed.q)?,
            reduction: reduction.transpose()?,
            kv: self.linear(&packed.kv)?,
            heads: packed.heads,
            sr: packed.sr,
        })
    }

    fn block(&self, packed: &pack::Block) -> Result<Block> {
        let (streams, c) = (packed.depthwise.len(), packed.fc1[0].n());
        // Nine taps, then the bias.
        let number = |s: usize, tap: usize, channel: usize| {
            packed.depthwise[s].panels[(channel / PANEL * 10 + tap) * PANEL + channel % PANEL]
        };
        let number = &number;
        let taps: Vec<f32> = (0..streams)
            .flat_map(|s| (0..9).flat_map(move |tap| (0..c).map(move |channel| number(s, tap, channel))))
            .collect();
        let bias: Vec<f32> =
            (0..streams).flat_map(|s| (0..c).map(move |channel| number(s, 9, channel))).collect();
        Ok(Block {
            norm1: self.norm(&packed.norm1)?,
            attention: self.attention(&packed.attention)?,
            proj: self.linear(&packed.proj)?,
            norm2: self.norm(&packed.norm2)?,
            fc1: self.linear(&packed.fc1)?,
            depthwise: [self.typed([streams, 3, 3, c], &taps)?, self.typed([streams, c], &bias)?],
            fc2: self.linear(&packed.fc2)?,
        })
    }

    fn sci(&self, packed: &pack::Sci) -> Result<Sci> {
        let (weight, bias) = &packed.score;
        let score = (self.floats([weight.len()], weight)?, *bias);
        Ok(Sci { reduce: self.two(&packed.reduce)?, score, lambda: packed.lambda })
    }

    fn local(&self, packed: &pack::Local) -> Result<Local> {
        let (numbers, wide) = match &packed.spatial {
            Spatial::Pointwise([(w1, b1), (w2, b2)]) => ([&w1[..], b1, w2, b2].concat(), false),
            Spatial::Wide(w, b) => ([&w[..], b].concat(), true),
        };
        let gate = packed.gate.as_ref().map(|(first, second)| Ok((self.two(first)?, self.one(second)?)));
        Ok(Local {
            channel: self.two(&packed.channel)?,
            spatial: self.floats([numbers.len()], &numbers)?,
            wide,
            gate: gate.transpose()?,
        })
    }

    fn global(&self, packed: &pack::Global) -> Result<Global> {
        let [to_infrared, to_visible] = &packed.cross;
        Ok(Global {
            salient: self.attention(&packed.salient)?,
            salient_proj: self.linear(&packed.salient_proj)?,
            cross: [self.attention(to_infrared)?, self.attention(to_visible)?],
        })
    }

    fn level(&self, packed: &pack::Level) -> Result<Level> {
        Ok(Level {
            embed: self.conv(&packed.embed)?,
            embed_norm: self.norm(&packed.embed_norm)?,
            blocks: packed.blocks.iter().map(|block| self.block(block)).collect::<Result<_>>()?,
            norm: self.norm(&packed.norm)?,
            sci: packed.sci.as_ref().map(|sci| self.sci(sci)).transpose()?,
            local: packed.local.as_ref().map(|local| self.local(local)).transpose()?,
            global: packed.global.as_ref().map(|global| self.global(global)).transpose()?,
            segment: self.one(&packed.segment)?,
            points: self.linear(&packed.points)?,
            taps: self.one(&packed.taps)?,
        })
    }

    fn fuse(&self, packed: &pack::Weights) -> Result<Tensor> {
        let (pictures, last) = (packed.pictures.view(), packed.last.view());
        let o = pictures.n;
        let mut numbers = Vec::with_capacity(cuda::fuse::weights_len(o));
        for i in 0..pictures.k {
            numbers.extend((0..o).map(|j| pictures.number(i, j)));
        }
        numbers.extend((0..o).map(|j| pictures.bias.map_or(0.0, |bias| bias[j])));
        for colour in 0..last.n {
            numbers.extend((0..o).map(|i| last.number(i, colour)));
        }
        numbers.extend((0..last.n).map(|colour| last.bias.map_or(0.0, |bias| bias[colour])));
        self.floats([numbers.len()], &numbers)
    }
}
