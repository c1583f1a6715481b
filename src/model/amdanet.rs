//! The whole network.

use super::config::{Arch, ModelConfig};
use super::global_alignment::GlobalAlignment;
use super::heads::{FusionHead, SegmentationHead};
use super::local_alignment::LocalAlignment;
use super::mit::{Stage, stack};
use super::sci::Sci;
use crate::nn::{Params, Pass, Scope};
use crate::{DType, Error, Result, Tensor, Var, ops};

/// The layers of AMDANet and their parameters.
pub struct Amdanet {
    config: ModelConfig,
    /// The numbers, in published names.
    pub params: Params,
    levels: Vec<Level>,
    segmentation: SegmentationHead,
    fusion: FusionHead,
}

struct Level {
    stage: Stage,
    /// None in a network without semantic consistency inference.
    sci: Option<Sci>,
    /// None in a network without local alignment.
    local: Option<LocalAlignment>,
    global: GlobalAlignment,
}

impl Level {
    fn infer(&self, pass: &mut Pass, x: Var) -> Result<Var> {
        match &self.sci {
            Some(sci) => sci.forward(pass, &x),
            None => Ok(x),
        }
    }

    fn align(&self, pass: &mut Pass, x: &Var) -> Result<Var> {
        match &self.local {
            Some(local) => local.forward(pass, x),
            None => Ok(x.clone()),
        }
    }
}

/// What the two streams say, finest level first.
pub struct Features {
    /// Locally aligned, both modalities: `(2, B, H_i, W_i, C_i)`.
    pub vision: Vec<Var>,
    /// Fused: `(1, B, H_i, W_i, C_i)`.
    pub fused: Vec<Var>,
    /// Fused from masked features, if the paper's masking was asked for.
    pub fused_masked: Option<Vec<Var>>,
}

/// What the network says about a batch.
pub struct Output {
    /// Scores of the classes: `(1, B, H, W, classes)`.
    pub logits: Var,
    /// The fused picture: `(1, B, H, W, 3)` in (0, 1).
    pub image: Var,
}

/// The features that a training pass hides before it predicts a second time.
pub struct Masking {
    /// release: 0 masks the fused maps, 1 the aligned maps of both modalities; paper: the modality that is masked.
    pub choice: usize,
    /// One for each level, finest first, 1 where a value is kept: `(1, B, H_i, W_i, C_i)`, or `(2, …)` for choice 1
    /// of release. None at all: nothing is masked, and nothing predicted a second time.
    pub masks: Vec<Tensor>,
}

/// Both predictions of a training pass.
pub struct MaskedOutput {
    /// From everything.
    pub plain: Output,
    /// From what the masks left.
    pub masked: Output,
}

/// The smallest height and width that every level has room for.
pub const SMALLEST_SIDE: usize = 32;

/// The largest width and height of pictures whose size a caller says: sizes of memory are then far from any overflow.
pub const LARGEST_SIDE: usize = 16384;

impl Amdanet {
    /// A network with all parameters zero: load a checkpoint, or call [`Params::initialise`].
    ///
    /// # Errors
    /// When the configuration is not usable.
    pub fn new(config: ModelConfig) -> Result<Self> {
        config.validate()?;
        let mut params = Params::default();
        let mut scope = Scope::new(&mut params);
        let mut backbone = scope.child("backbone");
        let levels = (0..4)
            .map(|i| Level {
                stage: Stage::new(&mut backbone, &config, i),
                sci: config.sci.then(|| Sci::new(&mut backbone.child(format!("sci_{}", i + 1)), &config, i)),
                local: config
                    .local_alignment
                    .then(|| LocalAlignment::new(&mut backbone.child(format!("LEs.{i}")), &config, i)),
                global: GlobalAlignment::new(&mut backbone.child(format!("GEs.{i}")), &config, i),
            })
            .collect();
        let segmentation = SegmentationHead::new(&mut scope.child("decode_head"), &config);
        let fusion = FusionHead::new(&mut scope.child("aux_head"), &config);
        Ok(Self { config, params, levels, segmentation, fusion })
    }

    /// The numbers it was made with.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The encoder with both alignments. The pictures, visible then infrared, are `(2, B, H, W, 3)` in [0, 1]; see
    /// [`stack`].
    ///
    /// `masking` (paper) also computes the fused maps from masked SCI outputs; the encoder never sees those.
    ///
    /// # Errors
    /// When the pictures have another shape or a side is below 32.
    pub fn features<'a>(
        &'a self,
        pass: &mut Pass<'a>,
        pictures: &Tensor,
        masking: Option<&Masking>,
    ) -> Result<Features> {
        let pictures = on_device(pass, pictures)?;
        let shape = pictures.shape();
        if shape.rank() != 5
            || shape[2].min(shape[3]) < SMALLEST_SIDE
            || [shape[0], shape[4]] != [2, 3]
            || shape[1] == 0
        {
            let why = format!("the network needs (2, B, H, W, 3) with H and W of at least {SMALLEST_SIDE}");
            return Err(Error::shape("amdanet", why, &[shape]));
        }
        let paper = self.config.arch == Arch::Paper;
        let mut streams = Var::constant(pictures);
        let mut features = Features {
            vision: Vec::with_capacity(4),
            fused: Vec::with_capacity(4),
            fused_masked: masking.map(|_| Vec::with_capacity(4)),
        };
        for (i, level) in self.levels.iter().enumerate() {
            let mut x = level.stage.embed(pass, &streams)?;
            if !paper {
                x = level.infer(pass, x)?;
            }
            x = level.stage.blocks(pass, x)?;
            x = pass.observe("encoded", i, x);
            if paper {
                x = level.infer(pass, x)?;
            }
            let aligned = level.align(pass, &x)?;
            let aligned = pass.observe("aligned", i, aligned);
            let fused = level.global.forward(pass, &aligned)?;
            features.fused.push(pass.observe("fused", i, fused));
            if let (Some(masking), Some(list)) = (masking, &mut features.fused_masked) {
                let mask = one_modality(x.shape(), masking, i)?;
                let masked = ops::apply_mask(&mut pass.tape, &x, &mask)?;
                let masked = level.align(pass, &masked)?;
                list.push(level.global.forward(pass, &masked)?);
            }
            streams = if paper { x } else { aligned.clone() };
            features.vision.push(aligned);
        }
        Ok(features)
    }

    /// Scores and fused picture; the pictures are `(1, B, H, W, 3)` in [0, 1].
    ///
    /// # Errors
    /// When the pictures' shapes differ or a side is below 32.
    pub fn forward<'a>(&'a self, pass: &mut Pass<'a>, visible: &Tensor, infrared: &Tensor) -> Result<Output> {
        let pictures = on_device(pass, &stack(visible, infrared)?)?;
        let features = self.features(pass, &pictures, None)?;
        let image = self.fusion.forward(pass, &features.vision, &pictures, 1)?;
        drop(features.vision);
        let logits = self.logits(pass, &features.fused, visible, 1)?;
        Ok(Output { logits, image })
    }

    fn logits(&self, pass: &mut Pass, fused: &[Var], picture: &Tensor, repeats: usize) -> Result<Var> {
        let hidden = self.segmentation.features(pass, fused, repeats)?;
        self.segmentation.scores(pass, &hidden, picture.dim(2), picture.dim(3))
    }

    /// The training pass of mutual feature mask learning: predictions from everything and from masked features.
    ///
    /// Where the published network computes the same value twice (the head whose inputs are not masked), it is
    /// computed once here, and the running statistics of its batch norms are updated twice.
    ///
    /// # Errors
    /// When shapes do not fit, see [`Amdanet::features`].
    pub fn forward_masked<'a>(
        &'a self,
        pass: &mut Pass<'a>,
        visible: &Tensor,
        infrared: &Tensor,
        masking: &Masking,
    ) -> Result<MaskedOutput> {
        if masking.masks.is_empty() {
            let Output { logits, image } = self.forward(pass, visible, infrared)?;
            let masked = Output { logits: logits.clone(), image: image.clone() };
            return Ok(MaskedOutput { plain: Output { logits, image }, masked });
        }
        let pictures = on_device(pass, &stack(visible, infrared)?)?;
        if self.config.arch == Arch::Paper {
            let features = self.features(pass, &pictures, Some(masking))?;
            let image = self.fusion.forward(pass, &features.vision, &pictures, 1)?;
            let logits = self.logits(pass, &features.fused, visible, 1)?;
            let fused_masked = features.fused_masked.unwrap_or_default();
            let logits_masked = self.logits(pass, &fused_masked, visible, 1)?;
            let masked = Output { logits: logits_masked, image: image.clone() };
            return Ok(MaskedOutput { plain: Output { logits, image }, masked });
        }
        let Features { vision, fused, .. } = self.features(pass, &pictures, None)?;
        let mask = |pass: &mut Pass, maps: &[Var]| -> Result<Vec<Var>> {
            if maps.len() != masking.masks.len() {
                return Err(Error::Config(format!("{} masks for {} maps", masking.masks.len(), maps.len())));
            }
            maps.iter().zip(&masking.masks).map(|(x, m)| ops::apply_mask(&mut pass.tape, x, m)).collect()
        };
        if masking.choice == 0 {
            // Masked first, then plain: the order that the running statistics see.
            let masked = mask(pass, &fused)?;
            let logits_masked = self.logits(pass, &masked, visible, 1)?;
            let logits = self.logits(pass, &fused, visible, 1)?;
            let image = self.fusion.forward(pass, &vision, &pictures, 2)?;
            let masked = Output { logits: logits_masked, image: image.clone() };
            Ok(MaskedOutput { plain: Output { logits, image }, masked })
        } else {
            let hidden = self.segmentation.features(pass, &fused, 2)?;
            let (h, w) = (visible.dim(2), visible.dim(3));
            let logits_masked = self.segmentation.scores(pass, &hidden, h, w)?;
            // Dropout, if there is any, draws anew.
            let logits = self.segmentation.scores(pass, &hidden, h, w)?;
            let image = self.fusion.forward(pass, &vision, &pictures, 1)?;
            let masked = mask(pass, &vision)?;
            let image_masked = self.fusion.forward(pass, &masked, &pictures, 1)?;
            let masked = Output { logits: logits_masked, image: image_masked };
            Ok(MaskedOutput { plain: Output { logits, image }, masked })
        }
    }

    /// Shapes of the masks that [`Masking`] takes for pictures of this size.
    pub fn mask_shapes(&self, batch: usize, height: usize, width: usize, choice: usize) -> [[usize; 5]; 4] {
        let streams = if self.config.arch == Arch::Release && choice == 1 { 2 } else { 1 };
        let (mut h, mut w) = (height.div_ceil(4), width.div_ceil(4));
        std::array::from_fn(|i| {
            if i > 0 {
                (h, w) = (h.div_ceil(2), w.div_ceil(2));
            }
            [streams, batch, h, w, self.config.dims[i]]
        })
    }
}

/// The pictures where the pass computes, in its type.
fn on_device(pass: &Pass, pictures: &Tensor) -> Result<Tensor> {
    pictures.to(pass.device())?.cast(pass.compute())
}

/// The mask of one modality, widened by ones for the other.
fn one_modality(shape: crate::Shape, masking: &Masking, level: usize) -> Result<Tensor> {
    let mask = masking.masks.get(level).filter(|m| m.len() * 2 == shape.len());
    let mask =
        mask.ok_or_else(|| Error::shape("mask", "one mask for each level, of one modality", &[shape]))?;
    let ones = Tensor::filled_on(&mask.device(), mask.shape(), DType::U8, 1)?;
    Tensor::concat(&if masking.choice == 0 { [mask, &ones] } else { [&ones, mask] })?.reshape(shape)
}
