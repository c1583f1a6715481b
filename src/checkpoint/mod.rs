//! Reading and writing weights: the crate's own safetensors, PyTorch's `.pth`, and SegFormer encoders.
//!
//! A checkpoint here is plain data, a [`State`] of named arrays in the published names and PyTorch's layouts
//! (OIHW convolutions), so that this module knows nothing of the network's code and the network's code nothing of
//! containers. Files come from strangers: every size is held against the bytes that are really there before anything
//! is allocated, and no code in a pickle is ever run.

mod element;
mod meta;
mod names;
mod network;
mod packed;
mod pickle;
mod pth;
mod safetensors;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;

pub use meta::Meta;
pub use names::{Kind, detect, fit, kind};
pub use network::{Loaded, convert, load, load_bytes, load_into, save};
pub use packed::{PackedFile, is_packed, write_packed};

use crate::{Error, Result};

/// A tensor of a checkpoint: PyTorch's shape, row-major values.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Array {
    /// Sizes, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    /// As many values as the product of `shape`.
    pub data: Vec<f32>,
}

/// The tensors of a checkpoint by name, in the order of their names.
pub type State = BTreeMap<String, Array>;

/// Reads a checkpoint, recognising its container by its content.
///
/// A file that [`write()`] made comes back as it was, with its [`Meta`]. Any other file comes back without one, in the
/// names of the published checkpoints: `module.` is taken off, a SegFormer encoder (its own names or those of the
/// transformers library) goes into both streams and loses its classifier; [`kind`] tells which it was. Values of 16
/// or 64 bits become `f32`; counters (`num_batches_tracked`) and whatever lies beside the state dict are dropped.
///
/// # Errors
/// The file cannot be read, is in no known container, is damaged, asks for code to be run, or holds no network.
pub fn read(path: impl AsRef<Path>) -> Result<(State, Option<Meta>)> {
    let path = path.as_ref();
    let mut file = File::open(path).map_err(Error::io(path, "open"))?;
    let len = file.metadata().map_err(Error::io(path, "read"))?.len();
    read_from(path, &mut file, len)
}

/// What a checkpoint is read from.
trait Source: Read + Seek {}

impl<T: Read + Seek> Source for T {}

/// [`read`] from `len` bytes that are in a file or in memory; `path` is what errors call them.
fn read_from(path: &Path, file: &mut dyn Source, len: u64) -> Result<(State, Option<Meta>)> {
    let mut head = Vec::new();
    (&mut *file).take(16).read_to_end(&mut head).map_err(Error::io(path, "read"))?;
    file.rewind().map_err(Error::io(path, "read"))?;
    // In this order: a safetensors file starts with a length, whose bytes may spell either of the other two.
    let state = match head.as_slice() {
        [_, _, _, _, _, _, _, _, b'{', ..] => {
            let (state, meta) = safetensors::read(file, len).map_err(|what| Error::file(path, what))?;
            if meta.is_some() {
                return Ok((state, meta));
            }
            state
        }
        [b'P', b'K', 3, 4, ..] => pth::read_zip(file, len).map_err(|what| Error::file(path, what))?,
        [0x80, 2..=5, ..] => pth::read_legacy(file, len).map_err(|what| Error::file(path, what))?,
        _ => {
            return Err(Error::file(
                path,
                format!(
                    "starts with \"{}\", which is neither safetensors nor a PyTorch checkpoint: was the download \
                     complete?",
                    head.escape_ascii()
                ),
            ));
        }
    };
    Ok((names::normalise(state).map_err(|what| Error::file(path, what))?, None))
}

/// Writes a checkpoint in the crate's own format: safetensors with [`Meta`] in its header.
///
/// The bytes depend on nothing but the arguments. The file is complete or not there: it is written beside `path`
/// under a temporary name, flushed to the disk, and renamed.
///
/// # Errors
/// The disk refuses, an array's shape and length disagree, or `meta` contradicts itself.
pub fn write(path: impl AsRef<Path>, state: &State, meta: &Meta) -> Result<()> {
    safetensors::write(path.as_ref(), state, meta)
}

/// Text from a file, for a message of one line.
fn shown(text: &str) -> String {
    const MOST: usize = 160;
    let more = if text.chars().nth(MOST).is_some() { "…" } else { "" };
    text.chars().take(MOST).flat_map(char::escape_debug).collect::<String>() + more
}
