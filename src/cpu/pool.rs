//! Means and maxima over space and over channels, forward and backward.

use rayon::prelude::*;

use super::{math, reduce, rows_per_task, simd};
use crate::{Shape, Tensor};

/// Whether `v` becomes the maximum in the place of `max`: the first of equals stays, and so does NaN.
#[inline(always)]
fn exceeds(v: f32, max: f32) -> bool {
    (v > max) | (v.is_nan() & !max.is_nan())
}

/// x `(2, B, H, W, C)` -> the mean and the maximum over H and W, `(1, 2, B, 2C)`, and the pixel of each maximum.
pub fn channel_forward(x: &Tensor) -> (Tensor, Vec<u32>) {
    let (batch, c) = (x.dim(1), x.shape().last());
    let pixels = x.dim(2) * x.dim(3);
    let mut y = Tensor::scratch([1, 2, batch, 2 * c]);
    let mut at = vec![0; batch * 2 * c];
    let (means, maxima) = y.f32_mut().split_at_mut(batch * 2 * c);
    for (map, x) in x.f32().chunks_exact(pixels * c).enumerate() {
        let (stream, image) = (map / batch, map % batch);
        let to = (image * 2 + stream) * c;
        let blocks: Vec<(Vec<f32>, Vec<f32>, Vec<u32>)> = x
            .par_chunks(reduce::ROWS * c)
            .enumerate()
            .map(|(block, x)| {
                let (mut sum, mut max, mut at) = (vec![0.0; c], x[..c].to_vec(), vec![0; c]);
                let first = (block * reduce::ROWS) as u32;
                at.fill(first);
                simd(
                    #[inline(always)]
                    || {
                        for (pixel, x) in x.chunks_exact(c).enumerate() {
                            channel_row(&mut sum, &mut max, &mut at, x, first + pixel as u32);
                        }
                    },
                );
                (sum, max, at)
            })
            .collect();
        let mut blocks = blocks.into_iter();
        let Some((sum, mut max, mut max_at)) = blocks.next() else { continue };
        let mut sums = vec![sum];
        for (sum, block_max, block_at) in blocks {
            sums.push(sum);
            for i in 0..c {
                if exceeds(block_max[i], max[i]) {
                    (max[i], max_at[i]) = (block_max[i], block_at[i]);
                }
            }
        }
        for (mean, sum) in means[to..to + c].iter_mut().zip(reduce::combine(&sums, c)) {
            *mean = sum / pixels as f32;
        }
        maxima[to..to + c].copy_from_slice(&max);
        at[to..to + c].copy_from_slice(&max_at);
    }
    (y, at)
}

#[inline(always)]
fn channel_row(sum: &mut [f32], max: &mut [f32], at: &mut [u32], x: &[f32], pixel: u32) {
    let c = sum.len();
    let (max, at, x) = (&mut max[..c], &mut at[..c], &x[..c]);
    for i in 0..c {
        let greater = exceeds(x[i], max[i]);
        sum[i] += x[i];
        max[i] = if greater { x[i] } else { max[i] };
        at[i] = if greater { pixel } else { at[i] };
    }
}

/// The gradient of x `(2, B, H, W, C)` from that of [`channel_forward`]'s output and the pixels of the maxima.
pub fn channel_backward(dy: &Tensor, at: &[u32], shape: Shape) -> Tensor {
    let (batch, c, pixels) = (shape[1], shape.last(), shape[2] * shape[3]);
    let (means, maxima) = dy.f32().split_at(batch * 2 * c);
    let mut dx = Tensor::scratch(shape);
    let task = rows_per_task(pixels, c);
    dx.f32_mut().par_chunks_mut(pixels * c).enumerate().for_each(|(map, dx)| {
        let (stream, image) = (map / batch, map % batch);
        let from = (image * 2 + stream) * c;
        let mean: Vec<f32> = means[from..from + c].iter().map(|&d| math::flush(d / pixels as f32)).collect();
        dx.par_chunks_mut(task * c).for_each(|dx| {
            for dx in dx.chunks_exact_mut(c) {
                dx.copy_from_slice(&mean);
            }
        });
        for (i, (&d, &pixel)) in maxima[from..from + c].iter().zip(&at[from..]).enumerate() {
            dx[pixel as usize * c + i] += d;
        }
    });
    dx
}

/// x `(2, B, H, W, C)` -> mean and maximum over C of stream 0, then of stream 1, `(1, B, H, W, 4)`.
pub fn spatial_forward(x: &Tensor) -> Tensor {
    let c = x.shape().last();
    let pixels = x.len() / (2 * c);
    let mut y = Tensor::scratch(x.shape().with_dim(0, 1).with_last(4));
    let (a, b) = x.f32().split_at(pixels * c);
    let task = rows_per_task(pixels, 2 * c);
    y.f32_mut().par_chunks_mut(task * 4).zip(a.par_chunks(task * c).zip(b.par_chunks(task * c))).for_each(
        |(y, (a, b))| {
            simd(
                #[inline(always)]
                || {
                    for (y, (a, b)) in y.chunks_exact_mut(4).zip(a.chunks_exact(c).zip(b.chunks_exact(c))) {
                        y.copy_from_slice(&[mean(a), max(a), mean(b), max(b)]);
                    }
                },
            );
        },
    );
    y
}

#[inline(always)]
fn mean(x: &[f32]) -> f32 {
    reduce::sum(
        [x],
        #[inline(always)]
        |[x]| x,
    ) / x.len() as f32
}

/// The largest number of `x`, NaN if it has one; in eight interleaved maxima, for vector instructions.
#[inline(always)]
fn max(x: &[f32]) -> f32 {
    let mut lanes = [x[0]; 8];
    let (blocks, rest) = x.as_chunks::<8>();
    for block in blocks {
        for lane in 0..8 {
            lanes[lane] = if exceeds(block[lane], lanes[lane]) { block[lane] } else { lanes[lane] };
        }
    }
    let mut max = lanes[0];
    for &v in lanes[1..].iter().chain(rest) {
        max = if exceeds(v, max) { v } else { max };
    }
    max
}

/// The gradient of x `(2, B, H, W, C)` from that of [`spatial_forward`]'s output `y`.
pub fn spatial_backward(dy: &Tensor, x: &Tensor, y: &Tensor) -> Tensor {
    let c = x.shape().last();
    let pixels = x.len() / (2 * c);
    let mut dx = Tensor::scratch(x.shape());
    let task = rows_per_task(pixels, c);
    for (stream, (dx, x)) in
        dx.f32_mut().chunks_exact_mut(pixels * c).zip(x.f32().chunks_exact(pixels * c)).enumerate()
    {
        dx.par_chunks_mut(task * c)
            .zip(x.par_chunks(task * c))
            .zip(dy.f32().par_chunks(task * 4).zip(y.f32().par_chunks(task * 4)))
            .for_each(|((dx, x), (dy, y))| {
                let maps = dx.chunks_exact_mut(c).zip(x.chunks_exact(c));
                for ((dx, x), (dy, y)) in maps.zip(dy.chunks_exact(4).zip(y.chunks_exact(4))) {
                    let (d_mean, d_max, max) = (dy[2 * stream], dy[2 * stream + 1], y[2 * stream + 1]);
                    dx.fill(math::flush(d_mean / c as f32));
                    // A maximum that is NaN equals nothing; its gradient goes to the first element.
                    dx[x.iter().position(|&v| v == max).unwrap_or(0)] += d_max;
                }
            });
    }
    dx
}
