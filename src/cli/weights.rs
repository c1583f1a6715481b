//! Weights for inference: checkpoints and packed models.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::data::ClassSet;
use crate::evaluate::{Predictor, predict};
use crate::infer::{Engine, Pairs, Pixels, Session, Wanted};
use crate::model::{Amdanet, ModelConfig};
use crate::{Device, Error, Precision, Result, Tensor, checkpoint};

#[derive(Args)]
pub struct Weights {
    /// Checkpoint of any known kind, or a packed model
    #[arg(long = "weights", value_name = "WEIGHTS")]
    pub path: PathBuf,
    /// ε of the batch norms, if the checkpoint does not say [default: 1e-5]
    #[arg(long, value_name = "EPS")]
    bn_eps: Option<f32>,
}

impl Weights {
    /// The network on `device`, and its classes.
    pub fn load(&self, device: &Device, precision: Precision) -> Result<(Network, ClassSet)> {
        if checkpoint::is_packed(&self.path) {
            if self.bn_eps.is_some() {
                let what = "--bn-eps: the batch norms of a packed model are folded into it: give the option to \
                            `amdanet convert`";
                return Err(Error::file(&self.path, what));
            }
            let (engine, classes) = open(&self.path, device)?;
            return Ok((Network::Engine(engine), classes));
        }
        let mut loaded = checkpoint::load(&self.path, self.bn_eps)?;
        let network = match device {
            Device::Cpu => Network::Engine(Engine::consume(loaded.model)?),
            Device::Cuda(_) => {
                loaded.model.params.place(device, precision.dtype())?;
                Network::Model(Box::new(loaded.model))
            }
        };
        Ok((network, loaded.classes))
    }
}

/// Opens a packed model for `device`.
pub fn open(path: &Path, device: &Device) -> Result<(Engine, ClassSet)> {
    match device {
        Device::Cpu => Engine::open(path),
        Device::Cuda(_) => {
            let what = "packed models compute on the CPU: add --device cpu, or give the checkpoint that it was made from";
            Err(Error::file(path, what))
        }
    }
}

/// What computes: the fused engine, or the network itself on a device.
pub enum Network {
    Engine(Engine),
    Model(Box<Amdanet>),
}

impl Network {
    pub fn config(&self) -> &ModelConfig {
        match self {
            Self::Engine(engine) => engine.config(),
            Self::Model(model) => model.config(),
        }
    }

    pub fn predictor(&self) -> Result<Predictor<'_>> {
        match self {
            Self::Engine(engine) => Ok(Predictor::packed(engine)),
            Self::Model(model) => Predictor::new(model),
        }
    }

    pub fn compute(self) -> Compute {
        match self {
            Self::Engine(engine) => Compute::Engine(Box::new(engine.session())),
            Self::Model(model) => Compute::Model(model),
        }
    }
}

/// A network that gives bytes.
pub enum Compute {
    Engine(Box<Session>),
    Model(Box<Amdanet>),
}

impl Compute {
    /// Hands the fused picture and the labels of one pair to `f`.
    pub fn pair<R>(&mut self, pair: &Pairs, f: impl FnOnce(&[u8], &[u8]) -> R) -> Result<R> {
        match self {
            Self::Engine(session) => {
                let output = session.run(pair, Wanted::default())?;
                Ok(f(output.fused, output.labels))
            }
            Self::Model(model) => {
                let tensor = |pixels: Pixels| {
                    let mut x = Tensor::scratch([1, 1, pair.height, pair.width, 3]);
                    pixels.copy_to(x.f32_mut());
                    x
                };
                let predicted = predict(model, &tensor(pair.visible), &tensor(pair.infrared))?;
                Ok(f(&predicted.fused, &predicted.labels))
            }
        }
    }
}
