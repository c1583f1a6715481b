//! Between checkpoints and networks.

use std::io::Cursor;
use std::path::Path;

use super::{Array, Kind, Meta, State, detect, fit, kind, read, read_from, write};
use crate::data::ClassSet;
use crate::model::{Amdanet, ModelConfig};
use crate::{Device, Error, Result};

/// A network from a checkpoint.
pub struct Loaded {
    /// The network with its weights.
    pub model: Amdanet,
    /// Names and colours of its classes.
    pub classes: ClassSet,
}

/// Reads a whole network from a checkpoint of any known kind. `bn_eps` replaces what the checkpoint says of the batch
/// norms' ε; an imported checkpoint that says nothing gets 1e-5.
///
/// # Errors
/// As [`read`]; and when the file holds an encoder alone, or tensors are missing, extra or of another shape.
pub fn load(path: &Path, bn_eps: Option<f32>) -> Result<Loaded> {
    assemble(path, read(path)?, bn_eps)
}

/// [`load`] from bytes in memory; `name` is what errors call them.
///
/// # Errors
/// As [`load`].
pub fn load_bytes(name: &Path, bytes: &[u8], bn_eps: Option<f32>) -> Result<Loaded> {
    let read = read_from(name, &mut Cursor::new(bytes), bytes.len() as u64)?;
    assemble(name, read, bn_eps)
}

fn assemble(path: &Path, (state, meta): (State, Option<Meta>), bn_eps: Option<f32>) -> Result<Loaded> {
    if kind(&state) == Kind::Encoder {
        let what = "holds an encoder without heads: train from it with `amdanet train --init`";
        return Err(Error::file(path, what));
    }
    let meta = complete(path, &state, meta, bn_eps)?;
    let classes = classes(&meta)?;
    let mut model = build(path, &state, meta.model)?;
    fill(&mut model, path, &state, |_| true)?;
    Ok(Loaded { model, classes })
}

/// Overwrites the weights of `model` with a checkpoint's: all of them, or an encoder's in both streams.
///
/// # Errors
/// As [`read`]; and when tensors are missing, extra or of another shape.
pub fn load_into(model: &mut Amdanet, path: &Path) -> Result<()> {
    let (state, _) = read(path)?;
    match kind(&state) {
        Kind::Full => fill(model, path, &state, |_| true),
        Kind::Encoder => fill(model, path, &state, is_encoder),
    }
}

/// Writes the weights of a network in this program's own format.
///
/// # Errors
/// When the file cannot be written; an older file of that name is then still whole.
pub fn save(path: &Path, model: &Amdanet, classes: &ClassSet) -> Result<()> {
    let meta = Meta {
        class_names: classes.names.clone(),
        palette: classes.palette.clone(),
        ..Meta::new(model.config().clone())
    };
    write(path, &state_of(model)?, &meta)
}

/// Reads a checkpoint of any known kind and writes it in this program's own format; returns a line on what it was.
///
/// # Errors
/// As [`read`], [`load`] and [`write()`].
pub fn convert(input: &Path, output: &Path, bn_eps: Option<f32>) -> Result<String> {
    let (state, meta) = read(input)?;
    let mut meta = complete(input, &state, meta, bn_eps)?;
    let encoder = meta.model.encoder_name();
    let what = match kind(&state) {
        Kind::Encoder => format!("encoder {encoder}, in both streams"),
        Kind::Full => {
            let classes = classes(&meta)?;
            let model = build(input, &state, meta.model.clone())?;
            fit(&state, expected(&model, |_| true)).map_err(|e| Error::file(input, e.to_string()))?;
            (meta.class_names, meta.palette) = (classes.names, classes.palette);
            format!("{} network, encoder {encoder}, {} classes", meta.model.arch, meta.model.classes)
        }
    };
    write(output, &state, &meta)?;
    Ok(format!("{}: {what}", output.display()))
}

/// A network for the tensors of a file. Its numbers may ask for far more memory than its tensors do; a file that merely
/// lacks tensors goes on to [`fit`], which names them.
fn build(path: &Path, state: &State, config: ModelConfig) -> Result<Amdanet> {
    let held = state.values().map(|array| array.data.len()).sum::<usize>();
    let wanted = config.parameters_at_least();
    if wanted > 8.0 * held as f64 + 1e7 {
        let what = format!(
            "describes a network of more than {wanted:.1e} parameters and holds {held}: it is incomplete or damaged"
        );
        return Err(Error::file(path, what));
    }
    Amdanet::new(config)
}

/// What a file says of its network, or its names and shapes where it says nothing; `bn_eps` has the last word.
fn complete(path: &Path, state: &State, meta: Option<Meta>, bn_eps: Option<f32>) -> Result<Meta> {
    let mut meta = match meta {
        Some(meta) => meta,
        None => Meta::new(detect(state).map_err(|e| Error::file(path, e.to_string()))?),
    };
    meta.model.bn_eps = bn_eps.unwrap_or(meta.model.bn_eps);
    Ok(meta)
}

/// What the checkpoint says of its classes, or the published data set with that many.
fn classes(meta: &Meta) -> Result<ClassSet> {
    let n = meta.model.classes;
    let published = match n {
        9 => ClassSet::mfnet(),
        15 => ClassSet::fmb(),
        5 => ClassSet::pst900(),
        _ => ClassSet::unnamed(n)?,
    };
    let names = if meta.class_names.is_empty() { published.names } else { meta.class_names.clone() };
    let palette = if meta.palette.is_empty() { published.palette } else { meta.palette.clone() };
    ClassSet::new(names, palette)
}

/// Whether a published name belongs to the blocks of the two streams.
fn is_encoder(name: &str) -> bool {
    let name = name.strip_prefix("backbone.").map(|n| n.strip_prefix("extra_").unwrap_or(n));
    name.is_some_and(|n| ["patch_embed", "block", "norm"].iter().any(|part| n.starts_with(part)))
}

/// Published names and shapes of the tensors that `wanted` picks.
fn expected(model: &Amdanet, wanted: impl Fn(&str) -> bool) -> impl Iterator<Item = (String, Vec<usize>)> {
    let picked = model.params.published().filter(move |(_, _, name)| wanted(name));
    picked.map(|(id, _, name)| (name.to_string(), model.params.get(id).published_shape()))
}

fn fill(model: &mut Amdanet, path: &Path, state: &State, wanted: fn(&str) -> bool) -> Result<()> {
    fit(state, expected(model, wanted)).map_err(|e| Error::file(path, e.to_string()))?;
    let list: Vec<_> =
        model.params.published().map(|(id, stream, name)| (id, stream, name.to_string())).collect();
    for (id, stream, name) in list {
        let Some(array) = state.get(&name) else { continue };
        model.params.import(id, stream, &array.data)?;
    }
    Ok(())
}

/// All parameters under their published names.
fn state_of(model: &Amdanet) -> Result<State> {
    let array = |(id, stream, name): (_, _, &str)| {
        let param = model.params.get(id);
        let data = param.export(&param.value.to(&Device::Cpu)?, stream);
        Ok((name.to_string(), Array { shape: param.published_shape(), data }))
    };
    model.params.published().map(array).collect()
}
