//! The C interface, whose documentation is `include/amdanet.h`.
//!
//! The header is made from these files by cbindgen, so their comments are written for readers of C. Every entry goes
//! through `status::guard`, which catches panics and keeps the message; every argument is checked before it is used
//! (`handle`, `sized`, `frame`), and enumerations come as integers. What computes is [`crate::infer`].

#![allow(non_camel_case_types, reason = "the types bear their names in C")]
#![allow(clippy::missing_safety_doc, reason = "what a caller in C must do is said of each argument")]

mod device;
mod frame;
mod handle;
mod model;
mod pool;
mod session;
mod sized;
mod status;
mod version;

pub use device::*;
pub use frame::{
    amdanet_buffer, amdanet_channels, amdanet_frame, amdanet_frame_init, amdanet_memory, amdanet_picture,
    amdanet_type,
};
pub use model::*;
pub use session::*;
pub use status::{
    amdanet_last_error, amdanet_log_callback, amdanet_log_level, amdanet_progress_callback, amdanet_set_log,
    amdanet_status, amdanet_status_name,
};
pub use version::*;
