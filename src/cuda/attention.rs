//! Launches of `kernels/attention.cu`; see [`crate::cpu::attention`] for the equations.
