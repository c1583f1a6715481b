//! Checkpoints of every container, and golden files. The first byte says what is made of the others.

use std::path::Path;

use amdanet::infer::Engine;
use amdanet::{Device, Precision, checkpoint, verify};
use safetensors::SafeTensors;

use super::{compute, is_small, mend, scratch};

pub fn run(data: &[u8]) {
    let Some((&mode, bytes)) = data.split_first() else { return };
    match mode {
        b'g' => golden(bytes),
        b'm' => {
            let mut bytes = bytes.to_vec();
            mend(&mut bytes);
            load(&bytes);
        }
        b'h' => load(&with_data(bytes, 8, 1 << 20)),
        _ => load(bytes),
    }
}

fn load(bytes: &[u8]) {
    let Ok(loaded) = checkpoint::load_bytes(Path::new("fuzzed"), bytes, None) else { return };
    if is_small(loaded.model.config())
        && let Ok(engine) = Engine::consume(loaded.model)
    {
        compute(&engine);
    }
}

/// A safetensors file from its header, with as much data as that asks for up to `most` bytes, and with its checksum.
pub fn with_data(header: &[u8], alignment: usize, most: usize) -> Vec<u8> {
    let mut header = header.to_vec();
    header.resize((8 + header.len()).next_multiple_of(alignment) - 8, b' ');
    let mut file = [&(header.len() as u64).to_le_bytes(), &header[..]].concat();
    let wanted = SafeTensors::read_metadata(&file).map_or(0, |(_, metadata)| metadata.data_len());
    file.extend((0..wanted.min(most)).map(|i| if i % 4 == 3 { 0x3c } else { (i >> 2) as u8 }));
    mend(&mut file);
    file
}

/// A golden file that is soon computed; others take long, as they may.
fn golden(bytes: &[u8]) {
    const MOST: u64 = 1 << 13;
    let small = |bytes| {
        let (_, metadata) = SafeTensors::read_metadata(bytes).ok()?;
        let strings = metadata.metadata().as_ref()?;
        let number = |key: &str| strings.get(key).and_then(|text| text.trim().parse().ok()).unwrap_or(1);
        let sizes = ["batch", "height", "width", "steps"].map(number);
        let work = sizes.into_iter().fold(1u64, |product, size: u64| product.saturating_mul(size.max(1)));
        Some(work <= MOST && strings.get("config").is_none_or(|config| !config.contains('b')))
    };
    if small(bytes) == Some(false) {
        return;
    }
    let path = scratch("golden");
    std::fs::write(&path, bytes).expect("writing a file");
    let _ = verify::verify(&path, &Device::Cpu, Precision::F32);
}
