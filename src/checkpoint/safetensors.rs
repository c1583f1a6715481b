//! The safetensors container. The `safetensors` crate reads the header and finds holes and overlaps; the data is read
//! and written tensor by tensor here, because the crate wants the whole file in memory to read, and writes its
//! metadata in the order of a hash map.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;

use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde::Serialize;

use super::element::{self, Element};
use super::{Array, Meta, Source, State, names, shown};
use crate::files::write_atomically;
use crate::{Error, Result};

/// That of b5 has 0.25 MB.
const MAX_HEADER: u64 = 16 << 20;

/// The header and its bytes; the data begin right behind them, and are as long as the header says.
pub(super) fn read_header(from: &mut impl Read, len: u64) -> Result<(Metadata, Vec<u8>), String> {
    let mut length = [0; 8];
    from.read_exact(&mut length).map_err(cannot)?;
    let header_len = u64::from_le_bytes(length);
    if header_len > MAX_HEADER || header_len > len.saturating_sub(8) {
        return Err(format!(
            "declares a safetensors header of {header_len} bytes in a file of {len}: it is damaged or truncated"
        ));
    }
    let mut header_bytes = vec![0; header_len as usize];
    from.read_exact(&mut header_bytes).map_err(cannot)?;
    let header: Metadata = serde_json::from_slice(&header_bytes)
        .map_err(|e| format!("has a bad safetensors header: {}", shown(&e.to_string())))?;
    let data_len = len - 8 - header_len;
    if data_len != header.data_len() as u64 {
        return Err(format!(
            "declares {} bytes of safetensors data and has {data_len}: it is damaged or truncated",
            header.data_len(),
        ));
    }
    Ok((header, header_bytes))
}

fn cannot(e: std::io::Error) -> String {
    format!("cannot be read: {e}")
}

/// The strings of a header, without the checksum.
pub(super) fn strings(header: &Metadata) -> BTreeMap<String, String> {
    let strings = header.metadata().iter().flatten();
    strings.filter(|(key, _)| *key != CHECKSUM).map(|(k, v)| (k.clone(), v.clone())).collect()
}

pub(super) fn read(file: &mut dyn Source, len: u64) -> Result<(State, Option<Meta>), String> {
    let mut from = BufReader::new(file);
    let (header, header_bytes) = read_header(&mut from, len)?;
    let start = 8 + header_bytes.len() as u64;
    let meta = Meta::from_strings(strings(&header))?;
    if meta.is_some() {
        let mut data = BufReader::with_capacity(1 << 20, &mut from);
        let sum = |mut sum: u32| loop {
            let bytes = data.fill_buf().map_err(cannot)?;
            if bytes.is_empty() {
                return Ok(sum);
            }
            sum = crc32c::crc32c_append(sum, bytes);
            let n = bytes.len();
            data.consume(n);
        };
        check(header_bytes, sum)?;
    }
    let mut state = State::new();
    for name in header.offset_keys() {
        let Some(info) = header.info(&name) else { continue };
        if names::is_counter(&name) {
            continue;
        }
        let element = match info.dtype {
            Dtype::F16 => Element::F16,
            Dtype::BF16 => Element::Bf16,
            Dtype::F32 => Element::F32,
            Dtype::F64 => Element::F64,
            other => {
                return Err(format!(
                    "tensor {} holds {other:?}: weights must be F16, BF16, F32 or F64",
                    shown(&name)
                ));
            }
        };
        // Within the file: the crate has checked that offsets, shape and type agree, and the sum is checked above.
        let (from_byte, to_byte) = info.data_offsets;
        from.seek(SeekFrom::Start(start + from_byte as u64)).map_err(cannot)?;
        let count = (to_byte - from_byte) / element.size() as usize;
        let data = element::read(&mut from, element, count)
            .map_err(|e| format!("tensor {} {}", shown(&name), cannot(e)))?;
        state.insert(name, Array { shape: info.shape.clone(), data });
    }
    Ok((state, meta))
}

/// The key in the metadata of the CRC-32C of the whole file, in which eight zeros stand for the checksum itself.
const CHECKSUM: &str = "checksum";
const ZEROS: [u8; 8] = *b"00000000";

/// Where the checksum is in a header. No other string can look like it: its quotes would have backslashes.
fn checksum_digits(header: &mut [u8]) -> Option<&mut [u8; 8]> {
    let before = format!("\"{CHECKSUM}\":\"");
    let at = header.windows(before.len()).position(|bytes| bytes == before.as_bytes())?;
    header[at + before.len()..].first_chunk_mut()
}

fn checksum_of_header(header: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&(header.len() as u64).to_le_bytes()), header)
}

/// Holds a file of this program against its checksum, which `data` continues over the data; whether it has one.
pub(super) fn check(
    mut header: Vec<u8>,
    data: impl FnOnce(u32) -> Result<u32, String>,
) -> Result<bool, String> {
    let Some(digits) = checksum_digits(&mut header) else { return Ok(false) };
    let said = std::mem::replace(digits, ZEROS);
    let found = format!("{:08x}", data(checksum_of_header(&header))?);
    if found.as_bytes() == said {
        return Ok(true);
    }
    let said = said.escape_ascii();
    Err(format!("is damaged: its bytes have the checksum {found}, and it says {said}: take another copy"))
}

#[derive(Serialize)]
struct Header<'a> {
    #[serde(rename = "__metadata__")]
    metadata: BTreeMap<String, String>,
    #[serde(flatten)]
    tensors: BTreeMap<&'a str, TensorInfo>,
}

/// The length and the bytes of a header, as long as the first byte behind them is at a multiple of `alignment`, with the
/// checksum, which `data` continues over the data.
pub(super) fn header(
    mut metadata: BTreeMap<String, String>,
    tensors: BTreeMap<&str, TensorInfo>,
    alignment: usize,
    data: impl FnOnce(u32) -> u32,
) -> Result<Vec<u8>, String> {
    metadata.insert(CHECKSUM.into(), String::from_utf8_lossy(&ZEROS).into());
    let mut header = serde_json::to_vec(&Header { metadata, tensors }).map_err(|e| e.to_string())?;
    // Readers that map the file into memory rely on aligned data.
    header.resize((8 + header.len()).next_multiple_of(alignment) - 8, b' ');
    let sum = data(checksum_of_header(&header));
    if let Some(digits) = checksum_digits(&mut header) {
        digits.copy_from_slice(format!("{sum:08x}").as_bytes());
    }
    Ok([&(header.len() as u64).to_le_bytes(), &header[..]].concat())
}

pub(super) fn write(path: &Path, state: &State, meta: &Meta) -> Result<()> {
    let cannot = |what: String| Error::file(path, format!("cannot be written: {what}"));
    let metadata = meta.to_strings().map_err(cannot)?;
    let mut tensors = BTreeMap::new();
    let mut end = 0;
    for (name, array) in state {
        if array.shape.iter().product::<usize>() != array.data.len() {
            let (values, shape) = (array.data.len(), &array.shape);
            return Err(cannot(format!("tensor {name} has {values} values for {shape:?}")));
        }
        let start = end;
        end += size_of_val(array.data.as_slice());
        let info = TensorInfo { dtype: Dtype::F32, shape: array.shape.clone(), data_offsets: (start, end) };
        tensors.insert(name.as_str(), info);
    }
    let sum = |sum| pieces(state).fold(sum, |sum, piece| crc32c::crc32c_append(sum, &piece));
    let header = header(metadata, tensors, 8, sum).map_err(cannot)?;
    write_atomically(path, |to| {
        to.write_all(&header)?;
        pieces(state).try_for_each(|piece| to.write_all(&piece))
    })
}

/// The values of all tensors as they lie in the file, a little at a time.
fn pieces(state: &State) -> impl Iterator<Item = Vec<u8>> {
    let pieces = state.values().flat_map(|array| array.data.chunks(1 << 14));
    pieces.map(|values| values.iter().flat_map(|value| value.to_le_bytes()).collect())
}
