//! Launches of `kernels/mask.cu`; see [`crate::cpu::mask`] for the equations.
