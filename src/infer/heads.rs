//! Steps of the two heads. Products are done on the maps' own grids; what is upsampled exists row by row.

use rayon::prelude::*;

use super::encoder::{Map, ROWS, blocks};
use super::pack::Weights;
use super::plan::{Context, scratch_len};
use super::product::{Finish, Grid, Packed};
use super::vector::{self, add_blend, blend};
use crate::cpu::resize::Axis;
use crate::cpu::{math, simd};

/// Numbers in a pixel's tap in the fusion head: `(ky, kx, channel)`.
fn taps_of(channels: usize) -> usize {
    9 * channels
}

/// How the grid of a level lies in a larger one.
pub struct Grids {
    /// Rows.
    pub rows: Axis,
    /// Columns.
    pub columns: Axis,
}

impl Grids {
    /// From the grid of `map` to h×w.
    pub fn new(map: Map, h: usize, w: usize) -> Self {
        Self { rows: Axis::new(map.h, h), columns: Axis::new(map.w, w) }
    }
}

/// Scratch memory of [`scores`].
pub fn scores_scratch(finest: Map, widest: usize, d: usize) -> usize {
    scratch_len(&[finest.w * d, widest * d])
}

/// The last layers of the segmentation head on the finest grid: Σ of the resized maps, ReLU, product. `coarse` are
/// the maps of the coarser levels with their grids. Rows of `out` are `stride` apart.
pub fn scores(
    context: &Context,
    (fine, map): (&[f32], Map),
    coarse: [(&[f32], Map, &Grids); 3],
    weight: &Packed,
    (out, stride): (&mut [f32], usize),
) {
    let (w, d) = (map.w, weight.k());
    let widest = coarse.iter().map(|c| c.1.w).max().unwrap_or(0);
    blocks(out, map.pixels(), w, stride, |image, first, out| {
        let y = first / w;
        context.scratch([w * d, widest * d], |[sum, line]| {
            sum.copy_from_slice(&fine[(image * map.pixels() + first) * d..][..w * d]);
            simd(
                #[inline(always)]
                || {
                    for (x, map, grids) in coarse {
                        let x = &x[image * map.pixels() * d..][..map.pixels() * d];
                        let (tap, len) = (grids.rows.taps[y], map.w * d);
                        let line = &mut line[..len];
                        blend(line, &x[tap.near * len..][..len], &x[tap.far * len..][..len], tap.weight);
                        for (sum, tap) in sum.chunks_exact_mut(d).zip(&grids.columns.taps) {
                            add_blend(sum, &line[tap.near * d..][..d], &line[tap.far * d..][..d], tap.weight);
                        }
                    }
                    for v in &mut *sum {
                        *v = if *v < 0.0 { 0.0 } else { *v };
                    }
                },
            );
            let grids = (Grid::rows(d), Grid::rows(stride));
            context.product(w, (sum, grids.0), weight.view(), (out, grids.1), Finish::default());
        });
    });
}

/// Scratch memory of [`labels`] and [`logits`].
pub fn resized_scratch(finest: Map, width: usize, stride: usize) -> usize {
    scratch_len(&[finest.w * stride, width * stride])
}

/// Calls `f` with each row of the picture, `width` pixels of `stride` scores, and the row's part of `out`.
fn resized_rows<T: Send>(
    context: &Context,
    (scores, map, stride): (&[f32], Map, usize),
    grids: &Grids,
    out: &mut [T],
    f: impl Fn(&[f32], &mut [T]) + Sync,
) {
    let (height, width) = (grids.rows.taps.len(), grids.columns.taps.len());
    let each = out.len() / (map.batch * height);
    out.par_chunks_mut(each).enumerate().for_each(|(i, out)| {
        let x = &scores[i / height * map.pixels() * stride..][..map.pixels() * stride];
        let (tap, len) = (grids.rows.taps[i % height], map.w * stride);
        context.scratch([len, width * stride], |[line, row]| {
            simd(
                #[inline(always)]
                || {
                    blend(line, &x[tap.near * len..][..len], &x[tap.far * len..][..len], tap.weight);
                    for (out, tap) in row.chunks_exact_mut(stride).zip(&grids.columns.taps) {
                        let (near, far) = (&line[tap.near * stride..], &line[tap.far * stride..]);
                        blend(out, &near[..stride], &far[..stride], tap.weight);
                    }
                },
            );
            f(row, out);
        });
    });
}

/// The first class of largest score of every pixel, from the scores on the finest grid.
pub fn labels(
    context: &Context,
    scores: (&[f32], Map, usize),
    grids: &Grids,
    classes: usize,
    out: &mut [u8],
) {
    let stride = scores.2;
    resized_rows(context, scores, grids, out, |row, out| {
        simd(
            #[inline(always)]
            || {
                for (class, x) in out.iter_mut().zip(row.chunks_exact(stride)) {
                    let (mut best, mut max) = (0, f32::NEG_INFINITY);
                    for (i, &v) in x[..classes].iter().enumerate() {
                        (best, max) = if v > max { (i as u8, v) } else { (best, max) };
                    }
                    *class = best;
                }
            },
        );
    });
}

/// The scores of every pixel, `(B, H, W, classes)`.
pub fn logits(
    context: &Context,
    scores: (&[f32], Map, usize),
    grids: &Grids,
    classes: usize,
    out: &mut [f32],
) {
    let stride = scores.2;
    resized_rows(context, scores, grids, out, |row, out| {
        for (out, x) in out.chunks_exact_mut(classes).zip(row.chunks_exact(stride)) {
            out.copy_from_slice(&x[..classes]);
        }
    });
}

/// Scratch memory of [`taps`].
pub fn taps_scratch(channels: usize) -> usize {
    scratch_len(&[ROWS * 2 * channels])
}

/// The fusion head's part of one level: both modalities to a few channels, ReLU, and the products of the nine taps.
/// x `(2, B, N, C)` -> `(B, N, 9·O)`.
pub fn taps(
    context: &Context,
    (x, map): (&[f32], Map),
    points: &[Packed],
    weight: &Packed,
    out: &mut [f32],
) {
    let (c, o) = (map.c, points[0].n());
    let (a, b) = x.split_at(map.len() / 2);
    blocks(out, map.pixels(), ROWS, weight.n(), |image, first, out| {
        let (rows, at) = (out.len() / weight.n(), (image * map.pixels() + first) * c);
        context.scratch([rows * 2 * o], |[both]| {
            let grids = (Grid::rows(c), Grid::rows(2 * o));
            let finish = Finish { add: false, relu: true };
            for (s, x) in [a, b].into_iter().enumerate() {
                let x = &x[at..at + rows * c];
                context.product(rows, (x, grids.0), points[s].view(), (&mut both[s * o..], grids.1), finish);
            }
            let grids = (Grid::rows(2 * o), Grid::rows(weight.n()));
            context.product(rows, (both, grids.0), weight.view(), (out, grids.1), Finish::default());
        });
    });
}

/// Numbers in a row of [`fuse`]'s patches: nine taps of six channels.
const PATCH: usize = 54;

/// Scratch memory of [`fuse`].
pub fn fuse_scratch(width: usize, widest: usize, channels: usize) -> usize {
    scratch_len(&[width * PATCH, width * channels, widest * 3 * channels, width * 3])
}

/// The fused picture, a row at a time: the 3×3 convolution of the two pictures and of the resized maps, ReLU, the
/// last layer, σ. `finish` takes a row of σ's results.
pub fn fuse<T: Send>(
    context: &Context,
    weights: &Weights,
    (pictures, picture): (&[f32], Map),
    maps: [(&[f32], Map, &Grids); 4],
    out: &mut [T],
    finish: impl Fn(&[f32], &mut [T]) + Sync,
) {
    let (h, w, o) = (picture.h, picture.w, weights.pictures.n());
    let (visible, infrared) = pictures.split_at(picture.len() / 2);
    let widest = maps.iter().map(|m| m.1.w).max().unwrap_or(0);
    out.par_chunks_mut(w * 3).enumerate().for_each(|(i, out)| {
        let (sample, y) = (i / h, i % h);
        let lengths = [w * PATCH, w * o, widest * 3 * o, w * 3];
        context.scratch(lengths, |[patches, sum, line, rgb]| {
            let both = [visible, infrared].map(|x| &x[sample * h * w * 3..][..h * w * 3]);
            gather_pictures(both, (h, w), y, patches);
            let grids = (Grid::rows(PATCH), Grid::rows(o));
            context.product(w, (patches, grids.0), weights.pictures.view(), (&mut *sum, grids.1), Finish::default());
            for (map, level, grids) in maps {
                let map = &map[sample * level.pixels() * taps_of(o)..][..level.pixels() * taps_of(o)];
                let line = &mut line[..level.w * 3 * o];
                simd(
                    #[inline(always)]
                    || {
                        blend_taps(map, level.w, grids, (y, h), o, line);
                        add_taps(line, grids, o, sum);
                    },
                );
            }
            simd(
                #[inline(always)]
                || {
                    for v in &mut *sum {
                        *v = if *v < 0.0 { 0.0 } else { *v };
                    }
                },
            );
            let grids = (Grid::rows(o), Grid::rows(3));
            context.product(w, (sum, grids.0), weights.last.view(), (&mut *rgb, grids.1), Finish::default());
            vector::sigmoid(rgb);
            finish(rgb, out);
        });
    });
}

/// The 3×3 patches of row y of both pictures: for each pixel, tap by tap, three channels of one and three of the other.
fn gather_pictures(pictures: [&[f32]; 2], (h, w): (usize, usize), y: usize, out: &mut [f32]) {
    for ky in 0..3 {
        let inside = (1..=h).contains(&(y + ky));
        for kx in 0..3 {
            let tap = (ky * 3 + kx) * 6;
            for (x, out) in out.chunks_exact_mut(PATCH).enumerate() {
                let out = &mut out[tap..tap + 6];
                if inside && (1..=w).contains(&(x + kx)) {
                    let from = ((y + ky - 1) * w + x + kx - 1) * 3;
                    out[..3].copy_from_slice(&pictures[0][from..from + 3]);
                    out[3..].copy_from_slice(&pictures[1][from..from + 3]);
                } else {
                    out.fill(0.0);
                }
            }
        }
    }
}

/// The three rows of taps around row y, resized and added up, still in the map's own columns: `(w, 3, O)`.
#[inline(always)]
fn blend_taps(map: &[f32], w: usize, grids: &Grids, (y, h): (usize, usize), o: usize, line: &mut [f32]) {
    line.fill(0.0);
    for ky in 0..3 {
        if y + ky == 0 || y + ky > h {
            continue;
        }
        let tap = grids.rows.taps[y + ky - 1];
        let row = |y: usize| map[y * w * 9 * o..][..w * 9 * o].chunks_exact(9 * o);
        for (line, (near, far)) in line.chunks_exact_mut(3 * o).zip(row(tap.near).zip(row(tap.far))) {
            let part = ky * 3 * o..(ky + 1) * 3 * o;
            add_blend(line, &near[part.clone()], &far[part], tap.weight);
        }
    }
}

/// Adds the three columns of taps around each pixel, resized.
#[inline(always)]
fn add_taps(line: &[f32], grids: &Grids, o: usize, sum: &mut [f32]) {
    let columns = &grids.columns.taps;
    for (x, sum) in sum.chunks_exact_mut(o).enumerate() {
        for kx in 0..3 {
            if x + kx == 0 || x + kx > columns.len() {
                continue;
            }
            let tap = columns[x + kx - 1];
            let at = |pixel: usize| &line[(pixel * 3 + kx) * o..][..o];
            add_blend(sum, at(tap.near), at(tap.far), tap.weight);
        }
    }
}

/// A row of the fused picture as bytes.
pub fn to_bytes(row: &[f32], out: &mut [u8]) {
    simd(
        #[inline(always)]
        || {
            for (out, v) in out.iter_mut().zip(row) {
                // The cast saturates, and turns NaN into 0.
                *out = (255.0 * v).round() as u8;
            }
        },
    );
}

/// Each row of scores as probabilities.
pub fn softmax(rows: &mut [f32], classes: usize) {
    rows.par_chunks_mut(512 * classes).for_each(|rows| {
        simd(
            #[inline(always)]
            || {
                for row in rows.chunks_exact_mut(classes) {
                    let most = row.iter().fold(f32::NEG_INFINITY, |m, &v| if v > m { v } else { m });
                    let mut sum = 0.0;
                    for v in &mut *row {
                        *v = math::exp(*v - most);
                        sum += *v;
                    }
                    let factor = 1.0 / sum;
                    row.iter_mut().for_each(|v| *v = math::flush(*v * factor));
                }
            },
        );
    });
}
