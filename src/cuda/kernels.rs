//! The kernels that this build carries, as `build.rs` made them, and which devices they run on.

// The driver reads a fat binary as a structure, so it begins at a multiple of 16.
#[allow(dead_code)] // A build without nvcc has none.
#[repr(align(16))]
struct Image<const N: usize>([u8; N]);

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// What a device of this compute capability would run: `machine code for sm_90a` or `PTX of sm_80`.
///
/// # Errors
/// When it can run nothing of this build; the text says why and what to do.
pub fn fit(capability: (u32, u32)) -> Result<String, String> {
    fit_of(ARCHS, capability).ok_or_else(|| match capability {
        _ if NVCC.is_empty() => format!("this build has {}", summary()),
        (8.., _) => format!(
            "this build has {}, and the device is sm_{}{}: build again with AMDANET_CUDA_ARCHS={}{}",
            summary(),
            capability.0,
            capability.1,
            capability.0,
            capability.1
        ),
        (major, minor) => format!("the device is sm_{major}{minor}, and the kernels need sm_80 or later"),
    })
}

/// What this build has, in words.
pub fn summary() -> String {
    match ARCHS {
        [] => "no kernels, because it was made without nvcc: run scripts/nvcc, then build again".into(),
        [oldest, ..] => {
            let archs: Vec<String> = ARCHS.iter().map(|arch| format!("sm_{arch}")).collect();
            format!("kernels for {} and PTX of sm_{oldest}, by nvcc {NVCC}", archs.join(", "))
        }
    }
}

/// As [`fit`], for a build with `archs`, the oldest first.
fn fit_of(archs: &[&str], (major, minor): (u32, u32)) -> Option<String> {
    let parts = |arch: &str| {
        let digits = arch.trim_end_matches(['a', 'f']);
        let number: u32 = digits.parse().ok()?;
        Some((number / 10, number % 10, arch[digits.len()..].to_owned()))
    };
    // Machine code runs on its generation from its revision on; with `a`, on that revision alone.
    let runs = |arch: &str| {
        parts(arch)
            .is_some_and(|(m, n, suffix)| m == major && if suffix == "a" { n == minor } else { n <= minor })
    };
    // PTX is compiled for whatever is newer; with a suffix, for what its machine code would run on.
    let compiles = |arch: &str| {
        parts(arch).is_some_and(
            |(m, n, suffix)| if suffix.is_empty() { (m, n) <= (major, minor) } else { runs(arch) },
        )
    };
    let newest = archs.iter().rev().find(|arch| runs(arch));
    newest.map(|arch| format!("machine code for sm_{arch}")).or_else(|| {
        let oldest = archs.first().filter(|arch| compiles(arch));
        oldest.map(|arch| format!("PTX of sm_{arch}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_where() {
        let fit = |archs: &[&str], capability| fit_of(archs, capability).unwrap_or_default();
        let usual = &["80", "90a"];
        assert_eq!(fit(usual, (8, 0)), "machine code for sm_80");
        assert_eq!(fit(usual, (8, 9)), "machine code for sm_80");
        assert_eq!(fit(usual, (9, 0)), "machine code for sm_90a");
        assert_eq!(fit(usual, (10, 0)), "PTX of sm_80");
        assert_eq!(fit(usual, (12, 0)), "PTX of sm_80");
        assert_eq!(fit(usual, (7, 5)), "");
        assert_eq!(fit(&["80", "86", "89"], (8, 6)), "machine code for sm_86");
        assert_eq!(fit(&["90a"], (10, 0)), "");
        assert_eq!(fit(&["90a"], (8, 0)), "");
        assert_eq!(fit(&["100f"], (10, 3)), "machine code for sm_100f");
        assert_eq!(fit(&["100f"], (12, 0)), "");
        assert_eq!(fit(&[], (9, 0)), "");
    }
}
