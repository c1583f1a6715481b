//! To come.
pub mod synth;
