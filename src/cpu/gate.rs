//! The end of semantic consistency inference, forward and backward.

use rayon::prelude::*;

use super::{math, reduce, rows_per_task, simd};
use crate::Tensor;

/// PyTorch's lower bound of a norm in the cosine similarity.
const SMALLEST_NORM: f32 = 1e-8;

/// The pixel's coefficient without λ·m: the gate g of the paper, or 1.
#[inline(always)]
fn open(a: &[f32], b: &[f32], tau: Option<f32>) -> f32 {
    let Some(tau) = tau else { return 1.0 };
    let dot = reduce::sum(
        [a, b],
        #[inline(always)]
        |[a, b]| a * b,
    );
    let norm = [a, b].map(
        #[inline(always)]
        |x| {
            let square = reduce::sum(
                [x],
                #[inline(always)]
                |[x]| x * x,
            );
            square.sqrt().max(SMALLEST_NORM)
        },
    );
    if dot / (norm[0] * norm[1]) < tau { 1.0 } else { 0.0 }
}

/// x `(2, …, C)`, m one number for each pixel, λ one number -> `(2, …, C)`; see [`crate::ops::gate`].
pub fn forward(x: &Tensor, m: &Tensor, lambda: &Tensor, tau: Option<f32>) -> Tensor {
    let lambda = lambda.item();
    let (c, half) = (x.shape().last(), x.len() / 2);
    let mut y = Tensor::scratch(x.shape());
    let (y0, y1) = y.f32_mut().split_at_mut(half);
    let (a, b) = x.f32().split_at(half);
    let task = rows_per_task(m.len(), 2 * c);
    let inputs = a.par_chunks(task * c).zip(b.par_chunks(task * c)).zip(m.f32().par_chunks(task));
    y0.par_chunks_mut(task * c).zip(y1.par_chunks_mut(task * c)).zip(inputs).for_each(
        |((y0, y1), ((a, b), m))| {
            simd(
                #[inline(always)]
                || {
                    let inputs = a.chunks_exact(c).zip(b.chunks_exact(c)).zip(m);
                    let outputs = y0.chunks_exact_mut(c).zip(y1.chunks_exact_mut(c));
                    for ((y0, y1), ((a, b), &m)) in outputs.zip(inputs) {
                        let step = open(a, b, tau) * lambda * m;
                        // The release exchanges the streams.
                        match tau {
                            None => exchange(y0, y1, b, a, step),
                            Some(_) => exchange(y0, y1, a, b, step),
                        }
                    }
                },
            );
        },
    );
    y
}

/// y0 = first − step·(first − second), y1 = second + step·(first − second).
#[inline(always)]
fn exchange(y0: &mut [f32], y1: &mut [f32], first: &[f32], second: &[f32], step: f32) {
    let c = y0.len();
    let (y1, first, second) = (&mut y1[..c], &first[..c], &second[..c]);
    for i in 0..c {
        let delta = step * (first[i] - second[i]);
        y0[i] = first[i] - delta;
        y1[i] = second[i] + delta;
    }
}

/// The gradients of x (in the buffer of `dy`, unless that is shared), m and λ.
pub fn backward(
    mut dy: Tensor,
    x: &Tensor,
    m: &Tensor,
    lambda: &Tensor,
    tau: Option<f32>,
) -> (Tensor, Tensor, Tensor) {
    let lambda = lambda.item();
    let (c, half) = (x.shape().last(), x.len() / 2);
    let mut dm = Tensor::scratch(m.shape());
    let (d0, d1) = dy.f32_mut().split_at_mut(half);
    let (a, b) = x.f32().split_at(half);
    let task = reduce::ROWS;
    let inputs = a.par_chunks(task * c).zip(b.par_chunks(task * c)).zip(m.f32().par_chunks(task));
    let partial: Vec<Vec<f32>> = d0
        .par_chunks_mut(task * c)
        .zip(d1.par_chunks_mut(task * c))
        .zip(dm.f32_mut().par_chunks_mut(task))
        .zip(inputs)
        .map(|(((d0, d1), dm), ((a, b), m))| {
            let mut sum = 0.0;
            simd(
                #[inline(always)]
                || {
                    let inputs = a.chunks_exact(c).zip(b.chunks_exact(c)).zip(m);
                    let outputs = d0.chunks_exact_mut(c).zip(d1.chunks_exact_mut(c)).zip(dm);
                    for (((d0, d1), dm), ((a, b), &m)) in outputs.zip(inputs) {
                        let open = open(a, b, tau);
                        let step = open * lambda * m;
                        // What is left of the step's own gradient: Σ (dy1 − dy0)·(first − second).
                        let d_step = match tau {
                            None => {
                                let d_step = step_gradient(d0, d1, b, a);
                                exchange_backward_swapped(d0, d1, step);
                                d_step
                            }
                            Some(_) => {
                                let d_step = step_gradient(d0, d1, a, b);
                                exchange_backward(d0, d1, step);
                                d_step
                            }
                        };
                        *dm = math::flush(open * lambda * d_step);
                        sum += math::flush(open * m * d_step);
                    }
                },
            );
            vec![sum]
        })
        .collect();
    (dy, dm, Tensor::scalar(reduce::combine(&partial, 1)[0]))
}

#[inline(always)]
fn step_gradient(d0: &[f32], d1: &[f32], first: &[f32], second: &[f32]) -> f32 {
    reduce::sum(
        [d0, d1, first, second],
        #[inline(always)]
        |[d0, d1, first, second]| (d1 - d0) * (first - second),
    )
}

/// d0 and d1 become the gradients of `first` and `second` in [`exchange`].
#[inline(always)]
fn exchange_backward(d0: &mut [f32], d1: &mut [f32], step: f32) {
    let c = d0.len();
    let d1 = &mut d1[..c];
    for i in 0..c {
        let delta = step * (d1[i] - d0[i]);
        (d0[i], d1[i]) = (math::flush(d0[i] + delta), math::flush(d1[i] - delta));
    }
}

/// d0 and d1 become the gradients of `second` and `first` in [`exchange`].
#[inline(always)]
fn exchange_backward_swapped(d0: &mut [f32], d1: &mut [f32], step: f32) {
    let c = d0.len();
    let d1 = &mut d1[..c];
    for i in 0..c {
        let delta = step * (d1[i] - d0[i]);
        (d0[i], d1[i]) = (math::flush(d1[i] - delta), math::flush(d0[i] + delta));
    }
}
