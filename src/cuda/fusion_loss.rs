//! Launches of `kernels/fusion_loss.cu`; see [`crate::cpu::fusion_loss`] for the equations.
