//! `amdanet bench train`

use clap::Args;
use serde_json::{Value, json};

use super::super::say_json;
use super::{Options, Row, merged};
use crate::Result;
use crate::train::Trainer;

#[derive(Args)]
pub struct TrainOptions {
    #[command(flatten)]
    options: Options,
    /// Compute encoder blocks again in backward instead of keeping what they made
    #[arg(long)]
    recompute: bool,
}

impl TrainOptions {
    pub fn run(self) -> Result<()> {
        let options = &self.options;
        let batches = options.batches()?;
        let device = options.machine.set_up()?;
        let mut rows = Vec::new();
        for batch in batches {
            let (model, mut config) = options.build(&device, options.machine.precision.dtype(), batch)?;
            config.run.recompute = self.recompute;
            let examples = options.examples(batch)?.to(&device)?;
            let mut trainer = Trainer::new(model, config);
            rows.push(options.measure(&device, batch, || trainer.step(&examples).map(drop))?);
        }
        let (network, size) = (&options.network, format!("{}x{}", options.size.height, options.size.width));
        if options.json {
            let list: Vec<Value> = rows.iter().map(|row| row.json("step_ms")).collect();
            let network = json!({
                "encoder": network.encoder, "arch": network.arch, "classes": network.classes, "size": size,
                "recompute": self.recompute, "batches": list,
            });
            return say_json(&merged(merged(list[0].clone(), network), options.circumstances(&device)));
        }
        let title = format!("training step of {} {}, {size}", network.encoder, network.arch);
        let rows: Vec<(String, &Row)> = rows.iter().map(|r| (format!("batch {}", r.batch), r)).collect();
        options.table(&title, &device, &rows);
        Ok(())
    }
}
