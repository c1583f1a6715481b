//! `amdanet devices`

use clap::Args;
use serde_json::json;

use super::{say, say_json};
use crate::Result;
use crate::cuda::{gpu, kernels};

#[derive(Args)]
pub struct Devices {
    /// One JSON object on standard output
    #[arg(long)]
    json: bool,
}

impl Devices {
    pub fn run(self) -> Result<()> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let cpu = processor().unwrap_or_else(|| std::env::consts::ARCH.into());
        let found = gpu::find();
        if self.json {
            return Self::say_json(cores, &cpu, &found);
        }
        say(format!("cpu: {cpu}, {cores} cores"));
        match &found {
            Ok(found) => {
                for (i, device) in found.devices.iter().enumerate() {
                    let kernels = device.usable().unwrap_or_else(|why| format!("not usable: {why}"));
                    say(format!("cuda:{i}: {device}; {kernels}"));
                }
                let (major, minor) = found.driver;
                let none = if found.devices.is_empty() { ", and it finds no device" } else { "" };
                say(format!("CUDA driver: for CUDA {major}.{minor}{none}"));
            }
            Err(e) => say(e),
        }
        say(format!("this build has {}", kernels::summary()));
        Ok(())
    }

    fn say_json(cores: usize, cpu: &str, found: &Result<gpu::Found>) -> Result<()> {
        let (driver, devices, missing) = match found {
            Ok(found) => (Some(format!("{}.{}", found.driver.0, found.driver.1)), &found.devices[..], None),
            Err(e) => (None, &[][..], Some(e.to_string())),
        };
        let devices: Vec<_> = devices
            .iter()
            .enumerate()
            .map(|(i, d)| {
                let fit = d.usable();
                json!({
                    "device": format!("cuda:{i}"), "name": d.name,
                    "capability": format!("{}.{}", d.capability.0, d.capability.1), "bytes": d.bytes,
                    "kernels": fit.as_ref().ok(), "missing": fit.as_ref().err(),
                })
            })
            .collect();
        say_json(&json!({
            "cpu": { "name": cpu, "cores": cores },
            "cuda": {
                "driver": driver, "missing": missing, "devices": devices,
                "nvcc": Some(kernels::NVCC).filter(|v| !v.is_empty()), "architectures": kernels::ARCHS,
            },
        }))
    }
}

/// The processor's name, where the system tells.
fn processor() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}
