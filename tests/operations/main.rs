//! Every operation against numeric gradients and against plain loops, at odd sizes.

mod elementwise;
mod gradient;
mod linear;
