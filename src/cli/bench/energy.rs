//! Energy: from the counters of the processor's packages (RAPL, as Linux shows it), or from the device's own.

use std::fs;
use std::path::{Path, PathBuf};

use crate::{Device, Result};

const RAPL: &str = "/sys/class/powercap";

/// Does `f` and returns the joules that the device has used meanwhile, all that it does included; `None` where no
/// counter can be read.
pub fn of(device: &Device, f: impl FnOnce() -> Result<()>) -> Result<Option<f64>> {
    match device {
        Device::Cpu => {
            let packages = packages(Path::new(RAPL));
            let before: Option<Vec<f64>> = packages.iter().map(|p| number(&p.join("energy_uj"))).collect();
            f()?;
            Ok(before.filter(|_| !packages.is_empty()).and_then(|before| since(&packages, &before)))
        }
        Device::Cuda(driver) => {
            let before = driver.joules();
            f()?;
            Ok(driver.joules().zip(before).map(|(after, before)| after - before))
        }
    }
}

/// The folders of whole packages: `intel-rapl:0`, and not its parts, `intel-rapl:0:0`. AMD's processors have them too.
fn packages(root: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_package = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.strip_prefix("intel-rapl:").is_some_and(|number| !number.contains(':'))
    };
    entries.filter(is_package).collect()
}

/// Joules since the counters stood at `before` microjoules. A counter starts again at its largest value.
fn since(packages: &[PathBuf], before: &[f64]) -> Option<f64> {
    let one = |(package, before): (&PathBuf, &f64)| {
        let used = number(&package.join("energy_uj"))? - before;
        let turn = if used < 0.0 { number(&package.join("max_energy_range_uj"))? } else { 0.0 };
        Some((used + turn) * 1e-6)
    };
    packages.iter().zip(before).map(one).sum()
}

fn number(path: &Path) -> Option<f64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_packages_are_added_and_may_turn_over() {
        let root = tempfile::tempdir().unwrap();
        let write = |name: &str, microjoules: u64| {
            let folder = root.path().join(name);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("energy_uj"), format!("{microjoules}\n")).unwrap();
            fs::write(folder.join("max_energy_range_uj"), "10000000\n").unwrap();
        };
        for name in ["intel-rapl:0", "intel-rapl:0:0", "intel-rapl:1", "intel-rapl", "dtpm"] {
            write(name, 9_000_000);
        }
        let mut packages = packages(root.path());
        packages.sort();
        assert_eq!(packages, ["intel-rapl:0", "intel-rapl:1"].map(|name| root.path().join(name)));
        write("intel-rapl:0", 9_500_000);
        write("intel-rapl:1", 1_000_000);
        assert_eq!(since(&packages, &[9e6, 9e6]), Some(0.5 + 2.0));
        fs::remove_file(packages[0].join("energy_uj")).unwrap();
        assert_eq!(since(&packages, &[9e6, 9e6]), None);
    }

    #[test]
    fn no_counter_is_no_error() {
        let mut done = false;
        let joules = of(&Device::Cpu, || {
            done = true;
            Ok(())
        });
        assert!(joules.unwrap().is_none_or(|joules| joules >= 0.0) && done);
    }
}
