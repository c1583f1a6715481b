//! y = x·Wᵀ + b, forward and backward, for S streams at once.

use super::matmul::{Matrix, Product, Write, batch};
use super::{reduce, simd};
use crate::{Result, Tensor};

/// x `(S, …, I)`, weight `(S, O, I)`, bias `(S, O)` -> `(S, …, O)`; `residual`, of the output's shape, is added.
pub fn forward(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, residual: Option<&Tensor>) -> Tensor {
    let (s, o, i) = (weight.dim(0), weight.dim(1), weight.dim(2));
    let rows = x.len() / (s * i);
    let mut y = Tensor::scratch(x.shape().with_last(o));
    let products = y
        .f32_mut()
        .chunks_exact_mut(rows * o)
        .zip(x.f32().chunks_exact(rows * i))
        .zip(weight.f32().chunks_exact(o * i))
        .map(|((c, x), w)| Product { c, a: Matrix::rows(x, i), b: Matrix::rows(w, i).t() })
        .collect();
    let (bias, residual) = (bias.map(Tensor::f32), residual.map(Tensor::f32));
    batch(products, (rows, o, i), Write::Assign, |stream, row, col, out| {
        simd(
            #[inline(always)]
            || {
                if let Some(b) = bias {
                    add(out, &b[stream * o + col..]);
                }
                if let Some(r) = residual {
                    add(out, &r[(stream * rows + row) * o + col..]);
                }
            },
        );
    });
    y
}

#[inline(always)]
fn add(out: &mut [f32], term: &[f32]) {
    for (y, &t) in out.iter_mut().zip(term) {
        *y += t;
    }
}

/// dx = dy·W + `sum`, which is of the shape of dx.
pub fn backward_input(dy: &Tensor, weight: &Tensor, sum: Option<&Tensor>) -> Tensor {
    let (s, o, i) = (weight.dim(0), weight.dim(1), weight.dim(2));
    let rows = dy.len() / (s * o);
    let mut dx = Tensor::scratch(dy.shape().with_last(i));
    let products = dx
        .f32_mut()
        .chunks_exact_mut(rows * i)
        .zip(dy.f32().chunks_exact(rows * o))
        .zip(weight.f32().chunks_exact(o * i))
        .map(|((c, dy), w)| Product { c, a: Matrix::rows(dy, o), b: Matrix::rows(w, i) })
        .collect();
    let sum = sum.map(Tensor::f32);
    batch(products, (rows, i, o), Write::Assign, |stream, row, col, out| {
        simd(
            #[inline(always)]
            || {
                if let Some(sum) = sum {
                    add(out, &sum[(stream * rows + row) * i + col..]);
                }
            },
        );
    });
    dx
}

/// dW = dyᵀ·x for each of `s` streams, `(S, O, I)`.
pub fn backward_weight(dy: &Tensor, x: &Tensor, s: usize) -> Tensor {
    let (o, i) = (dy.shape().last(), x.shape().last());
    let rows = dy.len() / (s * o);
    let mut dw = Tensor::scratch([s, o, i]);
    let products = dw
        .f32_mut()
        .chunks_exact_mut(o * i)
        .zip(dy.f32().chunks_exact(rows * o))
        .zip(x.f32().chunks_exact(rows * i))
        .map(|((c, dy), x)| Product { c, a: Matrix::rows(dy, o).t(), b: Matrix::rows(x, i) })
        .collect();
    batch(products, (o, i, rows), Write::Assign, |_, _, _, _| ());
    dw
}

/// db = the column sums of dy, for each of `s` streams, `(S, O)`.
pub fn backward_bias(dy: &Tensor, s: usize) -> Result<Tensor> {
    let o = dy.shape().last();
    let sums: Vec<f32> =
        dy.f32().chunks_exact(dy.len() / s).flat_map(|dy| reduce::sum_columns(dy, o)).collect();
    Tensor::from_slice([s, o], &sums)
}
