//! Batch normalisation and the ReLU after it, forward and backward.

use rayon::prelude::*;

use super::{math, reduce, rows_per_task, simd};
use crate::{Result, Tensor};

/// What normalises: max((x − mean)/√(variance + eps)·weight + bias, 0).
pub struct Normalization {
    /// Of each channel, `(S, C)`.
    pub mean: Tensor,
    /// Of each channel, biased, `(S, C)`.
    pub variance: Tensor,
    /// `(S, C)`
    pub weight: Tensor,
    /// `(S, C)`
    pub bias: Tensor,
    /// ε under the root.
    pub eps: f32,
    /// Whether mean and variance are those of the input itself, so that they too depend on it.
    pub of_batch: bool,
}

/// The mean, the biased and the unbiased variance of each channel over batch, rows and columns, by two passes: each
/// `(S, C)`.
///
/// x `(S, …, C)`. This is the one place where the numbers of several devices would be brought together.
///
/// # Errors
/// When x has another number of streams than `s`.
pub fn statistics(x: &Tensor, s: usize) -> Result<(Tensor, Tensor, Tensor)> {
    let c = x.shape().last();
    let rows = x.len() / (s * c);
    let (mut means, mut variances) = (Vec::with_capacity(s * c), Vec::with_capacity(s * c));
    for x in x.f32().chunks_exact(rows * c) {
        let mean: Vec<f32> = reduce::sum_columns(x, c).into_iter().map(|v| v / rows as f32).collect();
        let squares = reduce::sum_rows(
            rows,
            c,
            #[inline(always)]
            |i, sums| {
                for ((sum, &x), &mean) in sums.iter_mut().zip(&x[i * c..(i + 1) * c]).zip(&mean) {
                    *sum += (x - mean) * (x - mean);
                }
            },
        );
        variances.extend(squares.into_iter().map(|v| v / rows as f32));
        means.extend(mean);
    }
    let variance = Tensor::from_slice([s, c], &variances)?;
    let mut unbiased = variance.clone();
    let correction = rows as f32 / (rows - 1) as f32;
    unbiased.f32_mut().iter_mut().for_each(|v| *v *= correction);
    Ok((Tensor::from_slice([s, c], &means)?, variance, unbiased))
}

/// y, of the shape of x `(S, …, C)`.
pub fn forward(x: &Tensor, n: &Normalization) -> Tensor {
    let n = Affine::new(n);
    let (s, c) = (n.mean.dim(0), n.mean.dim(1));
    let rows = x.len() / (s * c);
    let mut y = Tensor::scratch(x.shape());
    let task = rows_per_task(rows, c);
    for (stream, (y, x)) in
        y.f32_mut().chunks_exact_mut(rows * c).zip(x.f32().chunks_exact(rows * c)).enumerate()
    {
        let [mean, scale, bias] = channels(stream, [n.mean, &n.scale, n.bias]);
        y.par_chunks_mut(task * c).zip(x.par_chunks(task * c)).for_each(|(y, x)| {
            simd(
                #[inline(always)]
                || {
                    for (y, x) in y.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
                        forward_row(y, x, mean, scale, bias);
                    }
                },
            );
        });
    }
    y
}

/// The gradients of x (in the buffer of `dy`, unless that is shared), weight and bias.
///
/// Where the ReLU let nothing through, dy counts as 0. With x̂ = (x − mean)·rstd: dw = Σ dy·x̂, db = Σ dy, and
/// dx = scale·dy; less scale·(db + x̂·dw)/rows when the statistics are those of x itself (`of_batch`).
///
/// # Errors
/// When a gradient cannot be stored.
pub fn backward(mut dy: Tensor, x: &Tensor, n: &Normalization) -> Result<(Tensor, Tensor, Tensor)> {
    let of_batch = n.of_batch;
    let n = Affine::new(n);
    let (s, c) = (n.mean.dim(0), n.mean.dim(1));
    let rows = x.len() / (s * c);
    let task = rows_per_task(rows, c);
    let (mut dw, mut db) = (Vec::with_capacity(s * c), Vec::with_capacity(s * c));
    for (stream, (dy, x)) in
        dy.f32_mut().chunks_exact_mut(rows * c).zip(x.f32().chunks_exact(rows * c)).enumerate()
    {
        let [mean, rstd, scale, bias] = channels(stream, [n.mean, &n.rstd, &n.scale, n.bias]);
        let mut sums = reduce::sum_rows(
            rows,
            2 * c,
            #[inline(always)]
            |i, sums| {
                let (dw, db) = sums.split_at_mut(c);
                sum_row(dw, db, &dy[i * c..], &x[i * c..], mean, scale, bias);
            },
        );
        sums[..c].iter_mut().zip(rstd).for_each(|(dw, rstd)| *dw *= rstd);
        dw.extend_from_slice(&sums[..c]);
        db.extend_from_slice(&sums[c..]);
        // dx = scale·(dy − shift − (x − mean)·slope).
        let per_row = if of_batch { 1.0 / rows as f32 } else { 0.0 };
        let slope: Vec<f32> = sums[..c].iter().zip(rstd).map(|(dw, rstd)| dw * rstd * per_row).collect();
        let shift: Vec<f32> = sums[c..].iter().map(|db| db * per_row).collect();
        dy.par_chunks_mut(task * c).zip(x.par_chunks(task * c)).for_each(|(dy, x)| {
            simd(
                #[inline(always)]
                || {
                    for (dy, x) in dy.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
                        backward_row(dy, x, mean, scale, bias, &slope, &shift);
                    }
                },
            );
        });
    }
    Ok((dy, Tensor::from_slice([s, c], &dw)?, Tensor::from_slice([s, c], &db)?))
}

/// running += momentum·(batch − running), of equal shapes.
pub fn update_running(running: &mut Tensor, batch: &Tensor, momentum: f32) {
    for (r, &b) in running.f32_mut().iter_mut().zip(batch.f32()) {
        *r += momentum * (b - *r);
    }
}

/// A [`Normalization`] as the affine map (x − mean)·scale + bias of each channel.
struct Affine<'a> {
    mean: &'a Tensor,
    /// 1/√(σ² + eps), `(S, C)`.
    rstd: Tensor,
    /// rstd·weight.
    scale: Tensor,
    bias: &'a Tensor,
}

impl<'a> Affine<'a> {
    fn new(n: &'a Normalization) -> Self {
        let mut rstd = n.variance.clone();
        rstd.f32_mut().iter_mut().for_each(|v| *v = 1.0 / (*v + n.eps).sqrt());
        let mut scale = rstd.clone();
        scale.f32_mut().iter_mut().zip(n.weight.f32()).for_each(|(v, w)| *v *= w);
        Self { mean: &n.mean, rstd, scale, bias: &n.bias }
    }
}

/// The numbers of one stream.
fn channels<const N: usize>(stream: usize, tensors: [&Tensor; N]) -> [&[f32]; N] {
    tensors.map(|t| {
        let c = t.dim(1);
        &t.f32()[stream * c..(stream + 1) * c]
    })
}

/// Before the ReLU. Forward and backward share it, so they agree on every sign.
#[inline(always)]
fn affine(x: f32, mean: f32, scale: f32, bias: f32) -> f32 {
    (x - mean).mul_add(scale, bias)
}

#[inline(always)]
fn forward_row(y: &mut [f32], x: &[f32], mean: &[f32], scale: &[f32], bias: &[f32]) {
    let c = y.len();
    let (x, mean, scale, bias) = (&x[..c], &mean[..c], &scale[..c], &bias[..c]);
    for i in 0..c {
        let z = affine(x[i], mean[i], scale[i], bias[i]);
        // NaN passes through.
        y[i] = if z < 0.0 { 0.0 } else { z };
    }
}

/// Adds dy·(x − mean) and dy.
#[inline(always)]
fn sum_row(dw: &mut [f32], db: &mut [f32], dy: &[f32], x: &[f32], mean: &[f32], scale: &[f32], bias: &[f32]) {
    let c = dw.len();
    let (db, dy, x) = (&mut db[..c], &dy[..c], &x[..c]);
    let (mean, scale, bias) = (&mean[..c], &scale[..c], &bias[..c]);
    for i in 0..c {
        let open = affine(x[i], mean[i], scale[i], bias[i]) > 0.0;
        let dz = if open { dy[i] } else { 0.0 };
        dw[i] += math::flush(dz * (x[i] - mean[i]));
        db[i] += dz;
    }
}

#[inline(always)]
fn backward_row(
    dy: &mut [f32],
    x: &[f32],
    mean: &[f32],
    scale: &[f32],
    bias: &[f32],
    slope: &[f32],
    shift: &[f32],
) {
    let c = dy.len();
    let (x, mean, scale, bias) = (&x[..c], &mean[..c], &scale[..c], &bias[..c]);
    let (slope, shift) = (&slope[..c], &shift[..c]);
    for i in 0..c {
        let open = affine(x[i], mean[i], scale[i], bias[i]) > 0.0;
        let dz = if open { dy[i] } else { 0.0 };
        dy[i] = math::flush(scale[i] * (dz - shift[i] - (x[i] - mean[i]) * slope[i]));
    }
}
