//! Launches of `kernels/loss.cu`; see [`crate::cpu::loss`] for the equations.
