//! Launches of `kernels/resized_taps.cu`; see [`crate::cpu::resized_taps`] for the equations.
