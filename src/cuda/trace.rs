//! A record of everything that is launched, with a device behind it or without one.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use super::driver::{Driver, Graph, Launch, Product, Work};
use super::reduce::column_sums;
use crate::{DType, Device, Error, Result, Tensor};

/// A launch, and how often it occurred with the same shape and work.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The kernel's name with its launch shape, or the product.
    pub launch: String,
    /// What one of them has to move and to compute.
    pub work: Work,
    /// How many.
    pub count: usize,
    /// Milliseconds of each, where a device ran them.
    pub milliseconds: Vec<f64>,
}

struct Record {
    launch: String,
    work: Work,
    /// The device's marks before and after it.
    marks: Option<[u64; 2]>,
}

/// Passes everything on to a device and records what it launches. Without a device nothing is computed: memory is only
/// counted, and whatever is downloaded is zeros, so that a network's launches can be listed on any machine.
pub struct Trace {
    device: Option<Arc<dyn Driver>>,
    /// What is read before each launch, so that the launch finds nothing in the device's caches, nor anything that is
    /// still to be written to memory.
    flush: Option<Tensor>,
    next_address: AtomicU64,
    /// Bytes in use, and the most that were in use at once.
    live: AtomicUsize,
    peak: AtomicUsize,
    records: Mutex<Vec<Record>>,
}

impl Trace {
    /// Records what `device` is told to do; `None` for a list without a device.
    pub fn new(device: Option<Arc<dyn Driver>>) -> Arc<Self> {
        Arc::new(Self::with(device, None))
    }

    /// Records what `device` is told to do, and reads `bytes` bytes of its memory before each launch: with more of
    /// them than its caches hold, every launch reads from memory.
    ///
    /// # Errors
    /// When there is not enough memory.
    pub fn cold(device: Arc<dyn Driver>, bytes: usize) -> Result<Arc<Self>> {
        let flush = Tensor::zeros_on(&Device::Cuda(device.clone()), [1, bytes / 1024, 256], DType::F32)?;
        Ok(Arc::new(Self::with(Some(device), Some(flush))))
    }

    fn with(device: Option<Arc<dyn Driver>>, flush: Option<Tensor>) -> Self {
        let (live, peak) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self { device, flush, next_address: AtomicU64::new(256), live, peak, records: Mutex::default() }
    }

    /// The most bytes that were allocated at once.
    pub fn peak_bytes(&self) -> usize {
        self.peak.load(Relaxed)
    }

    /// What was launched since the last call: equal launches together, in the order of the first of each.
    ///
    /// # Errors
    /// When the device reports one.
    pub fn take(&self) -> Result<Vec<Entry>> {
        self.synchronise()?;
        let records = std::mem::take(&mut *self.records.lock().unwrap_or_else(PoisonError::into_inner));
        let mut entries: Vec<Entry> = Vec::new();
        let mut places: HashMap<(String, u64), usize> = HashMap::new();
        for Record { launch, work, marks } in records {
            let time = match (&self.device, marks) {
                (Some(device), Some([start, end])) => Some(f64::from(device.between(start, end)?)),
                _ => None,
            };
            let place = *places.entry((launch.clone(), work.bytes)).or_insert(entries.len());
            match entries.get_mut(place) {
                Some(entry) => {
                    entry.count += 1;
                    entry.milliseconds.extend(time);
                }
                None => entries.push(Entry { launch, work, count: 1, milliseconds: Vec::from_iter(time) }),
            }
        }
        Ok(entries)
    }

    /// Does `work` on the device, if there is one, between two marks.
    fn record(&self, launch: String, work: Work, run: impl FnOnce(&dyn Driver) -> Result<()>) -> Result<()> {
        let marks = match &self.device {
            Some(device) => {
                if let Some(flush) = &self.flush {
                    column_sums(flush, 1)?;
                }
                let start = device.mark()?;
                run(&**device)?;
                Some([start, device.mark()?])
            }
            None => None,
        };
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        records.push(Record { launch, work, marks });
        Ok(())
    }
}

impl Driver for Trace {
    fn name(&self) -> String {
        self.device.as_ref().map_or("no device".into(), |device| device.name())
    }

    fn capability(&self) -> (u32, u32) {
        self.device.as_ref().map_or((9, 0), |device| device.capability())
    }

    fn queue(self: Arc<Self>) -> Result<Arc<dyn Driver>> {
        Ok(self)
    }

    unsafe fn follow(&self, stream: u64) -> Result<()> {
        // SAFETY: as the caller says, here and below.
        self.device.as_ref().map_or(Ok(()), |device| unsafe { device.follow(stream) })
    }

    unsafe fn lead(&self, stream: u64) -> Result<()> {
        // SAFETY: as above.
        self.device.as_ref().map_or(Ok(()), |device| unsafe { device.lead(stream) })
    }

    fn holds(&self, address: u64) -> bool {
        self.device.as_ref().is_some_and(|device| device.holds(address))
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        let live = self.live.fetch_add(bytes, Relaxed) + bytes;
        self.peak.fetch_max(live, Relaxed);
        match &self.device {
            Some(device) => device.allocate(bytes),
            None => Ok(self.next_address.fetch_add(bytes.next_multiple_of(256) as u64, Relaxed)),
        }
    }

    fn free(&self, address: u64, bytes: usize) {
        self.live.fetch_sub(bytes, Relaxed);
        if let Some(device) = &self.device {
            device.free(address, bytes);
        }
    }

    unsafe fn upload(&self, data: &[u8], to: u64) -> Result<()> {
        // SAFETY: as the caller says, for this call and the next three.
        self.device.as_ref().map_or(Ok(()), |device| unsafe { device.upload(data, to) })
    }

    unsafe fn download(&self, from: u64, data: &mut [u8]) -> Result<()> {
        match &self.device {
            // SAFETY: as the caller says.
            Some(device) => unsafe { device.download(from, data) },
            None => {
                data.fill(0);
                Ok(())
            }
        }
    }

    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        let work = Work { bytes: 2 * bytes as u64, operations: 0 };
        // SAFETY: as the caller says.
        self.record(format!("copy of {bytes} bytes"), work, |device| unsafe { device.copy(from, to, bytes) })
    }

    unsafe fn fill(&self, to: u64, byte: u8, bytes: usize) -> Result<()> {
        let work = Work { bytes: bytes as u64, operations: 0 };
        // SAFETY: as the caller says.
        self.record(format!("fill of {bytes} bytes"), work, |device| unsafe { device.fill(to, byte, bytes) })
    }

    unsafe fn launch(&self, launch: &Launch) -> Result<()> {
        // SAFETY: as the caller says.
        self.record(launch.to_string(), launch.work, |device| unsafe { device.launch(launch) })
    }

    unsafe fn product(&self, product: &Product) -> Result<()> {
        // SAFETY: as the caller says.
        self.record(product.to_string(), product.work(), |device| unsafe { device.product(product) })
    }

    fn synchronise(&self) -> Result<()> {
        self.device.as_ref().map_or(Ok(()), |device| device.synchronise())
    }

    fn begin_capture(&self) -> Result<()> {
        Err(Error::cuda(self.name(), "launches that are traced cannot be captured"))
    }

    fn end_capture(&self) -> Result<Box<dyn Graph>> {
        Err(Error::cuda(self.name(), "launches that are traced cannot be captured"))
    }
}
