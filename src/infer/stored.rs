//! Packed weights as the named arrays of a file.
//!
//! One walk serves both directions: it names every array with the length that the configuration gives it. Writing, it
//! has the weights at hand and notes their arrays; reading, it takes arrays from the file and makes the weights of them.
//! What products read stays in the file's mapping; what is small is copied.

use std::path::Path;
use std::sync::Arc;

use super::pack::{Attention, Block, Depthwise, Global, Level, Local, Sci, Spatial, Weights};
use super::product::{PANEL, Packed};
use super::vector::Norm;
use crate::checkpoint::{Meta, PackedFile, write_packed};
use crate::data::ClassSet;
use crate::model::{Arch, ModelConfig};
use crate::{Error, Result, Tensor};

/// Writes packed weights.
pub fn save(weights: &Weights, path: &Path, classes: &ClassSet) -> Result<()> {
    let mut arrays = Vec::new();
    Walk { config: &weights.config, side: Side::Writing(&mut arrays) }.weights(Some(weights))?;
    let meta = Meta {
        class_names: classes.names.clone(),
        palette: classes.palette.clone(),
        ..Meta::new(weights.config.clone())
    };
    write_packed(path, &meta, &arrays)
}

/// Reads packed weights, and the classes.
pub fn open(path: &Path) -> Result<(Weights, ClassSet)> {
    let mut file = PackedFile::open(path)?;
    let config = file.meta().model.clone();
    let weights = Walk { config: &config, side: Side::Reading(&mut file) }.weights(None)?;
    let Meta { class_names, palette, .. } = file.finish()?;
    let classes = ClassSet::new(class_names, palette).map_err(|e| Error::file(path, e.to_string()))?;
    Ok((weights, classes))
}

/// Where arrays go to or come from.
enum Side<'a> {
    Writing(&'a mut Vec<(String, Tensor)>),
    Reading(&'a mut PackedFile),
}

struct Walk<'a> {
    config: &'a ModelConfig,
    side: Side<'a>,
}

/// Each method takes what there is when weights are written, and gives what is read then, or the same again.
impl Walk<'_> {
    /// The array `name`, or none if nobody has it.
    fn find(&mut self, name: String, len: usize, have: Option<Tensor>) -> Result<Option<Tensor>> {
        match (&mut self.side, have) {
            (Side::Reading(file), _) => file.find(&name, len),
            (Side::Writing(_), None) => Ok(None),
            (Side::Writing(arrays), Some(array)) if array.len() == len => {
                arrays.push((name, array.clone()));
                Ok(Some(array))
            }
            (Side::Writing(_), Some(array)) => {
                Err(Error::Config(format!("{name} has {} numbers and should have {len}", array.len())))
            }
        }
    }

    fn array(&mut self, name: String, len: usize, have: Option<Tensor>) -> Result<Tensor> {
        if let Side::Reading(file) = &mut self.side {
            return file.array(&name, len);
        }
        let lacks = Error::Config(format!("the packed network lacks {name}"));
        self.find(name, len, have)?.ok_or(lacks)
    }

    /// A small array, which is copied.
    fn numbers(&mut self, name: String, len: usize, have: Option<&[f32]>) -> Result<Vec<f32>> {
        let have = have.map(|x| Tensor::from_slice([x.len()], x)).transpose()?;
        Ok(self.array(name, len, have)?.f32().to_vec())
    }

    fn number(&mut self, name: String, have: Option<f32>) -> Result<f32> {
        Ok(self.array(name, 1, have.map(Tensor::scalar))?.item())
    }

    fn packed(&mut self, name: &str, [k, n]: [usize; 2], have: Option<&Packed>) -> Result<Packed> {
        let columns = n.next_multiple_of(PANEL);
        let (panels, bias) = have.map(Packed::parts).unzip();
        let panels = self.array(format!("{name}.panels"), k * columns, panels.cloned())?;
        let bias = self.find(format!("{name}.bias"), columns, bias.flatten().cloned())?;
        Ok(Packed::from_parts(k, n, panels, bias))
    }

    fn norm(&mut self, name: &str, c: usize, have: Option<&Norm>) -> Result<Norm> {
        Ok(Norm {
            weight: self.numbers(format!("{name}.weight"), c, have.map(|x| &x.weight[..]))?,
            bias: self.numbers(format!("{name}.bias"), c, have.map(|x| &x.bias[..]))?,
            eps: self.number(format!("{name}.eps"), have.map(|x| x.eps))?,
        })
    }

    /// `count` parts, as streams are.
    fn each<T>(
        &mut self,
        name: &str,
        count: usize,
        have: Option<&[T]>,
        mut one: impl FnMut(&mut Self, usize, &str, Option<&T>) -> Result<T>,
    ) -> Result<Vec<T>> {
        (0..count).map(|i| one(self, i, &format!("{name}.{i}"), have.and_then(|all| all.get(i)))).collect()
    }

    /// Products of equal size, as many as there are streams.
    fn products(
        &mut self,
        name: &str,
        streams: usize,
        size: [usize; 2],
        have: Option<&[Packed]>,
    ) -> Result<Vec<Packed>> {
        self.each(name, streams, have, |walk, _, name, x| walk.packed(name, size, x))
    }

    fn pair(
        &mut self,
        name: &str,
        sizes: [[usize; 2]; 2],
        have: Option<&[Packed; 2]>,
    ) -> Result<[Packed; 2]> {
        Ok([
            self.packed(&format!("{name}.0"), sizes[0], have.map(|x| &x[0]))?,
            self.packed(&format!("{name}.1"), sizes[1], have.map(|x| &x[1]))?,
        ])
    }

    fn norms(&mut self, name: &str, streams: usize, c: usize, have: Option<&[Norm]>) -> Result<Vec<Norm>> {
        self.each(name, streams, have, |walk, _, name, x| walk.norm(name, c, x))
    }

    fn weights(&mut self, have: Option<&Weights>) -> Result<Weights> {
        let config = self.config.clone();
        let (d, fusion) = (config.decoder_dim, config.fusion_dim);
        Ok(Weights {
            levels: self.each("levels", 4, have.map(|x| &x.levels[..]), Self::level)?,
            predict: self.packed("predict", [d, config.classes], have.map(|x| &x.predict))?,
            pictures: self.packed("pictures", [54, fusion], have.map(|x| &x.pictures))?,
            last: self.packed("last", [fusion, 3], have.map(|x| &x.last))?,
            config,
        })
    }

    fn level(&mut self, i: usize, name: &str, have: Option<&Level>) -> Result<Level> {
        let config = self.config;
        let (c, d, fusion) = (config.dims[i], config.decoder_dim, config.fusion_dim);
        let patch = if i == 0 { 7 * 7 * 3 } else { 3 * 3 * config.dims[i - 1] };
        let at = |part: &str| format!("{name}.{part}");
        let blocks = have.map(|x| &x.blocks[..]);
        let (sci, local, global) = (
            have.and_then(|x| x.sci.as_deref()),
            have.and_then(|x| x.local.as_deref()),
            have.and_then(|x| x.global.as_deref()),
        );
        Ok(Level {
            embed: self.products(&at("embed"), 2, [patch, c], have.map(|x| &x.embed[..]))?,
            embed_norm: self.norms(&at("embed_norm"), 2, c, have.map(|x| &x.embed_norm[..]))?,
            blocks: self.each(&at("blocks"), config.depths[i], blocks, |walk, _, name, x| {
                walk.block(i, name, x.map(Arc::as_ref)).map(Arc::new)
            })?,
            norm: self.norms(&at("norm"), 2, c, have.map(|x| &x.norm[..]))?,
            sci: config.sci.then(|| self.sci(c, &at("sci"), sci)).transpose()?.map(Arc::new),
            local: config
                .local_alignment
                .then(|| self.local(c, &at("local"), local))
                .transpose()?
                .map(Arc::new),
            global: config
                .global_alignment
                .then(|| self.global(i, &at("global"), global))
                .transpose()?
                .map(Arc::new),
            segment: self.packed(&at("segment"), [c, d], have.map(|x| &x.segment))?,
            points: self.products(&at("points"), 2, [c, fusion], have.map(|x| &x.points[..]))?,
            taps: self.packed(&at("taps"), [2 * fusion, 9 * fusion], have.map(|x| &x.taps))?,
        })
    }

    fn attention(
        &mut self,
        level: usize,
        name: &str,
        streams: usize,
        have: Option<&Attention>,
    ) -> Result<Arc<Attention>> {
        let (c, heads, sr) = (self.config.dims[level], self.config.heads[level], self.config.sr[level]);
        let at = |part: &str| format!("{name}.{part}");
        let q = self.products(&at("q"), streams, [c, c], have.map(|x| &x.q[..]))?;
        let (convs, norms) = have.and_then(|x| x.reduction.as_ref()).map(|(c, n)| (&c[..], &n[..])).unzip();
        let reduction = match sr {
            1 => None,
            _ => Some((
                self.products(&at("reduction"), streams, [sr * sr * c, c], convs)?,
                self.norms(&at("reduction_norm"), streams, c, norms)?,
            )),
        };
        let kv = self.products(&at("kv"), streams, [c, 2 * c], have.map(|x| &x.kv[..]))?;
        Ok(Arc::new(Attention { q, reduction, kv, heads, sr }))
    }

    fn block(&mut self, level: usize, name: &str, have: Option<&Block>) -> Result<Block> {
        let c = self.config.dims[level];
        let hidden = self.config.mlp_ratio * c;
        let at = |part: &str| format!("{name}.{part}");
        let depthwise = have.map(|x| &x.depthwise[..]);
        Ok(Block {
            norm1: self.norms(&at("norm1"), 2, c, have.map(|x| &x.norm1[..]))?,
            attention: self.attention(level, &at("attention"), 2, have.map(|x| &*x.attention))?,
            proj: self.products(&at("proj"), 2, [c, c], have.map(|x| &x.proj[..]))?,
            norm2: self.norms(&at("norm2"), 2, c, have.map(|x| &x.norm2[..]))?,
            fc1: self.products(&at("fc1"), 2, [c, hidden], have.map(|x| &x.fc1[..]))?,
            depthwise: self.each(&at("depthwise"), 2, depthwise, |walk, _, name, x| {
                let len = 10 * hidden.next_multiple_of(PANEL);
                Ok(Depthwise { panels: walk.numbers(name.into(), len, x.map(|x| &x.panels[..]))? })
            })?,
            fc2: self.products(&at("fc2"), 2, [hidden, c], have.map(|x| &x.fc2[..]))?,
        })
    }

    fn sci(&mut self, c: usize, name: &str, have: Option<&Sci>) -> Result<Sci> {
        let at = |part: &str| format!("{name}.{part}");
        Ok(Sci {
            reduce: self.pair(&at("reduce"), [[c, c]; 2], have.map(|x| &x.reduce))?,
            score: (
                self.numbers(at("score.weight"), c, have.map(|x| &x.score.0[..]))?,
                self.number(at("score.bias"), have.map(|x| x.score.1))?,
            ),
            lambda: self.number(at("lambda"), have.map(|x| x.lambda))?,
        })
    }

    fn local(&mut self, c: usize, name: &str, have: Option<&Local>) -> Result<Local> {
        let at = |part: &str| format!("{name}.{part}");
        let channel = [[2 * c, c / 2], [c / 2, 2 * c]];
        let gate = have.and_then(|x| x.gate.as_ref());
        Ok(Local {
            channel: self.pair(&at("channel"), channel, have.map(|x| &x.channel))?,
            spatial: self.spatial(&at("spatial"), have.map(|x| &x.spatial))?,
            gate: match self.config.arch {
                Arch::Paper => None,
                Arch::Release => Some((
                    self.pair(&at("gate"), [[c, c / 2]; 2], gate.map(|x| &x.0))?,
                    self.packed(&at("gate_last"), [c / 2, c], gate.map(|x| &x.1))?,
                )),
            },
        })
    }

    fn spatial(&mut self, name: &str, have: Option<&Spatial>) -> Result<Spatial> {
        let arch = self.config.arch;
        let mut layer = |i: usize, [inputs, outputs]: [usize; 2]| -> Result<(Vec<f32>, Vec<f32>)> {
            let (weight, bias) = match have {
                Some(Spatial::Pointwise(layers)) => Some((&layers[i].0[..], &layers[i].1[..])).unzip(),
                Some(Spatial::Wide(weight, bias)) => Some((&weight[..], &bias[..])).unzip(),
                None => (None, None),
            };
            Ok((
                self.numbers(format!("{name}.{i}.weight"), inputs * outputs, weight)?,
                self.numbers(format!("{name}.{i}.bias"), outputs, bias)?,
            ))
        };
        Ok(match arch {
            Arch::Release => Spatial::Pointwise([layer(0, [4, 16])?, layer(1, [16, 2])?]),
            Arch::Paper => {
                let (weight, bias) = layer(0, [7 * 7 * 4, 2])?;
                Spatial::Wide(weight, bias)
            }
        })
    }

    fn global(&mut self, level: usize, name: &str, have: Option<&Global>) -> Result<Global> {
        let c = self.config.dims[level];
        let at = |part: &str| format!("{name}.{part}");
        let cross = |i: usize| have.map(|x| &*x.cross[i]);
        Ok(Global {
            salient: self.attention(level, &at("salient"), 2, have.map(|x| &*x.salient))?,
            salient_proj: self.products(&at("salient_proj"), 2, [c, c], have.map(|x| &x.salient_proj[..]))?,
            cross: [
                self.attention(level, &at("cross.0"), 1, cross(0))?,
                self.attention(level, &at("cross.1"), 1, cross(1))?,
            ],
        })
    }
}
