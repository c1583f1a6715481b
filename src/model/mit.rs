//! The encoder: two SegFormer MiT streams with separate weights, computed side by side on the stream axis.

use super::config::ModelConfig;
use crate::nn::{Conv, DepthwiseGelu, LayerNorm, Linear, Pass, Scope, fan_out};
use crate::ops::{self, Window};
use crate::{Result, Tensor, Var};

/// Multi-head attention whose keys and values come from a spatially reduced map.
pub struct ReducedAttention {
    q: Linear,
    kv: Linear,
    reduction: Option<(Conv, LayerNorm)>,
    proj: Linear,
    heads: usize,
}

impl ReducedAttention {
    /// `bias` is for q and kv; `names` are their published names.
    pub fn new(
        scope: &mut Scope,
        (dim, heads, sr): (usize, usize, usize),
        bias: bool,
        names: [&str; 2],
    ) -> Self {
        Self {
            q: Linear::new(&mut scope.child(names[0]), dim, dim, bias),
            kv: Linear::new(&mut scope.child(names[1]), dim, 2 * dim, bias),
            proj: Linear::new(&mut scope.child("proj"), dim, dim, true),
            reduction: (sr > 1).then(|| {
                let window = Window { stride: sr, padding: 0 };
                let conv = Conv::new(&mut scope.child("sr"), dim, dim, sr, window, fan_out(dim, sr));
                (conv, LayerNorm::new(&mut scope.child("norm"), dim, 1e-5))
            }),
            heads,
        }
    }

    /// softmax(q·kᵀ/√d)·v with q from `query` and k, v from `source`, both `(S, B, H, W, C)`; of the same shape.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn attend(&self, pass: &mut Pass, query: &Var, source: &Var) -> Result<Var> {
        let shape = query.shape();
        let [s, b, c] = [shape[0], shape[1], shape.last()];
        let q = self.q.forward(pass, query)?;
        let kv = match &self.reduction {
            Some((conv, norm)) => {
                let reduced = conv.forward(pass, source)?;
                let reduced = norm.forward(pass, &reduced)?;
                self.kv.forward(pass, &reduced)?
            }
            None => self.kv.forward(pass, source)?,
        };
        let tape = &mut pass.tape;
        let q = ops::reshape(tape, &q, [s, b, shape[2] * shape[3], c])?;
        let kv = ops::reshape(tape, &kv, [s, b, kv.shape()[2] * kv.shape()[3], 2 * c])?;
        let y = ops::attention(tape, &q, &kv, self.heads)?;
        ops::reshape(tape, &y, shape)
    }

    /// proj(y).
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn project(&self, pass: &mut Pass, y: &Var) -> Result<Var> {
        self.proj.forward(pass, y)
    }
}

/// One transformer block: attention, then Mix-FFN, each behind a norm and in a residual branch.
struct Block {
    norm1: LayerNorm,
    attention: ReducedAttention,
    norm2: LayerNorm,
    fc1: Linear,
    dwconv: DepthwiseGelu,
    fc2: Linear,
    /// Drop path rate of each stream.
    drop_path: [f32; 2],
}

impl Block {
    fn new(scope: &mut Scope, config: &ModelConfig, level: usize, drop_path: [f32; 2]) -> Self {
        let dim = config.dims[level];
        let hidden = dim * config.mlp_ratio;
        let attention = (dim, config.heads[level], config.sr[level]);
        Self {
            norm1: LayerNorm::new(&mut scope.child("norm1"), dim, 1e-6),
            attention: ReducedAttention::new(&mut scope.child("attn"), attention, true, ["q", "kv"]),
            norm2: LayerNorm::new(&mut scope.child("norm2"), dim, 1e-6),
            fc1: Linear::new(&mut scope.child("mlp.fc1"), dim, hidden, true),
            dwconv: DepthwiseGelu::new(&mut scope.child("mlp.dwconv.dwconv"), hidden),
            fc2: Linear::new(&mut scope.child("mlp.fc2"), hidden, dim, true),
            drop_path,
        }
    }

    fn forward(&self, pass: &mut Pass, x: Var) -> Result<Var> {
        let normed = self.norm1.forward(pass, &x)?;
        let y = self.attention.attend(pass, &normed, &normed)?;
        drop(normed);
        let x = self.residual(pass, x, &self.attention.proj, y)?;
        let normed = self.norm2.forward(pass, &x)?;
        let hidden = self.fc1.forward(pass, &normed)?;
        drop(normed);
        let y = self.dwconv.forward(pass, &hidden)?;
        drop(hidden);
        self.residual(pass, x, &self.fc2, y)
    }

    /// x + last(y), the branch dropped for some samples while training.
    fn residual(&self, pass: &mut Pass, x: Var, last: &Linear, y: Var) -> Result<Var> {
        let factors = match pass.draw() {
            Some((seed, stream)) if self.drop_path != [0.0; 2] => {
                ops::drop_path_factors(pass.device(), x.shape()[1], self.drop_path, seed, stream)?
            }
            _ => return last.forward_add(pass, &y, &x),
        };
        let branch = last.forward(pass, &y)?;
        ops::drop_path(&mut pass.tape, &x, &branch, &factors)
    }
}

/// One level of both streams.
pub struct Stage {
    patch_embed: Conv,
    embed_norm: LayerNorm,
    blocks: Vec<Block>,
    norm: LayerNorm,
}

impl Stage {
    /// Level `level`, counted from 0, below `backbone`.
    pub fn new(backbone: &mut Scope, config: &ModelConfig, level: usize) -> Self {
        let dim = config.dims[level];
        let (inputs, k, stride) = if level == 0 { (3, 7, 4) } else { (config.dims[level - 1], 3, 2) };
        let window = Window { stride, padding: k / 2 };
        let name = |what: &str| [format!("{what}{}", level + 1), format!("extra_{what}{}", level + 1)];
        let [visible, infrared] = name("patch_embed");
        let mut embed = backbone.streams(visible, infrared);
        let patch_embed = Conv::new(&mut embed.child("proj"), inputs, dim, k, window, fan_out(dim, k));
        let embed_norm = LayerNorm::new(&mut embed.child("norm"), dim, 1e-5);
        let [visible, infrared] = name("block");
        let mut scope = backbone.streams(visible, infrared);
        let blocks = (0..config.depths[level])
            .map(|i| Block::new(&mut scope.child(i), config, level, drop_path_rates(config, level, i)))
            .collect();
        let [visible, infrared] = name("norm");
        let norm = LayerNorm::new(&mut backbone.streams(visible, infrared), dim, 1e-6);
        Self { patch_embed, embed_norm, blocks, norm }
    }

    /// Patch embedding: `(2, B, H, W, I)` -> `(2, B, H', W', C)`.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn embed(&self, pass: &mut Pass, x: &Var) -> Result<Var> {
        let x = self.patch_embed.forward(pass, x)?;
        self.embed_norm.forward(pass, &x)
    }

    /// The blocks of the level and its last norm.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn blocks<'a>(&'a self, pass: &mut Pass<'a>, mut x: Var) -> Result<Var> {
        for block in &self.blocks {
            x = pass.recomputed(x, |pass, x| block.forward(pass, x))?;
        }
        self.norm.forward(pass, &x)
    }
}

/// Drop path rises linearly over all blocks in order. In release all level-2 visible blocks use the rate of their
/// level's first block, and all level-2 infrared blocks that of its second.
fn drop_path_rates(config: &ModelConfig, level: usize, block: usize) -> [f32; 2] {
    let total: usize = config.depths.iter().sum();
    let before: usize = config.depths[..level].iter().sum();
    let rate = |index: usize| config.drop_path * index as f32 / (total.max(2) - 1) as f32;
    match (config.arch, level) {
        (super::Arch::Release, 1) => [rate(before), rate((before + 1).min(total - 1))],
        _ => [rate(before + block); 2],
    }
}

/// Both modalities as the two streams of one tensor: `(1, B, H, W, 3)` twice -> `(2, B, H, W, 3)`.
///
/// # Errors
/// When the shapes differ.
pub fn stack(visible: &Tensor, infrared: &Tensor) -> Result<Tensor> {
    let shape = visible.shape();
    if shape != infrared.shape() || shape.rank() != 5 || shape[0] != 1 {
        let shapes = [shape, infrared.shape()];
        return Err(crate::Error::shape("stack", "both pictures must be (1, B, H, W, 3)", &shapes));
    }
    Tensor::concat(&[visible, infrared])
}
