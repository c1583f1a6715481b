//! The end of local alignment, forward and backward, each in one pass.

use rayon::prelude::*;

use super::{math, reduce, rows_per_task, simd};
use crate::{Result, Tensor};

/// The gradients that [`release_backward`] gives.
pub struct ReleaseGradients {
    /// Of x, in the buffer of `dy` unless that is shared.
    pub x: Tensor,
    /// Of the gate.
    pub gate: Tensor,
    /// Of the channel weights.
    pub channel: Tensor,
    /// Of the spatial weights.
    pub spatial: Tensor,
}

/// x `(2, B, H, W, C)`, gate `(1, B, H, W, C)`, channel `(1, 1, B, 2C)`, spatial `(1, B, H, W, 2)` -> the shape of x;
/// see [`crate::ops::realign_release`].
pub fn release_forward(x: &Tensor, gate: &Tensor, channel: &Tensor, spatial: &Tensor) -> Tensor {
    let gate = gate.f32();
    forward(
        x,
        channel,
        spatial,
        #[inline(always)]
        |at, [ya, yb], [a, b], [ca, cb], [sa, sb]| {
            release_row(ya, yb, a, b, &gate[at..], ca, cb, sa, sb);
        },
    )
}

/// x `(2, B, H, W, C)`, channel `(1, 1, B, 2C)`, spatial `(1, B, H, W, 2)` -> the shape of x; see
/// [`crate::ops::realign_paper`].
pub fn paper_forward(x: &Tensor, channel: &Tensor, spatial: &Tensor) -> Tensor {
    forward(
        x,
        channel,
        spatial,
        #[inline(always)]
        |_, [ya, yb], [a, b], [ca, cb], [sa, sb]| {
            paper_row(ya, a, ca, sa);
            paper_row(yb, b, cb, sb);
        },
    )
}

/// Runs `row` for each pixel, with the place of the pixel's channels in a map of one stream, and of both streams the
/// output, the input, the channel weights and the spatial weight.
#[inline(always)]
fn forward(
    x: &Tensor,
    channel: &Tensor,
    spatial: &Tensor,
    row: impl Fn(usize, [&mut [f32]; 2], [&[f32]; 2], [&[f32]; 2], [f32; 2]) + Sync,
) -> Tensor {
    let (c, half) = (x.shape().last(), x.len() / 2);
    let pixels = x.dim(2) * x.dim(3);
    let (a, b) = x.f32().split_at(half);
    let (channel, spatial) = (channel.f32(), spatial.f32());
    let mut y = Tensor::scratch(x.shape());
    let (ya, yb) = y.f32_mut().split_at_mut(half);
    let task = rows_per_task(half / c, 2 * c);
    ya.par_chunks_mut(task * c).zip(yb.par_chunks_mut(task * c)).enumerate().for_each(|(i, (ya, yb))| {
        simd(
            #[inline(always)]
            || {
                for (r, (ya, yb)) in ya.chunks_exact_mut(c).zip(yb.chunks_exact_mut(c)).enumerate() {
                    let pixel = i * task + r;
                    let (ca, cb) = channel[pixel / pixels * 2 * c..][..2 * c].split_at(c);
                    let at = pixel * c;
                    let s = [spatial[2 * pixel], spatial[2 * pixel + 1]];
                    row(at, [ya, yb], [&a[at..at + c], &b[at..at + c]], [ca, cb], s);
                }
            },
        );
    });
    y
}

#[inline(always)]
#[allow(clippy::too_many_arguments)] // Separate slices, so that the compiler knows that they do not overlap.
fn release_row(
    ya: &mut [f32],
    yb: &mut [f32],
    a: &[f32],
    b: &[f32],
    gate: &[f32],
    ca: &[f32],
    cb: &[f32],
    sa: f32,
    sb: f32,
) {
    let c = ya.len();
    let (yb, a, b, gate, ca, cb) = (&mut yb[..c], &a[..c], &b[..c], &gate[..c], &ca[..c], &cb[..c]);
    for i in 0..c {
        let (wa, wb) = (gate[i] * ca[i] * sa, gate[i] * cb[i] * sb);
        let (a2, b2) = (wa.mul_add(b[i], a[i]), wb.mul_add(a[i], b[i]));
        ya[i] = a2 * (math::sigmoid(a2 * (wa - 1.0)) + wa);
        yb[i] = b2 * (math::sigmoid(b2 * (wb - 1.0)) + wb);
    }
}

/// r(x, c) + r(x, s) with r(x, w) = σ(w·x − x)·x + x.
#[inline(always)]
pub(crate) fn paper_row(y: &mut [f32], x: &[f32], channel: &[f32], s: f32) {
    let c = y.len();
    let (x, channel) = (&x[..c], &channel[..c]);
    for i in 0..c {
        let x = x[i];
        y[i] = x * (math::sigmoid(x * (channel[i] - 1.0)) + math::sigmoid(x * (s - 1.0)) + 2.0);
    }
}

/// The gradients of the inputs of [`release_forward`] from that of its output.
///
/// # Errors
/// When a shape is not that of the forward.
pub fn release_backward(
    mut dy: Tensor,
    x: &Tensor,
    gate: &Tensor,
    channel: &Tensor,
    spatial: &Tensor,
) -> Result<ReleaseGradients> {
    let (c, half) = (x.shape().last(), x.len() / 2);
    let (batch, pixels) = (x.dim(1), x.dim(2) * x.dim(3));
    let (a, b) = x.f32().split_at(half);
    let (gate_values, channel_values, spatial_values) = (gate.f32(), channel.f32(), spatial.f32());
    let (mut dgate, mut dspatial) = (Tensor::scratch(gate.shape()), Tensor::scratch(spatial.shape()));
    let (da, db) = dy.f32_mut().split_at_mut(half);
    let block = reduce::ROWS;
    let dchannel: Vec<Vec<f32>> = da
        .par_chunks_mut(pixels * c)
        .zip(db.par_chunks_mut(pixels * c))
        .zip(dgate.f32_mut().par_chunks_mut(pixels * c).zip(dspatial.f32_mut().par_chunks_mut(pixels * 2)))
        .enumerate()
        .map(|(image, ((da, db), (dgate, dspatial)))| {
            let (ca, cb) = channel_values[image * 2 * c..][..2 * c].split_at(c);
            let partial: Vec<Vec<f32>> = da
                .par_chunks_mut(block * c)
                .zip(db.par_chunks_mut(block * c))
                .zip(dgate.par_chunks_mut(block * c).zip(dspatial.par_chunks_mut(block * 2)))
                .enumerate()
                .map(|(i, ((da, db), (dgate, dspatial)))| {
                    let first = image * pixels + i * block;
                    let (mut sums, mut rows) = (vec![0.0; 2 * c], vec![0.0; 2 * c]);
                    let (ta, tb) = rows.split_at_mut(c);
                    simd(
                        #[inline(always)]
                        || {
                            let maps = da.chunks_exact_mut(c).zip(db.chunks_exact_mut(c));
                            let weights = dgate.chunks_exact_mut(c).zip(dspatial.chunks_exact_mut(2));
                            for (r, ((da, db), (dgate, dspatial))) in maps.zip(weights).enumerate() {
                                let at = (first + r) * c;
                                let s = &spatial_values[2 * (first + r)..][..2];
                                release_row_backward(
                                    da,
                                    db,
                                    dgate,
                                    ta,
                                    tb,
                                    &a[at..],
                                    &b[at..],
                                    &gate_values[at..],
                                    ca,
                                    cb,
                                    s[0],
                                    s[1],
                                );
                                let (sum_a, sum_b) = sums.split_at_mut(c);
                                dspatial[0] = weight_gradients(sum_a, ta, ca, s[0]);
                                dspatial[1] = weight_gradients(sum_b, tb, cb, s[1]);
                            }
                        },
                    );
                    sums
                })
                .collect();
            reduce::combine(&partial, 2 * c)
        })
        .collect();
    let channel = Tensor::from_slice([1, 1, batch, 2 * c], &dchannel.concat())?;
    Ok(ReleaseGradients { x: dy, gate: dgate, channel, spatial: dspatial })
}

/// One pixel: da and db turn from gradients of the outputs into those of the inputs; ta and tb receive dW·G, the part
/// that the gradients of the channel and the spatial weights share.
#[inline(always)]
#[allow(clippy::too_many_arguments)] // Separate slices, so that the compiler knows that they do not overlap.
fn release_row_backward(
    da: &mut [f32],
    db: &mut [f32],
    dgate: &mut [f32],
    ta: &mut [f32],
    tb: &mut [f32],
    a: &[f32],
    b: &[f32],
    gate: &[f32],
    ca: &[f32],
    cb: &[f32],
    sa: f32,
    sb: f32,
) {
    let c = da.len();
    let (db, dgate, ta, tb) = (&mut db[..c], &mut dgate[..c], &mut ta[..c], &mut tb[..c]);
    let (a, b, gate, ca, cb) = (&a[..c], &b[..c], &gate[..c], &ca[..c], &cb[..c]);
    for i in 0..c {
        let (ua, ub) = (ca[i] * sa, cb[i] * sb);
        let (wa, wb) = (gate[i] * ua, gate[i] * ub);
        let (a2, b2) = (wa.mul_add(b[i], a[i]), wb.mul_add(a[i], b[i]));
        let (da2, dwa) = finish_backward(da[i], a2, wa);
        let (db2, dwb) = finish_backward(db[i], b2, wb);
        let (dwa, dwb) = (da2.mul_add(b[i], dwa), db2.mul_add(a[i], dwb));
        da[i] = math::flush(db2.mul_add(wb, da2));
        db[i] = math::flush(da2.mul_add(wa, db2));
        dgate[i] = math::flush(dwa * ua + dwb * ub);
        ta[i] = math::flush(dwa * gate[i]);
        tb[i] = math::flush(dwb * gate[i]);
    }
}

/// The gradients of x and w in y = σ(x·w − x)·x + x·w.
#[inline(always)]
fn finish_backward(dy: f32, x: f32, w: f32) -> (f32, f32) {
    let sigma = math::sigmoid(x * (w - 1.0));
    let inner = dy * x * sigma * (1.0 - sigma);
    (dy * (sigma + w) + inner * (w - 1.0), dy * x + inner * x)
}

/// Adds s·t to the gradient of the channel weights, and returns Σ t·channel, that of the spatial weight s.
#[inline(always)]
fn weight_gradients(dchannel: &mut [f32], t: &[f32], channel: &[f32], s: f32) -> f32 {
    for (d, t) in dchannel.iter_mut().zip(t) {
        *d += s * t;
    }
    reduce::sum(
        [t, channel],
        #[inline(always)]
        |[t, channel]| t * channel,
    )
}

/// The gradients of x (in the buffer of `dy`, unless that is shared), channel and spatial weights in
/// [`paper_forward`].
///
/// # Errors
/// When a shape is not that of the forward.
pub fn paper_backward(
    mut dy: Tensor,
    x: &Tensor,
    channel: &Tensor,
    spatial: &Tensor,
) -> Result<(Tensor, Tensor, Tensor)> {
    let c = x.shape().last();
    let (batch, pixels) = (x.dim(1), x.dim(2) * x.dim(3));
    let (channel_values, spatial_values) = (channel.f32(), spatial.f32());
    // By stream first, as x is; brought into the order of `spatial` afterwards.
    let mut ds = vec![0.0; 2 * batch * pixels];
    let block = reduce::ROWS;
    let sums: Vec<Vec<f32>> = dy
        .f32_mut()
        .par_chunks_mut(pixels * c)
        .zip(x.f32().par_chunks(pixels * c))
        .zip(ds.par_chunks_mut(pixels))
        .enumerate()
        .map(|(map, ((dy, x), ds))| {
            let (stream, image) = (map / batch, map % batch);
            let channel = &channel_values[(image * 2 + stream) * c..][..c];
            let partial: Vec<Vec<f32>> = dy
                .par_chunks_mut(block * c)
                .zip(x.par_chunks(block * c))
                .zip(ds.par_chunks_mut(block))
                .enumerate()
                .map(|(i, ((dy, x), ds))| {
                    let (mut sums, mut t) = (vec![0.0; c], vec![0.0; c]);
                    simd(
                        #[inline(always)]
                        || {
                            let maps = dy.chunks_exact_mut(c).zip(x.chunks_exact(c));
                            for (r, ((dy, x), ds)) in maps.zip(ds).enumerate() {
                                let s = spatial_values[2 * (image * pixels + i * block + r) + stream];
                                paper_row_backward(dy, &mut t, &mut sums, x, channel, s);
                                *ds = reduce::sum(
                                    [&t],
                                    #[inline(always)]
                                    |[t]| t,
                                );
                            }
                        },
                    );
                    sums
                })
                .collect();
            reduce::combine(&partial, c)
        })
        .collect();
    let mut dspatial = Tensor::scratch(spatial.shape());
    let (first, second) = ds.split_at(batch * pixels);
    for (d, (a, b)) in dspatial.f32_mut().chunks_exact_mut(2).zip(first.iter().zip(second)) {
        d.copy_from_slice(&[*a, *b]);
    }
    let by_image: Vec<f32> =
        (0..batch).flat_map(|image| [&sums[image][..], &sums[batch + image]].concat()).collect();
    Ok((dy, Tensor::from_slice([1, 1, batch, 2 * c], &by_image)?, dspatial))
}

/// One pixel of one stream: dy turns into the gradient of x; t receives the terms of the spatial weight's gradient, and
/// that of the channel weights is added to.
#[inline(always)]
fn paper_row_backward(
    dy: &mut [f32],
    t: &mut [f32],
    dchannel: &mut [f32],
    x: &[f32],
    channel: &[f32],
    s: f32,
) {
    let c = dy.len();
    let (t, dchannel, x, channel) = (&mut t[..c], &mut dchannel[..c], &x[..c], &channel[..c]);
    for i in 0..c {
        let (dx_channel, dw) = paper_backward_one(dy[i], x[i], channel[i]);
        let (dx_spatial, ds) = paper_backward_one(dy[i], x[i], s);
        dy[i] = math::flush(dx_channel + dx_spatial);
        dchannel[i] += math::flush(dw);
        t[i] = math::flush(ds);
    }
}

/// The gradients of x and w in r(x, w) = σ(w·x − x)·x + x.
#[inline(always)]
fn paper_backward_one(dy: f32, x: f32, w: f32) -> (f32, f32) {
    let sigma = math::sigmoid(x * (w - 1.0));
    let inner = dy * x * sigma * (1.0 - sigma);
    (dy * (sigma + 1.0) + inner * (w - 1.0), inner * x)
}
