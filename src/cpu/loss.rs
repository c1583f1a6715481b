//! Losses of the segmentation: cross entropy, dice, consistency.
//!
//! Logits are rows of K numbers, one row for each pixel. Every backward computes the softmax again from the logits,
//! which other losses hold as well, instead of keeping probabilities.

use rayon::prelude::*;

use super::argmax::{ROWS, exponentials, softmax};
use super::{math, simd};
use crate::Tensor;

/// The label of pixels that do not count.
pub const IGNORE: u8 = 255;

/// Sums `width` numbers over blocks of rows: `block(first, x, sums)` gets the logits of rows `first`, … in a buffer
/// of its own. Sums are in f64, in the order of the blocks, so they do not depend on the number of threads.
fn sum_blocks(
    logits: &Tensor,
    width: usize,
    block: impl Fn(usize, &mut [f32], &mut [f64]) + Sync,
) -> Vec<f64> {
    let k = logits.shape().last();
    let partial: Vec<Vec<f64>> = logits
        .f32()
        .par_chunks(ROWS * k)
        .enumerate()
        .map_init(Vec::new, |buffer, (i, x)| {
            buffer.clear();
            buffer.extend_from_slice(x);
            let mut sums = vec![0.0; width];
            simd(
                #[inline(always)]
                || block(i * ROWS, buffer, &mut sums),
            );
            sums
        })
        .collect();
    let mut total = vec![0.0; width];
    for sums in &partial {
        for (t, s) in total.iter_mut().zip(sums) {
            *t += s;
        }
    }
    total
}

/// The gradient of a loss: `row(i, p)` turns the probabilities of row i into its gradient.
fn map_softmax(logits: &Tensor, row: impl Fn(usize, &mut [f32]) + Sync) -> Tensor {
    let k = logits.shape().last();
    let mut out = Tensor::scratch(logits.shape());
    let x = logits.f32().par_chunks(ROWS * k);
    out.f32_mut().par_chunks_mut(ROWS * k).zip(x).enumerate().for_each(|(block, (d, x))| {
        d.copy_from_slice(x);
        simd(
            #[inline(always)]
            || {
                softmax(d, k);
                for (i, d) in d.chunks_exact_mut(k).enumerate() {
                    row(block * ROWS + i, d);
                }
            },
        );
    });
    out
}

/// The mean of `sum` over the pixels that count, and their number; 0 without any.
fn mean(sum: f64, labels: &[u8]) -> (Tensor, Tensor) {
    let pixels = labels.iter().filter(|&&l| l != IGNORE).count();
    (Tensor::scalar((sum * reciprocal(pixels as f64)) as f32), Tensor::scalar(pixels as f32))
}

/// 1 / n, or 0 for none.
fn reciprocal(n: f64) -> f64 {
    if n == 0.0 { 0.0 } else { 1.0 / n }
}

/// dy / n for n pixels, 0 for none.
fn share(dy: &Tensor, pixels: &Tensor) -> f32 {
    (f64::from(dy.item()) * reciprocal(pixels.item().into())) as f32
}

/// `−mean log softmax(x)[label]` over the pixels that are not ignored, and their number; 0 without any.
pub fn cross_entropy(logits: &Tensor, labels: &Tensor) -> (Tensor, Tensor) {
    let (k, x, labels) = (logits.shape().last(), logits.f32(), labels.as_slice::<u8>());
    let sum = sum_blocks(
        logits,
        1,
        #[inline(always)]
        |first, buffer, total| {
            exponentials(
                buffer,
                k,
                #[inline(always)]
                |i, max, sum, _| {
                    let (row, label) = (first + i, labels[first + i]);
                    if label != IGNORE {
                        total[0] += f64::from(sum.ln() + (max - x[row * k + usize::from(label)]));
                    }
                },
            );
        },
    );
    mean(sum[0], labels)
}

/// (softmax(x) − onehot) · dy / n for the n pixels that are not ignored, 0 for the others.
pub fn cross_entropy_backward(dy: &Tensor, pixels: &Tensor, logits: &Tensor, labels: &Tensor) -> Tensor {
    let (scale, labels) = (share(dy, pixels), labels.as_slice::<u8>());
    map_softmax(
        logits,
        #[inline(always)]
        |i, d| {
            if labels[i] == IGNORE {
                d.fill(0.0);
                return;
            }
            d[usize::from(labels[i])] -= 1.0;
            for d in d {
                *d = math::flush(*d * scale);
            }
        },
    )
}

/// −mean Σₖ softmax(t)ₖ · log softmax(x)ₖ over the pixels that are not ignored, and their number; 0 without any.
pub fn consistency(logits: &Tensor, target: &Tensor, labels: &Tensor) -> (Tensor, Tensor) {
    let (k, x, t, labels) = (logits.shape().last(), logits.f32(), target.f32(), labels.as_slice::<u8>());
    let sum = sum_blocks(
        logits,
        1,
        #[inline(always)]
        |first, buffer, total| {
            let mut log_sum = [0.0; ROWS];
            exponentials(
                buffer,
                k,
                #[inline(always)]
                |i, max, sum, _| log_sum[i] = sum.ln() + max,
            );
            let (x, t) = (&x[first * k..][..buffer.len()], &t[first * k..][..buffer.len()]);
            buffer.copy_from_slice(t);
            softmax(buffer, k);
            for (i, (p, x)) in buffer.chunks_exact(k).zip(x.chunks_exact(k)).enumerate() {
                if labels[first + i] != IGNORE {
                    let mut row = 0.0;
                    for (&p, &x) in p.iter().zip(x) {
                        row += p * (log_sum[i] - x);
                    }
                    total[0] += f64::from(row);
                }
            }
        },
    );
    mean(sum[0], labels)
}

/// (softmax(x) − softmax(t)) · dy / n for the n pixels that are not ignored, 0 for the others.
pub fn consistency_backward(
    dy: &Tensor,
    pixels: &Tensor,
    logits: &Tensor,
    target: &Tensor,
    labels: &Tensor,
) -> Tensor {
    let (k, t) = (logits.shape().last(), target.f32());
    let (scale, labels) = (share(dy, pixels), labels.as_slice::<u8>());
    let mut out = Tensor::scratch(logits.shape());
    let x = logits.f32().par_chunks(ROWS * k);
    let blocks = out.f32_mut().par_chunks_mut(ROWS * k).zip(x).zip(t.par_chunks(ROWS * k));
    blocks.zip(labels.par_chunks(ROWS)).for_each_init(Vec::new, |soft, (((d, x), t), labels)| {
        d.copy_from_slice(x);
        soft.clear();
        soft.extend_from_slice(t);
        simd(
            #[inline(always)]
            || {
                softmax(d, k);
                softmax(soft, k);
                for ((d, t), &label) in d.chunks_exact_mut(k).zip(soft.chunks_exact(k)).zip(labels) {
                    let scale = if label == IGNORE { 0.0 } else { scale };
                    for (d, &t) in d.iter_mut().zip(t) {
                        *d = math::flush((*d - t) * scale);
                    }
                }
            },
        );
    });
    out
}

const SMOOTH: f64 = 1e-5;

/// What dice and its gradient depend on: for each class Iₖ = Σ pₖ over the pixels labelled k, and
/// Tₖ = Σ pₖ + number of those pixels + smooth.
pub struct DiceSums {
    intersection: Vec<f64>,
    total: Vec<f64>,
}

/// Ignored pixels count as class 0, as in the published training.
#[inline(always)]
fn dice_class(label: u8) -> usize {
    if label == IGNORE { 0 } else { usize::from(label) }
}

/// The sums over all pixels.
pub fn dice_sums(logits: &Tensor, labels: &[u8]) -> DiceSums {
    let k = logits.shape().last();
    let mut sums = sum_blocks(
        logits,
        2 * k,
        #[inline(always)]
        |first, p, sums| {
            softmax(p, k);
            let (intersection, total) = sums.split_at_mut(k);
            for (i, p) in p.chunks_exact(k).enumerate() {
                for (t, &p) in total.iter_mut().zip(p) {
                    *t += f64::from(p);
                }
                let class = dice_class(labels[first + i]);
                intersection[class] += f64::from(p[class]);
                total[class] += 1.0;
            }
        },
    );
    let total = sums.split_off(k).into_iter().map(|t| t + SMOOTH).collect();
    DiceSums { intersection: sums, total }
}

/// 1 − meanₖ (2Iₖ + smooth) / Tₖ.
pub fn dice(sums: &DiceSums) -> f32 {
    let k = sums.total.len() as f64;
    let ratios = sums.intersection.iter().zip(&sums.total).map(|(i, t)| (2.0 * i + SMOOTH) / t);
    (1.0 - ratios.sum::<f64>() / k) as f32
}

/// With ∂/∂pₖ = −(2·onehotₖ/Tₖ − (2Iₖ + smooth)/Tₖ²) / K, through the softmax: pₖ(∂ₖ − Σⱼ pⱼ∂ⱼ).
pub fn dice_backward(dy: f32, sums: &DiceSums, logits: &Tensor, labels: &[u8]) -> Tensor {
    let scale = f64::from(dy) / sums.total.len() as f64;
    let hit: Vec<f32> = sums.total.iter().map(|t| (-2.0 * scale / t) as f32).collect();
    let every: Vec<f32> = sums
        .intersection
        .iter()
        .zip(&sums.total)
        .map(|(i, t)| (scale * (2.0 * i + SMOOTH) / (t * t)) as f32)
        .collect();
    map_softmax(
        logits,
        #[inline(always)]
        |i, d| {
            let class = dice_class(labels[i]);
            let own = d[class] * hit[class];
            let mut mean = own;
            for (&p, &e) in d.iter().zip(&every) {
                mean += p * e;
            }
            for (p, &e) in d.iter_mut().zip(&every) {
                *p *= e - mean;
            }
            d[class] += own;
            for d in d {
                *d = math::flush(*d);
            }
        },
    )
}

/// Σ weight · term, for terms of shape `(1)`.
pub fn weighted_sum(terms: &[(f32, &Tensor)]) -> Tensor {
    Tensor::scalar(terms.iter().fold(0.0, |sum, (weight, term)| sum + weight * term.item()))
}

/// factor · x, for x of shape `(1)`.
pub fn scale(x: &Tensor, factor: f32) -> Tensor {
    Tensor::scalar(factor * x.item())
}
