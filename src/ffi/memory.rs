//! Whether there is enough memory, asked before it is taken: an allocation that fails ends a Rust program.

use super::status::{Failure, Result, amdanet_status};

/// Checks that `bytes` more can be had for `what`.
pub fn check(bytes: usize, what: &str) -> Result<()> {
    let mega = |bytes: usize| format!("{:.1} MB", bytes as f64 / 1e6);
    let failed = |why: String| {
        Failure::new(amdanet_status::OutOfMemory, format!("{what} takes {}, and {why}", mega(bytes)))
    };
    // Linux promises more than it has and ends programs that believe it, so what is there counts too.
    if let Some(available) = available()
        && bytes > available
    {
        return Err(failed(format!("{} are available on this machine", mega(available))));
    }
    let mut trial: Vec<u8> = Vec::new();
    trial.try_reserve_exact(bytes).map_err(|_| failed("the system refuses that".into()))
}

/// Bytes that the system could give without swapping, where it says so.
fn available() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()?.checked_mul(1024)
}
