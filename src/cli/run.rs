//! `amdanet run`

use std::path::{Path, PathBuf};

use clap::Args;

use super::progress::Progress;
use super::{Machine, say};
use crate::data::{Limits, Pair, Picture, colorize, overlay, pairs, read_pair, write_gray, write_rgb};
use crate::infer::{Engine, Pairs, Wanted};
use crate::model::SMALLEST_SIDE;
use crate::{Error, Result, Tensor, checkpoint};

#[derive(Args)]
pub struct Run {
    /// Checkpoint of any known kind
    #[arg(long)]
    weights: PathBuf,
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
    /// ε of the batch norms, if the checkpoint does not say [default: 1e-5]
    #[arg(long, value_name = "EPS")]
    bn_eps: Option<f32>,
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

impl Run {
    pub fn run(self) -> Result<()> {
        let device = self.machine.set_up()?;
        let found = pairs(&self.visible, &self.infrared)?;
        std::fs::create_dir_all(&self.out).map_err(Error::io(&self.out, "create the folder"))?;
        let loaded = checkpoint::load(&self.weights, self.bn_eps)?;
        let mut progress = Progress::new("pairs", found.pairs.len());
        for (files, other) in [(&found.unmatched_visible, "infrared"), (&found.unmatched_infrared, "visible")]
        {
            for file in files {
                progress
                    .note(format!("{}: skipped, there is no {other} picture of that name", file.display()));
            }
        }
        let limits = Limits { max_pixels: self.max_pixels };
        let engine = Engine::consume(loaded.model)?.to(&device, self.machine.precision.dtype())?;
        let mut session = engine.session();
        for (index, pair) in found.pairs.iter().enumerate() {
            let (visible, infrared) = read_pair(pair, limits)?;
            if visible.width.min(visible.height) < SMALLEST_SIDE {
                let (w, h) = (visible.width, visible.height);
                let what = format!("{w}x{h} pixels: the network needs at least {SMALLEST_SIDE} on each side");
                return Err(Error::file(&pair.visible, what));
            }
            let pictures = [tensor(&visible)?, tensor(&infrared)?];
            let pictures = Pairs::new(&pictures[0], &pictures[1])?;
            let output = session.run(&pictures, Wanted::default())?;
            self.save(pair, &visible, output.fused, output.labels, &loaded.classes.palette)?;
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
            let path = |folder: &str| -> PathBuf {
                Path::new(&self.out).join(folder).join(format!("{}.png", pair.name))
            };
            match save {
                Save::Fused => write_rgb(&path("fused"), w, h, fused)?,
                Save::Labels => write_gray(&path("labels"), w, h, labels)?,
                Save::Color => write_rgb(&path("color"), w, h, &colorize(labels, palette))?,
                Save::Overlay => write_rgb(&path("overlay"), w, h, &overlay(fused, labels, palette, 0.5))?,
            }
        }
        Ok(())
    }
}

/// A picture as a tensor `(1, 1, H, W, 3)`.
pub(super) fn tensor(picture: &Picture) -> Result<Tensor> {
    Tensor::from_slice([1, 1, picture.height, picture.width, 3], &picture.rgb)
}
