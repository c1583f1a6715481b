//! The pooled statistics of local alignment (equations 6 and 8).

use crate::cpu::pool as cpu;
use crate::cuda::pool as cuda;
use crate::{Error, Result, Tape, Var};

/// The statistics of each channel, and those of each pixel.
///
/// x `(2, B, H, W, C)` -> `(1, 2, B, 2C)`: the mean (row 0) and the maximum (row 1) over H and W of each channel, those
/// of stream 0 before those of stream 1; and `(1, B, H, W, 4)`: over the channels of each pixel the mean and maximum of
/// stream 0, the mean and maximum of stream 1. The gradient of a maximum goes to the first pixel or channel that has
/// it.
///
/// # Errors
/// When x has another shape, or a device reports an error.
pub fn pool(tape: &mut Tape, x: &Var) -> Result<[Var; 2]> {
    let shape = x.shape();
    if shape.rank() != 5 || shape[0] != 2 || shape.is_empty() {
        return Err(Error::shape("pool", "x must be (2, B, H, W, C)", &[shape]));
    }
    if !x.value().is_on_cpu() {
        let dtype = x.value().dtype();
        let cuda::Pooled { channel, spatial, places } = cuda::forward(x.value())?;
        return Ok(tape.record_outputs([x.key()], [channel, spatial], move |[d_channel, d_spatial], _| {
            let dx = cuda::backward(d_channel.as_ref(), d_spatial.as_ref(), &places, shape, dtype)?;
            Ok([Some(dx)])
        }));
    }
    let (channel, at) = cpu::channel_forward(x.value());
    let channel = tape.record([x], channel, move |dy, _| Ok([Some(cpu::channel_backward(&dy, &at, shape))]));
    let spatial = cpu::spatial_forward(x.value());
    let (xv, yv) = (x.value().clone(), spatial.clone());
    let spatial = tape.record([x], spatial, move |dy, _| Ok([Some(cpu::spatial_backward(&dy, &xv, &yv))]));
    Ok([channel, spatial])
}
