//! `amdanet bench kernels`

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use serde_json::{Value, json};

use super::super::{say, say_json};
use super::roofline::{self, Dot};
use super::{Options, Spread};
use crate::cuda::driver::{Driver, Work};
use crate::cuda::trace::{Entry, Trace};
use crate::infer::{Engine, Pairs, Wanted};
use crate::random::Philox;
use crate::train::Trainer;
use crate::{DType, Device, Error, Precision, Result, Tensor, cuda};

#[derive(Args)]
pub struct KernelOptions {
    /// List the launches with their bytes and operations; needs no device
    #[arg(long)]
    list: bool,
    /// Draw the roofline: the ceilings, and a dot for each kernel
    #[arg(long, value_name = "FILE.svg", conflicts_with = "list")]
    svg: Option<PathBuf>,
    #[command(flatten)]
    options: Options,
}

/// More than the caches of any device hold (H200: 50 MB, B200: 126 MB).
const FLUSH_BYTES: usize = 256 << 20;

impl KernelOptions {
    pub fn run(self) -> Result<()> {
        let options = &self.options;
        let batches = options.batches()?;
        let [batch] = batches[..] else {
            return Err(Error::Config("--batch: kernels are measured with batches of one size".into()));
        };
        let device = match self.list {
            true => None,
            false => match options.machine.set_up()? {
                Device::Cuda(driver) => Some(driver),
                Device::Cpu => {
                    let what =
                        "kernels are measured on a CUDA device (see `amdanet devices`); --list needs none";
                    return Err(Error::Config(what.into()));
                }
            },
        };
        let ceilings =
            device.as_ref().map(|device| Ceilings::measure(device, options.machine.precision)).transpose()?;
        let trace = match &device {
            Some(device) => Trace::cold(device.clone(), FLUSH_BYTES)?,
            None => Trace::new(None),
        };
        let steps = if self.list { 1 } else { options.runs };
        let parts = [("inference", false), ("training step", true)];
        let mut measured = Vec::new();
        for (title, training) in parts {
            measured.push((title, self.launches(&trace, batch, steps, training)?));
        }
        if let (Some(path), Some(ceilings), Some(device)) = (&self.svg, &ceilings, &device) {
            let parts: Vec<(&str, Vec<Dot>)> = measured.iter().map(|(t, e)| (*t, dots(e, steps))).collect();
            let svg = roofline::svg(&device.name(), ceilings.copy, ceilings.product, &parts);
            std::fs::write(path, svg).map_err(Error::io(path, "write"))?;
        }
        if options.json {
            let mut object = json!({
                "device": device.map(|device| device.name()), "precision": options.machine.precision_name(),
                "batch": batch, "steps": steps, "copy_bytes_per_second": ceilings.as_ref().map(|c| c.copy),
                "product_operations_per_second": ceilings.as_ref().map(|c| c.product),
            });
            for (title, entries) in &measured {
                let rows: Vec<Value> = entries.iter().map(|e| row(e, ceilings.as_ref())).collect();
                object[title.replace(' ', "_")] = rows.into();
            }
            return say_json(&object);
        }
        if let (Some(c), Some(device)) = (&ceilings, &device) {
            let (copy, product) = (c.copy / 1e9, c.product / 1e12);
            say(format!("{}: copies {copy:.0} GB/s, products {product:.0} TFLOP/s", device.name()));
        }
        for (title, entries) in &measured {
            table(title, entries, steps, ceilings.as_ref());
        }
        Ok(())
    }

    /// What `steps` inferences or training steps launch.
    fn launches(&self, trace: &Arc<Trace>, batch: usize, steps: usize, training: bool) -> Result<Vec<Entry>> {
        let place = Device::Cuda(trace.clone());
        let mut step = self.step(&place, batch, training)?;
        // What is loaded and tuned at the first launch is not measured.
        for _ in 0..if self.list { 0 } else { self.options.warmup } {
            step()?;
        }
        trace.take()?;
        for _ in 0..steps {
            step()?;
        }
        trace.take()
    }
}

/// A training step, or an inference by the fused engine, launch by launch.
type Step = Box<dyn FnMut() -> Result<()>>;

impl KernelOptions {
    fn step(&self, place: &Device, batch: usize, training: bool) -> Result<Step> {
        let (options, dtype) = (&self.options, self.options.machine.precision.dtype());
        let examples = options.examples(batch)?;
        if training {
            let (model, config) = options.build(place, dtype, batch)?;
            let (mut trainer, examples) = (Trainer::new(model, config), examples.to(place)?);
            return Ok(Box::new(move || trainer.step(&examples).map(drop)));
        }
        let (model, _) = options.build(&Device::Cpu, DType::F32, batch)?;
        let mut session = Engine::consume(model)?.to(place, dtype)?.session();
        Ok(Box::new(move || {
            let pairs = Pairs::new(&examples.visible, &examples.infrared)?;
            session.run_timed(&pairs, Wanted::default()).map(drop)
        }))
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
    fn measure(driver: &Arc<dyn Driver>, precision: Precision) -> Result<Self> {
        const BYTES: usize = 1 << 30;
        const N: usize = 8192;
        let place = Device::Cuda(driver.clone());
        // Random numbers: a device that multiplies zeros is not as warm as one that works.
        let mut stream = Philox::new(2, 0);
        let numbers: Vec<f32> = (0..N * N).map(|_| stream.f32() - 0.5).collect();
        let a = Tensor::from_slice([1, N, N], &numbers)?.to(&place)?;
        let large = Tensor::from_slice([BYTES / 4], &numbers.repeat(BYTES / (4 * N * N)))?.to(&place)?;
        let a = a.cast(precision.dtype())?;
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

/// Seconds of one launch, the median, where a device ran it.
fn seconds(entry: &Entry) -> Option<f64> {
    (!entry.milliseconds.is_empty()).then(|| Spread::of(entry.milliseconds.clone()).median * 1e-3)
}

fn row(entry: &Entry, ceilings: Option<&Ceilings>) -> Value {
    let Entry { launch, work, count, .. } = entry;
    let mut row = json!({
        "launch": launch, "count": count, "bytes": work.bytes, "operations": work.operations,
    });
    if let (Some(seconds), Some(ceilings)) = (seconds(entry), ceilings) {
        row["milliseconds"] = json!(Spread::of(entry.milliseconds.clone()));
        row["fraction_of_floor"] = (ceilings.floor(*work) / seconds).into();
    }
    row
}

/// The launches that compute, for the roofline; copies and fills do not.
fn dots(entries: &[Entry], steps: usize) -> Vec<Dot> {
    let dot = |entry: &Entry| {
        let (seconds, work) = (seconds(entry)?, entry.work);
        (work.operations > 0 && work.bytes > 0 && seconds > 0.0).then(|| Dot {
            name: entry.launch.clone(),
            intensity: work.operations as f64 / work.bytes as f64,
            rate: work.operations as f64 / seconds,
            seconds: seconds * entry.count as f64 / steps as f64,
        })
    };
    entries.iter().filter_map(dot).collect()
}

/// One line for each distinct launch, in the order of the computation: how many in one step, and one of them.
fn table(title: &str, entries: &[Entry], steps: usize, ceilings: Option<&Ceilings>) {
    let per_step = |count: usize| count as f64 / steps as f64;
    let count: usize = entries.iter().map(|e| e.count).sum();
    let total =
        |f: fn(&Work) -> u64| entries.iter().map(|e| f(&e.work) as f64 * per_step(e.count)).sum::<f64>();
    say(format!(
        "{title}: {} launches, {:.2} GB, {:.1} GFLOP",
        per_step(count),
        total(|w| w.bytes) / 1e9,
        total(|w| w.operations) / 1e9
    ));
    for entry in entries {
        let Entry { launch, work, count, .. } = entry;
        let (mb, gflop) = (work.bytes as f64 / 1e6, work.operations as f64 / 1e9);
        // The kind of masking is drawn for each training step, so a launch may not be in all of them.
        let mut line = format!("{:>5} x {mb:>10.3} MB {gflop:>9.3} GFLOP", per_step(*count));
        if let (Some(seconds), Some(ceilings)) = (seconds(entry), ceilings) {
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
