//! Launches of `kernels/batch_norm.cu`; see [`crate::cpu::batch_norm`] for the equations.
