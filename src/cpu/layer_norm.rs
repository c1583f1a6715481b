//! Layer normalisation over the channels of each row, forward and backward.

use rayon::prelude::*;

use super::{math, reduce, rows_per_task, simd};
use crate::{Result, Tensor};

/// y = (x − μ)/√(σ² + eps)·w + b with the mean μ and variance σ² of each row, by two passes.
///
/// x `(S, …, C)`, weight and bias `(S, C)` -> y of the shape of x, and μ and 1/√(σ² + eps) of each row, `(rows, 2)`.
pub fn forward(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> (Tensor, Tensor) {
    let (s, c) = (weight.dim(0), weight.dim(1));
    let rows = x.len() / (s * c);
    let mut y = Tensor::scratch(x.shape());
    let mut statistics = Tensor::scratch([s * rows, 2]);
    let (weight, bias) = (weight.f32(), bias.f32());
    let task = rows_per_task(s * rows, c);
    y.f32_mut()
        .par_chunks_mut(task * c)
        .zip(statistics.f32_mut().par_chunks_mut(task * 2))
        .zip(x.f32().par_chunks(task * c))
        .enumerate()
        .for_each(|(i, ((y, statistics), x))| {
            simd(
                #[inline(always)]
                || {
                    let rows_here = y.chunks_exact_mut(c).zip(statistics.chunks_exact_mut(2));
                    for (row, ((y, statistics), x)) in rows_here.zip(x.chunks_exact(c)).enumerate() {
                        let stream = (i * task + row) / rows * c;
                        let mean = reduce::sum(
                            [x],
                            #[inline(always)]
                            |[x]| x,
                        ) / c as f32;
                        let variance = reduce::sum(
                            [x],
                            #[inline(always)]
                            |[x]| (x - mean) * (x - mean),
                        ) / c as f32;
                        let rstd = 1.0 / (variance + eps).sqrt();
                        statistics.copy_from_slice(&[mean, rstd]);
                        normalize(y, x, &weight[stream..], &bias[stream..], mean, rstd);
                    }
                },
            );
        });
    (y, statistics)
}

#[inline(always)]
fn normalize(y: &mut [f32], x: &[f32], weight: &[f32], bias: &[f32], mean: f32, rstd: f32) {
    let c = y.len();
    let (x, weight, bias) = (&x[..c], &weight[..c], &bias[..c]);
    for i in 0..c {
        y[i] = ((x[i] - mean) * rstd).mul_add(weight[i], bias[i]);
    }
}

/// The gradients of x (in the buffer of `dy`, unless that is shared), weight and bias; that of x is added to `sum`.
///
/// With g = dy·w and x̂ the normalised x: dx = (g − mean(g) − x̂·mean(g·x̂))/√(σ² + eps), dw = Σ dy·x̂, db = Σ dy.
pub fn backward(
    mut dy: Tensor,
    x: &Tensor,
    weight: &Tensor,
    statistics: &Tensor,
    sum: Option<&Tensor>,
) -> Result<(Tensor, Tensor, Tensor)> {
    let (s, c) = (weight.dim(0), weight.dim(1));
    let rows = x.len() / (s * c);
    let sums: Vec<Vec<f32>> = dy
        .f32_mut()
        .par_chunks_mut(rows * c)
        .zip(x.f32().par_chunks(rows * c))
        .zip(statistics.f32().par_chunks(rows * 2))
        .zip(weight.f32().par_chunks(c))
        .map(|(((dy, x), statistics), weight)| {
            let partial: Vec<Vec<f32>> = dy
                .par_chunks_mut(reduce::ROWS * c)
                .zip(x.par_chunks(reduce::ROWS * c))
                .zip(statistics.par_chunks(reduce::ROWS * 2))
                .map(|((dy, x), statistics)| {
                    let mut sums = vec![0.0; 2 * c];
                    let (dw, db) = sums.split_at_mut(c);
                    simd(
                        #[inline(always)]
                        || {
                            let rows_here = dy.chunks_exact_mut(c).zip(x.chunks_exact(c));
                            for ((dy, x), statistics) in rows_here.zip(statistics.chunks_exact(2)) {
                                backward_row(dy, x, weight, statistics[0], statistics[1], dw, db);
                            }
                        },
                    );
                    sums
                })
                .collect();
            reduce::combine(&partial, 2 * c)
        })
        .collect();
    if let Some(sum) = sum {
        dy.add_assign(sum)?;
    }
    let part = |from: usize| -> Vec<f32> { sums.iter().flat_map(|s| &s[from..from + c]).copied().collect() };
    Ok((dy, Tensor::from_slice([s, c], &part(0))?, Tensor::from_slice([s, c], &part(c))?))
}

#[inline(always)]
fn backward_row(
    dy: &mut [f32],
    x: &[f32],
    weight: &[f32],
    mean: f32,
    rstd: f32,
    dw: &mut [f32],
    db: &mut [f32],
) {
    let c = dy.len();
    let (x, weight, dw, db) = (&x[..c], &weight[..c], &mut dw[..c], &mut db[..c]);
    let g_mean = reduce::sum(
        [dy, weight],
        #[inline(always)]
        |[dy, w]| dy * w,
    ) / c as f32;
    let gx_mean = reduce::sum(
        [dy, weight, x],
        #[inline(always)]
        |[dy, w, x]| dy * w * ((x - mean) * rstd),
    ) / c as f32;
    for i in 0..c {
        let normal = (x[i] - mean) * rstd;
        dw[i] += math::flush(dy[i] * normal);
        db[i] += dy[i];
        dy[i] = math::flush(rstd * (dy[i] * weight[i] - g_mean - normal * gx_mean));
    }
}
