//! Launches of `kernels/pool.cu`; see [`crate::cpu::pool`] for the equations.

use super::reduce::parts;
use super::{Call, WARP, scratch_f32, scratch_like};
use crate::{DType, Result, Shape, Tensor};

/// Threads of a block that walks along pixels: the `kThreads` of `kernels/pixels.cuh`.
pub(crate) const THREADS: usize = 256;

/// How a block of `kernels/pixels.cuh` shares the pixels of a map.
pub(crate) struct Walk {
    /// Pixels that a team of warps takes side by side.
    pub at_once: usize,
    /// Warps of a team.
    walkers: usize,
    /// The most slots that a pixel needs, one for each team that has some of its channels.
    slots: usize,
}

impl Walk {
    /// For `c` channels, of which a lane takes `numbers`; a single one where addresses or `c` are no multiples: teams
    /// are smaller then, slots are more.
    pub fn new(c: usize, numbers: usize) -> Self {
        let warps = THREADS / WARP;
        let lanes = c.div_ceil(numbers);
        let walkers = (warps / lanes.div_ceil(WARP)).max(1);
        let at_once = walkers * (WARP / lanes.next_power_of_two().min(WARP));
        Self { at_once, walkers, slots: c.div_ceil(WARP).min(warps) }
    }

    /// Into how many parts of how many pixels a map is divided, at least `least` times `at_once` each, unless their
    /// slots would be too many.
    pub fn parts(&self, pixels: usize, least: usize) -> (usize, usize) {
        const MOST_SLOTS: usize = 1024;
        let (_, per_part) = parts(pixels, least * self.at_once);
        let per_part = per_part.min(MOST_SLOTS / self.slots);
        (pixels.div_ceil(per_part), per_part)
    }

    /// Bytes of shared memory: `of_pixel` for each slot of each pixel of a part, and `of_channel` for each walker and
    /// channel.
    pub fn shared(&self, per_part: usize, c: usize, of_pixel: usize, of_channel: usize) -> usize {
        let channels = if self.walkers > 1 { self.walkers * c } else { 0 };
        self.slots * per_part * of_pixel + channels * of_channel
    }
}

/// What [`forward`] gives.
pub struct Pooled {
    /// The mean and the maximum over H and W, `(1, 2, B, 2C)`.
    pub channel: Tensor,
    /// The mean and the maximum over C of stream 0, then of stream 1, `(1, B, H, W, 4)`.
    pub spatial: Tensor,
    /// Where the maxima are.
    pub places: Places,
}

/// Where the maxima are: 32-bit integers in the memory of float32 tensors.
pub struct Places {
    /// The pixel of each channel's maximum, `(B, 2C)`.
    channel: Tensor,
    /// The channel of each pixel's maximum, `(2, B, H, W)`.
    spatial: Tensor,
}

/// x `(2, B, H, W, C)` -> its statistics, in one pass.
pub fn forward(x: &Tensor) -> Result<Pooled> {
    let (batch, c, pixels) = (x.dim(1), x.shape().last(), x.dim(2) * x.dim(3));
    let walk = Walk::new(c, 16 / x.dtype().size());
    let (parts, per_part) = walk.parts(pixels, 4);
    let mut spatial = scratch_like(x, x.shape().with_dim(0, 1).with_last(4))?;
    let mut spatial_at = scratch_f32(x, [2, batch, pixels])?;
    let mut partial = scratch_f32(x, [2 * batch, parts, c, 3])?;
    let call = Call::new("pool", x)?
        .input(x)
        .output(&mut spatial)
        .output_of(&mut spatial_at, DType::F32)
        .output_of(&mut partial, DType::F32)
        .int(batch)
        .int(pixels)
        .int(per_part)
        .int(c)
        .operations(4 * x.len());
    // SAFETY: the parts cover the pixels of each of the 2·B maps of x, and the last one is guarded; the shared memory
    // has 12 bytes for each slot and for each walker's channels.
    unsafe { call.launch([parts, 2 * batch, 1], THREADS, walk.shared(per_part, c, 12, 12))? };

    let mut channel = scratch_like(x, [1, 2, batch, 2 * c])?;
    let mut channel_at = scratch_f32(x, [batch, 2 * c])?;
    let threads = parts.next_power_of_two().min(32) * 32;
    let call = Call::new("pool_combine", x)?
        .input_of(&partial, DType::F32)
        .output(&mut channel)
        .output_of(&mut channel_at, DType::F32)
        .int(batch)
        .int(pixels)
        .int(parts)
        .int(c)
        .operations(2 * partial.len() / 3);
    // SAFETY: the tiles of 32 channels, guarded, and the maps cover `partial`; the shared memory has 12 bytes for each
    // thread.
    unsafe { call.launch([c.div_ceil(32), 2 * batch, 1], threads, 12 * threads)? };
    Ok(Pooled { channel, spatial, places: Places { channel: channel_at, spatial: spatial_at } })
}

/// The gradient of x, of the shape `(2, B, H, W, C)`, from that of both results or of one.
pub fn backward(
    d_channel: Option<&Tensor>,
    d_spatial: Option<&Tensor>,
    places: &Places,
    shape: Shape,
    dtype: DType,
) -> Result<Tensor> {
    let (batch, c, pixels) = (shape[1], shape.last(), shape[2] * shape[3]);
    let walk = Walk::new(c, 16 / dtype.size());
    let (parts, per_part) = walk.parts(pixels, 4);
    let mut dx = Tensor::scratch_on(&places.channel.device(), shape, dtype)?;
    let call = Call::untyped(&format!("pool_backward_{dtype}"), &places.channel)?
        .maybe_input_of(d_channel, dtype)
        .input_of(&places.channel, DType::F32)
        .maybe_input_of(d_spatial, dtype)
        .input_of(&places.spatial, DType::F32)
        .output_of(&mut dx, dtype)
        .int(batch)
        .int(pixels)
        .int(per_part)
        .int(c)
        .operations(shape.len());
    // SAFETY: the parts cover the pixels of each of the 2·B maps of dx, and the last one is guarded.
    unsafe { call.launch([parts, 2 * batch, 1], THREADS, 0)? };
    Ok(dx)
}
