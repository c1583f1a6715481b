//! The engine on a CUDA device: the packed weights in the device's memory, and for each shape of input one graph of
//! launches over one arena. Pictures go there, and results come back, as bytes.

mod network;
mod pinned;
mod recorder;
mod weights;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use network::{Forward, Outputs};
pub use pinned::Pinned;
use recorder::{Recorded, Recorder};
use weights::Weights;

use super::pack;
use super::plan::{Plan, Watch};
use super::{Frame, MOST_SHAPES, Output, Picture, Pixels, Wanted};
use crate::cuda::driver::Driver;
use crate::cuda::frame::{self, Number};
use crate::model::ModelConfig;
use crate::tensor::memory;
use crate::{DType, Device, Error, Result, Shape, Tensor};

/// A packed network on a device, shared by its sessions.
pub struct Packed {
    weights: Weights,
    recorder: Arc<Recorder>,
    /// Held while something is recorded.
    recording: Mutex<()>,
}

impl Packed {
    /// Copies packed weights to a device.
    ///
    /// # Errors
    /// When the device has not enough memory, or reports another error.
    pub fn new(weights: &pack::Weights, driver: &Arc<dyn Driver>, dtype: DType) -> Result<Self> {
        let recorder = Recorder::new(driver);
        let weights = Weights::new(weights, &Device::Cuda(recorder.clone()), dtype)?;
        // Other queues read them.
        driver.synchronise()?;
        Ok(Self { weights, recorder, recording: Mutex::new(()) })
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

/// A queue, and the graphs for the shapes met lately.
pub struct Session {
    packed: Arc<Packed>,
    /// Made for the first frame.
    queue: Option<Arc<dyn Driver>>,
    networks: HashMap<Key, Network>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Session {
    /// Memory for one caller at a time.
    pub fn new(packed: Arc<Packed>) -> Self {
        Self { packed, queue: None, networks: HashMap::new() }
    }

    /// Waits for what is queued, after which its memory can be given back. What went wrong was reported, or nobody waits for
    /// it any more.
    fn finish(&self) {
        if let Some(queue) = &self.queue {
            let _ = queue.synchronise();
        }
    }

    /// Fuses and labels a batch; None when `watch` has stopped it.
    ///
    /// # Errors
    /// When the pictures do not fit each other, or the device reports an error.
    ///
    /// # Safety
    /// As for [`super::Session::run_frame`].
    pub unsafe fn run(
        &mut self,
        frame: &Frame,
        wanted: Wanted,
        watch: Option<Watch>,
    ) -> Result<Option<Output<'_>>> {
        let (queue, network) = self.network(frame, wanted)?;
        // SAFETY: the caller's promise is passed on.
        let done = unsafe { network.compute(queue, frame, watch) };
        if done.is_err() {
            // What was queued before the error may still read the pictures; it has reported what there is to report.
            let _ = queue.synchronise();
        }
        if !done? {
            return Ok(None);
        }
        let host = &network.host;
        let [image, logits, probabilities] = host.floats.each_ref().map(|x| x.as_ref().map(Tensor::f32));
        let (labels, fused) = (host.labels.tensor().as_slice(), host.fused.tensor().as_slice());
        Ok(Some(Output { labels, fused, image, logits, probabilities }))
    }

    /// The plan for such pictures.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn plan(&mut self, frame: &Frame, wanted: Wanted) -> Result<&Plan> {
        Ok(&self.network(frame, wanted)?.1.recorded.plan)
    }

    fn network(&mut self, frame: &Frame, wanted: Wanted) -> Result<(&Arc<dyn Driver>, &mut Network)> {
        if frame.batch != 1 && frame.pairs().is_none() {
            return Err(Error::Config(format!("{} pairs: on a device there is one at a time", frame.batch)));
        }
        // A picture on the device is converted to what the other one is, or to bytes if it can be.
        let is_bytes = |picture: &Picture| match picture {
            Picture::Host(pixels) => matches!(pixels, Pixels::Bytes(_)),
            Picture::Device(pixels) => pixels.number == Number::U8 && pixels.range.is_none(),
        };
        let bytes = frame.pictures.iter().all(is_bytes);
        let is_host_bytes = |picture: &Picture| matches!(picture, Picture::Host(Pixels::Bytes(_)));
        if !bytes && frame.pictures.iter().any(is_host_bytes) {
            return Err(Error::Config("on a device, both pictures are bytes or both are floats".into()));
        }
        if self.queue.is_none() {
            self.queue = Some(self.packed.recorder.clone().queue()?);
        }
        let key = (frame.batch, frame.height, frame.width, bytes, wanted);
        if !self.networks.contains_key(&key) {
            if self.networks.len() == MOST_SHAPES {
                self.finish();
                self.networks.clear();
            }
            self.networks.insert(key, Network::new(&self.packed, frame, bytes, wanted)?);
        }
        match (&self.queue, self.networks.get_mut(&key)) {
            (Some(queue), Some(network)) => Ok((queue, network)),
            _ => unreachable!("both were made above"),
        }
    }
}

impl Network {
    fn new(packed: &Packed, frame: &Frame, bytes: bool, wanted: Wanted) -> Result<Self> {
        let Packed { weights, recorder, recording } = packed;
        let _recording = recording.lock().unwrap_or_else(PoisonError::into_inner);
        let device = Device::Cuda(recorder.clone());
        let Frame { batch, height, width, .. } = *frame;
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
        let floats = [&on_device.image, &on_device.logits, &on_device.probabilities];
        let bytes =
            [&pictures, &on_device.labels, &on_device.fused].into_iter().chain(floats.into_iter().flatten());
        let outside = bytes.map(Tensor::bytes).sum();
        memory::check(outside, &format!("pictures and results of {width}x{height} pixels"))?;
        let on_host = |x: &Option<Tensor>| x.as_ref().map(|x| Tensor::scratch_of(x.shape(), DType::F32));
        let pinned = |x: &Tensor| {
            let bytes = Tensor::scratch_of([x.bytes()], DType::U8);
            Pinned::new::<u8>(&Device::Cuda(recorder.device().clone()), bytes)
        };
        let host = Host {
            pictures: pinned(&pictures),
            labels: pinned(&on_device.labels),
            fused: pinned(&on_device.fused),
            floats: floats.map(on_host),
        };
        recorder.begin();
        let noted = Forward { weights, recorder }.run(&pictures, &mut on_device);
        if noted.is_err() {
            recorder.cancel();
        }
        noted?;
        let mut recorded = recorder.end()?;
        recorded.plan.arena += outside;
        // Another queue is going to use the memory.
        recorder.device().synchronise()?;
        Ok(Self { recorded, pictures, device: on_device, host })
    }

    /// Whether it came to the end.
    ///
    /// # Safety
    /// As for [`Session::run`].
    unsafe fn compute(
        &mut self,
        queue: &Arc<dyn Driver>,
        frame: &Frame,
        watch: Option<Watch>,
    ) -> Result<bool> {
        if let Some(stream) = frame.stream {
            // SAFETY: the caller vouches for the stream.
            unsafe { queue.follow(stream)? };
        }
        let size = (frame.height, frame.width);
        let pictures = address(&self.pictures)?;
        let staging = self.host.pictures.as_mut_slice();
        let half = staging.len() / 2;
        for (i, picture) in frame.pictures.iter().enumerate() {
            let to = pictures + (i * half) as u64;
            match picture {
                Picture::Host(pixels) => {
                    let mut from: &[u8] = match pixels {
                        Pixels::Bytes(bytes) => bytes,
                        Pixels::Floats(floats) => bytemuck::cast_slice(floats),
                    };
                    if !queue.is_pinned(from) {
                        let pinned = &mut staging[i * half..(i + 1) * half];
                        pinned.copy_from_slice(from);
                        from = pinned;
                    }
                    // SAFETY: there is room for a picture, which nobody else uses; what is read stays as it is until the
                    // device was waited for, which is before the end of a run with pictures of the host.
                    unsafe { queue.upload(from, to)? };
                }
                Picture::Device(pixels) => {
                    let bytes = self.pictures.dtype() == DType::U8;
                    // SAFETY: there is room for a picture; the caller vouches for the one that is read.
                    unsafe { frame::read(queue, pixels, size, to, bytes)? };
                }
            }
        }
        // SAFETY: weights, pictures and outputs are where they were when this was recorded.
        unsafe {
            match watch {
                None => self.recorded.launch(&**queue)?,
                Some(watch) => {
                    if !self.recorded.launch_watched(&**queue, watch)? {
                        return Ok(false);
                    }
                }
            }
        }
        // SAFETY: the caller's promise is passed on.
        unsafe { self.give(queue, frame)? };
        if frame.on_host {
            // This waits for all that was queued.
            self.download(&**queue)?;
            return Ok(true);
        }
        let on_host = |picture: &Picture| matches!(picture, Picture::Host(_));
        match frame.stream {
            // SAFETY: the caller vouches for the stream.
            Some(stream) if !frame.pictures.iter().any(on_host) => unsafe {
                queue.lead(stream)?;
            },
            _ => queue.synchronise()?,
        }
        Ok(true)
    }

    /// Results to where they are wanted on the device.
    ///
    /// # Safety
    /// As for [`Session::run`].
    unsafe fn give(&self, queue: &Arc<dyn Driver>, frame: &Frame) -> Result<()> {
        let Frame { height, width, .. } = *frame;
        let there = |x: &Option<Tensor>, what: &str| {
            let x = x.as_ref().ok_or_else(|| Error::Config(format!("{what} were not asked for")))?;
            Ok::<_, Error>((address(x)?, x.shape().last()))
        };
        // SAFETY: the results have the size of the frame; the caller vouches for where they go.
        unsafe {
            if let Some(to) = &frame.fused {
                let from = match to.number {
                    Number::F32 => there(&self.device.image, "floats of the fused picture")?.0,
                    _ => address(&self.device.fused)?,
                };
                frame::write(queue, from, (height, width), to)?;
            }
            if let Some(to) = frame.labels {
                let from = address(&self.device.labels)?;
                frame::write_rows(queue, from, (height, width), to, Number::U8)?;
            }
            if let Some(to) = frame.probabilities {
                let (from, classes) = there(&self.device.probabilities, "probabilities")?;
                frame::write_rows(queue, from, (height, width * classes), to, Number::F32)?;
            }
        }
        Ok(())
    }

    fn download(&mut self, queue: &dyn Driver) -> Result<()> {
        let (on_device, host) = (&self.device, &mut self.host);
        download(queue, &on_device.labels, host.labels.as_mut_slice())?;
        download(queue, &on_device.fused, host.fused.as_mut_slice())?;
        let floats = [&on_device.image, &on_device.logits, &on_device.probabilities];
        for (from, to) in floats.into_iter().zip(&mut host.floats) {
            if let (Some(from), Some(to)) = (from, to) {
                download(queue, from, bytemuck::cast_slice_mut(to.f32_mut()))?;
            }
        }
        Ok(())
    }
}

fn address(x: &Tensor) -> Result<u64> {
    let (_, address) = x.address().ok_or_else(|| Error::cuda("a frame", "a tensor is on the CPU"))?;
    Ok(address)
}

fn download(queue: &dyn Driver, from: &Tensor, to: &mut [u8]) -> Result<()> {
    // SAFETY: both have the same shape and type.
    unsafe { queue.download(address(from)?, to) }
}
