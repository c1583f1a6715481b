//! Steps between the two streams: semantic consistency and local alignment.
#![allow(clippy::needless_range_loop)] // An iterator's calls, where they are not inlined, forbid vector instructions.

use rayon::prelude::*;

use super::encoder::{Map, ROWS};
use super::pack::{Local, Sci, Spatial};
use super::plan::{Context, scratch_len};
use super::product::{Finish, Grid, Packed};
use super::vector;
use crate::cpu::realign::paper_row;
use crate::cpu::{math, reduce, simd};

/// PyTorch's lower bound of a norm in the cosine similarity.
const SMALLEST_NORM: f32 = 1e-8;

/// Rows of one partial sum of the statistics.
const BLOCK: usize = 256;

/// hidden = ReLU(a·W_a + b·W_b + bias).
fn both(context: &Context, weights: &[Packed; 2], a: &[f32], b: &[f32], hidden: &mut [f32]) {
    let c = weights[0].k();
    let (rows, grids) = (a.len() / c, (Grid::rows(c), Grid::rows(weights[0].n())));
    context.product(rows, (a, grids.0), weights[0].view(), (&mut *hidden, grids.1), Finish::default());
    let finish = Finish { add: true, relu: true };
    context.product(rows, (b, grids.0), weights[1].view(), (hidden, grids.1), finish);
}

/// Scratch memory of [`consistency`].
pub fn consistency_scratch(map: Map) -> usize {
    scratch_len(&[ROWS * map.c])
}

/// Semantic consistency inference, in place; see [`crate::ops::gate`].
pub fn consistency(context: &Context, sci: &Sci, tau: Option<f32>, x: &mut [f32], map: Map) {
    let c = map.c;
    let (a, b) = x.split_at_mut(map.len() / 2);
    a.par_chunks_mut(ROWS * c).zip(b.par_chunks_mut(ROWS * c)).for_each(|(a, b)| {
        context.scratch([a.len()], |[hidden]| {
            both(context, &sci.reduce, a, b, hidden);
            simd(
                #[inline(always)]
                || {
                    let rows = a.chunks_exact_mut(c).zip(b.chunks_exact_mut(c));
                    for ((a, b), hidden) in rows.zip(hidden.chunks_exact(c)) {
                        let m = math::sigmoid(reduce::dot(hidden, &sci.score.0) + sci.score.1);
                        let step = sci.lambda * m;
                        match tau {
                            None => exchange(a, b, step),
                            Some(tau) if similarity(a, b) < tau => approach(a, b, step),
                            Some(_) => {}
                        }
                    }
                },
            );
        });
    });
}

/// cos(a, b).
#[inline(always)]
fn similarity(a: &[f32], b: &[f32]) -> f32 {
    let norm = |x: &[f32]| reduce::dot(x, x).sqrt().max(SMALLEST_NORM);
    reduce::dot(a, b) / (norm(a) * norm(b))
}

/// (a, b) becomes (b − D, a + D) with D = step·(b − a).
#[inline(always)]
fn exchange(a: &mut [f32], b: &mut [f32], step: f32) {
    for (a, b) in a.iter_mut().zip(b) {
        let delta = step * (*b - *a);
        (*a, *b) = (*b - delta, *a + delta);
    }
}

/// (a, b) becomes (a − D, b + D) with D = step·(a − b).
#[inline(always)]
fn approach(a: &mut [f32], b: &mut [f32], step: f32) {
    for (a, b) in a.iter_mut().zip(b) {
        let delta = step * (*a - *b);
        (*a, *b) = (*a - delta, *b + delta);
    }
}

/// Numbers of the partial sums and maxima of [`statistics`].
pub fn partial_len(map: Map) -> usize {
    map.streams * map.batch * map.pixels().div_ceil(BLOCK) * 2 * map.c
}

/// Of x: sum and maximum of each channel by block of pixels, `(2, B, blocks, 2C)`, and mean and maximum of each
/// pixel's channels, `(2, B, N, 2)`.
pub fn statistics(x: &[f32], map: Map, partial: &mut [f32], spatial: &mut [f32]) {
    let c = map.c;
    let blocks = map.pixels().div_ceil(BLOCK);
    let images = partial.par_chunks_mut(blocks * 2 * c).zip(spatial.par_chunks_mut(map.pixels() * 2));
    images.zip(x.par_chunks(map.image())).for_each(|((partial, spatial), x)| {
        let parts = partial.par_chunks_mut(2 * c).zip(spatial.par_chunks_mut(BLOCK * 2));
        parts.zip(x.par_chunks(BLOCK * c)).for_each(|((partial, spatial), x)| {
            let (sum, max) = partial.split_at_mut(c);
            let max = &mut max[..c];
            sum.fill(0.0);
            max.copy_from_slice(&x[..c]);
            simd(
                #[inline(always)]
                || {
                    for pixel in 0..x.len() / c {
                        let (x, spatial) = (&x[pixel * c..][..c], &mut spatial[pixel * 2..][..2]);
                        let sum = &mut sum[..c];
                        let mean = vector::sum(x, 0.0, false) / c as f32;
                        spatial.copy_from_slice(&[mean, largest(x)]);
                        for i in 0..c {
                            sum[i] += x[i];
                            max[i] = greater(x[i], max[i]);
                        }
                    }
                },
            );
        });
    });
}

/// The greater number; NaN if there is one.
#[inline(always)]
fn greater(x: f32, max: f32) -> f32 {
    if (x > max) | x.is_nan() { x } else { max }
}

#[inline(always)]
fn largest(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let (chunks, tail) = x.as_chunks::<16>();
    for chunk in chunks {
        for i in 0..16 {
            lanes[i] = greater(chunk[i], lanes[i]);
        }
    }
    lanes.into_iter().chain(tail.iter().copied()).fold(f32::NEG_INFINITY, |max, v| greater(v, max))
}

/// Scratch memory of [`channel_weights`].
pub fn channel_scratch(map: Map) -> usize {
    scratch_len(&[4 * map.batch * map.c, 2 * map.batch * (map.c / 2), 4 * map.batch * map.c])
}

/// The channel weights of local alignment `(B, 2C)` from the partial sums of [`statistics`].
pub fn channel_weights(context: &Context, local: &Local, partial: &[f32], map: Map, out: &mut [f32]) {
    let (c, batch, pixels) = (map.c, map.batch, map.pixels());
    let blocks = pixels.div_ceil(BLOCK);
    context.scratch([4 * batch * c, 2 * batch * (c / 2), 4 * batch * c], |[pooled, hidden, both]| {
        let (means, maxima) = pooled.split_at_mut(2 * batch * c);
        for (image, partial) in partial.chunks_exact(blocks * 2 * c).enumerate() {
            let to = (image % batch * 2 + image / batch) * c;
            for i in 0..c {
                let sum: f64 = partial.chunks_exact(2 * c).map(|p| f64::from(p[i])).sum();
                means[to + i] = sum as f32 / pixels as f32;
                maxima[to + i] =
                    partial.chunks_exact(2 * c).fold(f32::NEG_INFINITY, |max, p| greater(p[c + i], max));
            }
        }
        let grids = (Grid::rows(2 * c), Grid::rows(c / 2));
        let finish = Finish { add: false, relu: true };
        let [first, second] = &local.channel;
        context.product(2 * batch, (pooled, grids.0), first.view(), (&mut *hidden, grids.1), finish);
        context.product(
            2 * batch,
            (hidden, grids.1),
            second.view(),
            (&mut *both, grids.0),
            Finish::default(),
        );
        let (mean, max) = both.split_at(2 * batch * c);
        for ((out, mean), max) in out.iter_mut().zip(mean).zip(max) {
            *out = mean + max;
        }
        vector::sigmoid(out);
    });
}

/// Scratch memory of [`align`].
pub fn align_scratch(map: Map) -> usize {
    scratch_len(&[ROWS * map.c, ROWS * (map.c / 2), 2 * ROWS])
}

/// What [`align`] needs besides its weights.
pub struct Statistics<'a> {
    /// From [`statistics`].
    pub spatial: &'a [f32],
    /// From [`channel_weights`].
    pub channel: &'a [f32],
}

/// Local alignment of x; see [`crate::ops::realign_release`] and [`crate::ops::realign_paper`].
pub fn align(context: &Context, local: &Local, (x, map): (&[f32], Map), s: &Statistics, out: &mut [f32]) {
    let c = map.c;
    let (a, b) = x.split_at(map.len() / 2);
    let (ya, yb) = out.split_at_mut(map.len() / 2);
    let image = map.image();
    ya.par_chunks_mut(image).zip(yb.par_chunks_mut(image)).enumerate().for_each(|(sample, (ya, yb))| {
        let channel = s.channel[sample * 2 * c..][..2 * c].split_at(c);
        let maps = [0, 1].map(|stream| {
            let n = map.pixels() * 2;
            &s.spatial[(stream * map.batch + sample) * n..][..n]
        });
        ya.par_chunks_mut(ROWS * c).zip(yb.par_chunks_mut(ROWS * c)).enumerate().for_each(|(i, (ya, yb))| {
            let (first, rows) = (i * ROWS, ya.len() / c);
            let at = sample * image + first * c;
            let (a, b) = (&a[at..at + rows * c], &b[at..at + rows * c]);
            context.scratch([rows * c, rows * (c / 2), 2 * rows], |[gate, hidden, weights]| {
                spatial_weights(&local.spatial, maps, map, first, weights);
                let Some((first, second)) = &local.gate else {
                    return simd(
                        #[inline(always)]
                        || {
                            for (i, s) in weights.chunks_exact(2).enumerate() {
                                let row = i * c..(i + 1) * c;
                                paper_row(&mut ya[row.clone()], &a[row.clone()], channel.0, s[0]);
                                paper_row(&mut yb[row.clone()], &b[row], channel.1, s[1]);
                            }
                        },
                    );
                };
                both(context, first, a, b, hidden);
                let grids = (Grid::rows(c / 2), Grid::rows(c));
                context.product(
                    rows,
                    (hidden, grids.0),
                    second.view(),
                    (&mut *gate, grids.1),
                    Finish::default(),
                );
                simd(
                    #[inline(always)]
                    || {
                        for (i, s) in weights.chunks_exact(2).enumerate() {
                            let row = i * c..(i + 1) * c;
                            let streams = (&a[row.clone()], &b[row.clone()]);
                            let out = (&mut ya[row.clone()], &mut yb[row.clone()]);
                            release_row(out, streams, &gate[row], channel, (s[0], s[1]));
                        }
                    },
                );
            });
        });
    });
}

/// Both streams' weights of the pixels from `first` on.
fn spatial_weights(spatial: &Spatial, maps: [&[f32]; 2], map: Map, first: usize, out: &mut [f32]) {
    for (i, out) in out.chunks_exact_mut(2).enumerate() {
        let pixel = first + i;
        let sums = match spatial {
            Spatial::Pointwise([(w1, b1), (w2, b2)]) => {
                let x =
                    [maps[0][2 * pixel], maps[0][2 * pixel + 1], maps[1][2 * pixel], maps[1][2 * pixel + 1]];
                let mut sums = [b2[0], b2[1]];
                for (h, (w, b)) in w1.chunks_exact(4).zip(b1).enumerate() {
                    let hidden = b + w[0] * x[0] + w[1] * x[1] + w[2] * x[2] + w[3] * x[3];
                    let hidden = if hidden < 0.0 { 0.0 } else { hidden };
                    sums[0] += w2[h] * hidden;
                    sums[1] += w2[b1.len() + h] * hidden;
                }
                sums
            }
            Spatial::Wide(w, b) => {
                let (y, x) = (pixel / map.w, pixel % map.w);
                let mut sums = [b[0], b[1]];
                for ky in (0..7).filter(|ky| (3..map.h + 3).contains(&(y + ky))) {
                    for kx in (0..7).filter(|kx| (3..map.w + 3).contains(&(x + kx))) {
                        let from = 2 * ((y + ky - 3) * map.w + x + kx - 3);
                        for (o, sum) in sums.iter_mut().enumerate() {
                            let w = &w[((o * 7 + ky) * 7 + kx) * 4..][..4];
                            *sum += w[0] * maps[0][from] + w[1] * maps[0][from + 1];
                            *sum += w[2] * maps[1][from] + w[3] * maps[1][from + 1];
                        }
                    }
                }
                sums
            }
        };
        out.copy_from_slice(&sums.map(math::sigmoid));
    }
}

#[inline(always)]
fn release_row(
    (ya, yb): (&mut [f32], &mut [f32]),
    (a, b): (&[f32], &[f32]),
    gate: &[f32],
    (ca, cb): (&[f32], &[f32]),
    (sa, sb): (f32, f32),
) {
    let c = ya.len();
    let (yb, a, b, gate, ca, cb) = (&mut yb[..c], &a[..c], &b[..c], &gate[..c], &ca[..c], &cb[..c]);
    for i in 0..c {
        let gate = math::sigmoid(gate[i]);
        let (wa, wb) = (gate * ca[i] * sa, gate * cb[i] * sb);
        let (a2, b2) = (wa.mul_add(b[i], a[i]), wb.mul_add(a[i], b[i]));
        ya[i] = a2 * (math::sigmoid(a2 * (wa - 1.0)) + wa);
        yb[i] = b2 * (math::sigmoid(b2 * (wb - 1.0)) + wb);
    }
}
