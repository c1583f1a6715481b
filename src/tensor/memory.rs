//! Whether there is enough memory, asked before it is taken: an allocation that fails ends a Rust program.

use super::release_waiting;
use crate::{Error, Result};

/// Checks that `bytes` more can be had for `what`.
///
/// # Errors
/// When the machine has less, or the system refuses.
pub fn check(bytes: usize, what: &str) -> Result<()> {
    let failed = |why: String| Error::Memory { what: what.into(), bytes, why };
    // Linux promises more than it has and ends programs that believe it, so what is there counts too.
    if available().is_some_and(|available| bytes > available) {
        release_waiting();
        if let Some(available) = available()
            && bytes > available
        {
            return Err(failed(format!("{:.1} MB are available on this machine", available as f64 / 1e6)));
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_much_is_an_error() {
        check(1 << 20, "little").unwrap();
        let error = check(1 << 60, "a frame").unwrap_err();
        assert!(error.to_string().starts_with("a frame takes 1152921504606.8 MB, and "), "{error}");
    }
}
