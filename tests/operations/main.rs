//! Every operation against numeric gradients and against plain loops, at odd sizes.

mod adamw;
mod argmax;
mod attention;
mod batch_norm;
mod conv;
mod depthwise;
mod device;
mod elementwise;
mod fused;
mod fusion_loss;
mod gate;
mod gradient;
mod layer_norm;
mod linear;
mod loss;
mod mask;
mod pool;
mod realign;
mod resize;
mod resized_taps;
mod structure;
