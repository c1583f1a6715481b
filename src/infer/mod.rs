//! The fused inference engine: the network without a tape, with weights that were packed once and memory that was
//! planned once.
//!
//! [`Engine::new`] packs a network (`pack`); a [`Session`] of it makes a plan for each shape of input that it meets
//! (`network`): a list of steps over buffers of one arena (`plan`, `arena`). A step is a parallel loop over
//! blocks of rows (`encoder`, `align`, `heads`) around products ([`product`]). Once a shape is known, a run
//! allocates nothing.

mod align;
mod arena;
mod device;
mod encoder;
mod heads;
mod host;
mod network;
mod pack;
mod plan;
pub mod product;
mod stored;
mod vector;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

pub use device::Pinned;
pub use network::Wanted;
use pack::{Source, Weights};
pub use plan::{Plan, Step, Watch};
use product::Instructions;

use crate::cuda::frame;
use crate::data::ClassSet;
use crate::model::{Amdanet, LARGEST_SIDE, ModelConfig, SMALLEST_SIDE};
use crate::{DType, Device, Error, Result, Tensor, cpu};

/// The most shapes that a session keeps plans for; one more, and it forgets them all.
pub const MOST_SHAPES: usize = 8;

/// The most pairs of a batch: sizes in bytes stay far from what a number holds.
const MOST_PAIRS: usize = 1 << 16;

/// A packed network, shared by its sessions.
#[derive(Clone)]
pub struct Engine {
    packed: Packed,
}

#[derive(Clone)]
enum Packed {
    Cpu(Arc<Weights>, Instructions),
    Device(Arc<device::Packed>),
}

impl Engine {
    /// Packs a network, for the device that it is on and the type that it computes in there.
    ///
    /// # Errors
    /// When a parameter is missing, or a device reports an error.
    pub fn new(model: &Amdanet) -> Result<Self> {
        let source = match model.params.device() {
            Device::Cpu => Source::Kept(&model.params),
            Device::Cuda(_) => {
                let mut params = model.params.clone();
                params.place(&Device::Cpu, DType::F32)?;
                Source::Consumed(params)
            }
        };
        Self::pack(source, model.config())?.to(model.params.device(), model.params.compute())
    }

    /// Packs a network for the CPU that is not needed afterwards, in little more memory than it takes itself.
    ///
    /// # Errors
    /// As [`Engine::new`].
    pub fn consume(mut model: Amdanet) -> Result<Self> {
        let mut params = std::mem::take(&mut model.params);
        params.place(&Device::Cpu, DType::F32)?;
        Self::pack(Source::Consumed(params), model.config())
    }

    fn pack(source: Source, config: &ModelConfig) -> Result<Self> {
        let weights = Arc::new(cpu::on_pool(|| Weights::new(source, config.clone()))?);
        Ok(Self { packed: Packed::Cpu(weights, Instructions::best()) })
    }

    /// The same network on `device`; on a CUDA device with weights and activations of type `dtype`.
    ///
    /// # Errors
    /// When it is on a CUDA device already, or the device has not enough memory or reports another error.
    pub fn to(self, device: &Device, dtype: DType) -> Result<Self> {
        match (&self.packed, device) {
            (Packed::Cpu(..), Device::Cpu) => Ok(self),
            (Packed::Cpu(weights, _), Device::Cuda(driver)) => {
                let packed = device::Packed::new(weights, driver, dtype)?;
                Ok(Self { packed: Packed::Device(Arc::new(packed)) })
            }
            (Packed::Device(_), _) => {
                Err(Error::Config("the engine is on a device already: pack the network again".into()))
            }
        }
    }

    /// Writes the packed network with the names and colours of its classes. The file is complete or not there.
    ///
    /// # Errors
    /// When the disk refuses, there are more or fewer classes, or the engine is on a device.
    pub fn save(&self, path: &Path, classes: &ClassSet) -> Result<()> {
        match &self.packed {
            Packed::Cpu(weights, _) => stored::save(weights, path, classes),
            Packed::Device(_) => Err(Error::Config("an engine is saved before it goes to a device".into())),
        }
    }

    /// A packed network from a file that [`Engine::save`] made, and its classes. The file is mapped into memory: it must
    /// stay as it is (to replace it, write another and rename it, as [`Engine::save`] does).
    ///
    /// # Errors
    /// When the file cannot be read, is no packed model, was packed by another version, or is damaged or truncated.
    pub fn open(path: &Path) -> Result<(Self, ClassSet)> {
        let (weights, classes) = cpu::on_pool(|| stored::open(path))?;
        Ok((Self { packed: Packed::Cpu(Arc::new(weights), Instructions::best()) }, classes))
    }

    /// The network's numbers.
    pub fn config(&self) -> &ModelConfig {
        match &self.packed {
            Packed::Cpu(weights, _) => &weights.config,
            Packed::Device(packed) => packed.config(),
        }
    }

    /// The same network with other vector instructions.
    ///
    /// # Errors
    /// When the processor does not have them, or the engine is on a device.
    pub fn with(self, instructions: Instructions) -> Result<Self> {
        match self.packed {
            Packed::Cpu(weights, _) if instructions.is_available() => {
                Ok(Self { packed: Packed::Cpu(weights, instructions) })
            }
            Packed::Cpu(..) => {
                Err(Error::Config(format!("this processor has no {instructions:?} instructions")))
            }
            Packed::Device(_) => Err(Error::Config("instructions are a matter of the CPU's engine".into())),
        }
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.config().classes
    }

    /// Memory and plans for one caller at a time.
    pub fn session(&self) -> Session {
        Session(match &self.packed {
            Packed::Cpu(weights, instructions) => {
                Kind::Cpu(host::Session::new(weights.clone(), *instructions))
            }
            Packed::Device(packed) => Kind::Device(device::Session::new(packed.clone())),
        })
    }
}

/// The numbers of a batch of pictures, `(B, H, W, 3)`.
#[derive(Clone, Copy)]
pub enum Pixels<'a> {
    /// In [0, 1].
    Floats(&'a [f32]),
    /// 0 to 255.
    Bytes(&'a [u8]),
}

impl Pixels<'_> {
    fn len(self) -> usize {
        match self {
            Self::Floats(x) => x.len(),
            Self::Bytes(x) => x.len(),
        }
    }

    /// Writes all numbers to `out`, in [0, 1].
    pub fn copy_to(self, out: &mut [f32]) {
        match self {
            Self::Floats(x) => out.copy_from_slice(x),
            Self::Bytes(x) => out.iter_mut().zip(x).for_each(|(out, &x)| *out = f32::from(x) / 255.0),
        }
    }
}

/// A batch of pairs of equal size.
#[derive(Clone, Copy)]
pub struct Pairs<'a> {
    /// How many.
    pub batch: usize,
    /// Rows of a picture.
    pub height: usize,
    /// Columns of a picture.
    pub width: usize,
    /// The visible pictures.
    pub visible: Pixels<'a>,
    /// The infrared pictures, three channels too.
    pub infrared: Pixels<'a>,
}

impl<'a> Pairs<'a> {
    /// From tensors `(1, B, H, W, 3)` in [0, 1].
    ///
    /// # Errors
    /// When a tensor has another shape.
    pub fn new(visible: &'a Tensor, infrared: &'a Tensor) -> Result<Self> {
        let shape = visible.shape();
        if shape.rank() != 5 || shape[0] != 1 || shape[4] != 3 || infrared.shape() != shape {
            let why = "both pictures must be (1, B, H, W, 3)";
            return Err(Error::shape("pairs", why, &[shape, infrared.shape()]));
        }
        let [visible, infrared] = [visible, infrared].map(|x| Pixels::Floats(x.f32()));
        Ok(Self { batch: shape[1], height: shape[2], width: shape[3], visible, infrared })
    }
}

/// A picture.
#[derive(Clone, Copy)]
pub enum Picture<'a> {
    /// In the memory of the host.
    Host(Pixels<'a>),
    /// In the memory of the engine's device.
    Device(frame::Pixels),
}

/// A batch of pairs of which pictures and results may be in the memory of the engine's device.
pub struct Frame<'a> {
    /// How many; 1 if anything is on the device.
    pub batch: usize,
    /// Rows of a picture.
    pub height: usize,
    /// Columns of a picture.
    pub width: usize,
    /// The visible and the infrared picture.
    pub pictures: [Picture<'a>; 2],
    /// Whether results are wanted on the host; without it what [`Output`] holds is arbitrary.
    pub on_host: bool,
    /// Where the fused picture goes on the device, if it does; as floats only if [`Wanted::image`] is set.
    pub fused: Option<frame::Pixels>,
    /// Where the labels go on the device, as bytes.
    pub labels: Option<frame::Rows>,
    /// Where the probabilities go on the device, as floats, if [`Wanted::probabilities`] is set.
    pub probabilities: Option<frame::Rows>,
    /// A stream of the device, a `CUstream`, on which pictures are ready and results are asked for. With one, and nothing on
    /// the host, a run returns when all is queued.
    pub stream: Option<u64>,
}

impl<'a> From<&Pairs<'a>> for Frame<'a> {
    fn from(pairs: &Pairs<'a>) -> Self {
        let &Pairs { batch, height, width, visible, infrared } = pairs;
        let pictures = [visible, infrared].map(Picture::Host);
        let (fused, labels, probabilities, stream) = (None, None, None, None);
        Self { batch, height, width, pictures, on_host: true, fused, labels, probabilities, stream }
    }
}

impl<'a> Frame<'a> {
    fn check_size(&self) -> Result<()> {
        let Self { batch, height, width, .. } = *self;
        let sides = SMALLEST_SIDE..=LARGEST_SIDE;
        if batch == 0 || batch > MOST_PAIRS || !sides.contains(&height) || !sides.contains(&width) {
            return Err(Error::Config(format!(
                "{batch} pairs of {width}x{height} pixels: there must be 1 to {MOST_PAIRS}, and both sides \
                 {SMALLEST_SIDE} to {LARGEST_SIDE}"
            )));
        }
        Ok(())
    }

    fn check_pixels(&self) -> Result<()> {
        let Self { batch, height, width, .. } = *self;
        let numbers = 3 * batch * height * width;
        for (picture, name) in self.pictures.iter().zip(["visible", "infrared"]) {
            if let Picture::Host(pixels) = picture
                && pixels.len() != numbers
            {
                return Err(Error::Config(format!(
                    "{batch} pairs of {width}x{height} pixels have {numbers} {name} numbers, not {}",
                    pixels.len()
                )));
            }
        }
        Ok(())
    }

    /// The pairs, if nothing is on a device.
    fn pairs(&self) -> Option<Pairs<'a>> {
        let &Self { batch, height, width, pictures: [visible, infrared], .. } = self;
        let results = [self.fused.is_some(), self.labels.is_some(), self.probabilities.is_some()];
        match (visible, infrared) {
            (Picture::Host(visible), Picture::Host(infrared)) if results == [false; 3] => {
                Some(Pairs { batch, height, width, visible, infrared })
            }
            _ => None,
        }
    }
}

/// What a run says, in the memory of its session.
pub struct Output<'a> {
    /// The class of each pixel, `(B, H, W)`.
    pub labels: &'a [u8],
    /// The fused pictures as 8-bit RGB, `(B, H, W, 3)`.
    pub fused: &'a [u8],
    /// The fused pictures in (0, 1), `(B, H, W, 3)`, if wanted.
    pub image: Option<&'a [f32]>,
    /// The scores, `(B, H, W, classes)`, if wanted.
    pub logits: Option<&'a [f32]>,
    /// Their softmax, if wanted.
    pub probabilities: Option<&'a [f32]>,
}

/// What an engine computes with: its plans for the shapes met lately, and memory.
pub struct Session(Kind);

enum Kind {
    Cpu(host::Session),
    Device(device::Session),
}

impl Session {
    /// Fuses and labels a batch.
    ///
    /// # Errors
    /// When a side is not 32 to 16384, the batch is empty or above 65536 pairs, a picture has another number of pixels, or a device reports an error.
    pub fn run(&mut self, pairs: &Pairs, wanted: Wanted) -> Result<Output<'_>> {
        self.compute(pairs, wanted, None).map(Self::whole)
    }

    /// As [`Session::run`], and notes the time of each step in the plan.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn run_timed(&mut self, pairs: &Pairs, wanted: Wanted) -> Result<Output<'_>> {
        self.compute(pairs, wanted, Some(&mut |_, _, _| ControlFlow::Continue(()))).map(Self::whole)
    }

    /// As [`Session::run`], of pictures and with results that may be on the engine's device. With `watch`, that is told of
    /// each step, whose time is noted in the plan; nothing comes of a run that it stops.
    ///
    /// # Errors
    /// As [`Session::run`], and when something is on a device and the engine is not, or there are several pairs.
    ///
    /// # Safety
    /// What is on the device is there, in the sizes of the frame, until the device has done the work that is queued here;
    /// until then nobody else writes to it, nor reads results.
    pub unsafe fn run_frame(
        &mut self,
        frame: &Frame,
        wanted: Wanted,
        watch: Option<Watch>,
    ) -> Result<Option<Output<'_>>> {
        frame.check_size()?;
        frame.check_pixels()?;
        match &mut self.0 {
            Kind::Cpu(session) => {
                let pairs = frame.pairs().ok_or_else(|| {
                    Error::Config("a picture or a result is on a device, and the engine on the CPU".into())
                })?;
                session.run(&pairs, wanted, watch)
            }
            // SAFETY: the caller's promise is passed on.
            Kind::Device(session) => unsafe { session.run(frame, wanted, watch) },
        }
    }

    fn whole(output: Option<Output<'_>>) -> Output<'_> {
        let Some(output) = output else { unreachable!("nobody stopped the run") };
        output
    }

    /// The plan for pictures of this size, for reading.
    ///
    /// # Errors
    /// When a side is not 32 to 16384, the batch is empty or above 65536 pairs, or a device reports an error.
    pub fn plan(&mut self, pairs: &Pairs, wanted: Wanted) -> Result<&Plan> {
        let frame = Frame::from(pairs);
        frame.check_size()?;
        match &mut self.0 {
            Kind::Cpu(session) => Ok(session.plan(pairs, wanted)),
            Kind::Device(session) => session.plan(&frame, wanted),
        }
    }

    /// None when `watch` has stopped it.
    fn compute(&mut self, pairs: &Pairs, wanted: Wanted, watch: Option<Watch>) -> Result<Option<Output<'_>>> {
        // SAFETY: nothing is on a device.
        unsafe { self.run_frame(&pairs.into(), wanted, watch) }
    }
}
