//! One program for all targets: `AMDANET_FUZZ` says which. `scripts/fuzz` builds and runs it.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

mod targets;

static TARGET: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let name = std::env::var("AMDANET_FUZZ").unwrap_or_default();
    let target = targets::ALL.into_iter().find(|(known, _)| *known == name);
    target.unwrap_or_else(|| panic!("AMDANET_FUZZ={name}: scripts/fuzz sets it to a target")).1
});

fuzz_target!(|data: &[u8]| TARGET(data));
