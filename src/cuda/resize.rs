//! Launches of `kernels/resize.cu`; see [`crate::cpu::resize`] for the equations.
