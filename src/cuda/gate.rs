//! Launches of `kernels/gate.cu`; see [`crate::cpu::gate`] for the equations.
