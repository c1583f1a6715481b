//! The network.

mod config;

pub use config::{Arch, Encoder, ModelConfig};
