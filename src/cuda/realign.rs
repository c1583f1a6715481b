//! Launches of `kernels/realign.cu`; see [`crate::cpu::realign`] for the equations.
