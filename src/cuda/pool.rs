//! Launches of `kernels/pool.cu`; see [`crate::cpu::pool`] for the equations.
