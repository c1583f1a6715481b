//! `amdanet bench`

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{Machine, Network, Size, say, say_json, weights};
use crate::cuda::driver::Work;
use crate::cuda::trace::{Entry, Trace};
use crate::data::Batch;
use crate::infer::{Engine, Pairs, Wanted};
use crate::model::{Amdanet, ModelConfig};
use crate::nn::Pass;
use crate::random::Philox;
use crate::train::{Config, Recipe, Trainer};
use crate::{DType, Device, Error, Precision, Result, Tensor, checkpoint, cuda, tensor};

#[derive(Subcommand)]
pub enum Bench {
    /// Latency of one forward pass
    Model(ModelOptions),
    /// Time of one training step: two predictions, losses, gradients, AdamW
    Train(Options),
    /// Each kernel of an inference and of a training step, with its bytes, operations and time on a CUDA device
    Kernels(KernelOptions),
    /// What each part of the network contributes: trains it without one after the other
    Ablation(super::ablation::Ablation),
}

#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    network: Network,
    /// Height and width
    #[arg(long, default_value = "480x640")]
    size: Size,
    /// Pairs at once
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Runs that are measured
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Runs before that
    #[arg(long, default_value_t = 2)]
    warmup: usize,
    /// Training steps compute encoder blocks again in backward instead of keeping them
    #[arg(long)]
    recompute: bool,
    /// One JSON object on standard output
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    machine: Machine,
}

#[derive(Args)]
pub struct ModelOptions {
    /// Show the time of each step of the fused engine (CPU)
    #[arg(long)]
    profile: bool,
    /// A checkpoint or a packed model instead of random weights
    #[arg(long, conflicts_with_all = ["encoder", "arch", "classes"])]
    weights: Option<PathBuf>,
    #[command(flatten)]
    options: Options,
}

#[derive(Args)]
pub struct KernelOptions {
    /// List the launches with their bytes and operations; needs no device
    #[arg(long)]
    list: bool,
    #[command(flatten)]
    options: Options,
}

/// The largest batch.
const MOST_PAIRS: usize = 1024;

#[derive(Serialize)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Bench {
    pub fn run(self) -> Result<()> {
        let options = match &self {
            Self::Model(m) => &m.options,
            Self::Train(o) => o,
            Self::Kernels(k) => &k.options,
            Self::Ablation(a) => return a.run(),
        };
        if !(1..=MOST_PAIRS).contains(&options.batch) || options.runs == 0 {
            let (batch, runs) = (options.batch, options.runs);
            return Err(Error::Config(format!(
                "--batch {batch} --runs {runs}: a batch is 1 to {MOST_PAIRS} pairs, and at least 1 run is measured"
            )));
        }
        match &self {
            Self::Model(m) => options.model(m.profile, m.weights.as_deref()),
            Self::Train(_) => options.train(),
            Self::Kernels(k) => k.run(),
            Self::Ablation(a) => a.run(),
        }
    }
}

impl Options {
    fn build(&self, device: &Device) -> Result<(Amdanet, Config)> {
        let Network { encoder, arch, classes } = self.network;
        let mut config = Config::new(None, Recipe::Release, encoder, arch, Some(classes));
        (config.augment.height, config.augment.width) = (self.size.height, self.size.width);
        config.run.batch = self.batch;
        config.run.steps = 1_000_000;
        config.run.recompute = self.recompute;
        let mut model = Amdanet::new(config.model.clone())?;
        model.params.initialise(0);
        model.params.place(device, self.machine.precision.dtype())?;
        Ok((model, config))
    }

    /// Random pictures and labels.
    fn batch(&self) -> Result<Batch> {
        let (b, h, w) = (self.batch, self.size.height, self.size.width);
        let mut stream = Philox::new(1, 0);
        let mut picture = || {
            let mut t = Tensor::scratch([1, b, h, w, 3]);
            t.f32_mut().iter_mut().for_each(|v| *v = stream.f32());
            t
        };
        let (visible, infrared) = (picture(), picture());
        let ids: Vec<u8> = (0..b * h * w).map(|_| stream.range(self.network.classes) as u8).collect();
        let labels = Tensor::from_slice([b, h, w], &ids)?;
        let valid = Tensor::from_slice([b, h, w], &vec![1u8; b * h * w])?;
        Ok(Batch { visible, infrared, labels, valid })
    }

    fn model(&self, profile: bool, weights: Option<&Path>) -> Result<()> {
        let device = self.machine.set_up()?;
        let batch = self.batch()?.to(&device)?;
        if let Some(path) = weights.filter(|path| checkpoint::is_packed(path)) {
            let start = Instant::now();
            let (engine, _) = weights::open(path, &device)?;
            let opened = Some(("opened", start.elapsed().as_secs_f64()));
            let spread = self.engine(&engine, &batch, profile)?;
            return self.report("latency_ms", &device, engine.config(), &spread, 0.0, opened);
        }
        let model = match weights {
            Some(path) => {
                let mut model = checkpoint::load(path, None)?.model;
                model.params.place(&device, self.machine.precision.dtype())?;
                model
            }
            None => self.build(&device)?.0,
        };
        let config = model.config().clone();
        let gflop = model.costs(self.size.height, self.size.width).iter().map(|c| c.flop).sum::<u64>() as f64
            * self.batch as f64
            / 1e9;
        let (spread, packed) = match device {
            Device::Cpu => {
                let start = Instant::now();
                let engine = Engine::consume(model)?;
                let packed = start.elapsed().as_secs_f64();
                (self.engine(&engine, &batch, profile)?, Some(("packed", packed)))
            }
            Device::Cuda(_) => {
                let spread = self.time(&device, || {
                    let mut pass = Pass::eval(&model.params);
                    model.forward(&mut pass, &batch.visible, &batch.infrared).map(drop)
                })?;
                (spread, None)
            }
        };
        self.report("latency_ms", &device, &config, &spread, gflop, packed)
    }

    fn engine(&self, engine: &Engine, batch: &Batch, profile: bool) -> Result<Spread> {
        let mut session = engine.session();
        let pairs = Pairs::new(&batch.visible, &batch.infrared)?;
        let wanted = Wanted::default();
        let spread = self.time(&Device::Cpu, || match profile {
            true => session.run_timed(&pairs, wanted).map(drop),
            false => session.run(&pairs, wanted).map(drop),
        })?;
        if profile && !self.json {
            say(session.plan(&pairs, wanted)?);
        }
        Ok(spread)
    }

    fn train(&self) -> Result<()> {
        let device = self.machine.set_up()?;
        let (model, config) = self.build(&device)?;
        let batch = self.batch()?.to(&device)?;
        let network = model.config().clone();
        let mut trainer = Trainer::new(model, config);
        let spread = self.time(&device, || trainer.step(&batch).map(drop))?;
        self.report("step_ms", &device, &network, &spread, 0.0, None)
    }

    /// Milliseconds of `f` and of what it leaves to do on `device`.
    fn time(&self, device: &Device, mut f: impl FnMut() -> Result<()>) -> Result<Spread> {
        let mut f = || {
            f()?;
            device.synchronise()
        };
        for _ in 0..self.warmup {
            f()?;
        }
        let mut times = Vec::with_capacity(self.runs);
        for _ in 0..self.runs {
            let start = Instant::now();
            f()?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        times.sort_by(f64::total_cmp);
        Ok(Spread { median: times[times.len() / 2], min: times[0], max: times[times.len() - 1] })
    }

    /// Says what was measured. `start` is what was done with the weights beforehand, and the seconds that it took.
    fn report(
        &self,
        key: &str,
        device: &Device,
        network: &ModelConfig,
        time: &Spread,
        gflop: f64,
        start: Option<(&str, f64)>,
    ) -> Result<()> {
        let threads = rayon::current_num_threads();
        let precision = format!("{:?}", self.machine.precision).to_lowercase();
        let peak = resident_peak();
        let size = format!("{}x{}", self.size.height, self.size.width);
        let (encoder, arch) = (network.encoder_name(), network.arch);
        if self.json {
            let mut value = serde_json::json!({
                "encoder": encoder, "arch": arch, "classes": network.classes, "size": size,
                "batch": self.batch, "device": format!("{device:?}"), "precision": precision, "threads": threads,
                "runs": self.runs, key: time,
                "peak_bytes": peak, "tensor_peak_bytes": tensor::peak_bytes(),
            });
            if let Some((what, seconds)) = start {
                value[format!("{what}_s")] = seconds.into();
            }
            return say_json(&value);
        }
        say(format!(
            "{encoder} {arch} {size} batch {}, {device:?}, {precision}, {threads} threads: {:.1} ms (median of {}; {:.1} to {:.1}), {:.2} pairs/s",
            self.batch,
            time.median,
            self.runs,
            time.min,
            time.max,
            self.batch as f64 * 1e3 / time.median
        ));
        if let Some((what, seconds)) = start {
            say(format!("{what} in {seconds:.2} s"));
        }
        if gflop > 0.0 {
            say(format!("{gflop:.1} GFLOP as published, {:.0} GFLOP/s", gflop / time.median * 1e3));
        }
        say(format!(
            "peak memory {:.2} GB, of which tensors {:.2} GB",
            peak as f64 / 1e9,
            tensor::peak_bytes() as f64 / 1e9
        ));
        Ok(())
    }
}

impl KernelOptions {
    fn run(&self) -> Result<()> {
        let device = match self.list {
            true => None,
            false => match self.options.machine.set_up()? {
                Device::Cuda(driver) => Some(driver),
                Device::Cpu => {
                    let what =
                        "kernels are measured on a CUDA device (see `amdanet devices`); --list needs none";
                    return Err(Error::Config(what.into()));
                }
            },
        };
        let trace = Trace::new(device.clone());
        let place = Device::Cuda(trace.clone());
        let batch = self.options.batch()?.to(&place)?;
        let ceilings =
            device.as_ref().map(|_| Ceilings::measure(&place, self.options.machine.precision)).transpose()?;
        if let (Some(c), Some(device)) = (&ceilings, &device) {
            let (copy, product) = (c.copy / 1e9, c.product / 1e12);
            say(format!("{}: copies {copy:.0} GB/s, products {product:.0} TFLOP/s", device.name()));
        }
        let mut json = serde_json::Map::new();
        for training in [false, true] {
            let (model, config) = self.options.build(&place)?;
            let mut trainer = Trainer::new(model, config);
            let mut step = || match training {
                true => trainer.step(&batch).map(drop),
                false => {
                    let mut pass = Pass::eval(&trainer.model.params);
                    trainer.model.forward(&mut pass, &batch.visible, &batch.infrared).map(drop)
                }
            };
            // What is loaded and tuned at the first launch is not measured.
            for _ in 0..if self.list { 0 } else { self.options.warmup } {
                step()?;
            }
            trace.take()?;
            step()?;
            let entries = trace.take()?;
            let title = if training { "training step" } else { "inference" };
            if self.options.json {
                json.insert(
                    title.replace(' ', "_"),
                    entries.iter().map(|e| row(e, ceilings.as_ref())).collect(),
                );
            } else {
                table(title, &entries, ceilings.as_ref());
            }
        }
        if self.options.json { say_json(&json) } else { Ok(()) }
    }
}

/// What the device can do at best, measured in the same run.
struct Ceilings {
    /// Bytes a second of a large copy, read and written.
    copy: f64,
    /// Operations a second of a large matrix product.
    product: f64,
}

impl Ceilings {
    fn measure(place: &Device, precision: Precision) -> Result<Self> {
        const BYTES: usize = 1 << 30;
        const N: usize = 8192;
        let Device::Cuda(driver) = place else { return Err(Error::Config("the CPU has no kernels".into())) };
        let large = Tensor::zeros_on(place, [BYTES], DType::U8)?;
        let a = Tensor::zeros_on(place, [1, N, N], precision.dtype())?;
        let best = |run: &dyn Fn() -> Result<()>| -> Result<f64> {
            let mut best = f64::INFINITY;
            for _ in 0..10 {
                let start = driver.mark()?;
                run()?;
                let end = driver.mark()?;
                driver.synchronise()?;
                best = best.min(f64::from(driver.between(start, end)?) * 1e-3);
            }
            Ok(best)
        };
        let copy = best(&|| large.clone().make_unique())?;
        let product = best(&|| cuda::linear::forward(&a, &a, None, None).map(drop))?;
        Ok(Self { copy: 2.0 * BYTES as f64 / copy, product: 2.0 * (N as f64).powi(3) / product })
    }

    /// Seconds that `work` needs at least.
    fn floor(&self, work: Work) -> f64 {
        (work.bytes as f64 / self.copy).max(work.operations as f64 / self.product)
    }
}

fn row(entry: &Entry, ceilings: Option<&Ceilings>) -> serde_json::Value {
    let Entry { launch, work, count, milliseconds } = entry;
    let mut row = serde_json::json!({
        "launch": launch, "count": count, "bytes": work.bytes, "operations": work.operations,
    });
    if let (Some(ms), Some(ceilings)) = (milliseconds, ceilings) {
        row["milliseconds"] = (*ms).into();
        row["fraction_of_floor"] = (ceilings.floor(*work) * *count as f64 * 1e3 / ms).into();
    }
    row
}

/// One line for each distinct launch, in the order of the computation.
fn table(title: &str, entries: &[Entry], ceilings: Option<&Ceilings>) {
    let count: usize = entries.iter().map(|e| e.count).sum();
    let total = |f: fn(&Work) -> u64| entries.iter().map(|e| f(&e.work) as f64 * e.count as f64).sum::<f64>();
    say(format!(
        "{title}: {count} launches, {:.2} GB, {:.1} GFLOP",
        total(|w| w.bytes) / 1e9,
        total(|w| w.operations) / 1e9
    ));
    for Entry { launch, work, count, milliseconds } in entries {
        let (mb, gflop) = (work.bytes as f64 / 1e6, work.operations as f64 / 1e9);
        let mut line = format!("{count:>5} x {mb:>10.3} MB {gflop:>9.3} GFLOP");
        if let (Some(ms), Some(ceilings)) = (milliseconds, ceilings) {
            let seconds = ms * 1e-3 / *count as f64;
            line += &format!(
                " {:>9.1} us {:>6.0} GB/s {:>6.1} TFLOP/s {:>3.0} %",
                seconds * 1e6,
                work.bytes as f64 / seconds / 1e9,
                work.operations as f64 / seconds / 1e12,
                100.0 * ceilings.floor(*work) / seconds
            );
        }
        say(format!("{line}  {launch}"));
    }
}

/// The most memory that the process has held, in bytes; 0 where the system does not tell.
pub fn resident_peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kilobytes =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().split(' ').next()?.parse().ok());
    kilobytes.unwrap_or(0u64) * 1024
}
