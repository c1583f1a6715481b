//! `amdanet info`

use std::path::PathBuf;

use clap::Args;

use super::{Network, Size, say, say_json};
use crate::model::{Amdanet, ModelConfig};
use crate::{Result, checkpoint};

#[derive(Args)]
pub struct Info {
    /// A checkpoint; without one, a network of the given size
    #[arg(conflicts_with_all = ["encoder", "arch", "classes"])]
    weights: Option<PathBuf>,
    #[command(flatten)]
    network: Network,
    /// Size of the pictures that operations are counted for
    #[arg(long, default_value = "480x640")]
    size: Size,
    /// One JSON object on standard output
    #[arg(long)]
    json: bool,
}

impl Info {
    pub fn run(self) -> Result<()> {
        let (model, classes) = match &self.weights {
            Some(path) => {
                let loaded = checkpoint::load(path, None)?;
                (loaded.model, loaded.classes.names)
            }
            None => {
                let Network { encoder, arch, classes } = self.network;
                (Amdanet::new(ModelConfig::new(encoder, arch, classes))?, Vec::new())
            }
        };
        let c = model.config();
        let encoder = c.encoder_name();
        let costs = model.costs(self.size.height, self.size.width);
        let flop: u64 = costs.iter().map(|cost| cost.flop).sum();
        let gflop = |flop: u64| flop as f64 / 1e9;
        let size = format!("{}x{}", self.size.height, self.size.width);
        if self.json {
            let modules: Vec<_> = costs
                .iter()
                .map(|m| {
                    serde_json::json!({ "name": m.module, "parameters": m.parameters, "gflop": gflop(m.flop) })
                })
                .collect();
            return say_json(&serde_json::json!({
                "arch": c.arch, "encoder": encoder, "classes": c.classes, "class_names": classes,
                "bn_eps": c.bn_eps, "size": size, "parameters": model.params.count(), "gflop": gflop(flop),
                "modules": modules,
            }));
        }
        say(format!("AMDANet, {} architecture, encoder {encoder}, {} classes", c.arch, c.classes));
        if !classes.is_empty() {
            say(format!("classes: {}", classes.join(", ")));
        }
        say(format!("\n{:<32} {:>12} {:>14}", "module", "parameters", format!("GFLOP at {size}")));
        for m in &costs {
            say(format!("{:<32} {:>12} {:>14.2}", m.module, m.parameters, gflop(m.flop)));
        }
        say(format!("{:<32} {:>12} {:>14.2}", "all", model.params.count(), gflop(flop)));
        Ok(())
    }
}
