//! The pooled statistics of local alignment (equations 6 and 8).

use crate::cpu::pool as cpu;
use crate::{Error, Result, Tape, Var};

fn check(op: &'static str, x: &Var) -> Result<()> {
    let xs = x.shape();
    if xs.rank() != 5 || xs[0] != 2 || xs.is_empty() {
        return Err(Error::shape(op, "x must be (2, B, H, W, C)", &[xs]));
    }
    Ok(())
}

/// The mean (row 0) and the maximum (row 1) over H and W of each channel, those of stream 0 before those of stream 1.
///
/// x `(2, B, H, W, C)` -> `(1, 2, B, 2C)`. The gradient of a maximum goes to the first pixel that has it.
///
/// # Errors
/// When x has another shape.
pub fn channel_pool(tape: &mut Tape, x: &Var) -> Result<Var> {
    check("channel_pool", x)?;
    let (y, at) = cpu::channel_forward(x.value());
    let shape = x.shape();
    Ok(tape.record([x], y, move |dy, _| Ok([Some(cpu::channel_backward(&dy, &at, shape))])))
}

/// Over the channels of each pixel: the mean and maximum of stream 0, the mean and maximum of stream 1.
///
/// x `(2, B, H, W, C)` -> `(1, B, H, W, 4)`. The gradient of a maximum goes to the first channel that has it.
///
/// # Errors
/// When x has another shape.
pub fn spatial_pool(tape: &mut Tape, x: &Var) -> Result<Var> {
    check("spatial_pool", x)?;
    let y = cpu::spatial_forward(x.value());
    let (xv, yv) = (x.value().clone(), y.clone());
    Ok(tape.record([x], y, move |dy, _| Ok([Some(cpu::spatial_backward(&dy, &xv, &yv))])))
}
