//! Bilinear resizing with half-pixel centres, forward and backward.
//!
//! Both are separable: forward first blends two rows of the input, then its columns. Backward is the transpose in the
//! opposite order: columns first, which reads the large gradient once and leaves rows of the input's width, then for
//! each row of the input the sum over the rows that read it.

use std::ops::Range;

use rayon::prelude::*;

use super::{math, simd};
use crate::{Shape, Tensor};

/// An output position is (1 − weight)·near + weight·far.
#[derive(Clone, Copy)]
struct Tap {
    near: usize,
    far: usize,
    weight: f32,
}

/// Which input positions the outputs along one axis are made of, as PyTorch chooses them (`align_corners=False`).
struct Axis {
    taps: Vec<Tap>,
    /// For each input position, the outputs that read it.
    readers: Vec<Range<usize>>,
}

impl Axis {
    fn new(input: usize, output: usize) -> Self {
        let scale = input as f32 / output as f32;
        let taps: Vec<Tap> = (0..output)
            .map(|i| {
                let source = (scale * (i as f32 + 0.5) - 0.5).max(0.0);
                let near = (source as usize).min(input - 1);
                let weight = if input == output { 0.0 } else { (source - near as f32).clamp(0.0, 1.0) };
                Tap { near, far: (near + 1).min(input - 1), weight }
            })
            .collect();
        let mut readers = vec![0..0; input];
        for (i, tap) in taps.iter().enumerate() {
            for position in [tap.near, tap.far] {
                let range: &mut Range<usize> = &mut readers[position];
                *range = if range.start == range.end { i..i + 1 } else { range.start..i + 1 };
            }
        }
        Self { taps, readers }
    }

    /// The weight of input position `input` in output `output`.
    fn weight(&self, output: usize, input: usize) -> f32 {
        let tap = self.taps[output];
        let near = if tap.near == input { 1.0 - tap.weight } else { 0.0 };
        let far = if tap.far == input { tap.weight } else { 0.0 };
        near + far
    }
}

/// out = (1 − weight)·near + weight·far.
#[inline(always)]
fn blend(out: &mut [f32], near: &[f32], far: &[f32], weight: f32) {
    let n = out.len();
    let (near, far, keep) = (&near[..n], &far[..n], 1.0 - weight);
    for i in 0..n {
        out[i] = keep * near[i] + weight * far[i];
    }
}

/// out += weight·x.
#[inline(always)]
fn add_scaled(out: &mut [f32], x: &[f32], weight: f32) {
    for (out, x) in out.iter_mut().zip(x) {
        *out += weight * x;
    }
}

#[inline(always)]
fn flush(x: &mut [f32]) {
    for x in x {
        *x = math::flush(*x);
    }
}

/// x `(S, B, h, w, C)` -> `(S, B, height, width, C)`.
pub fn forward(x: &Tensor, height: usize, width: usize) -> Tensor {
    let (h, w, c) = (x.dim(2), x.dim(3), x.dim(4));
    let (rows, columns) = (Axis::new(h, height), Axis::new(w, width));
    let mut y = Tensor::scratch(x.shape().with_dim(2, height).with_dim(3, width));
    let x = x.f32();
    y.f32_mut().par_chunks_mut(width * c).enumerate().for_each_init(
        || vec![0.0; w * c],
        |blended, (i, y)| {
            let (image, tap) = (&x[i / height * h * w * c..], rows.taps[i % height]);
            simd(
                #[inline(always)]
                || {
                    blend(blended, &image[tap.near * w * c..], &image[tap.far * w * c..], tap.weight);
                    for (y, tap) in y.chunks_exact_mut(c).zip(&columns.taps) {
                        blend(y, &blended[tap.near * c..], &blended[tap.far * c..], tap.weight);
                    }
                },
            );
        },
    );
    y
}

/// The gradient of x, of shape `shape`, from that of the output.
pub fn backward(dy: &Tensor, shape: Shape) -> Tensor {
    let (h, w, c) = (shape[2], shape[3], shape[4]);
    let (height, width) = (dy.dim(2), dy.dim(3));
    let (rows, columns) = (Axis::new(h, height), Axis::new(w, width));
    // The gradient of the rows that the forward blended.
    let mut narrow = Tensor::scratch([dy.len() / (width * c), w * c]);
    narrow.f32_mut().par_chunks_mut(w * c).zip(dy.f32().par_chunks(width * c)).for_each(|(out, dy)| {
        simd(
            #[inline(always)]
            || {
                out.fill(0.0);
                for (dy, tap) in dy.chunks_exact(c).zip(&columns.taps) {
                    add_scaled(&mut out[tap.near * c..], dy, 1.0 - tap.weight);
                    add_scaled(&mut out[tap.far * c..], dy, tap.weight);
                }
            },
        );
    });
    let narrow = narrow.f32();
    let mut dx = Tensor::scratch(shape);
    dx.f32_mut().par_chunks_mut(w * c).enumerate().for_each(|(i, dx)| {
        let (image, row) = (i / h * height, i % h);
        simd(
            #[inline(always)]
            || {
                dx.fill(0.0);
                for from in rows.readers[row].clone() {
                    add_scaled(dx, &narrow[(image + from) * w * c..], rows.weight(from, row));
                }
                flush(dx);
            },
        );
    });
    dx
}

/// One map of a concatenation.
struct Level {
    rows: Axis,
    columns: Axis,
    h: usize,
    w: usize,
    /// Where its blended rows are, in numbers: both streams of a pixel side by side, as in the result.
    from: usize,
}

fn levels(shapes: [Shape; 4], height: usize, width: usize) -> ([Level; 4], usize) {
    let mut from = 0;
    let levels = shapes.map(|shape| {
        let (h, w, c) = (shape[2], shape[3], shape[4]);
        let level = Level { rows: Axis::new(h, height), columns: Axis::new(w, width), h, w, from };
        from += w * 2 * c;
        level
    });
    (levels, from)
}

/// Maps `(2, B, h_i, w_i, C)` and images `(1, B, H, W, 3)` -> `(1, B, H, W, 8C + 6)`; see
/// [`crate::ops::resize_concat`].
pub fn concat_forward(maps: [&Tensor; 4], images: [&Tensor; 2]) -> Tensor {
    let (batch, height, width) = (images[0].dim(1), images[0].dim(2), images[0].dim(3));
    let c = maps[0].dim(4);
    let (levels, len) = levels(maps.map(Tensor::shape), height, width);
    let (maps, images) = (maps.map(Tensor::f32), images.map(Tensor::f32));
    let channels = 8 * c + 6;
    let mut y = Tensor::scratch([1, batch, height, width, channels]);
    y.f32_mut().par_chunks_mut(width * channels).enumerate().for_each_init(
        || vec![0.0; len],
        |blended, (i, y)| {
            let (image, row) = (i / height, i % height);
            let images = images.map(|image| &image[i * width * 3..(i + 1) * width * 3]);
            simd(
                #[inline(always)]
                || {
                    for (level, map) in levels.iter().zip(maps) {
                        let tap = level.rows.taps[row];
                        for stream in 0..2 {
                            let plane = &map[(stream * batch + image) * level.h * level.w * c..];
                            let (near, far) =
                                (&plane[tap.near * level.w * c..], &plane[tap.far * level.w * c..]);
                            let to = &mut blended[level.from..level.from + level.w * 2 * c];
                            let pixels = to.chunks_exact_mut(2 * c);
                            for (to, (near, far)) in pixels.zip(near.chunks_exact(c).zip(far.chunks_exact(c)))
                            {
                                blend(&mut to[stream * c..(stream + 1) * c], near, far, tap.weight);
                            }
                        }
                    }
                    for (column, y) in y.chunks_exact_mut(channels).enumerate() {
                        let (resized, copied) = y.split_at_mut(8 * c);
                        for (y, level) in resized.chunks_exact_mut(2 * c).zip(&levels) {
                            let tap = level.columns.taps[column];
                            let from = &blended[level.from..];
                            blend(y, &from[tap.near * 2 * c..], &from[tap.far * 2 * c..], tap.weight);
                        }
                        copied[..3].copy_from_slice(&images[0][column * 3..column * 3 + 3]);
                        copied[3..].copy_from_slice(&images[1][column * 3..column * 3 + 3]);
                    }
                },
            );
        },
    );
    y
}

/// The gradients of the maps, of shapes `shapes`, from that of [`concat_forward`]'s output.
pub fn concat_backward_maps(dy: &Tensor, shapes: [Shape; 4]) -> [Tensor; 4] {
    let (batch, height, width, channels) = (dy.dim(1), dy.dim(2), dy.dim(3), dy.dim(4));
    let c = shapes[0][4];
    let (levels, len) = levels(shapes, height, width);
    let mut narrow = Tensor::scratch([batch * height, len]);
    narrow.f32_mut().par_chunks_mut(len).zip(dy.f32().par_chunks(width * channels)).for_each(|(out, dy)| {
        simd(
            #[inline(always)]
            || {
                out.fill(0.0);
                for (column, dy) in dy.chunks_exact(channels).enumerate() {
                    for (dy, level) in dy.chunks_exact(2 * c).zip(&levels) {
                        let tap = level.columns.taps[column];
                        let out = &mut out[level.from..];
                        add_scaled(&mut out[tap.near * 2 * c..], dy, 1.0 - tap.weight);
                        add_scaled(&mut out[tap.far * 2 * c..], dy, tap.weight);
                    }
                }
            },
        );
    });
    let narrow = narrow.f32();
    let mut gradients = shapes.map(Tensor::scratch);
    for (dx, level) in gradients.iter_mut().zip(&levels) {
        dx.f32_mut().par_chunks_mut(level.w * c).enumerate().for_each(|(i, dx)| {
            let (map, row) = (i / level.h, i % level.h);
            let (stream, image) = (map / batch, map % batch);
            simd(
                #[inline(always)]
                || {
                    dx.fill(0.0);
                    for from in level.rows.readers[row].clone() {
                        let weight = level.rows.weight(from, row);
                        let narrow = &narrow[(image * height + from) * len + level.from..];
                        for (dx, pixel) in dx.chunks_exact_mut(c).zip(narrow.chunks_exact(2 * c)) {
                            add_scaled(dx, &pixel[stream * c..(stream + 1) * c], weight);
                        }
                    }
                    flush(dx);
                },
            );
        });
    }
    gradients
}

/// The gradient of image 0 or 1, `(1, B, H, W, 3)`, from that of [`concat_forward`]'s output.
pub fn concat_backward_image(dy: &Tensor, image: usize) -> Tensor {
    let channels = dy.shape().last();
    let from = channels - 6 + 3 * image;
    let mut dx = Tensor::scratch(dy.shape().with_last(3));
    let task = dy.dim(3);
    dx.f32_mut().par_chunks_mut(task * 3).zip(dy.f32().par_chunks(task * channels)).for_each(|(dx, dy)| {
        for (dx, dy) in dx.chunks_exact_mut(3).zip(dy.chunks_exact(channels)) {
            dx.copy_from_slice(&dy[from..from + 3]);
        }
    });
    dx
}
