//! Names: other programs' into the published ones, and what they tell of the network.

use std::collections::BTreeMap;
use std::fmt::Display;

use super::{Array, State, shown};
use crate::model::{Arch, Encoder, ModelConfig};
use crate::{Error, Result};

/// How much of the network a checkpoint holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Everything.
    Full,
    /// The blocks of the two encoder streams alone, as they come from a classifier's pretraining.
    Encoder,
}

/// Tells a whole network from an encoder.
pub fn kind(state: &State) -> Kind {
    if state.keys().any(|name| is_beyond_encoder(name)) { Kind::Full } else { Kind::Encoder }
}

/// Whether only a whole AMDANet has this name. A SegFormer has a `decode_head` too, so that does not tell.
fn is_beyond_encoder(name: &str) -> bool {
    ["backbone.LEs.", "backbone.GEs.", "backbone.sci_", "aux_head."].iter().any(|p| name.starts_with(p))
}

/// Counters of batch normalisation, which nothing here needs.
pub(super) fn is_counter(name: &str) -> bool {
    name.ends_with("num_batches_tracked")
}

/// The published names for those of a file from another program.
pub(super) fn normalise(state: State) -> Result<State, String> {
    let mut bare = State::new();
    for (name, array) in state {
        let name = name.strip_prefix("module.").unwrap_or(&name);
        if bare.insert(name.to_owned(), array).is_some() {
            return Err(format!(
                "has {} with and without the prefix \"module.\": save only one of them",
                shown(name)
            ));
        }
    }
    if bare.keys().any(|name| is_beyond_encoder(name)) {
        return Ok(bare);
    }
    if bare.keys().any(|name| transformers_name(name).is_some()) {
        return both_streams(from_transformers(bare)?);
    }
    if bare.keys().any(|name| segformer_name(name).is_some_and(|n| n.starts_with("patch_embed"))) {
        let names =
            bare.into_iter().filter_map(|(name, array)| Some((segformer_name(&name)?.to_owned(), array)));
        return both_streams(names.collect());
    }
    let names: Vec<_> = bare.keys().take(3).map(|name| shown(name)).collect();
    Err(format!(
        "holds {} tensors ({}, …) but neither an AMDANet nor a SegFormer encoder: give one of these",
        bare.len(),
        names.join(", ")
    ))
}

/// A name of SegFormer's encoder without its prefix; `None` for the heads that may come with it.
fn segformer_name(name: &str) -> Option<&str> {
    let name = name.strip_prefix("backbone.").unwrap_or(name);
    let head =
        ["head.", "classifier.", "decode_head.", "auxiliary_head."].iter().any(|p| name.starts_with(p));
    (!head).then_some(name)
}

fn both_streams(encoder: State) -> Result<State, String> {
    let mut state = State::new();
    for (name, array) in encoder {
        state.insert(format!("backbone.extra_{name}"), array.clone());
        state.insert(format!("backbone.{name}"), array);
    }
    Ok(state)
}

/// Which half of SegFormer's joint `kv` a tensor of the transformers library is.
#[derive(Clone, Copy)]
enum Part {
    Whole,
    Key,
    Value,
}

/// SegFormer's name for one of the transformers library, whose levels count from 0.
fn transformers_name(name: &str) -> Option<(String, Part)> {
    let name = name.strip_prefix("segformer.").unwrap_or(name).strip_prefix("encoder.")?;
    let level = |text: &str| Some(1 + ["0", "1", "2", "3"].iter().position(|level| *level == text)?);
    let parts: Vec<_> = name.split('.').collect();
    let (&leaf, parts) = parts.split_last()?;
    if !["weight", "bias"].contains(&leaf) {
        return None;
    }
    let (stem, part) = match *parts {
        ["patch_embeddings", i, "proj"] => (format!("patch_embed{}.proj", level(i)?), Part::Whole),
        ["patch_embeddings", i, "layer_norm"] => (format!("patch_embed{}.norm", level(i)?), Part::Whole),
        ["layer_norm", i] => (format!("norm{}", level(i)?), Part::Whole),
        ["block", i, j, ref rest @ ..] => {
            let (inner, part) = match *rest {
                ["attention", "self", "query"] => ("attn.q", Part::Whole),
                ["attention", "self", "key"] => ("attn.kv", Part::Key),
                ["attention", "self", "value"] => ("attn.kv", Part::Value),
                ["attention", "self", "sr"] => ("attn.sr", Part::Whole),
                ["attention", "self", "layer_norm"] => ("attn.norm", Part::Whole),
                ["attention", "output", "dense"] => ("attn.proj", Part::Whole),
                ["layer_norm_1"] => ("norm1", Part::Whole),
                ["layer_norm_2"] => ("norm2", Part::Whole),
                ["mlp", "dense1"] => ("mlp.fc1", Part::Whole),
                ["mlp", "dwconv", "dwconv"] => ("mlp.dwconv.dwconv", Part::Whole),
                ["mlp", "dense2"] => ("mlp.fc2", Part::Whole),
                _ => return None,
            };
            (format!("block{}.{j}.{inner}", level(i)?), part)
        }
        _ => return None,
    };
    Some((format!("{stem}.{leaf}"), part))
}

fn from_transformers(state: State) -> Result<State, String> {
    let mut out = State::new();
    let mut halves: BTreeMap<String, [Option<Array>; 2]> = BTreeMap::new();
    for (name, array) in state {
        let Some((to, part)) = transformers_name(&name) else {
            if ["classifier.", "decode_head."].iter().any(|head| name.starts_with(head)) {
                continue;
            }
            return Err(format!("has a tensor {} that no SegFormer encoder has", shown(&name)));
        };
        match part {
            Part::Whole => drop(out.insert(to, array)),
            Part::Key => halves.entry(to).or_default()[0] = Some(array),
            Part::Value => halves.entry(to).or_default()[1] = Some(array),
        }
    }
    for (name, pair) in halves {
        let [Some(mut key), Some(value)] = pair else {
            return Err(format!("has only one of key and value for {}: it is incomplete", shown(&name)));
        };
        match (key.shape.split_first_mut(), value.shape.split_first()) {
            (Some((rows, rest)), Some((more, same))) if rest == same => *rows += more,
            _ => {
                return Err(format!(
                    "has key and value of different shapes for {}: it is damaged",
                    shown(&name)
                ));
            }
        }
        key.data.extend(value.data);
        out.insert(name, key);
    }
    Ok(out)
}

/// Reads the network's numbers from names and shapes.
///
/// What no tensor shows has its default: batch norm's ε is that of the published networks, 1e-5, and a state that is
/// only an encoder has the default architecture, classes and heads of its size.
///
/// # Errors
/// A tensor that tells a number is missing or has another rank, or no known size has these channels.
pub fn detect(state: &State) -> Result<ModelConfig> {
    let fail = Error::Config;
    let shape = |name: String, rank: usize| match state.get(&name).map(|array| array.shape.as_slice()) {
        Some(shape) if shape.len() == rank && !shape.contains(&0) => Ok(shape.to_vec()),
        Some(shape) => {
            Err(fail(format!("tensor {name} has shape {shape:?}: {rank} dimensions are expected")))
        }
        None => {
            Err(fail(format!("tensor {name} is missing: this is not a whole AMDANet or SegFormer encoder")))
        }
    };
    let mut dims = [0; 4];
    for (level, dim) in dims.iter_mut().enumerate() {
        *dim = shape(format!("backbone.patch_embed{}.proj.weight", level + 1), 4)?[0];
    }
    let depths = depths(state)?;
    // Sizes with the same channels differ in depth alone, if at all, so any of them has the right heads.
    let sizes = Encoder::ALL.map(|e| ModelConfig::new(e, Arch::Release, 9));
    let alike = || sizes.iter().filter(|size| size.dims == dims);
    let Some(size) = alike().find(|size| size.depths == depths).or_else(|| alike().next()) else {
        let known = Encoder::ALL.iter().zip(&sizes).map(|(e, size)| format!("{e} {:?}", size.dims));
        return Err(fail(format!(
            "the encoder's channels are {dims:?}, and the known sizes are {}",
            known.collect::<Vec<_>>().join(", ")
        )));
    };
    let mut config = ModelConfig { depths, ..size.clone() };
    for (level, sr) in config.sr.iter_mut().enumerate() {
        let name = format!("backbone.block{}.0.attn.sr.weight", level + 1);
        *sr = if state.contains_key(&name) { shape(name, 4)?[2] } else { 1 };
    }
    config.mlp_ratio = shape("backbone.block1.0.mlp.fc1.weight".into(), 2)?[0] / dims[0];
    if kind(state) == Kind::Full {
        let spatial = "backbone.LEs.0.fuse_sc.sap.mlp.0.weight".to_owned();
        config.arch = if state.contains_key("backbone.LEs.0.gate.0.weight") {
            Arch::Release
        } else if shape(spatial.clone(), 4)?[2..] == [7, 7] {
            Arch::Paper
        } else {
            return Err(fail(format!(
                "the architecture is not clear: release has backbone.LEs.0.gate.0.weight, paper has 7×7 weights in \
                 {spatial}, and this has neither"
            )));
        };
        let pred = shape("decode_head.linear_pred.weight".into(), 4)?;
        (config.classes, config.decoder_dim) = (pred[0], pred[1]);
        config.fusion_dim = shape("aux_head.CNN_fuse.0.weight".into(), 4)?[0];
    }
    config.validate()?;
    Ok(config)
}

/// One more than the highest block of each level. A block that is left out in between is for [`fit`] to report.
fn depths(state: &State) -> Result<[usize; 4]> {
    const MOST: usize = 200;
    let mut depths = [0; 4];
    for (level, depth) in depths.iter_mut().enumerate() {
        let prefix = format!("backbone.block{}.", level + 1);
        for name in state.keys().filter_map(|name| name.strip_prefix(&prefix)) {
            match name.split('.').next().map(str::parse::<usize>) {
                Some(Ok(j)) if j < MOST => *depth = (*depth).max(j + 1),
                _ => {
                    return Err(Error::Config(format!(
                        "tensor {prefix}{}: a block has a number from 0 to {}",
                        shown(name),
                        MOST - 1
                    )));
                }
            }
        }
        if *depth == 0 {
            return Err(Error::Config(format!("there is no tensor {prefix}…: the encoder is incomplete")));
        }
    }
    Ok(depths)
}

/// Checks that a state has exactly the tensors that the network expects.
///
/// # Errors
/// One line with all that is missing, that is not expected, and that has another shape: how many, and the first names.
pub fn fit(state: &State, expected: impl Iterator<Item = (String, Vec<usize>)>) -> Result<()> {
    let mut extra: BTreeMap<&str, &[usize]> =
        state.iter().map(|(name, array)| (name.as_str(), array.shape.as_slice())).collect();
    let (mut missing, mut different) = (Vec::new(), Vec::new());
    for (name, shape) in expected {
        match extra.remove(name.as_str()) {
            None => missing.push(format!("{name} {shape:?}")),
            Some(found) if found != shape => {
                different.push(format!("{name} is {found:?} and should be {shape:?}"))
            }
            Some(_) => {}
        }
    }
    let extra: Vec<_> = extra.iter().map(|(name, shape)| format!("{} {shape:?}", shown(name))).collect();
    fn list(what: &str, names: &[impl Display]) -> Option<String> {
        const SHOWN: usize = 5;
        let shown: Vec<_> = names.iter().take(SHOWN).map(ToString::to_string).collect();
        let more = if names.len() > SHOWN { ", …" } else { "" };
        (!names.is_empty()).then(|| format!("{} {what}: {}{more}", names.len(), shown.join(", ")))
    }
    let lists =
        [list("missing", &missing), list("not expected", &extra), list("of another shape", &different)];
    let lists: Vec<_> = lists.into_iter().flatten().collect();
    if lists.is_empty() {
        return Ok(());
    }
    Err(Error::Config(format!(
        "the weights are not those of this network: {}; check the architecture, the encoder's size, the number of \
         classes and the parts that were left out",
        lists.join("; ")
    )))
}
