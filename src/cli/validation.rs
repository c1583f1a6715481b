//! What a training does between steps: it measures the network on a split that it is not trained on.

use super::demo::tiles;
use super::progress::Progress;
use crate::Result;
use crate::data::{ClassSet, Dataset, Split, Tile, contact_sheet};
use crate::evaluate::{Evaluation, Options, evaluate};
use crate::model::Amdanet;
use crate::train::{Config, Run};

/// Pairs on the picture of an evaluation.
const SHOWN: usize = 4;
/// Columns of that picture are at most this wide.
const WIDEST: usize = 320;

/// When and on what a training is measured.
pub struct Validation {
    dataset: Dataset,
    classes: ClassSet,
    every: usize,
    newest: Option<Evaluation>,
}

impl Validation {
    /// Measures on `dataset` after each `every` steps (0: at the end alone).
    pub fn new(dataset: Dataset, classes: ClassSet, every: usize) -> Self {
        Self { dataset, classes, every, newest: None }
    }

    /// The steps of an epoch, rounded up to a multiple of those between checkpoints.
    pub fn default_every(config: &Config, examples: usize) -> usize {
        examples.div_ceil(config.run.examples()).next_multiple_of(config.run.checkpoint_every)
    }

    /// What is measured when, in a few words.
    pub fn describe(&self) -> String {
        let when = match self.every {
            0 => "at the end".into(),
            every => format!("every {every} steps"),
        };
        format!("{} ({}) to measure {when}", self.dataset.len(), self.split())
    }

    /// What is measured.
    pub fn dataset(&self) -> &Dataset {
        &self.dataset
    }

    /// The split that is measured.
    pub fn split(&self) -> Split {
        self.dataset.split()
    }

    /// What was measured last, if anything was.
    pub fn newest(&self) -> Option<&Evaluation> {
        self.newest.as_ref()
    }

    /// Whether the network is to be measured after `step` of `steps` steps.
    pub fn is_due(&self, step: usize, steps: usize) -> bool {
        step == steps || (step > 0 && self.every > 0 && step.is_multiple_of(self.every))
    }

    /// Measures the network after step `step`, and writes the result into the folder of the run.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn measure(
        &mut self,
        model: &Amdanet,
        step: usize,
        run: &mut Run,
        progress: &mut Progress,
    ) -> Result<()> {
        let (split, pairs) = (self.split(), self.dataset.len());
        let (mut rows, mut seen) = (Vec::new(), 0);
        let result =
            evaluate(model, &self.dataset, &self.classes, &Options::default(), |sample, predicted| {
                seen += 1;
                progress.message(format!("measuring {split} {seen}/{pairs}"));
                if rows.len() < SHOWN {
                    rows.push(tiles(sample, predicted, &self.classes).into_iter().map(smaller).collect());
                }
            })?;
        let sheet = contact_sheet(&["visible", "infrared", "fused", "label", "prediction"], &rows);
        run.evaluated(step, split, &result, &sheet)?;
        let miou = result.scores.miou.map_or("-".into(), |miou| format!("{:.2} %", 100.0 * miou));
        let best = run.best().filter(|best| best.step == step).map_or("", |_| ", the best so far");
        progress.note(format!("step {step}: mIoU {miou} on {split}{best}"));
        self.newest = Some(result);
        Ok(())
    }
}

/// A tile that is no wider than [`WIDEST`].
fn smaller(tile: Tile) -> Tile {
    if tile.width <= WIDEST {
        return tile;
    }
    let height = (tile.height * WIDEST / tile.width).max(1);
    match image::RgbImage::from_raw(tile.width as u32, tile.height as u32, tile.rgb) {
        Some(picture) => {
            let rgb = image::imageops::thumbnail(&picture, WIDEST as u32, height as u32).into_raw();
            Tile { width: WIDEST, height, rgb }
        }
        None => Tile { width: 0, height: 0, rgb: Vec::new() },
    }
}
