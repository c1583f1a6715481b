//! What the network costs: parameters and operations, by module.

use serde::Serialize;

use super::amdanet::Amdanet;
use super::config::Arch;
use crate::nn::Role;

/// Parameters and operations of one module.
#[derive(Clone, Debug, Serialize)]
pub struct Cost {
    /// The module: `level 3 blocks`, `segmentation head`, …
    pub module: String,
    /// Numbers that are trained.
    pub parameters: usize,
    /// Floating-point operations for one pair, 2 for each multiply-add of a product or convolution.
    pub flop: u64,
}

impl Amdanet {
    /// The cost of every module for one pair of H×W pictures, as published (the heads can be computed with less).
    pub fn costs(&self, height: usize, width: usize) -> Vec<Cost> {
        let c = self.config();
        let mut costs = Vec::new();
        let mut add = |module: String, prefixes: &[String], multiply_adds: usize| {
            let parameters = self
                .params
                .published()
                .filter(|(_, _, name)| prefixes.iter().any(|p| name.starts_with(p)))
                .map(|(id, _, _)| self.params.get(id))
                .filter(|p| p.role != Role::Statistic)
                .map(|p| p.value.len() / p.names.len())
                .sum();
            costs.push(Cost { module, parameters, flop: 2 * multiply_adds as u64 });
        };
        let backbone = |names: &[String]| -> Vec<String> {
            names.iter().flat_map(|n| [format!("backbone.{n}."), format!("backbone.extra_{n}.")]).collect()
        };
        let (mut h, mut w, mut inputs) = (height, width, 3);
        let (mut segmentation, mut fusion) = (0, 0);
        let finest = height.div_ceil(4) * width.div_ceil(4);
        for i in 0..4 {
            let (kernel, stride) = if i == 0 { (49, 4) } else { (9, 2) };
            (h, w) = (h.div_ceil(stride), w.div_ceil(stride));
            let (n, d, sr) = (h * w, c.dims[i], c.sr[i]);
            let keys = (h / sr) * (w / sr);
            let reduction = if sr > 1 { keys * sr * sr * d * d } else { 0 };
            // q, k and v, the two products with the scores, and the projection.
            let attention = n * d * d + reduction + keys * d * 2 * d + 2 * n * keys * d + n * d * d;
            let hidden = c.mlp_ratio * d;
            let block = attention + 2 * n * d * hidden + 9 * n * hidden;
            let level = i + 1;
            let embed = backbone(&[format!("patch_embed{level}")]);
            add(format!("level {level} patch embedding"), &embed, 2 * n * kernel * inputs * d);
            let blocks = backbone(&[format!("block{level}"), format!("norm{level}")]);
            add(format!("level {level} blocks"), &blocks, 2 * c.depths[i] * block);
            if c.sci {
                let sci = [format!("backbone.sci_{level}.")];
                add(format!("level {level} semantic consistency"), &sci, n * (2 * d * d + d));
            }
            let channel = 2 * 2 * (2 * d * (d / 2));
            let local = match c.arch {
                Arch::Release => channel + n * (4 * 16 + 16 * 2) + n * (2 * d * (d / 2) + (d / 2) * d),
                Arch::Paper => channel + n * 4 * 2 * 49,
            };
            if c.local_alignment {
                add(format!("level {level} local alignment"), &[format!("backbone.LEs.{i}.")], local);
            }
            let global = if c.global_alignment { 4 * attention } else { 0 } + n * d * d;
            add(format!("level {level} global alignment"), &[format!("backbone.GEs.{i}.")], global);
            segmentation += n * d * c.decoder_dim;
            fusion += 2 * n * d * c.fusion_dim;
            inputs = d;
        }
        let dim = c.decoder_dim;
        segmentation += finest * (4 * dim * dim + dim * c.classes);
        fusion += height * width * ((8 * c.fusion_dim + 6) * 9 * c.fusion_dim + c.fusion_dim * 3);
        add("segmentation head".into(), &["decode_head.".into()], segmentation);
        add("fusion head".into(), &["aux_head.".into()], fusion);
        costs
    }
}

#[cfg(test)]
mod tests {
    use crate::model::{Amdanet, Arch, Encoder, ModelConfig};

    /// The published size has 135.74 M parameters and needs 337.0 GFLOP for one pair at 480×640.
    #[test]
    fn b4_costs_what_was_counted() {
        let model = Amdanet::new(ModelConfig::new(Encoder::B4, Arch::Release, 9)).unwrap();
        let costs = model.costs(480, 640);
        let parameters: usize = costs.iter().map(|c| c.parameters).sum();
        assert_eq!(parameters, model.params.count());
        assert_eq!((parameters as f64 / 1e4).round() / 100.0, 135.74);
        let gflop = costs.iter().map(|c| c.flop).sum::<u64>() as f64 / 1e9;
        assert!((gflop - 337.0).abs() < 1.0, "{gflop}");
    }
}
