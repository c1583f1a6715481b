//! Packed models: the arrays of the fused engine in a safetensors file that is mapped into memory.
//!
//! Every array begins at a multiple of 64 bytes, and is filled up with zeros to whole lines of the cache, so that it can
//! be used where it is. The container knows their names and lengths alone.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use super::Meta;
use super::safetensors::{check, header, read_header, strings};
use crate::files::write_atomically;
use crate::{Error, Result, Tensor};

/// Where arrays begin, in bytes and in numbers.
const LINE: usize = 64;
const LINE_NUMBERS: usize = LINE / size_of::<f32>();

/// Bytes whose checksum one task computes.
const PIECE: usize = 1 << 22;

/// A packed model, mapped into memory and checked against its checksum.
pub struct PackedFile {
    path: PathBuf,
    meta: Meta,
    header: Metadata,
    /// The whole file as numbers.
    numbers: Tensor,
    /// Numbers before the data.
    start: usize,
    taken: usize,
}

impl PackedFile {
    /// Maps a file that [`write_packed`] made. It must stay as it is while its arrays are in use; to replace it, write
    /// another and rename it, as [`write_packed`] does.
    ///
    /// # Errors
    /// The file cannot be read, is no packed model, was packed by another version, or is damaged or truncated.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(path, "open"))?;
        let len = file.metadata().map_err(Error::io(path, "read"))?.len();
        let (header, header_bytes) = read_header(&mut &file, len).map_err(|what| damaged(path, what))?;
        let meta = Meta::from_packed_strings(strings(&header)).map_err(|what| damaged(path, what))?;
        let Some(meta) = meta else {
            let what = "is not a packed model: `amdanet convert CHECKPOINT OUT.packed` makes one";
            return Err(Error::file(path, what));
        };
        let start = 8 + header_bytes.len();
        if !start.is_multiple_of(LINE) || !len.is_multiple_of(LINE as u64) {
            let what = format!("has its data at byte {start} of {len}, which is no multiple of {LINE}");
            return Err(damaged(path, what));
        }
        if cfg!(target_endian = "big") {
            let what = "packed models are for little-endian machines: give the checkpoint itself";
            return Err(Error::file(path, what));
        }
        let numbers = Tensor::map(&file).map_err(Error::io(path, "map"))?;
        let start = start / size_of::<f32>();
        let data = bytemuck::cast_slice(&numbers.f32()[start..]);
        match check(header_bytes, |sum| Ok(checksum(sum, data))).map_err(|what| damaged(path, what))? {
            true => Ok(Self { path: path.into(), meta, header, numbers, start, taken: 0 }),
            false => Err(damaged(path, "has no checksum")),
        }
    }

    /// What the file says of its network.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// The array `name` of `len` numbers, where it is in the file; nothing is copied.
    ///
    /// # Errors
    /// It is not there, or has another type, length or place.
    pub fn array(&mut self, name: &str, len: usize) -> Result<Tensor> {
        match self.find(name, len)? {
            Some(array) => Ok(array),
            None => Err(damaged(&self.path, format!("lacks the array {name}"))),
        }
    }

    /// [`PackedFile::array`], if it is there.
    ///
    /// # Errors
    /// It has another type, length or place.
    pub fn find(&mut self, name: &str, len: usize) -> Result<Option<Tensor>> {
        let Some(info) = self.header.info(name) else { return Ok(None) };
        let filled = len.next_multiple_of(LINE_NUMBERS);
        let (from, to) = info.data_offsets;
        // Offsets lie within the data, and agree with shape and type: the header was checked when it was read.
        if info.dtype != Dtype::F32 || info.shape != [filled] || !from.is_multiple_of(LINE) {
            let (shape, dtype) = (&info.shape, info.dtype);
            let what = format!(
                "has {dtype:?} {shape:?} in bytes {from} to {to} as {name}: its configuration wants F32 [{filled}] at \
                 a multiple of {LINE}"
            );
            return Err(damaged(&self.path, what));
        }
        self.taken += 1;
        let at = self.start + from / size_of::<f32>();
        self.numbers.narrow(at..at + len).map(Some)
    }

    /// To be called when every array that the configuration wants was taken.
    ///
    /// # Errors
    /// When the file has others.
    pub fn finish(self) -> Result<Meta> {
        let all = self.header.offset_keys().len();
        if self.taken != all {
            let what = format!("has {all} arrays, and its configuration wants {}", self.taken);
            return Err(damaged(&self.path, what));
        }
        Ok(self.meta)
    }
}

fn damaged(path: &Path, what: impl std::fmt::Display) -> Error {
    Error::file(path, format!("{what}; `amdanet convert CHECKPOINT OUT.packed` makes a packed model again"))
}

/// Continues a checksum over `data`, on all threads.
fn checksum(sum: u32, data: &[u8]) -> u32 {
    let pieces: Vec<_> = data.par_chunks(PIECE).map(|piece| (crc32c::crc32c(piece), piece.len())).collect();
    pieces.into_iter().fold(sum, |sum, (piece, len)| crc32c::crc32c_combine(sum, piece, len))
}

/// Whether a file is a packed model, or is named like one.
pub fn is_packed(path: &Path) -> bool {
    let says_so = |file: File| {
        let len = file.metadata().ok()?.len();
        let (header, _) = read_header(&mut &file, len).ok()?;
        Some(Meta::is_packed(&strings(&header)))
    };
    path.extension().is_some_and(|e| e == "packed") || File::open(path).ok().and_then(says_so) == Some(true)
}

/// Writes a packed model: float32 arrays by name, in this order. The file is complete or not there.
///
/// # Errors
/// The disk refuses, or `meta` contradicts itself.
pub fn write_packed(path: &Path, meta: &Meta, arrays: &[(String, Tensor)]) -> Result<()> {
    let cannot = |what: String| Error::file(path, format!("cannot be written: {what}"));
    if cfg!(target_endian = "big") {
        return Err(cannot("packed models are for little-endian machines".into()));
    }
    let metadata = meta.to_packed_strings().map_err(cannot)?;
    let (mut infos, mut end) = (BTreeMap::new(), 0);
    for (name, array) in arrays {
        let (start, shape) = (end, array.len().next_multiple_of(LINE_NUMBERS));
        end += shape * size_of::<f32>();
        let info = TensorInfo { dtype: Dtype::F32, shape: vec![shape], data_offsets: (start, end) };
        if infos.insert(name.as_str(), info).is_some() {
            return Err(cannot(format!("two arrays are called {name}")));
        }
    }
    let pieces = || {
        arrays.iter().flat_map(|(_, array)| {
            let bytes: &[u8] = bytemuck::cast_slice(array.f32());
            [bytes, &[0; LINE][..bytes.len().next_multiple_of(LINE) - bytes.len()]]
        })
    };
    let header = header(metadata, infos, LINE, |sum| pieces().fold(sum, checksum)).map_err(cannot)?;
    write_atomically(path, |to| {
        to.write_all(&header)?;
        pieces().try_for_each(|piece| to.write_all(piece))
    })
}
