//! AMDANet: fuses a registered visible and infrared picture into one image and labels every pixel.
//!
//! The crate computes the network forward and backward without a deep-learning framework. `ARCHITECTURE.md` is
//! the map; the usual entry points are [`model::Amdanet`], [`checkpoint::load`] and [`train::Trainer`].

pub mod checkpoint;
pub mod cli;
pub mod config;
pub mod cpu;
pub mod cuda;
pub mod data;
mod error;
pub mod evaluate;
pub mod explain;
pub mod ffi;
pub mod files;
pub mod infer;
pub mod metrics;
pub mod model;
pub mod nn;
pub mod ops;
pub mod random;
pub mod report;
pub mod stream;
pub mod tape;
pub mod tensor;
pub mod train;
pub mod verify;

pub use error::{Error, Result};
pub use tape::{Tape, Var};
pub use tensor::{DType, Device, Precision, Shape, Tensor};

/// The examples of the README, compiled with the documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
