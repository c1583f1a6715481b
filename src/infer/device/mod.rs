//! The engine on a CUDA device: the packed weights in the device's memory, and for each shape of input one graph of
//! launches over one arena. Pictures go there, and results come back, as bytes.

mod network;
mod recorder;
mod weights;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use network::{Forward, Outputs};
use recorder::{Recorded, Recorder};
use weights::Weights;

use super::pack;
use super::plan::Plan;
use super::{Output, Pairs, Pixels, Wanted};
use crate::cuda::driver::Driver;
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

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.weights.config.classes
    }
}

/// What a graph depends on: batch, height, width, whether the pictures are bytes, what is wanted.
type Key = (usize, usize, usize, bool, Wanted);

/// A graph with its inputs and outputs.
struct Network {
    recorded: Recorded,
    pictures: Tensor,
    device: Outputs,
    host: Outputs,
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

    /// Fuses and labels a batch, whose sizes were checked; with `timed`, step by step.
    ///
    /// # Errors
    /// When the device reports one.
    pub fn run(&mut self, pairs: &Pairs, wanted: Wanted, timed: bool) -> Result<Output<'_>> {
        let (packed, network) = self.network(pairs, wanted)?;
        let _busy = packed.busy.lock().unwrap_or_else(PoisonError::into_inner);
        let done = network.compute(&**packed.recorder.device(), pairs, timed);
        if done.is_err() {
            // What was queued before the error may still read the pictures; it has reported what there is to report.
            let _ = packed.recorder.device().synchronise();
        }
        done?;
        let host = &network.host;
        Ok(Output {
            labels: host.labels.as_slice(),
            fused: host.fused.as_slice(),
            image: host.image.as_ref().map(Tensor::f32),
            logits: host.logits.as_ref().map(Tensor::f32),
            probabilities: host.probabilities.as_ref().map(Tensor::f32),
        })
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
        let outputs = |device: &Device| -> Result<Outputs> {
            let tensor = |wanted: bool, channels: usize| {
                let shape = Shape::from([batch, height, width, channels]);
                wanted.then(|| Tensor::scratch_on(device, shape, DType::F32)).transpose()
            };
            Ok(Outputs {
                labels: Tensor::scratch_on(device, [batch, height, width], DType::U8)?,
                fused: Tensor::scratch_on(device, [batch, height, width, 3], DType::U8)?,
                image: tensor(wanted.image, 3)?,
                logits: tensor(wanted.logits, weights.config.classes)?,
                probabilities: tensor(wanted.probabilities, weights.config.classes)?,
            })
        };
        let (mut on_device, host) = (outputs(&device)?, outputs(&Device::Cpu)?);
        recorder.begin();
        let noted = Forward { weights, recorder }.run(&pictures, &mut on_device);
        if noted.is_err() {
            recorder.cancel();
        }
        noted?;
        Ok(Self { recorded: recorder.end()?, pictures, device: on_device, host })
    }

    fn compute(&mut self, device: &dyn Driver, pairs: &Pairs, timed: bool) -> Result<()> {
        for (i, pixels) in [pairs.visible, pairs.infrared].into_iter().enumerate() {
            let picture = self.pictures.narrow(i..i + 1)?;
            let bytes = match pixels {
                Pixels::Bytes(bytes) => bytes,
                Pixels::Floats(floats) => bytemuck::cast_slice(floats),
            };
            let (_, to) =
                picture.address().ok_or_else(|| Error::cuda("upload", "a picture is on the CPU"))?;
            debug_assert_eq!(bytes.len(), picture.bytes());
            // SAFETY: the picture on the device has as many bytes, which nobody else uses.
            unsafe { device.upload(bytes, to)? };
        }
        // SAFETY: weights, pictures and outputs are where they were when this was recorded.
        unsafe {
            match timed {
                true => self.recorded.launch_timed(device)?,
                false => self.recorded.launch(device)?,
            }
        }
        let Outputs { labels, fused, image, logits, probabilities } = &mut self.host;
        let on_device = &self.device;
        download(device, &on_device.labels, labels.as_mut_slice::<u8>())?;
        download(device, &on_device.fused, fused.as_mut_slice::<u8>())?;
        let floats = [
            (&on_device.image, image),
            (&on_device.logits, logits),
            (&on_device.probabilities, probabilities),
        ];
        for (from, to) in floats {
            if let (Some(from), Some(to)) = (from, to) {
                download(device, from, bytemuck::cast_slice_mut(to.f32_mut()))?;
            }
        }
        Ok(())
    }
}

fn download(device: &dyn Driver, from: &Tensor, to: &mut [u8]) -> Result<()> {
    let (_, address) = from.address().ok_or_else(|| Error::cuda("download", "a result is on the CPU"))?;
    // SAFETY: both have the same shape and type.
    unsafe { device.download(address, to) }
}
