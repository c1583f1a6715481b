//! Launches of `kernels/realign.cu`; see [`crate::cpu::realign`] for the equations.

use super::pool::{THREADS, Walk};
use super::reduce::sum_partials;
use super::{Call, scratch_f32, scratch_like};
use crate::cpu::realign::ReleaseGradients;
use crate::{DType, Result, Tensor};

/// How the kernels share the pixels of x: their lanes take 8 bytes of each tensor.
fn walk(x: &Tensor) -> Walk {
    Walk::new(x.shape().last(), 8 / x.dtype().size())
}

/// x `(2, B, H, W, C)`, gate `(1, B, H, W, C)`, channel `(1, 1, B, 2C)`, spatial `(1, B, H, W, 2)` -> the shape of x.
pub fn release_forward(x: &Tensor, gate: &Tensor, channel: &Tensor, spatial: &Tensor) -> Result<Tensor> {
    forward(Call::new("realign_release", x)?.input(x).input(gate), x, channel, spatial)
}

/// x `(2, B, H, W, C)`, channel `(1, 1, B, 2C)`, spatial `(1, B, H, W, 2)` -> the shape of x.
pub fn paper_forward(x: &Tensor, channel: &Tensor, spatial: &Tensor) -> Result<Tensor> {
    forward(Call::new("realign_paper", x)?.input(x), x, channel, spatial)
}

/// As [`release_forward`] with a gate `(1, B, H, W, C)` before its σ, or as [`paper_forward`] without one; channel
/// `(2, …, B, 2C)`: the weights of channels are σ of the sum of its halves.
pub fn raw(x: &Tensor, gate: Option<&Tensor>, channel: &Tensor, spatial: &Tensor) -> Result<Tensor> {
    match gate {
        Some(gate) => forward(Call::new("realign_release_raw", x)?.input(x).input(gate), x, channel, spatial),
        None => forward(Call::new("realign_paper_raw", x)?.input(x), x, channel, spatial),
    }
}

fn forward(call: Call, x: &Tensor, channel: &Tensor, spatial: &Tensor) -> Result<Tensor> {
    let (batch, c, pixels) = (x.dim(1), x.shape().last(), x.dim(2) * x.dim(3));
    let (parts, per_part) = walk(x).parts(pixels, 2);
    let mut y = scratch_like(x, x.shape())?;
    let call = call.input(channel).input(spatial).output(&mut y);
    let call = call.int(batch).int(pixels).int(per_part).int(c).operations(12 * x.len());
    // SAFETY: the parts cover the pixels of each image, and the last one is guarded; each image has 2·C weights of
    // channels, and each pixel 2.
    unsafe { call.launch([parts, batch, 1], THREADS, 0)? };
    Ok(y)
}

/// The gradients of the inputs of [`release_forward`] from that of its output.
pub fn release_backward(
    dy: Tensor,
    x: &Tensor,
    gate: &Tensor,
    channel: &Tensor,
    spatial: &Tensor,
) -> Result<ReleaseGradients> {
    let mut d_gate = scratch_like(gate, gate.shape())?;
    let call = Call::new("realign_release_backward", x)?.input(&dy).input(x).input(gate);
    let (dx, channel, spatial) = backward(call, x, channel, spatial, Some(&mut d_gate))?;
    Ok(ReleaseGradients { x: dx, gate: d_gate, channel, spatial })
}

/// The gradients of x, channel and spatial weights in [`paper_forward`].
pub fn paper_backward(
    dy: Tensor,
    x: &Tensor,
    channel: &Tensor,
    spatial: &Tensor,
) -> Result<(Tensor, Tensor, Tensor)> {
    let call = Call::new("realign_paper_backward", x)?.input(&dy).input(x);
    backward(call, x, channel, spatial, None)
}

fn backward(
    call: Call,
    x: &Tensor,
    channel: &Tensor,
    spatial: &Tensor,
    d_gate: Option<&mut Tensor>,
) -> Result<(Tensor, Tensor, Tensor)> {
    let (batch, c, pixels) = (x.dim(1), x.shape().last(), x.dim(2) * x.dim(3));
    let walk = walk(x);
    let (parts, per_part) = walk.parts(pixels, 2);
    let mut dx = scratch_like(x, x.shape())?;
    let mut d_spatial = scratch_like(x, spatial.shape())?;
    let mut partial = scratch_f32(x, [batch, parts, 2 * c])?;
    let call = call.input(channel).input(spatial).output(&mut dx);
    let call = match d_gate {
        Some(d_gate) => call.output(d_gate),
        None => call,
    };
    let call = call.output(&mut d_spatial).output_of(&mut partial, DType::F32);
    let call = call.int(batch).int(pixels).int(per_part).int(c).operations(28 * x.len());
    // SAFETY: as in `forward`; `partial` has 2·C sums for each part of each image, and the shared memory 8 bytes for
    // each slot and for each walker's channels.
    unsafe { call.launch([parts, batch, 1], THREADS, walk.shared(per_part, c, 8, 8))? };
    let mut d_channel = scratch_like(x, channel.shape())?;
    sum_partials(&partial, &mut d_channel, batch, parts, 1.0)?;
    Ok((dx, d_channel, d_spatial))
}
