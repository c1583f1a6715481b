//! `amdanet convert`

use std::path::PathBuf;

use clap::Args;

use super::say;
use crate::{Result, checkpoint};

#[derive(Args)]
pub struct Convert {
    /// A published .pth of either container, an encoder's .pth or safetensors, or this program's own
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// Where to write this program's own safetensors
    #[arg(value_name = "OUT")]
    output: PathBuf,
    /// ε of the batch norms, if the checkpoint does not say [default: 1e-5]
    #[arg(long, value_name = "EPS")]
    bn_eps: Option<f32>,
}

impl Convert {
    pub fn run(self) -> Result<()> {
        say(checkpoint::convert(&self.input, &self.output, self.bn_eps)?);
        Ok(())
    }
}
