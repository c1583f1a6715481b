//! What a model calls. Each function checks shapes, computes the value, and records its backward.
//!
//! Feature maps are `(S, B, H, W, C)`: streams, batch, rows, columns, channels. Weights have the leading axis S too.

mod elementwise;
mod linear;

pub use elementwise::{add, gelu, relu, sigmoid};
pub use linear::{linear, linear_add};
