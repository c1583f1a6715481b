//! What moves numbers and computes none.

use std::ops::Range;

use rayon::prelude::*;

use crate::{Shape, Tensor};

/// The gradient of x of shape `shape`, of which entry `index` of the leading axis was selected.
pub fn select_backward(dy: &Tensor, shape: Shape, index: usize) -> Tensor {
    let mut dx = Tensor::zeros(shape);
    dx.f32_mut()[index * dy.len()..(index + 1) * dy.len()].copy_from_slice(dy.f32());
    dx
}

/// The channels of both streams side by side: `(2, …, C)` -> `(1, …, 2C)`.
pub fn concat_streams(x: &Tensor) -> Tensor {
    let (shape, c) = (x.shape(), x.shape().last());
    let mut y = Tensor::scratch(shape.with_dim(0, 1).with_last(2 * c));
    let (a, b) = x.f32().split_at(x.len() / 2);
    let rows = y.f32_mut().par_chunks_exact_mut(2 * c).with_min_len(256);
    rows.zip(a.par_chunks_exact(c)).zip(b.par_chunks_exact(c)).for_each(|((y, a), b)| {
        y[..c].copy_from_slice(a);
        y[c..].copy_from_slice(b);
    });
    y
}

/// The gradient of x: the inverse of [`concat_streams`].
pub fn concat_streams_backward(dy: &Tensor) -> Tensor {
    let c = dy.shape().last() / 2;
    let mut dx = Tensor::scratch(dy.shape().with_dim(0, 2).with_last(c));
    let half = dx.len() / 2;
    let (a, b) = dx.f32_mut().split_at_mut(half);
    let rows = dy.f32().par_chunks_exact(2 * c).with_min_len(256);
    rows.zip(a.par_chunks_exact_mut(c)).zip(b.par_chunks_exact_mut(c)).for_each(|((dy, a), b)| {
        a.copy_from_slice(&dy[..c]);
        b.copy_from_slice(&dy[c..]);
    });
    dx
}

/// The channels `range` of x `(…, C)`.
pub fn select_channels(x: &Tensor, range: Range<usize>) -> Tensor {
    let c = x.shape().last();
    let mut y = Tensor::scratch(x.shape().with_last(range.len()));
    for (y, x) in y.f32_mut().chunks_exact_mut(range.len()).zip(x.f32().chunks_exact(c)) {
        y.copy_from_slice(&x[range.clone()]);
    }
    y
}

/// The gradient of x of shape `shape`, of which the channels `range` were selected.
pub fn select_channels_backward(dy: &Tensor, shape: Shape, range: Range<usize>) -> Tensor {
    let mut dx = Tensor::zeros(shape);
    for (dx, dy) in dx.f32_mut().chunks_exact_mut(shape.last()).zip(dy.f32().chunks_exact(range.len())) {
        dx[range.clone()].copy_from_slice(dy);
    }
    dx
}

/// The input channels `from .. from + S·C` of weight `(1, O, 3, 3, I)` by stream and tap: `(S, 9·O, C)`.
pub fn tap_weights(weight: &Tensor, from: usize, s: usize, c: usize) -> Tensor {
    let shape = weight.shape();
    let mut y = Tensor::scratch([s, 9 * shape[1], c]);
    for (y, place) in y.f32_mut().chunks_exact_mut(c).zip(places(shape, from, s, c)) {
        y.copy_from_slice(&weight.f32()[place..place + c]);
    }
    y
}

/// The gradient of the weight of shape `shape`.
pub fn tap_weights_backward(dy: &Tensor, shape: Shape, from: usize) -> Tensor {
    let (s, c) = (dy.dim(0), dy.dim(2));
    let mut dw = Tensor::zeros(shape);
    for (dy, place) in dy.f32().chunks_exact(c).zip(places(shape, from, s, c)) {
        dw.f32_mut()[place..place + c].copy_from_slice(dy);
    }
    dw
}

/// Where the C numbers of row (stream, tap, output) begin in a weight `(1, O, 3, 3, I)`.
fn places(weight: Shape, from: usize, s: usize, c: usize) -> impl Iterator<Item = usize> {
    let (o, inputs) = (weight[1], weight[4]);
    let rows = (0..s).flat_map(move |s| (0..9).flat_map(move |tap| (0..o).map(move |o| (s, tap, o))));
    rows.map(move |(s, tap, output)| (output * 9 + tap) * inputs + from + s * c)
}
