//! The network's weights as the engine wants them.
//!
//! Batch norms are folded into the layers before them, the scale of the attention, with the
//! base of its exponentials, into its queries. Where two linear
//! layers meet and nothing is between, they become one, in float64:
//!
//! - in the global alignment the last projection of each cross-modal attention goes into what reads it: the
//!   reduction, or the keys and values, of the second attention;
//! - the second attention's, the level's last projection, the segmentation head's projection of the level and the
//!   level's part of the fuse convolution are one product.

use std::collections::HashMap;
use std::sync::Arc;

use rayon::prelude::*;

use super::product::{PANEL, Packed};
use super::vector::Norm;
use crate::cpu::simd;
use crate::model::{Arch, ModelConfig};
use crate::nn::{ParamId, Params};
use crate::{Error, Result, Tensor};

/// Multi-head attention up to, not including, its projection.
pub struct Attention {
    /// The queries, scaled by log₂e/√d; one for each stream, as everything here.
    pub q: Vec<Packed>,
    /// The convolution and norm that make the keys fewer.
    pub reduction: Option<(Vec<Packed>, Vec<Norm>)>,
    /// Keys and values side by side.
    pub kv: Vec<Packed>,
    /// Heads.
    pub heads: usize,
    /// The reduction of each side.
    pub sr: usize,
}

/// A depthwise 3×3 convolution in panels of 32 channels: for each panel nine taps and the bias.
pub struct Depthwise {
    /// 10·32 numbers for each panel.
    pub panels: Vec<f32>,
}

/// One transformer block of both streams.
pub struct Block {
    /// Before the attention.
    pub norm1: Vec<Norm>,
    /// The attention.
    pub attention: Arc<Attention>,
    /// Its projection.
    pub proj: Vec<Packed>,
    /// Before the Mix-FFN.
    pub norm2: Vec<Norm>,
    /// C -> hidden.
    pub fc1: Vec<Packed>,
    /// In between.
    pub depthwise: Vec<Depthwise>,
    /// hidden -> C.
    pub fc2: Vec<Packed>,
}

/// Semantic consistency inference.
pub struct Sci {
    /// The first layer's parts for either stream; the first has the bias.
    pub reduce: [Packed; 2],
    /// The second layer's weight and bias.
    pub score: (Vec<f32>, f32),
    /// λ.
    pub lambda: f32,
}

/// How statistics become the spatial weights of local alignment.
pub enum Spatial {
    /// Weight and bias of 4 -> 16 and of 16 -> 2.
    Pointwise([(Vec<f32>, Vec<f32>); 2]),
    /// Weight (2, 7, 7, 4) and bias.
    Wide(Vec<f32>, Vec<f32>),
}

/// Local alignment.
pub struct Local {
    /// Both layers of the channel weights.
    pub channel: [Packed; 2],
    /// The spatial weights.
    pub spatial: Spatial,
    /// release: the first layer's parts for either stream, and the second layer.
    pub gate: Option<([Packed; 2], Packed)>,
}

/// Global alignment.
pub struct Global {
    /// Salient enhancement of both modalities.
    pub salient: Arc<Attention>,
    /// Its projections.
    pub salient_proj: Vec<Packed>,
    /// Cross-modal attention, visible to infrared and infrared to visible.
    pub cross: [Arc<Attention>; 2],
}

/// One level.
pub struct Level {
    /// Patch embedding.
    pub embed: Vec<Packed>,
    /// Its norm.
    pub embed_norm: Vec<Norm>,
    /// The blocks.
    pub blocks: Vec<Arc<Block>>,
    /// After the blocks.
    pub norm: Vec<Norm>,
    /// Semantic consistency, if the network has it.
    pub sci: Option<Arc<Sci>>,
    /// Local alignment, if the network has it.
    pub local: Option<Arc<Local>>,
    /// Global alignment without its last projection, if the network has it.
    pub global: Option<Arc<Global>>,
    /// From what global alignment's last projection reads to the level's part of the segmentation head's hidden layer.
    pub segment: Packed,
    /// To the fusion head's channels, with the batch norm.
    pub points: Vec<Packed>,
    /// From both modalities' fusion channels to the nine taps of the fusion head's convolution.
    pub taps: Packed,
}

/// All weights.
pub struct Weights {
    /// The network's numbers.
    pub config: ModelConfig,
    /// The levels, finest first.
    pub levels: Vec<Level>,
    /// The last layer of the segmentation head.
    pub predict: Packed,
    /// The part of the fusion head's convolution that sees the two pictures, with the batch norm.
    pub pictures: Packed,
    /// The last layer of the fusion head.
    pub last: Packed,
}

/// The parameters that are packed, on the CPU.
pub enum Source<'a> {
    /// They are needed afterwards.
    Kept(&'a Params),
    /// They are not: what has been packed is freed, so that the two are never in memory together.
    Consumed(Params),
}

impl Source<'_> {
    fn params(&self) -> &Params {
        match self {
            Self::Kept(params) => params,
            Self::Consumed(params) => params,
        }
    }

    /// Frees the parameters whose names begin with `prefix`, if nobody needs them.
    fn release(&mut self, names: &Names, prefix: &str) {
        if let Self::Consumed(params) = self {
            for (_, &(id, _)) in names.iter().filter(|(name, _)| name.starts_with(prefix)) {
                *params.value_mut(id) = Tensor::zeros([0]);
            }
        }
    }
}

/// Parameter and stream of every published name.
type Names = HashMap<String, (ParamId, usize)>;

impl Weights {
    /// Packs the parameters of a network.
    ///
    /// # Errors
    /// When one is missing.
    pub fn new(mut source: Source, config: ModelConfig) -> Result<Self> {
        let published = source.params().published();
        let names: Names = published.map(|(id, stream, name)| (name.to_string(), (id, stream))).collect();
        let mut levels = Vec::with_capacity(4);
        for i in 0..4 {
            let reader = Reader { params: source.params(), names: &names, config: &config };
            let mut level = reader.level(i)?;
            for j in 0..config.depths[i] {
                let reader = Reader { params: source.params(), names: &names, config: &config };
                level.blocks.push(Arc::new(reader.block(i, j)?));
                source.release(&names, &format!("backbone.block{}.{j}.", i + 1));
            }
            levels.push(level);
        }
        let reader = Reader { params: source.params(), names: &names, config: &config };
        let predict = reader.dense("decode_head.linear_pred", 0)?.pack();
        let (pictures, last) = (reader.pictures()?, reader.dense("aux_head.CNN_fuse.3", 0)?.pack());
        Ok(Self { levels, predict, pictures, last, config })
    }
}

/// y = w·x + b in float64, w `(O, I)`.
#[derive(Clone)]
struct Dense {
    outputs: usize,
    inputs: usize,
    w: Vec<f64>,
    b: Option<Vec<f64>>,
}

impl Dense {
    /// `self` after `first`. The inputs of `self` may be several groups, each an output of `first`: the taps of a
    /// convolution without padding.
    fn after(&self, first: &Self) -> Self {
        let groups = self.inputs / first.outputs;
        let inputs = groups * first.inputs;
        let mut w = vec![0.0; self.outputs * inputs];
        w.par_chunks_exact_mut(inputs).zip(self.w.par_chunks_exact(self.inputs)).for_each(|(out, row)| {
            simd(
                #[inline(always)]
                || {
                    for (out, row) in out.chunks_exact_mut(first.inputs).zip(row.chunks_exact(first.outputs))
                    {
                        for (&factor, from) in row.iter().zip(first.w.chunks_exact(first.inputs)) {
                            for (o, f) in out.iter_mut().zip(from) {
                                *o += factor * f;
                            }
                        }
                    }
                },
            );
        });
        let mut b = self.b.clone();
        if let Some(first) = &first.b {
            let sums = b.get_or_insert_with(|| vec![0.0; self.outputs]);
            for (sum, row) in sums.iter_mut().zip(self.w.chunks_exact(self.inputs)) {
                *sum += row.iter().zip(first.iter().cycle()).map(|(w, b)| w * b).sum::<f64>();
            }
        }
        Self { outputs: self.outputs, inputs, w, b }
    }

    /// Each output times `scale`, plus `shift`.
    fn affine(mut self, scale: &[f64], shift: &[f64]) -> Self {
        let b = self.b.get_or_insert_with(|| vec![0.0; self.outputs]);
        for (o, row) in self.w.chunks_exact_mut(self.inputs).enumerate() {
            row.iter_mut().for_each(|w| *w *= scale[o]);
            b[o] = b[o] * scale[o] + shift[o];
        }
        self
    }

    /// The part that reads the inputs from `from` on, `inputs` of them; only the first part keeps the bias.
    fn part(&self, from: usize, inputs: usize) -> Self {
        let rows = self.w.chunks_exact(self.inputs);
        let w = rows.flat_map(|row| row[from..from + inputs].iter().copied()).collect();
        Self { outputs: self.outputs, inputs, w, b: self.b.clone().filter(|_| from == 0) }
    }

    fn pack(&self) -> Packed {
        let w: Vec<f32> = self.w.iter().map(|&v| v as f32).collect();
        let b: Option<Vec<f32>> = self.b.as_ref().map(|b| b.iter().map(|&v| v as f32).collect());
        Packed::new(&w, self.inputs, self.outputs, b.as_deref())
    }
}

/// Finds parameters by their published names.
struct Reader<'a> {
    params: &'a Params,
    names: &'a Names,
    config: &'a ModelConfig,
}

impl Reader<'_> {
    /// The numbers of one stream of the parameter whose first stream is called `name`.
    fn numbers(&self, name: &str, stream: usize) -> Result<&[f32]> {
        let id = self.id(name)?;
        let param = self.params.get(id);
        // The parts of the fuse convolution take the place of streams; all belong to one name.
        let len = param.value.len() / param.names.len();
        Ok(&param.value.f32()[stream * len..(stream + 1) * len])
    }

    fn id(&self, name: &str) -> Result<ParamId> {
        match self.names.get(name) {
            Some(&(id, 0)) => Ok(id),
            _ => Err(Error::Config(format!("the network has no parameter {name}"))),
        }
    }

    fn value(&self, name: &str) -> Result<&Tensor> {
        Ok(&self.params.get(self.id(name)?).value)
    }

    fn wide(&self, name: &str, stream: usize) -> Result<Vec<f64>> {
        Ok(self.numbers(name, stream)?.iter().map(|&v| f64::from(v)).collect())
    }

    fn has(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }

    /// A linear layer or a convolution.
    fn dense(&self, name: &str, stream: usize) -> Result<Dense> {
        let weight = format!("{name}.weight");
        let w = self.wide(&weight, stream)?;
        let outputs = self.value(&weight)?.dim(1);
        let bias = format!("{name}.bias");
        let b = if self.has(&bias) { Some(self.wide(&bias, stream)?) } else { None };
        Ok(Dense { outputs, inputs: w.len() / outputs, w, b })
    }

    /// A linear layer or a convolution of both streams, as it is.
    fn packed(&self, name: &str) -> Result<Vec<Packed>> {
        let (weight, bias) = (format!("{name}.weight"), format!("{name}.bias"));
        let outputs = self.value(&weight)?.dim(1);
        (0..self.streams(&weight)?)
            .map(|s| {
                let w = self.numbers(&weight, s)?;
                let b = if self.has(&bias) { Some(self.numbers(&bias, s)?) } else { None };
                Ok(Packed::new(w, w.len() / outputs, outputs, b))
            })
            .collect()
    }

    fn streams(&self, name: &str) -> Result<usize> {
        Ok(self.params.get(self.id(name)?).names.len())
    }

    fn norm(&self, name: &str, eps: f32) -> Result<Vec<Norm>> {
        let (weight, bias) = (format!("{name}.weight"), format!("{name}.bias"));
        (0..self.streams(&weight)?)
            .map(|s| {
                let (weight, bias) = (self.numbers(&weight, s)?.to_vec(), self.numbers(&bias, s)?.to_vec());
                Ok(Norm { weight, bias, eps })
            })
            .collect()
    }

    /// A batch norm as scale and shift.
    fn batch_norm(&self, name: &str, stream: usize) -> Result<(Vec<f64>, Vec<f64>)> {
        let read = |leaf: &str| self.wide(&format!("{name}.{leaf}"), stream);
        let (weight, bias, mean, variance) =
            (read("weight")?, read("bias")?, read("running_mean")?, read("running_var")?);
        let eps = f64::from(self.config.bn_eps);
        let scale: Vec<f64> = weight.iter().zip(&variance).map(|(w, v)| w / (v + eps).sqrt()).collect();
        let shift = (0..scale.len()).map(|i| bias[i] - mean[i] * scale[i]).collect();
        Ok((scale, shift))
    }

    /// The attention `name` of a level whose layers are called `q` and `kv`, its source the output of `before`.
    fn attention(
        &self,
        name: &str,
        [q, kv]: [&str; 2],
        level: usize,
        before: Option<&Dense>,
    ) -> Result<Arc<Attention>> {
        let (dim, heads, sr) = (self.config.dims[level], self.config.heads[level], self.config.sr[level]);
        // Scores come in units of ln 2, so that the softmax is made of powers of two.
        let scale = vec![((dim / heads) as f64).powf(-0.5) * std::f64::consts::LOG2_E; dim];
        let streams = self.streams(&format!("{name}.{q}.weight"))?;
        let source = |layer: Dense| before.map_or_else(|| layer.clone(), |before| layer.after(before)).pack();
        let queries = |s| Ok(self.dense(&format!("{name}.{q}"), s)?.affine(&scale, &vec![0.0; dim]).pack());
        let q = (0..streams).map(queries).collect::<Result<_>>()?;
        let (reduction, kv) = if sr > 1 {
            let convs = (0..streams).map(|s| Ok(source(self.dense(&format!("{name}.sr"), s)?)));
            let reduction = (convs.collect::<Result<_>>()?, self.norm(&format!("{name}.norm"), 1e-5)?);
            (Some(reduction), self.packed(&format!("{name}.{kv}"))?)
        } else {
            let all = (0..streams).map(|s| Ok(source(self.dense(&format!("{name}.{kv}"), s)?)));
            (None, all.collect::<Result<_>>()?)
        };
        Ok(Arc::new(Attention { q, reduction, kv, heads, sr }))
    }

    fn block(&self, level: usize, index: usize) -> Result<Block> {
        let name = format!("backbone.block{}.{index}", level + 1);
        let at = |leaf: &str| format!("{name}.{leaf}");
        Ok(Block {
            norm1: self.norm(&at("norm1"), 1e-6)?,
            attention: self.attention(&at("attn"), ["q", "kv"], level, None)?,
            proj: self.packed(&at("attn.proj"))?,
            norm2: self.norm(&at("norm2"), 1e-6)?,
            fc1: self.packed(&at("mlp.fc1"))?,
            depthwise: (0..2).map(|s| self.depthwise(&at("mlp.dwconv.dwconv"), s)).collect::<Result<_>>()?,
            fc2: self.packed(&at("mlp.fc2"))?,
        })
    }

    fn depthwise(&self, name: &str, stream: usize) -> Result<Depthwise> {
        let weight = self.numbers(&format!("{name}.weight"), stream)?;
        let bias = self.numbers(&format!("{name}.bias"), stream)?;
        let c = bias.len();
        let mut panels = vec![0.0; c.div_ceil(PANEL) * 10 * PANEL];
        for (tap, numbers) in weight.chunks_exact(c).chain([bias]).enumerate() {
            for (i, &v) in numbers.iter().enumerate() {
                panels[(i / PANEL * 10 + tap) * PANEL + i % PANEL] = v;
            }
        }
        Ok(Depthwise { panels })
    }

    /// A linear layer that reads both streams side by side, as a product with each.
    fn halves(&self, name: &str) -> Result<[Packed; 2]> {
        let layer = self.dense(name, 0)?;
        let half = layer.inputs / 2;
        Ok([layer.part(0, half).pack(), layer.part(half, half).pack()])
    }

    fn sci(&self, level: usize) -> Result<Sci> {
        let name = format!("backbone.sci_{}", level + 1);
        let score = self.numbers(&format!("{name}.mlp.2.weight"), 0)?.to_vec();
        Ok(Sci {
            reduce: self.halves(&format!("{name}.mlp.0"))?,
            score: (score, self.numbers(&format!("{name}.mlp.2.bias"), 0)?[0]),
            lambda: self.numbers(&format!("{name}.lambda_param"), 0)?[0],
        })
    }

    fn local(&self, level: usize) -> Result<Local> {
        let name = format!("backbone.LEs.{level}");
        let at = |leaf: &str| format!("{name}.{leaf}");
        let layer = |leaf: &str| -> Result<(Vec<f32>, Vec<f32>)> {
            let read = |what: &str| Ok(self.numbers(&format!("{name}.{leaf}.{what}"), 0)?.to_vec());
            Ok((read("weight")?, read("bias")?))
        };
        let (spatial, gate) = match self.config.arch {
            Arch::Release => (
                Spatial::Pointwise([layer("fuse_sc.sap.mlp.0")?, layer("fuse_sc.sap.mlp.2")?]),
                Some((self.halves(&at("gate.0"))?, self.dense(&at("gate.2"), 0)?.pack())),
            ),
            Arch::Paper => {
                let (weight, bias) = layer("fuse_sc.sap.mlp.0")?;
                (Spatial::Wide(weight, bias), None)
            }
        };
        let channel = [
            self.dense(&at("fuse_sc.cha.mlp.0"), 0)?.pack(),
            self.dense(&at("fuse_sc.cha.mlp.2"), 0)?.pack(),
        ];
        Ok(Local { channel, spatial, gate })
    }

    /// A level without its blocks.
    fn level(&self, i: usize) -> Result<Level> {
        let project = self.dense(&format!("backbone.GEs.{i}.proj"), 0)?;
        let last = format!("backbone.GEs.{i}.CM_x2toX1.proj");
        let has = |name: &str| self.has(&format!("backbone.{name}"));
        let (global, project) = match has(&format!("GEs.{i}.CM_x2toX1.proj.weight")) {
            true => (Some(Arc::new(self.global(i)?)), project.after(&self.dense(&last, 0)?)),
            false => (None, project),
        };
        let sci = has(&format!("sci_{}.lambda_param", i + 1)).then(|| self.sci(i));
        let local = has(&format!("LEs.{i}.fuse_sc.cha.mlp.0.weight")).then(|| self.local(i));
        Ok(Level {
            embed: self.packed(&format!("backbone.patch_embed{}.proj", i + 1))?,
            embed_norm: self.norm(&format!("backbone.patch_embed{}.norm", i + 1), 1e-5)?,
            blocks: Vec::new(),
            norm: self.norm(&format!("backbone.norm{}", i + 1), 1e-6)?,
            sci: sci.transpose()?.map(Arc::new),
            local: local.transpose()?.map(Arc::new),
            global,
            segment: self.segment(i, &project)?.pack(),
            points: (0..2).map(|s| Ok(self.point(i, s)?.pack())).collect::<Result<_>>()?,
            taps: self.taps(i)?.pack(),
        })
    }

    fn global(&self, level: usize) -> Result<Global> {
        let at = |leaf: &str| format!("backbone.GEs.{level}.{leaf}");
        let cross = ["q1", "kv2"];
        let middle = self.dense(&at("CM_x1toX2.proj"), 0)?;
        Ok(Global {
            salient: self.attention(&at("SE_x1"), ["q", "kv"], level, None)?,
            salient_proj: self.packed(&at("SE_x1.proj"))?,
            cross: [
                self.attention(&at("CM_x1toX2"), cross, level, None)?,
                self.attention(&at("CM_x2toX1"), cross, level, Some(&middle))?,
            ],
        })
    }

    /// From what `fused` makes the level's fused map of to the hidden layer of the segmentation head. The finest level brings the biases of the whole.
    fn segment(&self, level: usize, fused: &Dense) -> Result<Dense> {
        let d = self.config.decoder_dim;
        let fuse = self.wide("decode_head.linear_fuse.0.weight", 0)?;
        // The concatenation is in the order 4, 3, 2, 1.
        let w = fuse[(3 - level) * d * d..(4 - level) * d * d].to_vec();
        let b = if level == 0 { Some(self.wide("decode_head.linear_fuse.0.bias", 0)?) } else { None };
        let (scale, shift) = self.batch_norm("decode_head.linear_fuse.1", 0)?;
        let none = vec![0.0; d];
        let part =
            Dense { outputs: d, inputs: d, w, b }.affine(&scale, if level == 0 { &shift } else { &none });
        let project = self.dense(&format!("decode_head.linear_c{}.proj", level + 1), 0)?;
        Ok(part.after(&project.after(fused)))
    }

    fn point(&self, level: usize, stream: usize) -> Result<Dense> {
        let name = format!("aux_head.PointConv_{}_rgb.pconv", level + 1);
        let (scale, shift) = self.batch_norm(&format!("{name}.1"), stream)?;
        Ok(self.dense(&format!("{name}.0"), stream)?.affine(&scale, &shift))
    }

    /// The fusion head's convolution as a product for each tap: output (tap, channel) from `inputs` channels from
    /// `from` on, batch norm folded, without biases.
    fn tap_products(&self, from: usize, inputs: usize) -> Result<Dense> {
        let (scale, _) = self.batch_norm("aux_head.CNN_fuse.1", 0)?;
        let (o, weight) = (scale.len(), self.numbers("aux_head.CNN_fuse.0.weight", 0)?);
        let all = weight.len() / (9 * o);
        let mut w = Vec::with_capacity(9 * o * inputs);
        for (tap, output) in (0..9).flat_map(|tap| (0..o).map(move |output| (tap, output))) {
            let row = &weight[(output * 9 + tap) * all + from..][..inputs];
            w.extend(row.iter().map(|&v| f64::from(v) * scale[output]));
        }
        Ok(Dense { outputs: 9 * o, inputs, w, b: None })
    }

    fn taps(&self, level: usize) -> Result<Dense> {
        let both = 2 * self.config.fusion_dim;
        self.tap_products(level * both, both)
    }

    /// The 3×3 convolution of both pictures: patches (tap, channel) of 9·6 numbers -> channels of the fusion head.
    fn pictures(&self) -> Result<Packed> {
        let o = self.config.fusion_dim;
        let by_tap = self.tap_products(8 * o, 6)?;
        let mut w = vec![0.0; by_tap.w.len()];
        for (i, &v) in by_tap.w.iter().enumerate() {
            let (tap, output, channel) = (i / 6 / o, i / 6 % o, i % 6);
            w[output * 54 + tap * 6 + channel] = v;
        }
        let (scale, shift) = self.batch_norm("aux_head.CNN_fuse.1", 0)?;
        let bias = self.wide("aux_head.CNN_fuse.0.bias", 0)?;
        let b = (0..o).map(|i| bias[i] * scale[i] + shift[i]).collect();
        Ok(Dense { outputs: o, inputs: 54, w, b: Some(b) }.pack())
    }
}
