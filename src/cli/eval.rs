//! `amdanet eval`

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::progress::Progress;
use super::weights::Weights;
use super::{Data, Machine, Size, say, say_json, warn};
use crate::data::{ClassSet, Split};
use crate::evaluate::{Evaluation, Modality, Modes, Options, Predictor, Window, evaluate_with};
use crate::files::write_bytes;
use crate::metrics::Scores;
use crate::model::{Amdanet, ModelConfig};
use crate::report::{Gallery, page, sha256};
use crate::{Device, Error, Result};

#[derive(Args)]
pub struct Eval {
    #[command(flatten)]
    weights: Weights,
    #[command(flatten)]
    data: Data,
    /// train, val or test
    #[arg(long, default_value = "test")]
    split: Split,
    /// Slide windows of this size over each picture, and average logits where they overlap
    #[arg(long, value_name = "HxW")]
    window: Option<Size>,
    /// Pixels from one window to the next [default: two thirds of the window's shorter side]
    #[arg(long, value_name = "N", requires = "window")]
    stride: Option<usize>,
    /// Average with the logits of the mirrored picture
    #[arg(long)]
    flip: bool,
    /// Average the logits of the picture at these scales
    #[arg(long, value_delimiter = ',', value_name = "S,...", default_value = "1")]
    scales: Vec<f64>,
    /// Replace one modality by black
    #[arg(long, value_enum)]
    blank: Option<Modality>,
    /// Stretch fused pictures to their minimum and maximum before scoring them, as the published scripts do
    #[arg(long)]
    stretch: bool,
    /// Write a report for people: one HTML file that needs nothing else
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// One JSON object on standard output
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    machine: Machine,
}

/// As many best and as many worst pairs are in a report.
const SHOWN: usize = 3;

impl Eval {
    pub fn run(self) -> Result<()> {
        let options = self.options();
        options.modes.validate()?;
        let device = self.machine.set_up()?;
        if let Some(path) = &self.report {
            make_room(path)?;
        }
        let (engine, classes) = self.weights.load(&device, self.machine.precision)?;
        let mut predictor = Predictor::packed(engine.clone());
        let dataset = self.data.open(self.split)?;
        if let Some(labels) = dataset.classes() {
            compare(labels, &classes)?;
        }
        let dataset = dataset.with_classes(classes.clone());
        let mut gallery = Gallery::new(SHOWN, &classes.palette);
        let mut shown = Ok(());
        let mut progress = Progress::new("pairs", dataset.len());
        let result = evaluate_with(&mut predictor, &dataset, &classes, &options, |sample, predicted| {
            if self.report.is_some() && shown.is_ok() {
                shown = gallery.add(sample, predicted);
            }
            progress.step(&sample.name);
        })?;
        drop(progress);
        if self.json {
            say_json(&result)?;
        } else {
            table(&result);
        }
        if let Some(path) = &self.report {
            shown?;
            self.write(path, &device, engine.config(), &classes, &result, &gallery)?;
        }
        Ok(())
    }

    fn options(&self) -> Options {
        let window = self.window.map(|Size { height, width }| {
            let stride = self.stride.unwrap_or(height.min(width) * 2 / 3);
            Window { height, width, stride }
        });
        let modes = Modes { window, flip: self.flip, scales: self.scales.clone() };
        Options { modes, blank: self.blank, stretch: self.stretch }
    }

    fn write(
        &self,
        path: &Path,
        device: &Device,
        config: &ModelConfig,
        classes: &ClassSet,
        result: &Evaluation,
        gallery: &Gallery,
    ) -> Result<()> {
        let (arch, encoder, weights) = (config.arch, config.encoder_name(), &self.weights.path);
        let parameters = Amdanet::new(config.clone())?.params.count();
        let data = std::path::absolute(&self.data.root).unwrap_or_else(|_| self.data.root.clone());
        let name = data.file_name().map_or_else(|| data.to_string_lossy(), |name| name.to_string_lossy());
        let precision = self.machine.precision.to_possible_value();
        let blank = self.blank.and_then(|b| b.to_possible_value());
        let facts = [
            ("model", format!("AMDANet, {arch} architecture, encoder {encoder}, {parameters} parameters")),
            ("classes", config.classes.to_string()),
            ("ε of the batch norms", config.bn_eps.to_string()),
            ("weights", weights.display().to_string()),
            ("SHA-256 of the weights", sha256(weights)?),
            ("data set", self.data.root.display().to_string()),
            ("split", format!("{}, {} pairs", self.split, result.pairs)),
            ("modes", result.options.modes.to_string()),
            ("blanked", blank.map_or("nothing".into(), |b| b.get_name().into())),
            ("fused pictures", stretched(result.options.stretch).into()),
            ("device", format!("{device:?}")),
            ("precision", precision.map_or(String::new(), |p| p.get_name().into())),
            ("version", format!("amdanet {}", env!("CARGO_PKG_VERSION"))),
        ];
        let title = format!("AMDANet on {name}, {} split", self.split);
        write_bytes(path, page(&title, result, classes, gallery, &facts)?.as_bytes())?;
        if !self.json {
            say(format!("report: {}", path.display()));
        }
        Ok(())
    }
}

/// Whether a report can be written to `path`, asked before the work; makes its folder.
fn make_room(path: &Path) -> Result<()> {
    if path.is_dir() || path.file_name().is_none() {
        return Err(Error::file(path, "is a folder: name the file of the report, as report.html"));
    }
    match path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        Some(folder) => std::fs::create_dir_all(folder).map_err(Error::io(folder, "create the folder")),
        None => Ok(()),
    }
}

fn stretched(stretch: bool) -> &'static str {
    if stretch { "stretched to minimum and maximum before scoring" } else { "scored as saved, not stretched" }
}

/// The scores as a table on standard output.
pub fn table(evaluation: &Evaluation) {
    let Evaluation { pairs, scores, options, .. } = evaluation;
    say(format!("{:<20} {:>8} {:>10} {:>8}", "class", "IoU %", "accuracy %", "AP %"));
    for class in &scores.classes {
        let (iou, accuracy, ap) = (percent(class.iou), percent(class.accuracy), percent(class.ap));
        say(format!("{:<20} {iou:>8} {accuracy:>10} {ap:>8}", class.name));
    }
    let row = |name: &str, scores: &Scores| {
        let (miou, macc, map) = (percent(scores.miou), percent(scores.macc), percent(scores.map));
        say(format!("{name:<20} {miou:>8} {macc:>10} {map:>8}"));
    };
    row("mean", scores);
    for (name, part) in &evaluation.splits {
        row(&format!("mean, {name} ({})", part.pairs), &part.scores);
    }
    let (accuracy, fwiou) = (percent(scores.pixel_accuracy), percent(scores.fwiou));
    say(format!("pixel accuracy {accuracy} %, frequency-weighted IoU {fwiou} %, {pairs} pairs"));
    let fusion = std::iter::once(("", scores)).chain(evaluation.splits.iter().map(|(n, p)| (*n, &p.scores)));
    for (name, f) in fusion.filter_map(|(name, scores)| Some((name, scores.fusion?))) {
        let name = if name.is_empty() { String::new() } else { format!(" ({name})") };
        say(format!(
            "fused pictures{name}: EN {:.3}, SD {:.3}, SF {:.3}, SCD {:.3}",
            f.en, f.sd, f.sf, f.scd
        ));
    }
    say(format!("{}; fused pictures {}", options.modes, stretched(options.stretch)));
}

fn percent(value: Option<f64>) -> String {
    value.map_or("-".into(), |v| format!("{:.2}", 100.0 * v))
}

/// Holds the classes of a data set against those that a network was trained on.
fn compare(labels: &ClassSet, network: &ClassSet) -> Result<()> {
    if labels.len() != network.len() {
        return Err(Error::Config(format!(
            "the labels have {} classes ({}), and the network {} ({}): evaluate it on the kind of data that it was \
             trained on",
            labels.len(),
            labels.names.join(", "),
            network.len(),
            network.names.join(", ")
        )));
    }
    let differing = labels.names.iter().zip(&network.names).find(|(label, name)| label != name);
    if let Some((label, name)) = differing
        && network.names != ClassSet::unnamed(network.len())?.names
    {
        warn(format!(
            "the data set names a class {label:?} that the network calls {name:?}: the network's names are shown"
        ));
    }
    Ok(())
}
