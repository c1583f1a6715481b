//! Steps of the two heads. Products are done on the maps' own grids; what is upsampled exists row by row.
#![allow(clippy::needless_range_loop)] // An iterator's calls, where they are not inlined, forbid vector instructions.

use rayon::prelude::*;

use super::encoder::{Map, ROWS, blocks};
use super::pack::Weights;
use super::plan::{Context, scratch_len};
use super::product::{Finish, Grid, Packed};
use super::vector::{self, add_blend, blend, load, multiply_add, store};
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
                        for x in 0..w {
                            let tap = grids.columns.taps[x];
                            let (near, far) = (&line[tap.near * d..][..d], &line[tap.far * d..][..d]);
                            add_blend(&mut sum[x * d..][..d], near, far, tap.weight);
                        }
                    }
                    relu(sum);
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
                    for x in 0..width {
                        let tap = grids.columns.taps[x];
                        let (near, far) = (&line[tap.near * stride..], &line[tap.far * stride..]);
                        let out = &mut row[x * stride..][..stride];
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
                for pixel in 0..out.len() {
                    let x = &row[pixel * stride..][..classes];
                    let (mut best, mut max) = (0, f32::NEG_INFINITY);
                    for i in 0..classes {
                        (best, max) = if x[i] > max { (i as u8, x[i]) } else { (best, max) };
                    }
                    out[pixel] = best;
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
pub fn taps(context: &Context, (x, map): (&[f32], Map), points: &[Packed], weight: &Packed, out: &mut [f32]) {
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

/// Channels of both pictures side by side.
const BOTH: usize = 6;

/// Scratch memory of [`fuse`].
pub fn fuse_scratch(width: usize, widest: usize, channels: usize) -> usize {
    scratch_len(&[3 * (width + 2) * BOTH, width * channels, widest * 3 * channels, width * 3])
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
    // A patch is three runs of three neighbouring pixels: the runs of neighbouring patches overlap.
    let line_len = (w + 2) * BOTH;
    let patches = Grid { row: BOTH, block: 3 * BOTH, next: line_len };
    out.par_chunks_mut(w * 3).enumerate().for_each(|(i, out)| {
        let (sample, y) = (i / h, i % h);
        let lengths = [3 * line_len, w * o, widest * 3 * o, w * 3];
        context.scratch(lengths, |[lines, sum, line, rgb]| {
            for (ky, line) in lines.chunks_exact_mut(line_len).enumerate() {
                let row = (y + ky).checked_sub(1).filter(|&y| y < h);
                let row = row.map(|y| ((sample * h + y) * w * 3, w * 3));
                interleave(row.map(|(at, len)| [&visible[at..at + len], &infrared[at..at + len]]), line);
            }
            let grid = Grid::rows(o);
            context.product(
                w,
                (lines, patches),
                weights.pictures.view(),
                (&mut *sum, grid),
                Finish::default(),
            );
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
                || relu(sum),
            );
            let grids = (Grid::rows(o), Grid::rows(3));
            context.product(w, (sum, grids.0), weights.last.view(), (&mut *rgb, grids.1), Finish::default());
            vector::sigmoid(rgb);
            finish(rgb, out);
        });
    });
}

/// A row of both pictures with their channels side by side and a pixel of zeros at either end; zeros outside.
fn interleave(rows: Option<[&[f32]; 2]>, out: &mut [f32]) {
    let Some([visible, infrared]) = rows else { return out.fill(0.0) };
    let end = out.len() - BOTH;
    out[..BOTH].fill(0.0);
    out[end..].fill(0.0);
    let (visible, infrared) = (visible.as_chunks::<3>().0, infrared.as_chunks::<3>().0);
    for (i, out) in out[BOTH..end].as_chunks_mut::<BOTH>().0.iter_mut().enumerate() {
        let (a, b) = (visible[i], infrared[i]);
        *out = [a[0], a[1], a[2], b[0], b[1], b[2]];
    }
}

/// max(x, 0); NaN passes through.
#[inline(always)]
fn relu(x: &mut [f32]) {
    for i in 0..x.len() {
        x[i] = if x[i] < 0.0 { 0.0 } else { x[i] };
    }
}

/// The three rows of taps around row y, resized and added up, still in the map's own columns: `(w, 3, O)`.
#[inline(always)]
fn blend_taps(map: &[f32], w: usize, grids: &Grids, (y, h): (usize, usize), o: usize, line: &mut [f32]) {
    line.fill(0.0);
    let (group, pixel) = (3 * o, 9 * o);
    for ky in 0..3 {
        if y + ky == 0 || y + ky > h {
            continue;
        }
        let tap = grids.rows.taps[y + ky - 1];
        let (near, far) =
            (&map[tap.near * w * pixel..][..w * pixel], &map[tap.far * w * pixel..][..w * pixel]);
        for x in 0..w {
            let at = x * pixel + ky * group;
            add_blend(&mut line[x * group..][..group], &near[at..][..group], &far[at..][..group], tap.weight);
        }
    }
}

/// Adds the three columns of taps around each pixel, resized.
#[inline(always)]
fn add_taps(line: &[f32], grids: &Grids, o: usize, sum: &mut [f32]) {
    let columns = &grids.columns.taps;
    let width = columns.len();
    for x in 0..width {
        for kx in 0..3 {
            if x + kx == 0 || x + kx > width {
                continue;
            }
            let tap = columns[x + kx - 1];
            let (near, far) = ((tap.near * 3 + kx) * o, (tap.far * 3 + kx) * o);
            let mut channel = 0;
            while channel + 16 <= o {
                let weights = [[1.0 - tap.weight; 16], [tap.weight; 16]];
                let mut v = load(sum, x * o + channel);
                v = multiply_add(load(line, far + channel), weights[1], v);
                v = multiply_add(load(line, near + channel), weights[0], v);
                store(sum, x * o + channel, v);
                channel += 16;
            }
            let rest = channel..o;
            let at = |from: usize| &line[from + channel..from + o];
            add_blend(&mut sum[x * o..][rest], at(near), at(far), tap.weight);
        }
    }
}

/// A row of the fused picture as bytes.
pub fn to_bytes(row: &[f32], out: &mut [u8]) {
    simd(
        #[inline(always)]
        || {
            let row = &row[..out.len()];
            for i in 0..out.len() {
                // The cast saturates, and turns NaN into 0.
                out[i] = (255.0 * row[i]).round() as u8;
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
