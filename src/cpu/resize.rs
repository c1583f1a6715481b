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
pub(crate) struct Tap {
    pub near: usize,
    pub far: usize,
    pub weight: f32,
}

/// Which input positions the outputs along one axis are made of, as PyTorch chooses them (`align_corners=False`).
pub(crate) struct Axis {
    /// For each output, the two inputs that it blends.
    pub taps: Vec<Tap>,
    /// For each input position, the outputs that read it.
    pub readers: Vec<Range<usize>>,
}

impl Axis {
    pub fn new(input: usize, output: usize) -> Self {
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
    pub fn weight(&self, output: usize, input: usize) -> f32 {
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
pub(super) fn add_scaled(out: &mut [f32], x: &[f32], weight: f32) {
    for (out, x) in out.iter_mut().zip(x) {
        *out += weight * x;
    }
}

#[inline(always)]
pub(super) fn flush(x: &mut [f32]) {
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
