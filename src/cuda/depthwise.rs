//! Launches of `kernels/depthwise.cu`; see [`crate::cpu::depthwise`] for the equations.
