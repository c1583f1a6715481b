//! Pictures, pairs and data sets: everything between files and the network's input.
//!
//! A [`Picture`] or [`Labels`] is one decoded file; [`pairs()`] matches visible and infrared files; a [`Dataset`]
//! is one split of a folder of labelled pairs in a known [`Layout`]; [`augment()`] makes a training [`Example`] of a
//! [`Sample`], and [`batch`] stacks examples into tensors.

mod augment;
mod classes;
mod dataset;
mod layout;
mod overlay;
mod pairs;
mod picture;
mod stored;
pub mod synth;

pub use augment::{Augment, Batch, Example, augment, batch};
pub use classes::{ClassSet, IGNORED};
pub use dataset::{Dataset, Sample, Split};
pub use layout::Layout;
pub use overlay::{Tile, colorize, contact_sheet, overlay};
pub use pairs::{Pair, Pairs, pairs, read_pair};
pub use picture::{Labels, Limits, Picture, read_labels, read_rgb, to_bytes, write_gray, write_rgb};
pub use stored::{Stored, Values};
