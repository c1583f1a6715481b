//! `amdanet bench model`

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use serde_json::{Value, json};

use super::super::run::one_pair;
use super::super::{say, say_json};
use super::{Options, Row, merged};
use crate::data::{Limits, Pair, Picture, read_pair, synth, write_gray, write_rgb};
use crate::infer::{Engine, Pairs, Pinned, Session, Wanted};
use crate::model::Amdanet;
use crate::{DType, Device, Error, Result, Tensor, checkpoint};

#[derive(Args)]
pub struct ModelOptions {
    /// A checkpoint or a packed model instead of random weights
    #[arg(long, conflicts_with_all = ["encoder", "arch", "classes"])]
    weights: Option<PathBuf>,
    /// A visible picture instead of a drawn one
    #[arg(long, requires = "infrared", conflicts_with = "size")]
    visible: Option<PathBuf>,
    /// The infrared picture
    #[arg(long, requires = "visible")]
    infrared: Option<PathBuf>,
    /// Measure one pair from files to files as well: decode two pictures, compute, encode fused picture and labels
    #[arg(long)]
    end_to_end: bool,
    /// Show the time of each step of the fused engine
    #[arg(long)]
    profile: bool,
    #[command(flatten)]
    options: Options,
}

impl ModelOptions {
    pub fn run(self) -> Result<()> {
        let options = &self.options;
        let batches = options.batches()?;
        let device = options.machine.set_up()?;
        let folder = tempfile::tempdir().map_err(Error::io(&std::env::temp_dir(), "create a folder"))?;
        let files = self.files(folder.path())?;
        let (visible, infrared) = read_pair(&files, Limits::default())?;
        let (height, width) = (visible.height, visible.width);
        let is_packed = self.weights.as_ref().is_some_and(|path| checkpoint::is_packed(path));
        let (start, engine) = match &self.weights {
            Some(path) if is_packed => (Instant::now(), Engine::open(path)?.0),
            _ => {
                let model = self.model()?;
                (Instant::now(), Engine::consume(model)?)
            }
        };
        let seconds = start.elapsed().as_secs_f64();
        let engine = engine.to(&device, options.machine.precision.dtype())?;
        let (config, mut session) = (engine.config(), engine.session());

        let mut rows = Vec::new();
        for batch in batches {
            // As a program that feeds a device keeps them.
            let [visible, infrared] = [repeated(&visible, batch)?, repeated(&infrared, batch)?]
                .map(|picture| Pinned::new::<f32>(&device, picture));
            let (pairs, wanted) = (Pairs::new(visible.tensor(), infrared.tensor())?, Wanted::default());
            rows.push(options.measure(&device, batch, || match self.profile {
                true => session.run_timed(&pairs, wanted).map(drop),
                false => session.run(&pairs, wanted).map(drop),
            })?);
            if self.profile && !options.json {
                say(session.plan(&pairs, wanted)?);
            }
        }
        let mut to_files = || from_files_to_files(&mut session, &files, folder.path());
        let end_to_end = self.end_to_end.then(|| options.measure(&device, 1, &mut to_files)).transpose()?;

        // Counted on a network, which is made after the memory was read.
        let gflop = || -> Result<f64> {
            let costs = Amdanet::new(config.clone())?.costs(height, width);
            Ok(costs.iter().map(|cost| cost.flop).sum::<u64>() as f64 / 1e9)
        };
        let size = format!("{height}x{width}");
        if options.json {
            let circumstances = options.circumstances(&device);
            let list: Vec<Value> = rows.iter().map(|row| row.json("latency_ms")).collect();
            let network = json!({
                "encoder": config.encoder_name(), "arch": config.arch, "classes": config.classes, "size": size,
                "gflop": gflop()?, "packed_s": (!is_packed).then_some(seconds),
                "opened_s": is_packed.then_some(seconds), "end_to_end_ms": end_to_end.map(|row| row.time),
                "batches": list,
            });
            return say_json(&merged(merged(list[0].clone(), network), circumstances));
        }
        let title = format!("{} {}, {size}", config.encoder_name(), config.arch);
        let name = |row: &Row| format!("batch {}", row.batch);
        let mut lines: Vec<(String, &Row)> = rows.iter().map(|row| (name(row), row)).collect();
        lines.extend(end_to_end.as_ref().map(|row| ("from files to files".into(), row)));
        options.table(&title, &device, &lines);
        let gflop = gflop()?;
        let rate = gflop * rows[0].pairs_per_second();
        say(format!("{gflop:.1} GFLOP a pair as published, {rate:.0} GFLOP/s"));
        say(format!("{} in {seconds:.2} s", if is_packed { "opened" } else { "packed" }));
        Ok(())
    }

    fn model(&self) -> Result<Amdanet> {
        match &self.weights {
            Some(path) => Ok(checkpoint::load(path, None)?.model),
            None => Ok(self.options.build(&Device::Cpu, DType::F32, 1)?.0),
        }
    }

    /// The pair that is measured: given, or drawn into `folder`.
    fn files(&self, folder: &Path) -> Result<Pair> {
        let pair = |visible: PathBuf, infrared: PathBuf| Pair { name: "pair".into(), visible, infrared };
        if let (Some(visible), Some(infrared)) = (&self.visible, &self.infrared) {
            return Ok(pair(visible.clone(), infrared.clone()));
        }
        let pair = pair(folder.join("visible.png"), folder.join("infrared.png"));
        let scene = synth::scene(1, 0, self.options.size.width, self.options.size.height);
        write_rgb(&pair.visible, scene.width, scene.height, &scene.visible)?;
        write_gray(&pair.infrared, scene.width, scene.height, &scene.infrared)?;
        Ok(pair)
    }
}

/// The same picture `batch` times, `(1, B, H, W, 3)`.
fn repeated(picture: &Picture, batch: usize) -> Result<Tensor> {
    Tensor::from_slice([1, batch, picture.height, picture.width, 3], &picture.rgb.repeat(batch))
}

fn from_files_to_files(session: &mut Session, files: &Pair, folder: &Path) -> Result<()> {
    let (visible, infrared) = read_pair(files, Limits::default())?;
    let (width, height) = (visible.width, visible.height);
    let output = session.run(&one_pair(&visible, &infrared), Wanted::default())?;
    write_rgb(&folder.join("fused.png"), width, height, output.fused)?;
    write_gray(&folder.join("labels.png"), width, height, output.labels)
}
