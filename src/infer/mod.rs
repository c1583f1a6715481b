//! The fused inference engine: the network without a tape, with weights that were packed once and memory that was
//! planned once.
//!
//! [`Engine::new`] packs a network (`pack`); a [`Session`] of it makes a plan for each shape of input that it meets
//! (`network`): a list of steps over buffers of one arena (`plan`, `arena`). A step is a parallel loop over
//! blocks of rows (`encoder`, `align`, `heads`) around products ([`product`]). Once a shape is known, a run
//! allocates nothing.

mod align;
mod arena;
mod encoder;
mod heads;
mod network;
mod pack;
mod plan;
pub mod product;
mod vector;

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use arena::{Slice, at_least};
use network::Network;
pub use network::Wanted;
use pack::{Source, Weights};
use plan::{Context, Scratch};
pub use plan::{Plan, Step, Watch};
use product::Instructions;

use crate::model::{Amdanet, SMALLEST_SIDE};
use crate::{Error, Result, Tensor, cpu};

/// A packed network, shared by its sessions.
#[derive(Clone)]
pub struct Engine {
    weights: Arc<Weights>,
    instructions: Instructions,
}

impl Engine {
    /// Packs a network.
    ///
    /// # Errors
    /// When the network is not on the CPU.
    pub fn new(model: &Amdanet) -> Result<Self> {
        Self::pack(Source::Kept(model))
    }

    /// Packs a network that is not needed afterwards, in little more memory than it takes itself.
    ///
    /// # Errors
    /// When the network is not on the CPU.
    pub fn consume(model: Amdanet) -> Result<Self> {
        Self::pack(Source::Consumed(Box::new(model)))
    }

    fn pack(source: Source) -> Result<Self> {
        let weights = Arc::new(cpu::on_pool(|| Weights::new(source))?);
        Ok(Self { weights, instructions: Instructions::best() })
    }

    /// The same network with other vector instructions.
    ///
    /// # Errors
    /// When the processor does not have them.
    pub fn with(self, instructions: Instructions) -> Result<Self> {
        if !instructions.is_available() {
            return Err(Error::Config(format!("this processor has no {instructions:?} instructions")));
        }
        Ok(Self { instructions, ..self })
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.weights.config.classes
    }

    /// Memory and plans for one caller at a time.
    pub fn session(&self) -> Session {
        Session {
            engine: self.clone(),
            networks: HashMap::new(),
            memory: Tensor::zeros([0]),
            scratch: Scratch::new(),
        }
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

    fn copy_to(self, out: &mut [f32]) {
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

/// The plans for the shapes met so far, and memory for the largest of them.
pub struct Session {
    engine: Engine,
    networks: HashMap<(usize, usize, usize, Wanted), Network>,
    memory: Tensor,
    scratch: Scratch,
}

impl Session {
    /// Fuses and labels a batch.
    ///
    /// # Errors
    /// When a side is below 32, the batch is empty, or a picture has another number of pixels.
    pub fn run(&mut self, pairs: &Pairs, wanted: Wanted) -> Result<Output<'_>> {
        self.compute(pairs, wanted, None).map(Self::whole)
    }

    /// As [`Session::run`], and notes the time of each step in the plan.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn run_timed(&mut self, pairs: &Pairs, wanted: Wanted) -> Result<Output<'_>> {
        self.run_watched(pairs, wanted, &mut |_, _, _| ControlFlow::Continue(())).map(Self::whole)
    }

    /// As [`Session::run_timed`], and `watch` is told of each step. Nothing comes of a run that it stops.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn run_watched(&mut self, pairs: &Pairs, wanted: Wanted, watch: Watch) -> Result<Option<Output<'_>>> {
        self.compute(pairs, wanted, Some(watch))
    }

    fn whole(output: Option<Output<'_>>) -> Output<'_> {
        let Some(output) = output else { unreachable!("nobody stopped the run") };
        output
    }

    /// The plan for pictures of this size, for reading.
    ///
    /// # Errors
    /// When a side is below 32 or the batch is empty.
    pub fn plan(&mut self, pairs: &Pairs, wanted: Wanted) -> Result<&Plan> {
        Ok(&self.network(pairs, wanted)?.plan)
    }

    fn network(&mut self, pairs: &Pairs, wanted: Wanted) -> Result<&mut Network> {
        let Pairs { batch, height, width, .. } = *pairs;
        if batch == 0 || height.min(width) < SMALLEST_SIDE {
            return Err(Error::Config(format!(
                "{batch} pairs of {width}x{height} pixels: the network needs at least one, of at least \
                 {SMALLEST_SIDE} on each side"
            )));
        }
        let weights = &self.engine.weights;
        let make = || network::network(weights, batch, height, width, wanted);
        Ok(self.networks.entry((batch, height, width, wanted)).or_insert_with(make))
    }

    fn compute(&mut self, pairs: &Pairs, wanted: Wanted, watch: Option<Watch>) -> Result<Option<Output<'_>>> {
        let Pairs { batch, height, width, visible, infrared } = *pairs;
        self.network(pairs, wanted)?;
        let Self { engine, networks, memory, scratch } = self;
        let Some(network) = networks.get_mut(&(batch, height, width, wanted)) else {
            unreachable!("the plan was made above")
        };
        let pixels = batch * height * width;
        if visible.len() != 3 * pixels || infrared.len() != 3 * pixels {
            return Err(Error::Config(format!(
                "{batch} pairs of {width}x{height} pixels have {} numbers each, not {} and {}",
                3 * pixels,
                visible.len(),
                infrared.len()
            )));
        }
        at_least(memory, network.plan.len);
        let memory = memory.f32_mut();
        let whole = cpu::on_pool(|| {
            scratch.reserve(network.plan.scratch);
            for (i, picture) in [visible, infrared].into_iter().enumerate() {
                picture.copy_to(&mut memory[network.plan.range(network.pictures.part(i, 2))]);
            }
            network.plan.run(&Context::new(engine.instructions, scratch), memory, watch)
        });
        if !whole {
            return Ok(None);
        }
        let memory = &*memory;
        let floats = |slice: Slice| &memory[network.plan.range(slice)];
        let bytes = |slice: Slice| -> &[u8] { bytemuck::cast_slice(floats(slice)) };
        let [image, logits, probabilities] = network.extra.map(|slice| slice.map(floats));
        Ok(Some(Output {
            labels: &bytes(network.labels)[..pixels],
            fused: &bytes(network.fused)[..3 * pixels],
            image,
            logits,
            probabilities,
        }))
    }
}
