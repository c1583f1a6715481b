//! The number types that files hold.

use std::io::{self, Read};

use half::{bf16, f16};

/// How one value of a tensor lies in a file, little-endian.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Element {
    F16,
    Bf16,
    F32,
    F64,
    /// Not a float; its name and its size in bytes.
    Other(&'static str, u64),
}

impl Element {
    pub(super) fn size(self) -> u64 {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
            Self::Other(_, size) => size,
        }
    }
}

/// Reads `count` values as `f32`. The caller has checked that the file has that many; little is held besides them.
pub(super) fn read(mut from: impl Read, element: Element, count: usize) -> io::Result<Vec<f32>> {
    fn convert<const N: usize>(bytes: &[u8], to: &mut Vec<f32>, f: impl Fn([u8; N]) -> f32) {
        to.extend(bytes.as_chunks::<N>().0.iter().map(|&b| f(b)));
    }
    let mut data = Vec::with_capacity(count);
    let mut buffer = [0; 1 << 15];
    let per_chunk = buffer.len() / element.size().max(1) as usize;
    while data.len() < count {
        let n = per_chunk.min(count - data.len()) * element.size() as usize;
        let bytes = &mut buffer[..n];
        from.read_exact(bytes)?;
        match element {
            Element::F16 => convert(bytes, &mut data, |b| f16::from_le_bytes(b).to_f32()),
            Element::Bf16 => convert(bytes, &mut data, |b| bf16::from_le_bytes(b).to_f32()),
            Element::F32 => convert(bytes, &mut data, f32::from_le_bytes),
            Element::F64 => convert(bytes, &mut data, |b| f64::from_le_bytes(b) as f32),
            Element::Other(name, _) => return Err(io::Error::other(format!("{name} is not a float"))),
        }
    }
    Ok(data)
}
