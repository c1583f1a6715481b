//! What the emulator does for a driver's user, and the errors that it finds.

mod bench;
mod driver;
mod errors;
mod kernels;
mod numbers;
