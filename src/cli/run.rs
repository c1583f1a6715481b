//! `amdanet run`

use std::path::{Path, PathBuf};

use clap::Args;

use super::progress::Progress;
use super::{Machine, say};
use crate::data::{Limits, Pair, Picture, colorize, overlay, pairs, read_pair, write_gray, write_rgb};
use crate::evaluate::predict;
use crate::infer::{Engine, Pairs, Session, Wanted};
use crate::model::{Amdanet, SMALLEST_SIDE};
use crate::{Device, Error, Result, Tensor, checkpoint};

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
    /// Show the steps that the fused engine takes for the first pair, with the time of each (CPU)
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
        let mut loaded = checkpoint::load(&self.weights, self.bn_eps)?;
        loaded.model.params.place(&device, self.machine.precision.dtype())?;
        let mut progress = Progress::new("pairs", found.pairs.len());
        for (files, other) in [(&found.unmatched_visible, "infrared"), (&found.unmatched_infrared, "visible")]
        {
            for file in files {
                progress
                    .note(format!("{}: skipped, there is no {other} picture of that name", file.display()));
            }
        }
        let limits = Limits { max_pixels: self.max_pixels };
        let mut compute = Compute::new(loaded.model)?;
        for (index, pair) in found.pairs.iter().enumerate() {
            let (visible, infrared) = read_pair(pair, limits)?;
            if visible.width.min(visible.height) < SMALLEST_SIDE {
                let (w, h) = (visible.width, visible.height);
                let what = format!("{w}x{h} pixels: the network needs at least {SMALLEST_SIDE} on each side");
                return Err(Error::file(&pair.visible, what));
            }
            let pictures = [tensor(&visible)?, tensor(&infrared)?];
            let (fused, labels) = compute.pair(&pictures)?;
            self.save(pair, &visible, &fused, &labels, &loaded.classes.palette)?;
            if self.explain_plan && index == 0 {
                explain(&mut compute, &pictures, &progress)?;
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

/// What computes: the fused engine, packed from a network that is not kept, or the network itself on a device.
pub(super) enum Compute {
    Engine(Box<Session>),
    Model(Box<Amdanet>),
}

impl Compute {
    pub(super) fn new(model: Amdanet) -> Result<Self> {
        Ok(match model.params.device() {
            Device::Cpu => Self::Engine(Box::new(Engine::consume(model)?.session())),
            Device::Cuda(_) => Self::Model(Box::new(model)),
        })
    }

    /// The fused picture and the labels.
    pub(super) fn pair(&mut self, [visible, infrared]: &[Tensor; 2]) -> Result<(Vec<u8>, Vec<u8>)> {
        match self {
            Self::Engine(session) => {
                let output = session.run(&Pairs::new(visible, infrared)?, Wanted::default())?;
                Ok((output.fused.to_vec(), output.labels.to_vec()))
            }
            Self::Model(model) => {
                let predicted = predict(model, visible, infrared)?;
                Ok((predicted.fused, predicted.labels))
            }
        }
    }
}

/// Shows the plan for pictures of this size, with the time of each step in one more run.
fn explain(compute: &mut Compute, [visible, infrared]: &[Tensor; 2], progress: &Progress) -> Result<()> {
    let Compute::Engine(session) = compute else {
        progress.note("--explain-plan: the fused engine computes on the CPU; this run is on a device");
        return Ok(());
    };
    let (pairs, wanted) = (Pairs::new(visible, infrared)?, Wanted::default());
    session.run_timed(&pairs, wanted)?;
    say(session.plan(&pairs, wanted)?);
    Ok(())
}

/// A picture as a tensor `(1, 1, H, W, 3)`.
pub(super) fn tensor(picture: &Picture) -> Result<Tensor> {
    Tensor::from_slice([1, 1, picture.height, picture.width, 3], &picture.rgb)
}
