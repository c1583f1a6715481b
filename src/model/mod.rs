//! The network, one file for each module of the paper.

mod amdanet;
mod config;
mod cost;
mod global_alignment;
mod heads;
mod local_alignment;
mod mit;
mod sci;

pub use amdanet::{Amdanet, Features, LARGEST_SIDE, MaskedOutput, Masking, Output, SMALLEST_SIDE};
pub use config::{Arch, Encoder, ModelConfig};
pub use cost::Cost;
pub use mit::stack;
