//! `amdanet eval`

use std::path::PathBuf;

use clap::Args;

use super::progress::Progress;
use super::{Data, Machine, say, say_json};
use crate::data::Split;
use crate::evaluate::{Evaluation, Modality, evaluate};
use crate::{Result, checkpoint};

#[derive(Args)]
pub struct Eval {
    /// Checkpoint of any known kind
    #[arg(long)]
    weights: PathBuf,
    #[command(flatten)]
    data: Data,
    /// train, val or test
    #[arg(long, default_value = "test")]
    split: Split,
    /// Replace one modality by black
    #[arg(long, value_enum)]
    blank: Option<Modality>,
    /// ε of the batch norms, if the checkpoint does not say [default: 1e-5]
    #[arg(long, value_name = "EPS")]
    bn_eps: Option<f32>,
    /// One JSON object on standard output
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    machine: Machine,
}

impl Eval {
    pub fn run(self) -> Result<()> {
        self.machine.set_up()?;
        let loaded = checkpoint::load(&self.weights, self.bn_eps)?;
        let dataset = self.data.open(self.split)?.with_classes(loaded.classes.clone());
        let mut progress = Progress::new("pairs", dataset.len());
        let result = evaluate(&loaded.model, &dataset, &loaded.classes, self.blank, |sample, _| {
            progress.step(&sample.name);
        })?;
        drop(progress);
        if self.json {
            return say_json(&result);
        }
        table(&result);
        Ok(())
    }
}

/// The scores as a table on standard output.
pub fn table(Evaluation { pairs, scores }: &Evaluation) {
    let percent = |value: Option<f64>| value.map_or("-".into(), |v| format!("{:.2}", 100.0 * v));
    say(format!("{:<20} {:>8} {:>10} {:>8}", "class", "IoU %", "accuracy %", "AP %"));
    for class in &scores.classes {
        let (iou, accuracy, ap) = (percent(class.iou), percent(class.accuracy), percent(class.ap));
        say(format!("{:<20} {iou:>8} {accuracy:>10} {ap:>8}", class.name));
    }
    let (miou, macc, map) = (percent(scores.miou), percent(scores.macc), percent(scores.map));
    say(format!("{:<20} {miou:>8} {macc:>10} {map:>8}", "mean"));
    let (accuracy, fwiou) = (percent(scores.pixel_accuracy), percent(scores.fwiou));
    say(format!("pixel accuracy {accuracy} %, frequency-weighted IoU {fwiou} %, {pairs} pairs"));
    if let Some(f) = &scores.fusion {
        say(format!("fused pictures: EN {:.3}, SD {:.3}, SF {:.3}, SCD {:.3}", f.en, f.sd, f.sf, f.scd));
    }
}
