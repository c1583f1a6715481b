//! Launches of `kernels/argmax.cu`; see [`crate::cpu::argmax`] for the equations.
