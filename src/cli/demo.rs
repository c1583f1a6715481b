//! `amdanet demo`

use std::path::PathBuf;

use clap::Args;

use super::progress::Progress;
use super::train::{End, fit};
use super::{Machine, say};
use crate::data::{
    ClassSet, Dataset, Sample, Split, Stored, Tile, colorize, contact_sheet, synth, write_rgb,
};
use crate::evaluate::{Modality, Options, Prediction, evaluate};
use crate::model::{Amdanet, Arch, Encoder};
use crate::train::{Config, Recipe, Run, Trainer};
use crate::{Error, Result};

#[derive(Args)]
pub struct Demo {
    /// Folder to write to; what an earlier demonstration left there is replaced
    #[arg(long, default_value = "demo")]
    out: PathBuf,
    /// Training steps
    #[arg(long, default_value_t = 600)]
    steps: usize,
    /// Scenes to draw
    #[arg(long, default_value_t = 240, value_parser = clap::value_parser!(u64).range(8..))]
    pairs: u64,
    #[command(flatten)]
    machine: Machine,
}

const HEIGHT: usize = 96;
const WIDTH: usize = 128;
/// The file that says that a demonstration made the folders beside it.
const MARK: &str = "demo.txt";
/// Unseen scenes on the contact sheet.
const SHOWN: usize = 6;

impl Demo {
    pub fn run(self) -> Result<()> {
        let device = self.machine.set_up()?;
        let (data, run) = (self.out.join("data"), self.out.join("run"));
        self.clear([&data, &run])?;
        say(format!("drawing {} street scenes of {HEIGHT}x{WIDTH} in {}", self.pairs, data.display()));
        let mut progress = Progress::new("scenes", self.pairs as usize);
        synth::write(&data, self.pairs as usize, 1, HEIGHT, WIDTH, &mut |_| progress.step(""))?;
        drop(progress);

        let train = Dataset::open(&data, Split::Train)?;
        let classes =
            train.classes().cloned().ok_or_else(|| Error::file(&data, "classes.toml is missing"))?;
        let mut config =
            Config::new(None, Recipe::Release, Encoder::Nano, Arch::Release, Some(classes.len()));
        (config.augment.height, config.augment.width) = (HEIGHT, WIDTH);
        config.augment.scales = vec![1.0, 1.25, 1.5];
        config.optimizer.lr = 3e-3;
        config.optimizer.warmup_steps = 30;
        (config.run.batch, config.run.steps) = (4, self.steps);
        config.validate()?;
        let mut model = Amdanet::new(config.model.clone())?;
        model.params.initialise(config.run.seed);
        model.params.place(&device, self.machine.precision.dtype())?;
        say(format!("training nano ({} parameters) for {} steps", model.params.count(), self.steps));
        let mut run = Run::create(&run, &config, &train.fingerprint(), &self.machine.describe(&device), 1)?;
        let trainer = Trainer::new(model, config.clone());
        let End::Done(model) = fit(trainer, &config, &train, &classes, None, &mut run)? else {
            say("stopped");
            return Ok(());
        };
        self.show(&model, &classes, &Dataset::open(&data, Split::Test)?)
    }

    /// Removes what an earlier demonstration left, and nothing that somebody else put there.
    fn clear(&self, folders: [&PathBuf; 2]) -> Result<()> {
        let mark = self.out.join(MARK);
        let text = "`amdanet demo` made the folders data and run beside this file, and replaces them.\n";
        std::fs::create_dir_all(&self.out).map_err(Error::io(&self.out, "create the folder"))?;
        let is_ours = std::fs::read(&mark).is_ok_and(|found| found == text.as_bytes());
        if !is_ours && let Some(foreign) = folders.into_iter().chain([&mark]).find(|path| path.exists()) {
            let what = "is there already, and no demonstration made it: choose another --out";
            return Err(Error::file(foreign, what));
        }
        for folder in folders.into_iter().filter(|f| f.exists()) {
            std::fs::remove_dir_all(folder).map_err(Error::io(folder, "replace"))?;
        }
        std::fs::write(&mark, text).map_err(Error::io(&mark, "write"))
    }

    /// Scores and pictures of unseen scenes.
    fn show(&self, model: &Amdanet, classes: &ClassSet, test: &Dataset) -> Result<()> {
        let mut rows = Vec::new();
        let mut collect = |sample: &Sample, predicted: &Prediction| {
            if rows.len() < SHOWN {
                rows.push(tiles(sample, predicted, classes));
            }
        };
        let both = evaluate(model, test, classes, &Options::default(), &mut collect)?;
        super::eval::table(&both);
        say(format!("\nmIoU on {} unseen scenes:", both.pairs));
        let percent = |miou: Option<f64>| 100.0 * miou.unwrap_or(0.0);
        say(format!("  visible and infrared  {:5.1} %", percent(both.scores.miou)));
        for (blank, what) in
            [(Modality::Infrared, "infrared blanked"), (Modality::Visible, "visible blanked")]
        {
            let options = Options { blank: Some(blank), ..Options::default() };
            let one = evaluate(model, test, classes, &options, |_, _| ())?;
            say(format!("  {what:<21} {:5.1} %", percent(one.scores.miou)));
        }
        let sheet = contact_sheet(&["visible", "infrared", "fused", "label", "prediction"], &rows);
        let path = self.out.join("contact_sheet.png");
        write_rgb(&path, sheet.width, sheet.height, &sheet.rgb)?;
        say(format!("\npictures: {}", path.display()));
        Ok(())
    }
}

/// Visible, infrared, fused, label, prediction.
pub(super) fn tiles(sample: &Sample, predicted: &Prediction, classes: &ClassSet) -> Vec<Tile> {
    let Stored { width, height, .. } = sample.visible;
    let tile = |rgb: Vec<u8>| Tile { width, height, rgb };
    vec![
        tile(sample.visible.to_rgb8()),
        tile(sample.infrared.to_rgb8()),
        tile(predicted.fused.clone()),
        tile(colorize(&sample.labels.ids, &classes.palette)),
        tile(colorize(&predicted.labels, &classes.palette)),
    ]
}
