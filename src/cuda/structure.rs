//! Launches of `kernels/structure.cu`: copies that change the order of channels.
