//! The examples that a run is fed with.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::Scope;
use std::time::Instant;

use rayon::ThreadPoolBuilder;
use rayon::prelude::*;

use super::config::Config;
use super::domain;
use crate::data::{Augment, Batch, Dataset, Example, Sample, augment, batch};
use crate::random::Philox;
use crate::{Error, Result};

/// Decoded samples are kept until they take this much; the others are decoded each time.
pub(super) const CACHE_BYTES: usize = 1 << 29;

/// Threads that decode and augment, at most: they feed a device with hundreds of pairs a second.
const MOST_READERS: usize = 16;

/// Batches in the order of their steps, each with the seconds that were spent on waiting for it.
pub struct Feed {
    batches: Receiver<Result<Batch>>,
}

impl Iterator for Feed {
    type Item = (Result<Batch>, f64);

    fn next(&mut self) -> Option<Self::Item> {
        let start = Instant::now();
        let batch = self.batches.recv().ok()?;
        Some((batch, start.elapsed().as_secs_f64()))
    }
}

/// The examples of a run. What example `n` is depends on the seed and `n` alone.
pub struct Examples<'a> {
    dataset: &'a Dataset,
    config: &'a Config,
    cache: Vec<OnceLock<Sample>>,
    cached_bytes: AtomicUsize,
}

impl<'a> Examples<'a> {
    /// The examples of a training list.
    ///
    /// # Errors
    /// When the list is empty.
    pub fn new(dataset: &'a Dataset, config: &'a Config) -> Result<Self> {
        if dataset.is_empty() {
            return Err(Error::Config("the training list has no names: add some to train.txt".into()));
        }
        let cache = (0..dataset.len()).map(|_| OnceLock::new()).collect();
        Ok(Self { dataset, config, cache, cached_bytes: AtomicUsize::new(0) })
    }

    /// The epoch that step `step` begins in.
    pub fn epoch(&self, step: usize) -> usize {
        step * self.config.run.examples() / self.dataset.len()
    }

    /// The batch of step `step`: its micro-batches one after the other.
    ///
    /// # Errors
    /// When a file of the data set cannot be read.
    pub fn batch(&self, step: usize) -> Result<Batch> {
        let (length, first) = (self.dataset.len(), step * self.config.run.examples());
        let end = first + self.config.run.examples();
        // A batch can reach from one epoch into the next.
        let orders: Vec<_> = (first / length..end.div_ceil(length)).map(|epoch| self.order(epoch)).collect();
        let examples = (first..end).into_par_iter().map(|n| {
            let order = &orders[n / length - first / length];
            self.example(n, order[n % length])
        });
        batch(&examples.collect::<Result<Vec<_>>>()?)
    }

    /// The batches of `steps`, made ahead by threads of their own while training goes on: at most two wait.
    ///
    /// The threads end with the steps, or once the receiver is gone.
    ///
    /// # Errors
    /// When the threads cannot be started.
    pub fn feed<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>, steps: Range<usize>) -> Result<Feed> {
        // Not the threads that compute: they would come to a batch late, or to a step.
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_READERS);
        let pool =
            ThreadPoolBuilder::new().num_threads(threads).thread_name(|i| format!("reader {i}")).build();
        let pool =
            pool.map_err(|e| Error::Config(format!("threads that read the data cannot be started: {e}")))?;
        let (sender, batches) = sync_channel(2);
        scope.spawn(move || {
            for step in steps {
                if sender.send(pool.install(|| self.batch(step))).is_err() {
                    break;
                }
            }
        });
        Ok(Feed { batches })
    }

    /// The samples of an epoch, in its order.
    fn order(&self, epoch: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.dataset.len()).collect();
        let seed = self.config.run.seed.wrapping_add(domain::ORDER);
        Philox::new(seed, epoch as u64).shuffle(&mut order);
        order
    }

    /// Example `n` of the run, made of sample `index`.
    fn example(&self, n: usize, index: usize) -> Result<Example> {
        let (seed, a) = (self.config.run.seed, &self.config.augment);
        let mut stream = Philox::new(seed.wrapping_add(domain::AUGMENT), n as u64);
        let how = Augment { size: (a.height, a.width), scales: a.scales.clone(), mirror: a.mirror as f32 };
        self.with_sample(index, |sample| augment(sample, &how, &mut || stream.f32()))
    }

    fn with_sample<T>(&self, index: usize, f: impl FnOnce(&Sample) -> T) -> Result<T> {
        if let Some(sample) = self.cache[index].get() {
            return Ok(f(sample));
        }
        let sample = self.dataset.sample(index)?;
        let bytes = sample.bytes();
        if self.cached_bytes.fetch_add(bytes, Relaxed) + bytes > CACHE_BYTES {
            self.cached_bytes.fetch_sub(bytes, Relaxed);
            return Ok(f(&sample));
        }
        Ok(f(self.cache[index].get_or_init(|| sample)))
    }
}
