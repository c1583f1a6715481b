//! `amdanet verify`

use std::path::PathBuf;

use clap::Args;

use super::{Machine, say, say_json};
use crate::{Device, Error, Precision, Result, verify};

#[derive(Args)]
pub struct Verify {
    /// Golden files
    #[arg(required = true, value_name = "GOLDEN")]
    files: Vec<PathBuf>,
    /// One JSON object on standard output
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    machine: Machine,
}

impl Verify {
    pub fn run(self) -> Result<()> {
        self.machine.set_up()?;
        let mut failed = 0;
        let mut all = serde_json::Map::new();
        for path in &self.files {
            let report = verify::verify(path, &Device::Cpu, Precision::F32)?;
            failed += usize::from(!report.holds());
            let name = path.display().to_string();
            let verdict = if report.holds() { "ok" } else { "FAILED" };
            if self.json {
                let value = serde_json::json!({ "groups": report.groups, "verdict": verdict });
                all.insert(name, value);
                continue;
            }
            say(&name);
            for group in &report.groups {
                let mark = if group.holds() { "" } else { "  <- too large" };
                say(format!(
                    "  {:<26} {:>9.2e} of {:.0e} ({} tensors){mark}",
                    group.name, group.error, group.tolerance, group.tensors
                ));
            }
            say(format!("{name}: {verdict}"));
        }
        if self.json {
            say_json(&all)?;
        }
        match failed {
            0 => Ok(()),
            n => Err(Error::Config(format!("{n} of {} golden files do not hold", self.files.len()))),
        }
    }
}
