//! `amdanet bench`

use std::time::Instant;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{Machine, Network, Size, say, say_json};
use crate::data::Batch;
use crate::model::Amdanet;
use crate::nn::Pass;
use crate::random::Philox;
use crate::train::{Config, Recipe, Trainer};
use crate::{Error, Result, Tensor, cpu, tensor};

#[derive(Subcommand)]
pub enum Bench {
    /// Latency of one forward pass
    Model(Options),
    /// Time of one training step: two predictions, losses, gradients, AdamW
    Train(Options),
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
    /// One JSON object on standard output
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    machine: Machine,
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
        let (options, training) = match &self {
            Self::Model(o) => (o, false),
            Self::Train(o) => (o, true),
        };
        options.machine.set_up()?;
        if !(1..=MOST_PAIRS).contains(&options.batch) || options.runs == 0 {
            let (batch, runs) = (options.batch, options.runs);
            return Err(Error::Config(format!(
                "--batch {batch} --runs {runs}: a batch is 1 to {MOST_PAIRS} pairs, and at least 1 run is measured"
            )));
        }
        if training { options.train() } else { options.model() }
    }
}

impl Options {
    fn build(&self) -> Result<(Amdanet, Config)> {
        let Network { encoder, arch, classes } = self.network;
        let mut config = Config::new(None, Recipe::Release, encoder, arch, Some(classes));
        (config.augment.height, config.augment.width) = (self.size.height, self.size.width);
        config.run.batch = self.batch;
        config.run.steps = 1_000_000;
        let mut model = Amdanet::new(config.model.clone())?;
        model.params.initialise(0);
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

    fn model(&self) -> Result<()> {
        let (model, _) = self.build()?;
        let batch = self.batch()?;
        let spread = self.time(|| {
            cpu::on_pool(|| {
                let mut pass = Pass::eval(&model.params);
                model.forward(&mut pass, &batch.visible, &batch.infrared).map(drop)
            })
        })?;
        let gflop = model.costs(self.size.height, self.size.width).iter().map(|c| c.flop).sum::<u64>() as f64
            * self.batch as f64
            / 1e9;
        self.report("latency_ms", &spread, gflop)
    }

    fn train(&self) -> Result<()> {
        let (model, config) = self.build()?;
        let batch = self.batch()?;
        let mut trainer = Trainer::new(model, config);
        let spread = self.time(|| trainer.step(&batch).map(drop))?;
        self.report("step_ms", &spread, 0.0)
    }

    /// Milliseconds of `f`.
    fn time(&self, mut f: impl FnMut() -> Result<()>) -> Result<Spread> {
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

    fn report(&self, key: &str, time: &Spread, gflop: f64) -> Result<()> {
        let threads = rayon::current_num_threads();
        let peak = resident_peak();
        let size = format!("{}x{}", self.size.height, self.size.width);
        if self.json {
            return say_json(&serde_json::json!({
                "encoder": self.network.encoder, "arch": self.network.arch, "classes": self.network.classes, "size": size,
                "batch": self.batch, "threads": threads, "runs": self.runs, key: time,
                "peak_bytes": peak, "tensor_peak_bytes": tensor::peak_bytes(),
            }));
        }
        say(format!(
            "{} {} {size} batch {}, {threads} threads: {:.1} ms (median of {}; {:.1} to {:.1}), {:.2} pairs/s",
            self.network.encoder,
            self.network.arch,
            self.batch,
            time.median,
            self.runs,
            time.min,
            time.max,
            self.batch as f64 * 1e3 / time.median
        ));
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

/// The most memory that the process has held, in bytes; 0 where the system does not tell.
fn resident_peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kilobytes =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().split(' ').next()?.parse().ok());
    kilobytes.unwrap_or(0u64) * 1024
}
