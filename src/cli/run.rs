//! `amdanet run`

use std::path::{Path, PathBuf};

use clap::Args;

use super::progress::Progress;
use super::weights::Weights;
use super::{Machine, say};
use crate::data::{Limits, Pair, Picture, colorize, overlay, pairs, read_pair, write_gray, write_rgb};
use crate::infer::{Pairs, Pixels, Wanted};
use crate::model::SMALLEST_SIDE;
use crate::{Error, Result};

#[derive(Args)]
pub struct Run {
    #[command(flatten)]
    weights: Weights,
    /// A visible picture, or a folder of them
    #[arg(long)]
    visible: PathBuf,
    /// The infrared picture, or a folder of them with the same names
    #[arg(long)]
    infrared: PathBuf,
    /// Folder to write to
    #[arg(long)]
    out: PathBuf,
    /// What to write: fused pictures, labels (class ids), color (labels in colour), overlay (labels over the fused)
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Save::Fused, Save::Labels, Save::Color, Save::Overlay])]
    save: Vec<Save>,
    /// Largest picture that is read
    #[arg(long, default_value_t = Limits::default().max_pixels)]
    max_pixels: u64,
    /// Show the steps that the fused engine takes for the first pair, with the time of each
    #[arg(long)]
    explain_plan: bool,
    #[command(flatten)]
    machine: Machine,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Save {
    Fused,
    Labels,
    Color,
    Overlay,
}

impl Save {
    fn folder(self) -> &'static str {
        match self {
            Self::Fused => "fused",
            Self::Labels => "labels",
            Self::Color => "color",
            Self::Overlay => "overlay",
        }
    }
}

impl Run {
    pub fn run(self) -> Result<()> {
        let device = self.machine.set_up()?;
        let found = pairs(&self.visible, &self.infrared)?;
        self.spare_what_is_there()?;
        std::fs::create_dir_all(&self.out).map_err(Error::io(&self.out, "create the folder"))?;
        let (engine, classes) = self.weights.load(&device, self.machine.precision)?;
        let mut progress = Progress::new("pairs", found.pairs.len());
        for (files, other) in [(&found.unmatched_visible, "infrared"), (&found.unmatched_infrared, "visible")]
        {
            for file in files {
                progress
                    .note(format!("{}: skipped, there is no {other} picture of that name", file.display()));
            }
        }
        let limits = Limits { max_pixels: self.max_pixels };
        let mut session = engine.session();
        for (index, pair) in found.pairs.iter().enumerate() {
            let (visible, infrared) = read_pair(pair, limits)?;
            if visible.width.min(visible.height) < SMALLEST_SIDE {
                let (w, h) = (visible.width, visible.height);
                let what = format!("{w}x{h} pixels: the network needs at least {SMALLEST_SIDE} on each side");
                return Err(Error::file(&pair.visible, what));
            }
            let pictures = one_pair(&visible, &infrared);
            let output = session.run(&pictures, Wanted::default())?;
            self.save(pair, &visible, output.fused, output.labels, &classes.palette)?;
            if self.explain_plan && index == 0 {
                session.run_timed(&pictures, Wanted::default())?;
                say(session.plan(&pictures, Wanted::default())?);
            }
            progress.step(&pair.name);
        }
        drop(progress);
        say(format!("{} pairs in {}", found.pairs.len(), self.out.display()));
        Ok(())
    }

    /// Refuses to write into folders that lie beside the pictures: they may be the pictures, or labels made by hand.
    fn spare_what_is_there(&self) -> Result<()> {
        let Ok(out) = self.out.canonicalize() else { return Ok(()) };
        for input in [&self.visible, &self.infrared] {
            let folder = input.canonicalize().map_err(Error::io(input, "read"))?;
            let folder = if folder.is_dir() { Some(&*folder) } else { folder.parent() };
            if folder.and_then(Path::parent) != Some(&*out) {
                continue;
            }
            if let Some(save) = self.save.iter().find(|save| out.join(save.folder()).exists()) {
                let name = save.folder();
                let what = format!(
                    "is there already, beside {}, and its files would be overwritten: name another --out",
                    input.display()
                );
                return Err(Error::file(self.out.join(name), what));
            }
        }
        Ok(())
    }

    fn save(
        &self,
        pair: &Pair,
        picture: &Picture,
        fused: &[u8],
        labels: &[u8],
        palette: &[[u8; 3]],
    ) -> Result<()> {
        let (w, h) = (picture.width, picture.height);
        for save in &self.save {
            let path = self.out.join(save.folder()).join(format!("{}.png", pair.name));
            match save {
                Save::Fused => write_rgb(&path, w, h, fused)?,
                Save::Labels => write_gray(&path, w, h, labels)?,
                Save::Color => write_rgb(&path, w, h, &colorize(labels, palette))?,
                Save::Overlay => write_rgb(&path, w, h, &overlay(fused, labels, palette, 0.5))?,
            }
        }
        Ok(())
    }
}

/// A batch of one pair of pictures of equal size.
pub(super) fn one_pair<'a>(visible: &'a Picture, infrared: &'a Picture) -> Pairs<'a> {
    let Picture { width, height, .. } = *visible;
    let [visible, infrared] = [visible, infrared].map(|picture| Pixels::Floats(&picture.rgb));
    Pairs { batch: 1, height, width, visible, infrared }
}
