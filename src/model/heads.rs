//! The two heads: class scores from the fused features, the fused picture from the aligned ones.

use super::config::ModelConfig;
use crate::nn::{BatchNormRelu, Conv, Init, Layout, Linear, ParamId, Pass, Role, Scope, fan_in, zeros};
use crate::ops::{self, Window};
use crate::{Result, Tensor, Var};

/// `decode_head`: scores of every class for every pixel.
///
/// The published head upsamples four projections to the finest grid, concatenates them and applies a 1×1
/// convolution. A product commutes with bilinear upsampling, whose weights sum to one, and with concatenation it is
/// the sum of the products with its parts. So each level is multiplied with its part on its own grid, and only then
/// upsampled and added: a third of the work, and no tensor of 4D channels.
pub struct SegmentationHead {
    project: Vec<Linear>,
    fuse_weight: ParamId,
    fuse_bias: ParamId,
    norm: BatchNormRelu,
    predict: Linear,
    dropout: f32,
}

impl SegmentationHead {
    /// The head below `decode_head`.
    pub fn new(scope: &mut Scope, config: &ModelConfig) -> Self {
        let d = config.decoder_dim;
        let project = (0..4)
            .map(|i| {
                Linear::new(&mut scope.child(format!("linear_c{}.proj", i + 1)), config.dims[i], d, true)
            })
            .collect();
        let mut fuse = scope.child("linear_fuse.0");
        let init = Init::Normal(fan_in(4 * d, 1));
        let fuse_weight = fuse.param("weight", Layout::PointwiseParts, [4, d, d], init, Role::Weight);
        let fuse_bias = zeros(&mut fuse, "bias", d);
        Self {
            project,
            fuse_weight,
            fuse_bias,
            norm: BatchNormRelu::new(&mut scope.child("linear_fuse.1"), d, config.bn_eps, config.bn_momentum),
            predict: Linear::pointwise(&mut scope.child("linear_pred"), d, config.classes, fan_in(d, 1)),
            dropout: config.dropout,
        }
    }

    /// The features before dropout and the last layer, from the four fused maps `(1, B, H_i, W_i, C_i)`, finest
    /// first: `(1, B, H_1, W_1, D)`. For `repeats` see [`Pass::batch_norm_relu`].
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn features(&self, pass: &mut Pass, maps: &[Var], repeats: usize) -> Result<Var> {
        let (h, w) = (maps[0].shape()[2], maps[0].shape()[3]);
        let (weight, bias) = (pass.weight(self.fuse_weight)?, pass.weight(self.fuse_bias)?);
        let mut sum: Option<Var> = None;
        for (level, (map, project)) in maps.iter().zip(&self.project).enumerate() {
            let x = project.forward(pass, map)?;
            // The concatenation is in the order 4, 3, 2, 1.
            let part = ops::select(&mut pass.tape, &weight, 3 - level)?;
            let x = ops::linear(&mut pass.tape, &x, &part, (level == 0).then_some(&bias))?;
            let x = ops::resize(&mut pass.tape, &x, h, w)?;
            sum = Some(match sum {
                Some(sum) => ops::add(&mut pass.tape, &x, sum)?,
                None => x,
            });
        }
        let sum = sum.ok_or_else(|| crate::Error::Config("the segmentation head needs four maps".into()))?;
        let sum = pass.watched(self.fuse_weight, sum)?;
        self.norm.forward(pass, &sum, repeats)
    }

    /// Scores `(1, B, H, W, classes)` at the size of the picture, from [`SegmentationHead::features`].
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn scores(&self, pass: &mut Pass, features: &Var, height: usize, width: usize) -> Result<Var> {
        let shape = features.shape();
        let dropped = match pass.draw() {
            Some((seed, stream)) if self.dropout > 0.0 => {
                let shape = [shape[0], shape[1], shape.last()];
                let factors = ops::channel_dropout_factors(pass.device(), shape, self.dropout, seed, stream)?;
                Some(ops::scale_channels(&mut pass.tape, features, &factors)?)
            }
            _ => None,
        };
        let scores = self.predict.forward(pass, dropped.as_ref().unwrap_or(features))?;
        ops::resize(&mut pass.tape, &scores, height, width)
    }
}

/// `aux_head`: the fused picture.
///
/// The published head upsamples eight maps to the size of the pictures, concatenates everything and applies a 3×3
/// convolution. Here the convolution's products are done on the maps' own grids, tap by tap, and their results are
/// upsampled, shifted and added: the same sum for a sixteenth of the work, and no tensor of 134 channels.
pub struct FusionHead {
    points: Vec<(Linear, BatchNormRelu)>,
    conv: Conv,
    norm: BatchNormRelu,
    last: Linear,
    channels: usize,
}

impl FusionHead {
    /// The head below `aux_head`.
    pub fn new(scope: &mut Scope, config: &ModelConfig) -> Self {
        let (d, eps, momentum) = (config.fusion_dim, config.bn_eps, config.bn_momentum);
        let points = (1..=4)
            .map(|i| {
                let mut both =
                    scope.streams(format!("PointConv_{i}_rgb.pconv"), format!("PointConv_{i}_ir.pconv"));
                let dim = config.dims[i - 1];
                let conv = Linear::pointwise(&mut both.child(0), dim, d, fan_in(dim, 1));
                (conv, BatchNormRelu::new(&mut both.child(1), d, eps, momentum))
            })
            .collect();
        let mut fuse = scope.child("CNN_fuse");
        let inputs = 8 * d + 6;
        let window = Window { stride: 1, padding: 1 };
        Self {
            points,
            conv: Conv::new(&mut fuse.child(0), inputs, d, 3, window, fan_in(inputs, 3)),
            norm: BatchNormRelu::new(&mut fuse.child(1), d, eps, momentum),
            last: Linear::pointwise(&mut fuse.child(3), d, 3, fan_in(d, 1)),
            channels: d,
        }
    }

    /// The picture `(1, B, H, W, 3)` in (0, 1), from the four aligned maps `(2, B, H_i, W_i, C_i)` and both pictures
    /// `(2, B, H, W, 3)`. For `repeats` see [`Pass::batch_norm_relu`].
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn forward(&self, pass: &mut Pass, maps: &[Var], pictures: &Tensor, repeats: usize) -> Result<Var> {
        let (d, weight) = (self.channels, self.conv.weight(pass)?);
        let mut taps = Vec::with_capacity(4);
        for (level, (map, (conv, norm))) in maps.iter().zip(&self.points).enumerate() {
            let x = conv.forward(pass, map)?;
            let x = norm.forward(pass, &x, repeats)?;
            let weight = ops::tap_weights(&mut pass.tape, &weight, level * 2 * d, 2, d)?;
            taps.push(ops::linear(&mut pass.tape, &x, &weight, None)?);
        }
        let [a, b, c, e] = &taps[..] else {
            return Err(crate::Error::Config("the fusion head needs four maps".into()));
        };
        let both = ops::concat_streams(&mut pass.tape, &Var::constant(pictures.clone()))?;
        let weight = ops::select_channels(&mut pass.tape, &weight, 8 * d..8 * d + 6)?;
        let x = self.conv.forward_with(pass, &both, &weight)?;
        let x = ops::add_resized_taps(&mut pass.tape, x, [a, b, c, e])?;
        drop(taps);
        let x = self.norm.forward(pass, &x, repeats)?;
        let x = self.last.forward(pass, &x)?;
        ops::sigmoid(&mut pass.tape, &x)
    }
}
