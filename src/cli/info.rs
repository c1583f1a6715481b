//! `amdanet info`

use std::path::PathBuf;

use clap::Args;

use super::{Network, Size, say, say_json};
use crate::infer::Engine;
use crate::model::{Amdanet, Arch, Cost, Encoder, ModelConfig};
use crate::{Result, checkpoint};

#[derive(Args)]
pub struct Info {
    /// A checkpoint or a packed model; without one, a network of the given size
    #[arg(conflicts_with_all = ["encoder", "arch", "classes", "all"])]
    weights: Option<PathBuf>,
    /// Every size in both architectures, in one table
    #[arg(long, conflicts_with_all = ["encoder", "arch"])]
    all: bool,
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
        if self.all {
            return self.every_size();
        }
        let packed = self.weights.as_ref().is_some_and(|path| checkpoint::is_packed(path));
        let (model, classes) = match &self.weights {
            Some(path) if packed => {
                let (engine, classes) = Engine::open(path)?;
                (Amdanet::new(engine.config().clone())?, classes.names)
            }
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
                "arch": c.arch, "encoder": encoder, "classes": c.classes, "class_names": classes, "packed": packed,
                "without": c.left_out(), "bn_eps": c.bn_eps, "size": size, "parameters": model.params.count(), "gflop": gflop(flop),
                "modules": modules,
            }));
        }
        let without = match &c.left_out()[..] {
            [] => String::new(),
            parts => format!(", without {}", parts.join(", ")),
        };
        if packed {
            say(
                "packed model for `run`, `stream`, `eval` and `bench model`; below, the network that it was made from",
            );
        }
        say(format!("AMDANet, {} architecture, encoder {encoder}, {} classes{without}", c.arch, c.classes));
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

    /// A line for each network: its parameters by part, and its operations.
    fn every_size(&self) -> Result<()> {
        let size = format!("{}x{}", self.size.height, self.size.width);
        let (millions, gflop) = (|n: usize| n as f64 / 1e6, |flop: u64| flop as f64 / 1e9);
        let mut networks = Vec::new();
        for arch in [Arch::Release, Arch::Paper] {
            for encoder in Encoder::ALL {
                let model = Amdanet::new(ModelConfig::new(encoder, arch, self.network.classes))?;
                networks.push((arch, encoder, model.costs(self.size.height, self.size.width)));
            }
        }
        let part = |costs: &[Cost], words: &[&str]| -> usize {
            let is_part = |cost: &&Cost| words.iter().any(|word| cost.module.contains(word));
            costs.iter().filter(is_part).map(|cost| cost.parameters).sum()
        };
        let flop = |costs: &[Cost]| gflop(costs.iter().map(|cost| cost.flop).sum());
        let parts = |costs: &[Cost]| {
            [&["embedding", "blocks"][..], &["consistency"], &["alignment"], &["head"], &[""]]
                .map(|words| part(costs, words))
        };
        if self.json {
            let row = |(arch, encoder, costs): &(Arch, Encoder, Vec<Cost>)| {
                let [streams, sci, alignment, heads, all] = parts(costs);
                serde_json::json!({
                    "arch": arch, "encoder": encoder, "classes": self.network.classes, "size": size,
                    "parameters": all, "encoder_parameters": streams, "sci_parameters": sci,
                    "alignment_parameters": alignment, "head_parameters": heads, "gflop": flop(costs),
                })
            };
            let networks: Vec<_> = networks.iter().map(row).collect();
            return say_json(&serde_json::json!({ "networks": networks }));
        }
        say(format!(
            "millions of parameters, {} classes; GFLOP for one pair at {size}",
            self.network.classes
        ));
        let head = ["arch", "encoder", "two streams", "SCI", "alignment", "heads", "all", "GFLOP"];
        let [arch, encoder, columns @ ..] = head;
        let line = |a: &str, e: &str, columns: [String; 6]| {
            let columns: String = columns.iter().map(|text| format!("{text:>12}")).collect();
            say(format!("{a:<8} {e:<8}{columns}"));
        };
        line(arch, encoder, columns.map(String::from));
        for (arch, encoder, costs) in &networks {
            let [a, b, c, d, e] = parts(costs).map(|n| format!("{:.2}", millions(n)));
            line(&arch.to_string(), encoder.name(), [a, b, c, d, e, format!("{:.1}", flop(costs))]);
        }
        Ok(())
    }
}
