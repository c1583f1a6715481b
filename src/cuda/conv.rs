//! Launches of `kernels/conv.cu`; see [`crate::cpu::conv`] for the equations.
