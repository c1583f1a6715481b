//! Operations on each element alone.

use rayon::prelude::*;

use super::{math, simd};
use crate::Tensor;

/// Elements for one task of a parallel loop.
const CHUNK: usize = 16_384;

/// `y[i] = f(x[i])`.
pub fn map(x: &Tensor, f: impl Fn(f32) -> f32 + Sync) -> Tensor {
    let mut y = Tensor::scratch(x.shape());
    y.f32_mut().par_chunks_mut(CHUNK).zip(x.f32().par_chunks(CHUNK)).for_each(|(y, x)| {
        simd(
            #[inline(always)]
            || {
                for (y, &x) in y.iter_mut().zip(x) {
                    *y = f(x);
                }
            },
        );
    });
    y
}

/// `x[i] = f(x[i], y[i])`, in place unless the buffer of `x` is shared.
pub fn zip_into(mut x: Tensor, y: &Tensor, f: impl Fn(f32, f32) -> f32 + Sync) -> Tensor {
    zip_assign(x.f32_mut(), y.f32(), f);
    x
}

/// `x[i] = f(x[i], y[i])`.
pub fn zip_assign(x: &mut [f32], y: &[f32], f: impl Fn(f32, f32) -> f32 + Sync) {
    x.par_chunks_mut(CHUNK).zip(y.par_chunks(CHUNK)).for_each(|(x, y)| {
        simd(
            #[inline(always)]
            || {
                for (x, &y) in x.iter_mut().zip(y) {
                    *x = f(*x, y);
                }
            },
        );
    });
}

/// `x[i] += y[i]`.
pub fn add_assign(x: &mut [f32], y: &[f32]) {
    zip_assign(
        x,
        y,
        #[inline(always)]
        |x, y| x + y,
    );
}

/// max(x, 0).
pub fn relu(x: &Tensor) -> Tensor {
    // Written so that NaN passes through, as it does in PyTorch.
    map(
        x,
        #[inline(always)]
        |x| if x < 0.0 { 0.0 } else { x },
    )
}

/// The gradient of [`relu`] from its output `y`.
pub fn relu_backward(dy: Tensor, y: &Tensor) -> Tensor {
    zip_into(
        dy,
        y,
        #[inline(always)]
        |dy, y| if y > 0.0 { dy } else { 0.0 },
    )
}

/// σ(x).
#[expect(clippy::redundant_closure, reason = "only a closure can be told to be inlined into the SIMD loop")]
pub fn sigmoid(x: &Tensor) -> Tensor {
    map(
        x,
        #[inline(always)]
        |x| math::sigmoid(x),
    )
}

/// The gradient of [`sigmoid`] from its output `y`: σ′ = σ(1 − σ).
pub fn sigmoid_backward(dy: Tensor, y: &Tensor) -> Tensor {
    zip_into(
        dy,
        y,
        #[inline(always)]
        |dy, y| math::flush(dy * y * (1.0 - y)),
    )
}

/// GELU(x).
#[expect(clippy::redundant_closure, reason = "only a closure can be told to be inlined into the SIMD loop")]
pub fn gelu(x: &Tensor) -> Tensor {
    map(
        x,
        #[inline(always)]
        |x| math::gelu(x),
    )
}

/// The gradient of [`gelu`] from its input `x`.
pub fn gelu_backward(dy: Tensor, x: &Tensor) -> Tensor {
    zip_into(
        dy,
        x,
        #[inline(always)]
        |dy, x| math::flush(dy * math::gelu_derivative(x)),
    )
}
