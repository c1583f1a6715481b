//! `amdanet bench`: what the measurements share. Each of them is one file.

mod energy;
mod kernels;
mod model;
mod roofline;
mod train;

use std::time::Instant;

use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::{Value, json};

use super::{Machine, Network, Size, say};
use crate::data::Batch;
use crate::model::Amdanet;
use crate::random::Philox;
use crate::train::{Config, Recipe};
use crate::{DType, Device, Error, Result, Tensor, tensor};

#[derive(Subcommand)]
pub enum Bench {
    /// Latency and throughput of fusing and labelling, memory and energy
    Model(model::ModelOptions),
    /// Time of one training step: two predictions, losses, gradients, AdamW
    Train(train::TrainOptions),
    /// Each kernel of an inference and of a training step, with its bytes, operations and time on a CUDA device
    Kernels(kernels::KernelOptions),
    /// What each part of the network contributes: trains it without one after the other
    Ablation(super::ablation::Ablation),
}

#[derive(Args)]
struct Options {
    #[command(flatten)]
    network: Network,
    /// Height and width
    #[arg(long, default_value = "480x640")]
    size: Size,
    /// Pairs at once; several numbers, as 1,2,4, are measured one after the other
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1")]
    batch: Vec<usize>,
    /// Runs that are measured
    #[arg(long, value_name = "N", default_value_t = 5)]
    runs: usize,
    /// Runs before that
    #[arg(long, value_name = "N", default_value_t = 2)]
    warmup: usize,
    /// One JSON object on standard output
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    machine: Machine,
}

/// The largest batch.
const MOST_PAIRS: usize = 1024;

impl Bench {
    pub fn run(self) -> Result<()> {
        match self {
            Self::Model(m) => m.run(),
            Self::Train(t) => t.run(),
            Self::Kernels(k) => k.run(),
            Self::Ablation(a) => a.run(),
        }
    }
}

impl Options {
    /// The sizes of batches, smallest first, so that the memory held so far is that of the last.
    fn batches(&self) -> Result<Vec<usize>> {
        if self.runs == 0 {
            return Err(Error::Config("--runs 0: at least 1 run is measured".into()));
        }
        if let Some(wrong) = self.batch.iter().find(|batch| !(1..=MOST_PAIRS).contains(*batch)) {
            return Err(Error::Config(format!("--batch {wrong}: a batch is 1 to {MOST_PAIRS} pairs")));
        }
        let mut batches = self.batch.clone();
        batches.sort_unstable();
        batches.dedup();
        Ok(batches)
    }

    /// A network of random weights, and how it is trained on such batches.
    fn build(&self, device: &Device, dtype: DType, batch: usize) -> Result<(Amdanet, Config)> {
        let Network { encoder, arch, classes } = self.network;
        let mut config = Config::new(None, Recipe::Release, encoder, arch, Some(classes));
        (config.augment.height, config.augment.width) = (self.size.height, self.size.width);
        config.run.batch = batch;
        config.run.steps = 1_000_000;
        let mut model = Amdanet::new(config.model.clone())?;
        model.params.initialise(0);
        model.params.place(device, dtype)?;
        Ok((model, config))
    }

    /// Random pictures and labels.
    fn examples(&self, b: usize) -> Result<Batch> {
        let (h, w) = (self.size.height, self.size.width);
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

    /// Times `f` and what it leaves to do on `device`, and counts the energy.
    fn measure(&self, device: &Device, batch: usize, mut f: impl FnMut() -> Result<()>) -> Result<Row> {
        let mut f = || {
            f()?;
            device.synchronise()
        };
        for _ in 0..self.warmup {
            f()?;
        }
        let mut times = Vec::with_capacity(self.runs);
        let joules = energy::of(device, || {
            for _ in 0..self.runs {
                let start = Instant::now();
                f()?;
                times.push(start.elapsed().as_secs_f64() * 1e3);
            }
            Ok(())
        })?;
        let joules_per_pair = joules.map(|joules| joules / (self.runs * batch) as f64);
        Ok(Row { batch, time: Spread::of(times), joules_per_pair })
    }

    /// How it was measured, and the memory that it took.
    fn circumstances(&self, device: &Device) -> Value {
        let device_peak = match device {
            Device::Cpu => None,
            Device::Cuda(driver) => driver.peak_bytes(),
        };
        json!({
            "device": format!("{device:?}"), "precision": self.machine.precision_name(),
            "threads": rayon::current_num_threads(), "runs": self.runs,
            "peak_bytes": resident_peak(), "tensor_peak_bytes": tensor::peak_bytes(), "device_peak_bytes": device_peak,
        })
    }

    /// One line for each row, then memory and energy.
    fn table(&self, title: &str, device: &Device, rows: &[(String, &Row)]) {
        let (precision, threads) = (self.machine.precision_name(), rayon::current_num_threads());
        let runs = self.runs;
        say(format!("{title}, {device:?}, {precision}, {threads} threads, {runs} runs; milliseconds:"));
        let what = "";
        say(format!(
            "{what:<20} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "median", "quartile", "quartile", "min", "max", "pairs/s"
        ));
        for (name, row) in rows {
            let Spread { median, q1, q3, min, max } = row.time;
            let rate = row.pairs_per_second();
            say(format!("{name:<20} {median:>9.2} {q1:>9.2} {q3:>9.2} {min:>9.2} {max:>9.2} {rate:>9.2}"));
        }
        let gigabytes = |bytes: u64| format!("{:.2} GB", bytes as f64 / 1e9);
        let (all, tensors) = (gigabytes(resident_peak()), gigabytes(tensor::peak_bytes() as u64));
        let mut memory = format!("peak memory {all}, of which tensors {tensors}");
        if let Device::Cuda(driver) = device {
            memory +=
                &driver.peak_bytes().map_or(String::new(), |b| format!("; on the device {}", gigabytes(b)));
        }
        say(memory);
        let energies: Option<Vec<String>> =
            rows.iter().map(|(name, row)| row.joules_per_pair.map(|j| format!("{name} {j:.3} J"))).collect();
        say(match energies {
            Some(energies) => format!("energy for a pair: {}", energies.join(", ")),
            None => "energy: not available on this machine".into(),
        });
    }
}

/// What was measured with batches of one size.
#[derive(Serialize)]
struct Row {
    batch: usize,
    time: Spread,
    /// None where no counter tells.
    joules_per_pair: Option<f64>,
}

impl Row {
    fn pairs_per_second(&self) -> f64 {
        self.batch as f64 * 1e3 / self.time.median
    }

    /// With the times under the name `key`.
    fn json(&self, key: &str) -> Value {
        json!({
            "batch": self.batch, key: self.time, "pairs_per_second": self.pairs_per_second(),
            "joules_per_pair": self.joules_per_pair,
        })
    }
}

/// The distribution of times.
#[derive(Clone, Copy, Serialize)]
struct Spread {
    median: f64,
    q1: f64,
    q3: f64,
    min: f64,
    max: f64,
}

impl Spread {
    /// Of at least one number.
    fn of(mut times: Vec<f64>) -> Self {
        times.sort_by(f64::total_cmp);
        let last = times.len() - 1;
        // Between the two nearest in rank.
        let at = |share: f64| {
            let (place, part) = ((share * last as f64) as usize, (share * last as f64).fract());
            times[place] + part * (times[(place + 1).min(last)] - times[place])
        };
        Self { median: at(0.5), q1: at(0.25), q3: at(0.75), min: times[0], max: times[last] }
    }
}

/// The members of two objects in one.
fn merged(mut object: Value, more: Value) -> Value {
    if let (Value::Object(object), Value::Object(more)) = (&mut object, more) {
        object.extend(more);
    }
    object
}

/// The most memory that the process has held, in bytes; 0 where the system does not tell.
pub fn resident_peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kilobytes =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().split(' ').next()?.parse().ok());
    kilobytes.unwrap_or(0u64) * 1024
}

#[cfg(test)]
mod tests {
    use super::Spread;

    #[test]
    fn quartiles() {
        let Spread { median, q1, q3, min, max } = Spread::of(vec![5.0, 1.0, 2.0, 4.0, 3.0]);
        assert_eq!([min, q1, median, q3, max], [1.0, 2.0, 3.0, 4.0, 5.0]);
        let Spread { median, q1, q3, .. } = Spread::of(vec![4.0, 0.0]);
        assert_eq!([q1, median, q3], [1.0, 2.0, 3.0]);
        assert_eq!(Spread::of(vec![7.0]).q3, 7.0);
    }
}
