//! Launches of `kernels/adamw.cu`; see [`crate::cpu::adamw`] for the equations.
