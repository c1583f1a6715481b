//! Operations that move numbers and compute none.

use std::ops::Range;

use crate::cpu::structure as cpu;
use crate::cuda::structure as cuda;
use crate::{Error, Result, Shape, Tape, Var};

/// Entry `index` of the leading axis, as a leading axis of 1; shares the buffer of `x`.
///
/// # Errors
/// When there is no such entry.
pub fn select(tape: &mut Tape, x: &Var, index: usize) -> Result<Var> {
    let y = x.value().narrow(index..index + 1)?;
    let shape = x.shape();
    Ok(tape.record([x], y, move |dy, _| Ok([Some(on_device_of!(dy, select_backward(&dy, shape, index))?)])))
}

/// The same numbers under another shape.
///
/// # Errors
/// When the number of elements differs.
pub fn reshape(tape: &mut Tape, x: &Var, shape: impl Into<Shape>) -> Result<Var> {
    let y = x.value().reshape(shape)?;
    let back = x.shape();
    Ok(tape.record([x], y, move |dy, _| Ok([Some(dy.reshape(back)?)])))
}

/// The channels of both streams side by side: `(2, …, C)` -> `(1, …, 2C)`.
///
/// # Errors
/// When there are not two streams.
pub fn concat_streams(tape: &mut Tape, x: &Var) -> Result<Var> {
    let shape = x.shape();
    if shape.rank() < 2 || shape[0] != 2 {
        return Err(Error::shape("concat_streams", "x must be (2, ..., C)", &[shape]));
    }
    let y = on_device_of!(x.value(), concat_streams(x.value()))?;
    Ok(tape.record([x], y, move |dy, _| Ok([Some(on_device_of!(dy, concat_streams_backward(&dy))?)])))
}

/// The channels `range` of x.
///
/// # Errors
/// When x does not have them.
pub fn select_channels(tape: &mut Tape, x: &Var, range: Range<usize>) -> Result<Var> {
    let shape = x.shape();
    let c = shape.last();
    if range.start >= range.end || range.end > c {
        return Err(Error::shape(
            "select_channels",
            format!("{range:?} is not within the channels"),
            &[shape],
        ));
    }
    let y = on_device_of!(x.value(), select_channels(x.value(), range.clone()))?;
    Ok(tape.record([x], y, move |dy, _| {
        Ok([Some(on_device_of!(dy, select_channels_backward(&dy, shape, range))?)])
    }))
}
