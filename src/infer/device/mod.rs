//! The engine on a CUDA device: the packed weights in the device's memory, and for each shape of input one graph of
//! launches over one arena. Pictures go there, and results come back, as bytes.

mod network;
mod pinned;
mod recorder;
mod weights;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use network::{Forward, Outputs};
use pinned::Pinned;
use recorder::{Recorded, Recorder};
use weights::Weights;

use super::pack;
use super::plan::{Plan, Watch};
use super::{Output, Pairs, Pixels, Wanted};
use crate::cuda::driver::Driver;
use crate::model::ModelConfig;
use crate::{DType, Device, Error, Result, Shape, Tensor};

/// Shapes whose graphs a session keeps: each has an arena of its own.
const KEPT: usize = 8;

/// A packed network on a device, shared by its sessions.
pub struct Packed {
    weights: Weights,
    recorder: Arc<Recorder>,
    /// Held while something is recorded or computed: the device has one queue.
    busy: Mutex<()>,
}

impl Packed {
    /// Copies packed weights to a device.
    ///
    /// # Errors
    /// When the device has not enough memory, or reports another error.
    pub fn new(weights: &pack::Weights, driver: &Arc<dyn Driver>, dtype: DType) -> Result<Self> {
        let recorder = Recorder::new(driver);
        let weights = Weights::new(weights, &Device::Cuda(recorder.clone()), dtype)?;
        Ok(Self { weights, recorder, busy: Mutex::new(()) })
    }

    /// The network's numbers.
    pub fn config(&self) -> &ModelConfig {
        &self.weights.config
    }
}

/// What a graph depends on: batch, height, width, whether the pictures are bytes, what is wanted.
type Key = (usize, usize, usize, bool, Wanted);

/// A graph with its inputs and outputs.
struct Network {
    recorded: Recorded,
    pictures: Tensor,
    device: Outputs,
    host: Host,
}

/// Pictures and results in the memory of the host.
struct Host {
    pictures: Pinned,
    labels: Pinned,
    fused: Pinned,
    /// Image, logits, probabilities.
    floats: [Option<Tensor>; 3],
}

/// The graphs for the shapes met so far.
pub struct Session {
    packed: Arc<Packed>,
    networks: HashMap<Key, Network>,
}

impl Session {
    /// Memory for one caller at a time.
    pub fn new(packed: Arc<Packed>) -> Self {
        Self { packed, networks: HashMap::new() }
    }

    /// Fuses and labels a batch, whose sizes were checked; None when `watch` has stopped it.
    ///
    /// # Errors
    /// When the device reports one.
    pub fn run(&mut self, pairs: &Pairs, wanted: Wanted, watch: Option<Watch>) -> Result<Option<Output<'_>>> {
        let (packed, network) = self.network(pairs, wanted)?;
        let _busy = packed.busy.lock().unwrap_or_else(PoisonError::into_inner);
        let done = network.compute(&**packed.recorder.device(), pairs, watch);
        if done.is_err() {
            // What was queued before the error may still read the pictures; it has reported what there is to report.
            let _ = packed.recorder.device().synchronise();
        }
        if !done? {
            return Ok(None);
        }
        let host = &network.host;
        let [image, logits, probabilities] = host.floats.each_ref().map(|x| x.as_ref().map(Tensor::f32));
        let (labels, fused) = (host.labels.bytes(), host.fused.bytes());
        Ok(Some(Output { labels, fused, image, logits, probabilities }))
    }

    /// The plan for such pictures.
    ///
    /// # Errors
    /// When the device reports one.
    pub fn plan(&mut self, pairs: &Pairs, wanted: Wanted) -> Result<&Plan> {
        Ok(&self.network(pairs, wanted)?.1.recorded.plan)
    }

    fn network(&mut self, pairs: &Pairs, wanted: Wanted) -> Result<(&Packed, &mut Network)> {
        let bytes = matches!(pairs.visible, Pixels::Bytes(_));
        if bytes != matches!(pairs.infrared, Pixels::Bytes(_)) {
            return Err(Error::Config("on a device, both pictures are bytes or both are floats".into()));
        }
        let key = (pairs.batch, pairs.height, pairs.width, bytes, wanted);
        if !self.networks.contains_key(&key) {
            if self.networks.len() == KEPT {
                self.networks.clear();
            }
            self.networks.insert(key, Network::new(&self.packed, pairs, bytes, wanted)?);
        }
        match self.networks.get_mut(&key) {
            Some(network) => Ok((&self.packed, network)),
            None => unreachable!("it was made above"),
        }
    }
}

impl Network {
    fn new(packed: &Packed, pairs: &Pairs, bytes: bool, wanted: Wanted) -> Result<Self> {
        let _busy = packed.busy.lock().unwrap_or_else(PoisonError::into_inner);
        let Packed { weights, recorder, .. } = packed;
        let device = Device::Cuda(recorder.clone());
        let Pairs { batch, height, width, .. } = *pairs;
        let dtype = if bytes { DType::U8 } else { DType::F32 };
        let pictures = Tensor::scratch_on(&device, [2, batch, height, width, 3], dtype)?;
        let shape = |channels: usize| Shape::from([batch, height, width, channels]);
        let floats = |wanted: bool, channels: usize| {
            wanted.then(|| Tensor::scratch_on(&device, shape(channels), DType::F32)).transpose()
        };
        let classes = weights.config.classes;
        let mut on_device = Outputs {
            labels: Tensor::scratch_on(&device, [batch, height, width], DType::U8)?,
            fused: Tensor::scratch_on(&device, shape(3), DType::U8)?,
            image: floats(wanted.image, 3)?,
            logits: floats(wanted.logits, classes)?,
            probabilities: floats(wanted.probabilities, classes)?,
        };
        let on_host = |x: &Option<Tensor>| x.as_ref().map(|x| Tensor::scratch_of(x.shape(), DType::F32));
        let host = Host {
            pictures: Pinned::new(recorder.device(), pictures.bytes())?,
            labels: Pinned::new(recorder.device(), on_device.labels.bytes())?,
            fused: Pinned::new(recorder.device(), on_device.fused.bytes())?,
            floats: [&on_device.image, &on_device.logits, &on_device.probabilities].map(on_host),
        };
        recorder.begin();
        let noted = Forward { weights, recorder }.run(&pictures, &mut on_device);
        if noted.is_err() {
            recorder.cancel();
        }
        noted?;
        Ok(Self { recorded: recorder.end()?, pictures, device: on_device, host })
    }

    /// Whether it came to the end.
    fn compute(&mut self, device: &dyn Driver, pairs: &Pairs, watch: Option<Watch>) -> Result<bool> {
        let staging = self.host.pictures.bytes_mut();
        let half = staging.len() / 2;
        for (pixels, to) in [pairs.visible, pairs.infrared].into_iter().zip(staging.chunks_exact_mut(half)) {
            to.copy_from_slice(match pixels {
                Pixels::Bytes(bytes) => bytes,
                Pixels::Floats(floats) => bytemuck::cast_slice(floats),
            });
        }
        let place =
            self.pictures.address().ok_or_else(|| Error::cuda("upload", "the pictures are on the CPU"));
        // SAFETY: the pictures on the device have as many bytes, which nobody else uses; these stay as they are until
        // the results, which come after them, are there.
        unsafe { device.upload(staging, place?.1)? };
        // SAFETY: weights, pictures and outputs are where they were when this was recorded.
        unsafe {
            match watch {
                None => self.recorded.launch(device)?,
                Some(watch) => {
                    if !self.recorded.launch_watched(device, watch)? {
                        return Ok(false);
                    }
                }
            }
        }
        let (on_device, host) = (&self.device, &mut self.host);
        download(device, &on_device.labels, host.labels.bytes_mut())?;
        download(device, &on_device.fused, host.fused.bytes_mut())?;
        let floats = [&on_device.image, &on_device.logits, &on_device.probabilities];
        for (from, to) in floats.into_iter().zip(&mut host.floats) {
            if let (Some(from), Some(to)) = (from, to) {
                download(device, from, bytemuck::cast_slice_mut(to.f32_mut()))?;
            }
        }
        Ok(true)
    }
}

fn download(device: &dyn Driver, from: &Tensor, to: &mut [u8]) -> Result<()> {
    let (_, address) = from.address().ok_or_else(|| Error::cuda("download", "a result is on the CPU"))?;
    // SAFETY: both have the same shape and type.
    unsafe { device.download(address, to) }
}
