//! `amdanet convert`

use std::path::PathBuf;

use clap::Args;

use super::say;
use crate::infer::Engine;
use crate::{Result, checkpoint};

#[derive(Args)]
pub struct Convert {
    /// A published .pth of either container, an encoder's .pth or safetensors, or this program's own
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// Where to write this program's own safetensors, or, if it ends in .packed, a packed model: weights as the fused
    /// engine wants them, which are mapped into memory and need no packing at the start
    #[arg(value_name = "OUT")]
    output: PathBuf,
    /// ε of the batch norms, if the checkpoint does not say [default: 1e-5]
    #[arg(long, value_name = "EPS")]
    bn_eps: Option<f32>,
}

impl Convert {
    pub fn run(self) -> Result<()> {
        if self.output.extension().is_some_and(|e| e == "packed") {
            return self.pack();
        }
        say(checkpoint::convert(&self.input, &self.output, self.bn_eps)?);
        Ok(())
    }

    fn pack(&self) -> Result<()> {
        let loaded = checkpoint::load(&self.input, self.bn_eps)?;
        let engine = Engine::consume(loaded.model)?;
        engine.save(&self.output, &loaded.classes)?;
        let (config, output) = (engine.config(), self.output.display());
        let (arch, encoder, classes) = (config.arch, config.encoder_name(), config.classes);
        say(format!("{output}: packed {arch} network, encoder {encoder}, {classes} classes"));
        Ok(())
    }
}
