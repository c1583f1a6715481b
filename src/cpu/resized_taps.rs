//! A 3×3 convolution over maps that are resized on the way, with the products done before the resizing.
//!
//! A convolution of a bilinearly resized map is, for each of its nine taps, a product on the map's own grid that is
//! then resized and shifted. What the products give, nine groups of O channels for each pixel of the small map, comes
//! in here; the sum of the resized and shifted groups goes out. Nothing of the full size but the sum exists.

use rayon::prelude::*;

use super::resize::{Axis, Tap, add_scaled, flush};
use super::simd;
use crate::{Shape, Tensor};

/// Channels that are summed in registers at once.
const LANES: usize = 16;

/// One map and how its grid lies in the large one.
struct Level {
    rows: Axis,
    columns: Axis,
    h: usize,
    w: usize,
    /// Where its part of a row of all maps begins.
    from: usize,
}

/// The maps `(2, B, h, w, 9·O)` under an output `(1, B, H, W, O)`, and the length of a row of all maps: 3·O numbers
/// for each column of each map.
fn levels(shapes: [Shape; 4], output: Shape) -> ([Level; 4], usize) {
    let mut length = 0;
    let levels = shapes.map(|shape| {
        let (h, w) = (shape[2], shape[3]);
        let from = length;
        length += w * 3 * output[4];
        Level { rows: Axis::new(h, output[2]), columns: Axis::new(w, output[3]), h, w, from }
    });
    (levels, length)
}

/// Adds to `base` `(1, B, H, W, O)`, for every map `(2, B, h, w, 9·O)`, both streams and all taps (ky, kx), the group
/// 3·ky + kx resized to H×W and read at (y + ky − 1, x + kx − 1); outside the picture there is nothing.
pub fn forward(mut base: Tensor, maps: [&Tensor; 4]) -> Tensor {
    let shape = base.shape();
    let (batch, height, width, o) = (shape[1], shape[2], shape[3], shape[4]);
    let (levels, _) = levels(maps.map(Tensor::shape), shape);
    let widest = levels.iter().map(|l| l.w).max().unwrap_or(0);
    let maps = maps.map(Tensor::f32);
    base.f32_mut().par_chunks_mut(width * o).enumerate().for_each_init(
        || vec![0.0; widest * 3 * o],
        |row, (i, out)| {
            let (sample, y) = (i / height, i % height);
            for (level, map) in levels.iter().zip(maps) {
                for ky in (0..3).filter(|ky| (1..=height).contains(&(y + ky))) {
                    let row = &mut row[..level.w * 3 * o];
                    simd(
                        #[inline(always)]
                        || {
                            blend_rows(level, map, batch, sample, (y + ky - 1, ky), o, row);
                            add_columns(&level.columns.taps, row, o, out);
                        },
                    );
                }
            }
        },
    );
    base
}

/// Row `y` of the resized map, still in its own columns: the three groups of tap row `ky`, both streams added.
#[inline(always)]
fn blend_rows(
    level: &Level,
    map: &[f32],
    batch: usize,
    sample: usize,
    (y, ky): (usize, usize),
    o: usize,
    row: &mut [f32],
) {
    let Tap { near, far, weight } = level.rows.taps[y];
    row.fill(0.0);
    for stream in 0..2 {
        for (source, weight) in [(near, 1.0 - weight), (far, weight)] {
            let pixels = ((stream * batch + sample) * level.h + source) * level.w;
            let source = &map[pixels * 9 * o..][..level.w * 9 * o];
            for (row, pixel) in row.chunks_exact_mut(3 * o).zip(source.chunks_exact(9 * o)) {
                add_scaled(row, &pixel[ky * 3 * o..], weight);
            }
        }
    }
}

/// Resizes a row to the output's columns and adds its three groups, each shifted by its tap.
#[inline(always)]
fn add_columns(columns: &[Tap], row: &[f32], o: usize, out: &mut [f32]) {
    let width = columns.len();
    for (x, out) in out.chunks_exact_mut(o).enumerate() {
        let mut channel = 0;
        while channel + LANES <= o {
            let out: &mut [f32] = &mut out[channel..channel + LANES];
            let mut sum = [0.0f32; LANES];
            sum.copy_from_slice(out);
            for kx in 0..3 {
                if (1..=width).contains(&(x + kx)) {
                    let Tap { near, far, weight } = columns[x + kx - 1];
                    let at = |pixel: usize| &row[(pixel * 3 + kx) * o + channel..][..LANES];
                    let (near, far, keep) = (at(near), at(far), 1.0 - weight);
                    for i in 0..LANES {
                        sum[i] = near[i].mul_add(keep, far[i].mul_add(weight, sum[i]));
                    }
                }
            }
            out.copy_from_slice(&sum);
            channel += LANES;
        }
        for kx in (0..3).filter(|kx| (1..=width).contains(&(x + kx))) {
            let Tap { near, far, weight } = columns[x + kx - 1];
            for (channel, out) in out.iter_mut().enumerate().skip(channel) {
                let at = |pixel: usize| row[(pixel * 3 + kx) * o + channel];
                *out = at(near).mul_add(1.0 - weight, at(far).mul_add(weight, *out));
            }
        }
    }
}

/// The gradients of the maps, of shapes `shapes`; that of the base is `dy` itself.
pub fn backward(dy: &Tensor, shapes: [Shape; 4]) -> [Tensor; 4] {
    let (batch, height, width, o) = (dy.dim(1), dy.dim(2), dy.dim(3), dy.dim(4));
    let (levels, length) = levels(shapes, dy.shape());
    // Columns first: that reads the large gradient once and leaves rows of the maps' widths.
    let mut narrow = Tensor::scratch([batch * height, length]);
    let rows = narrow.f32_mut().par_chunks_mut(length).zip(dy.f32().par_chunks(width * o));
    rows.for_each(|(narrow, dy)| {
        simd(
            #[inline(always)]
            || {
                narrow.fill(0.0);
                for level in &levels {
                    let narrow = &mut narrow[level.from..level.from + level.w * 3 * o];
                    for (x, dy) in dy.chunks_exact(o).enumerate() {
                        for kx in (0..3).filter(|kx| (1..=width).contains(&(x + kx))) {
                            let Tap { near, far, weight } = level.columns.taps[x + kx - 1];
                            add_scaled(&mut narrow[(near * 3 + kx) * o..], dy, 1.0 - weight);
                            add_scaled(&mut narrow[(far * 3 + kx) * o..], dy, weight);
                        }
                    }
                }
            },
        );
    });
    let narrow = narrow.f32();
    let mut gradients = shapes.map(Tensor::scratch);
    for (dx, level) in gradients.iter_mut().zip(&levels) {
        // The streams were added, so their gradients are equal.
        let half = dx.len() / 2;
        let (first, second) = dx.f32_mut().split_at_mut(half);
        let rows = first.par_chunks_mut(level.w * 9 * o).zip(second.par_chunks_mut(level.w * 9 * o));
        rows.enumerate().for_each(|(i, (dx, copy))| {
            let (sample, row) = (i / level.h, i % level.h);
            simd(
                #[inline(always)]
                || {
                    dx.fill(0.0);
                    for (reader, ky) in
                        level.rows.readers[row].clone().flat_map(|r| (0..3).map(move |k| (r, k)))
                    {
                        // The output row whose tap ky reads this row of the resized map.
                        let Some(y) = (reader + 1).checked_sub(ky).filter(|&y| y < height) else { continue };
                        let weight = level.rows.weight(reader, row);
                        let narrow = &narrow[(sample * height + y) * length + level.from..];
                        for (dx, narrow) in dx.chunks_exact_mut(9 * o).zip(narrow.chunks_exact(3 * o)) {
                            add_scaled(&mut dx[ky * 3 * o..], narrow, weight);
                        }
                    }
                    flush(dx);
                },
            );
            copy.copy_from_slice(dx);
        });
    }
    gradients
}
