//! The safetensors container. The `safetensors` crate reads the header and finds holes and overlaps; the data is read
//! and written tensor by tensor here, because the crate wants the whole file in memory to read, and writes its
//! metadata in the order of a hash map.

use std::collections::BTreeMap;
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;

use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde::Serialize;

use super::element::{self, Element};
use super::{Array, Meta, Source, State, names, shown};
use crate::files::write_atomically;
use crate::{Error, Result};

/// That of b5 has 0.25 MB.
const MAX_HEADER: u64 = 16 << 20;

pub(super) fn read(file: &mut dyn Source, len: u64) -> Result<(State, Option<Meta>), String> {
    let cannot = |e: std::io::Error| format!("cannot be read: {e}");
    let mut from = BufReader::new(file);
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
    let start = 8 + header_len;
    if (len - start) != header.data_len() as u64 {
        return Err(format!(
            "declares {} bytes of safetensors data and has {}: it is damaged or truncated",
            header.data_len(),
            len - start
        ));
    }
    let strings = header.metadata().clone().unwrap_or_default();
    let mut strings: BTreeMap<_, _> = strings.into_iter().collect();
    strings.remove(CHECKSUM);
    let meta = Meta::from_strings(strings)?;
    if meta.is_some() {
        check(&mut from, header_bytes).map_err(cannot)??;
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

/// Holds a file of this program against its checksum; `from` stands where the data begins. Files without one pass.
fn check(from: &mut impl Read, mut header: Vec<u8>) -> std::io::Result<Result<(), String>> {
    let Some(digits) = checksum_digits(&mut header) else { return Ok(Ok(())) };
    let said = std::mem::replace(digits, ZEROS);
    let mut sum = checksum_of_header(&header);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match from.read(&mut buffer)? {
            0 => break,
            n => sum = crc32c::crc32c_append(sum, &buffer[..n]),
        }
    }
    let found = format!("{sum:08x}");
    Ok(if found.as_bytes() == said {
        Ok(())
    } else {
        let said = said.escape_ascii();
        Err(format!("is damaged: its bytes have the checksum {found}, and it says {said}: take another copy"))
    })
}

#[derive(Serialize)]
struct Header<'a> {
    #[serde(rename = "__metadata__")]
    metadata: BTreeMap<String, String>,
    #[serde(flatten)]
    tensors: BTreeMap<&'a str, TensorInfo>,
}

pub(super) fn write(path: &Path, state: &State, meta: &Meta) -> Result<()> {
    let mut metadata =
        meta.to_strings().map_err(|what| Error::file(path, format!("cannot be written: {what}")))?;
    metadata.insert(CHECKSUM.into(), String::from_utf8_lossy(&ZEROS).into());
    let mut tensors = BTreeMap::new();
    let mut end = 0;
    for (name, array) in state {
        if array.shape.iter().product::<usize>() != array.data.len() {
            return Err(Error::file(
                path,
                format!(
                    "cannot be written: tensor {name} has {} values for {:?}",
                    array.data.len(),
                    array.shape
                ),
            ));
        }
        let start = end;
        end += size_of_val(array.data.as_slice());
        let info = TensorInfo { dtype: Dtype::F32, shape: array.shape.clone(), data_offsets: (start, end) };
        tensors.insert(name.as_str(), info);
    }
    let mut header = serde_json::to_vec(&Header { metadata, tensors })
        .map_err(|e| Error::file(path, format!("cannot be written: {e}")))?;
    // Readers that map the file into memory rely on aligned data.
    header.resize(header.len().next_multiple_of(8), b' ');
    let sum =
        pieces(state).fold(checksum_of_header(&header), |sum, piece| crc32c::crc32c_append(sum, &piece));
    if let Some(digits) = checksum_digits(&mut header) {
        digits.copy_from_slice(format!("{sum:08x}").as_bytes());
    }
    write_atomically(path, |to| {
        to.write_all(&(header.len() as u64).to_le_bytes())?;
        to.write_all(&header)?;
        pieces(state).try_for_each(|piece| to.write_all(&piece))
    })
}

/// The values of all tensors as they lie in the file, a little at a time.
fn pieces(state: &State) -> impl Iterator<Item = Vec<u8>> {
    let pieces = state.values().flat_map(|array| array.data.chunks(1 << 14));
    pieces.map(|values| values.iter().flat_map(|value| value.to_le_bytes()).collect())
}
