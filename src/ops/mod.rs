//! What a model calls. Each function checks shapes, computes the value, and records its backward.
//!
//! Feature maps are `(S, B, H, W, C)`: streams, batch, rows, columns, channels. Weights have the leading axis S too.

/// `f(arguments)` of `cpu` or of `cuda`, by where the tensor `x` is; what the CPU cannot fail at becomes `Ok`.
macro_rules! on_device_of {
    ($x:expr, try $f:ident($($argument:expr),* $(,)?)) => {
        if $x.is_on_cpu() { cpu::$f($($argument),*) } else { cuda::$f($($argument),*) }
    };
    ($x:expr, $f:ident($($argument:expr),* $(,)?)) => {
        if $x.is_on_cpu() { Ok(cpu::$f($($argument),*)) } else { cuda::$f($($argument),*) }
    };
}

mod argmax;
mod attention;
mod batch_norm;
mod conv;
mod depthwise;
mod elementwise;
mod fusion_loss;
mod gate;
mod layer_norm;
mod linear;
mod loss;
mod mask;
mod pool;
mod realign;
mod resize;
mod resized_taps;
mod structure;

pub use argmax::*;
pub use attention::*;
pub use batch_norm::*;
pub use conv::*;
pub use depthwise::*;
pub use elementwise::*;
pub use fusion_loss::*;
pub use gate::*;
pub use layer_norm::*;
pub use linear::*;
pub use loss::*;
pub use mask::*;
pub use pool::*;
pub use realign::*;
pub use resize::*;
pub use resized_taps::*;
pub use structure::*;
