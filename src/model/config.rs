//! The network's numbers.

use serde::{Deserialize, Serialize};

use super::SMALLEST_SIDE;
use crate::{Error, Result};

/// Which of the two published forms of the network is computed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Arch {
    /// What the authors' published checkpoints were trained with.
    #[default]
    Release,
    /// The equations of the paper as printed.
    Paper,
}

/// The size of the two encoder streams.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names of the published sizes; nano is for tests and the demonstration")]
pub enum Encoder {
    Nano,
    B0,
    B1,
    B2,
    B3,
    #[default]
    B4,
    B5,
}

impl Encoder {
    /// All sizes, smallest first.
    pub const ALL: [Self; 7] = [Self::Nano, Self::B0, Self::B1, Self::B2, Self::B3, Self::B4, Self::B5];

    /// The name: `nano`, `b0`, …, `b5`.
    pub fn name(self) -> &'static str {
        ["nano", "b0", "b1", "b2", "b3", "b4", "b5"][self as usize]
    }
}

impl std::fmt::Display for Arch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Release => "release",
            Self::Paper => "paper",
        })
    }
}

impl std::fmt::Display for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Every number that the network's shape and arithmetic depend on. The arrays are by level, finest first.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    /// `release` or `paper`.
    pub arch: Arch,
    /// Number of classes.
    pub classes: usize,
    /// Channels.
    pub dims: [usize; 4],
    /// Attention heads.
    pub heads: [usize; 4],
    /// Transformer blocks.
    pub depths: [usize; 4],
    /// Spatial reduction of keys and values.
    pub sr: [usize; 4],
    /// Hidden channels of a Mix-FFN over its channels.
    pub mlp_ratio: usize,
    /// Channels D of the segmentation head.
    pub decoder_dim: usize,
    /// Channels of the fusion head.
    pub fusion_dim: usize,
    /// Whether there is semantic consistency inference. Without it the streams pass on as they are; in release they
    /// are not exchanged then.
    pub sci: bool,
    /// Whether there is local alignment. Without it the streams pass on as they are.
    pub local_alignment: bool,
    /// Whether there is global alignment. Without it the fused features are the module's last projection of the sum of
    /// both streams.
    pub global_alignment: bool,
    /// Similarity threshold τ of the paper's gate (eq. 1).
    pub tau: f32,
    /// ε of the batch norms.
    pub bn_eps: f32,
    /// Momentum of the batch norms' running statistics.
    pub bn_momentum: f32,
    /// Drop path rate of the last block; the blocks before it rise to it linearly from 0.
    pub drop_path: f32,
    /// Channel dropout before the last layer of the segmentation head.
    pub dropout: f32,
}

/// Far above b5; numbers beyond it are a mistake, or a file that means harm.
const MOST_PARAMETERS: f64 = 2e9;

impl Default for ModelConfig {
    fn default() -> Self {
        Self::new(Encoder::default(), Arch::default(), 9)
    }
}

impl ModelConfig {
    /// The published numbers of a size.
    pub fn new(encoder: Encoder, arch: Arch, classes: usize) -> Self {
        let nano = encoder == Encoder::Nano;
        Self {
            arch,
            classes,
            dims: match encoder {
                Encoder::Nano => [16, 32, 64, 128],
                Encoder::B0 => [32, 64, 160, 256],
                _ => [64, 128, 320, 512],
            },
            heads: if nano { [1, 2, 4, 8] } else { [1, 2, 5, 8] },
            depths: match encoder {
                Encoder::Nano => [1, 1, 2, 1],
                Encoder::B0 | Encoder::B1 => [2, 2, 2, 2],
                Encoder::B2 => [3, 4, 6, 3],
                Encoder::B3 => [3, 4, 18, 3],
                Encoder::B4 => [3, 8, 27, 3],
                Encoder::B5 => [3, 6, 40, 3],
            },
            sr: [8, 4, 2, 1],
            mlp_ratio: if nano { 2 } else { 4 },
            decoder_dim: if nano { 32 } else { 512 },
            fusion_dim: 16,
            sci: true,
            local_alignment: true,
            global_alignment: true,
            tau: 0.4,
            bn_eps: 1e-5,
            bn_momentum: 0.1,
            drop_path: 0.1,
            dropout: 0.1,
        }
    }

    /// The named size with these dims and depths, if there is one.
    pub fn encoder(&self) -> Option<Encoder> {
        Encoder::ALL.into_iter().find(|&e| {
            let named = Self::new(e, self.arch, self.classes);
            (named.dims, named.depths, named.heads, named.sr, named.mlp_ratio)
                == (self.dims, self.depths, self.heads, self.sr, self.mlp_ratio)
        })
    }

    /// A lower bound of the number of parameters, within a factor of two: the large matrices alone. In floating point,
    /// so that no number overflows it.
    pub fn parameters_at_least(&self) -> f64 {
        let [ratio, decoder, fusion] = [self.mlp_ratio, self.decoder_dim, self.fusion_dim].map(|n| n as f64);
        let global = if self.global_alignment { 4.0 } else { 0.0 };
        let level = |i: usize| {
            let [dim, depth, sr] = [self.dims[i], self.depths[i], self.sr[i]].map(|n| n as f64);
            let reduction = if self.sr[i] > 1 { sr * sr } else { 0.0 };
            let attention = (4.0 + reduction) * dim * dim;
            2.0 * depth * (attention + 2.0 * ratio * dim * dim) + global * attention + dim * decoder
        };
        (0..4).map(level).sum::<f64>() + 4.0 * decoder * decoder + 72.0 * fusion * fusion
    }

    /// The parts that were left out, in words.
    pub fn left_out(&self) -> Vec<&'static str> {
        let parts = [
            (self.sci, "semantic consistency inference"),
            (self.local_alignment, "local alignment"),
            (self.global_alignment, "global alignment"),
        ];
        parts.into_iter().filter(|(there, _)| !there).map(|(_, name)| name).collect()
    }

    /// The name of its size, `custom` when it is none of the named ones.
    pub fn encoder_name(&self) -> &'static str {
        self.encoder().map_or("custom", Encoder::name)
    }

    /// Checks what the layers rely on.
    ///
    /// # Errors
    /// Names the first number that cannot be used.
    pub fn validate(&self) -> Result<()> {
        let fail = |what: String| Err(Error::Config(what));
        if !(1..=255).contains(&self.classes) {
            return fail(format!("classes = {}: must be 1 to 255 (255 marks ignored pixels)", self.classes));
        }
        for level in 0..4 {
            let (dim, heads, sr) = (self.dims[level], self.heads[level], self.sr[level]);
            if dim == 0 || dim % 4 != 0 || heads == 0 || dim % heads != 0 {
                return fail(format!(
                    "level {}: dims = {dim} must be a positive multiple of 4 and of heads = {heads}",
                    level + 1
                ));
            }
            // With more the smallest picture would have no keys.
            let rows = SMALLEST_SIDE >> (2 + level);
            if !(1..=rows).contains(&sr) {
                return fail(format!(
                    "level {}: sr = {sr} must be 1 to {rows}, the rows that a picture of {SMALLEST_SIDE} has there",
                    level + 1
                ));
            }
        }
        if self.mlp_ratio == 0 || self.decoder_dim == 0 || self.fusion_dim == 0 {
            return fail("mlp_ratio, decoder_dim and fusion_dim must be positive".into());
        }
        let parameters = self.parameters_at_least();
        if parameters > MOST_PARAMETERS {
            return fail(format!(
                "dims = {:?}, depths = {:?}, mlp_ratio = {}, decoder_dim = {}, fusion_dim = {} make {parameters:.1e} \
                 parameters: at most {MOST_PARAMETERS:.0e} are possible",
                self.dims, self.depths, self.mlp_ratio, self.decoder_dim, self.fusion_dim
            ));
        }
        for (name, rate) in [("drop_path", self.drop_path), ("dropout", self.dropout)] {
            if !(0.0..1.0).contains(&rate) {
                return fail(format!("{name} = {rate}: must be at least 0 and below 1"));
            }
        }
        if !self.bn_eps.is_finite() || self.bn_eps <= 0.0 || !(0.0..=1.0).contains(&self.bn_momentum) {
            return fail(format!(
                "bn_eps = {} must be positive and finite, and bn_momentum = {} between 0 and 1",
                self.bn_eps, self.bn_momentum
            ));
        }
        if !self.tau.is_finite() {
            return fail(format!("tau = {}: must be finite", self.tau));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Amdanet;

    #[test]
    fn the_lower_bound_is_one_and_close() {
        for encoder in [Encoder::Nano, Encoder::B0, Encoder::B4] {
            for arch in [Arch::Release, Arch::Paper] {
                let config = ModelConfig::new(encoder, arch, 9);
                let (bound, exact) =
                    (config.parameters_at_least(), Amdanet::new(config).unwrap().params.count() as f64);
                assert!(bound < exact && exact < 2.0 * bound, "{encoder} {arch}: {bound} of {exact}");
            }
        }
    }

    #[test]
    fn the_smallest_picture_keeps_a_key_at_every_level() {
        let base = ModelConfig::new(Encoder::Nano, Arch::Release, 9);
        base.validate().unwrap();
        for level in 0..4 {
            let mut config = base.clone();
            config.sr[level] += 1;
            assert!(config.validate().unwrap_err().to_string().contains("sr = "));
        }
    }

    #[test]
    fn gigantic_networks_are_refused() {
        let base = ModelConfig::new(Encoder::Nano, Arch::Release, 9);
        let huge = usize::MAX / 4 * 4;
        for config in [
            ModelConfig { dims: [huge; 4], heads: [1; 4], ..base.clone() },
            ModelConfig { depths: [1, 1, huge, 1], ..base.clone() },
            ModelConfig { mlp_ratio: huge, ..base.clone() },
            ModelConfig { decoder_dim: huge, ..base.clone() },
            ModelConfig { fusion_dim: 1 << 20, ..base },
        ] {
            assert!(config.validate().unwrap_err().to_string().contains("parameters: at most 2e9"));
        }
    }
}
