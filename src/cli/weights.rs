//! Weights for inference: checkpoints and packed models.

use std::path::PathBuf;

use clap::Args;

use crate::data::ClassSet;
use crate::infer::Engine;
use crate::{Device, Error, Precision, Result, checkpoint};

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
    /// The network on `device`, packed, and its classes.
    pub fn load(&self, device: &Device, precision: Precision) -> Result<(Engine, ClassSet)> {
        let (engine, classes) = match checkpoint::is_packed(&self.path) {
            true if self.bn_eps.is_some() => {
                let what = "--bn-eps: the batch norms of a packed model are folded into it: give the option to \
                            `amdanet convert`";
                return Err(Error::file(&self.path, what));
            }
            true => Engine::open(&self.path)?,
            false => {
                let loaded = checkpoint::load(&self.path, self.bn_eps)?;
                (Engine::consume(loaded.model)?, loaded.classes)
            }
        };
        Ok((engine.to(device, precision.dtype())?, classes))
    }
}
