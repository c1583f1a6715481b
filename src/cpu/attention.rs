//! Multi-head attention by tiles of queries: softmax(q·kᵀ/√d)·v, forward and backward.
//!
//! One tile of scores, at most 128 queries by all keys of one head, is alive on each thread. The backward computes it
//! again, so nothing but q, k and v is saved.

use rayon::prelude::*;

use super::matmul::{Matrix, Write, product};
use super::{elementwise, math, reduce, simd};
use crate::Tensor;

/// Queries of one tile of scores.
const TILE: usize = 128;

/// The lengths that both directions need.
#[derive(Clone, Copy)]
struct Lengths {
    queries: usize,
    keys: usize,
    channels: usize,
    heads: usize,
}

impl Lengths {
    fn of(q: &Tensor, kv: &Tensor, heads: usize) -> Self {
        Self { queries: q.dim(2), keys: kv.dim(2), channels: q.shape().last(), heads }
    }

    /// Channels of one head.
    fn depth(self) -> usize {
        self.channels / self.heads
    }

    /// 1/√d.
    fn scale(self) -> f32 {
        (self.depth() as f32).powf(-0.5)
    }

    /// Queries of one task: a multiple of the tile, and a handful of tasks for each sample.
    fn queries_per_task(self) -> usize {
        self.queries.div_ceil(8).next_multiple_of(TILE)
    }
}

/// scores[i][j] = e^(qᵢ·kⱼ/√d − maxⱼ), and the sum of each row.
fn exponentials(l: Lengths, q: Matrix, k: Matrix, rows: usize, scores: &mut [f32], sums: &mut [f32]) {
    let shape = (rows, l.keys, l.depth());
    product(scores, l.keys, shape, q, k.t(), l.scale(), Write::Assign);
    simd(
        #[inline(always)]
        || {
            for (row, sum) in scores.chunks_exact_mut(l.keys).zip(sums) {
                let most = reduce::max(row);
                let mut lanes = [0.0f32; 16];
                let (chunks, tail) = row.as_chunks_mut::<16>();
                for chunk in chunks {
                    for (s, v) in lanes.iter_mut().zip(chunk) {
                        *v = math::exp(*v - most);
                        *s += *v;
                    }
                }
                *sum = lanes.iter().sum();
                for v in tail {
                    *v = math::exp(*v - most);
                    *sum += *v;
                }
            }
        },
    );
}

/// q `(S, B, N, C)`, kv `(S, B, M, 2C)` with the keys before the values -> `(S, B, N, C)`.
pub fn forward(q: &Tensor, kv: &Tensor, heads: usize) -> Tensor {
    let l = Lengths::of(q, kv, heads);
    let (c, d, block) = (l.channels, l.depth(), TILE.min(l.queries));
    let mut y = Tensor::scratch(q.shape());
    let samples = y.f32_mut().par_chunks_exact_mut(l.queries * c);
    let inputs = q.f32().par_chunks_exact(l.queries * c).zip(kv.f32().par_chunks_exact(l.keys * 2 * c));
    samples.zip(inputs).for_each(|(y, (q, kv))| {
        y.par_chunks_mut(block * c).zip(q.par_chunks(block * c)).for_each_init(
            || (vec![0.0; block * l.keys], vec![0.0; block]),
            |(scores, sums), (y, q)| {
                let rows = y.len() / c;
                let scores = &mut scores[..rows * l.keys];
                for head in 0..heads {
                    let at = head * d;
                    let k = Matrix::rows(&kv[at..], 2 * c);
                    let v = Matrix::rows(&kv[c + at..], 2 * c);
                    exponentials(l, Matrix::rows(&q[at..], c), k, rows, scores, sums);
                    let p = Matrix::rows(scores, l.keys);
                    product(&mut y[at..], c, (rows, d, l.keys), p, v, 1.0, Write::Assign);
                    for (row, sum) in y.chunks_exact_mut(c).zip(&*sums) {
                        let factor = 1.0 / sum;
                        row[at..at + d].iter_mut().for_each(|v| *v *= factor);
                    }
                }
            },
        );
    });
    y
}

/// The gradients of q and kv.
///
/// With P the softmax and dP = dy·vᵀ: dS = P∘(dP − rowsum(P∘dP)), dq = dS·k/√d, dk = dSᵀ·q/√d, dv = Pᵀ·dy.
pub fn backward(dy: &Tensor, q: &Tensor, kv: &Tensor, heads: usize) -> (Tensor, Tensor) {
    let l = Lengths::of(q, kv, heads);
    let (mut dq, mut dkv) = (Tensor::scratch(q.shape()), Tensor::scratch(kv.shape()));
    let (per_task, c) = (l.queries_per_task(), l.channels);
    let samples = dq.f32_mut().par_chunks_exact_mut(l.queries * c);
    let samples = samples.zip(dkv.f32_mut().par_chunks_exact_mut(l.keys * 2 * c));
    let inputs = q.f32().par_chunks_exact(l.queries * c).zip(kv.f32().par_chunks_exact(l.keys * 2 * c));
    samples.zip(inputs).zip(dy.f32().par_chunks_exact(l.queries * c)).for_each(
        |(((dq, dkv), (q, kv)), dy)| {
            let parts: Vec<Vec<f32>> = dq
                .par_chunks_mut(per_task * c)
                .zip(q.par_chunks(per_task * c))
                .zip(dy.par_chunks(per_task * c))
                .map(|((dq, q), dy)| backward_task(l, dq, q, kv, dy))
                .collect();
            dkv.fill(0.0);
            for part in &parts {
                elementwise::add_assign(dkv, part);
            }
        },
    );
    (dq, dkv)
}

/// Writes the gradient of some queries of one sample; returns what they add to the gradient of kv.
fn backward_task(l: Lengths, dq: &mut [f32], q: &[f32], kv: &[f32], dy: &[f32]) -> Vec<f32> {
    let (c, d, m) = (l.channels, l.depth(), l.keys);
    let mut dkv = vec![0.0; kv.len()];
    let (mut p, mut ds, mut sums) = (vec![0.0; TILE * m], vec![0.0; TILE * m], vec![0.0; TILE]);
    let tiles = dq.chunks_mut(TILE * c).zip(q.chunks(TILE * c)).zip(dy.chunks(TILE * c));
    for ((dq, q), dy) in tiles {
        let rows = dq.len() / c;
        let (p, ds) = (&mut p[..rows * m], &mut ds[..rows * m]);
        for at in (0..c).step_by(d) {
            let [q, dy] = [q, dy].map(|t| Matrix::rows(&t[at..], c));
            let [k, v] = [at, c + at].map(|offset| Matrix::rows(&kv[offset..], 2 * c));
            exponentials(l, q, k, rows, p, &mut sums);
            product(ds, m, (rows, m, d), dy, v.t(), 1.0, Write::Assign);
            simd(
                #[inline(always)]
                || {
                    for ((p, ds), sum) in p.chunks_exact_mut(m).zip(ds.chunks_exact_mut(m)).zip(&sums) {
                        let factor = 1.0 / sum;
                        p.iter_mut().for_each(|p| *p = math::flush(*p * factor));
                        let mean = reduce::dot(p, ds);
                        for (ds, &p) in ds.iter_mut().zip(&*p) {
                            *ds = math::flush(p * (*ds - mean));
                        }
                    }
                },
            );
            let (p, ds) = (Matrix::rows(p, m), Matrix::rows(ds, m));
            product(&mut dq[at..], c, (rows, d, m), ds, k, l.scale(), Write::Assign);
            product(&mut dkv[at..], 2 * c, (m, d, rows), ds.t(), q, l.scale(), Write::Add);
            product(&mut dkv[c + at..], 2 * c, (m, d, rows), p.t(), dy, 1.0, Write::Add);
        }
    }
    dkv
}
