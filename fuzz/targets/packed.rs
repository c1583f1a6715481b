//! Packed models: a file, a header alone, or the numbers of a network, which is packed and opened.

use std::fs;

use amdanet::checkpoint::is_packed;
use amdanet::data::ClassSet;
use amdanet::infer::Engine;
use amdanet::model::{Amdanet, Arch, ModelConfig};
use arbitrary::{Arbitrary, Unstructured};

use super::checkpoint::with_data;
use super::{compute, is_small, mend, scratch};

pub fn run(data: &[u8]) {
    let Some((&mode, bytes)) = data.split_first() else { return };
    match mode {
        b'c' => {
            let _ = network(&mut Unstructured::new(bytes));
        }
        b'h' => open(&with_data(bytes, 64, 1 << 20)),
        b'm' => {
            let mut bytes = bytes.to_vec();
            mend(&mut bytes);
            open(&bytes);
        }
        _ => open(bytes),
    }
}

fn open(bytes: &[u8]) {
    let path = scratch("opened");
    fs::write(&path, bytes).expect("writing a file");
    let _ = is_packed(&path);
    if let Ok((engine, _)) = Engine::open(&path) {
        compute(&engine);
    }
}

/// Whatever network the configuration lets through can be packed, opened and computed with.
fn network(numbers: &mut Unstructured) -> arbitrary::Result<()> {
    let mut four = |range: std::ops::RangeInclusive<usize>| -> arbitrary::Result<[usize; 4]> {
        let mut all = [0; 4];
        for one in &mut all {
            *one = numbers.int_in_range(range.clone())?;
        }
        Ok(all)
    };
    let (dims, heads, depths, sr) = (four(0..=12)?.map(|n| 4 * n), four(0..=4)?, four(0..=2)?, four(0..=9)?);
    let arch = if bool::arbitrary(numbers)? { Arch::Release } else { Arch::Paper };
    let config = ModelConfig {
        arch,
        classes: numbers.int_in_range(0..=20)?,
        dims,
        heads,
        depths,
        sr,
        mlp_ratio: numbers.int_in_range(0..=3)?,
        decoder_dim: numbers.int_in_range(0..=40)?,
        fusion_dim: numbers.int_in_range(0..=20)?,
        sci: bool::arbitrary(numbers)?,
        local_alignment: bool::arbitrary(numbers)?,
        global_alignment: bool::arbitrary(numbers)?,
        tau: f32::arbitrary(numbers)?,
        bn_eps: f32::arbitrary(numbers)?,
        ..ModelConfig::default()
    };
    if config.validate().is_err() || !is_small(&config) {
        return Ok(());
    }
    let classes = ClassSet::unnamed(config.classes).expect("as many classes as a network may have");
    let mut model = Amdanet::new(config).expect("a network of a valid configuration");
    model.params.initialise(1);
    let path = scratch("packed");
    let engine = Engine::new(&model).expect("an engine of a network");
    engine.save(&path, &classes).expect("packing a network");
    let (opened, _) = Engine::open(&path).expect("opening what was packed");
    compute(&opened);
    Ok(())
}
