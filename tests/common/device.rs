//! The device of the tests that need no checks of every access: not in `mod.rs`, so that only they link the emulator.

use amdanet::{Device, Precision};
use emulator::{Emulator, Options};

/// A CUDA device that computes in `precision`: the emulator, or a real one where `AMDANET_TEST_DEVICE` is `cuda`.
pub fn device(precision: Precision) -> Device {
    let tf32 = precision == Precision::Tf32;
    Device::Cuda(match std::env::var_os("AMDANET_TEST_DEVICE").is_some_and(|name| name == "cuda") {
        true => amdanet::cuda::open(0, tf32).unwrap(),
        false => Emulator::new(Options { tf32, ..Options::default() }),
    })
}
