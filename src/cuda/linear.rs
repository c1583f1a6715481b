//! Matrix products of linear layers; see [`crate::cpu::linear`].

use super::driver::{Matrix, Product};
use super::reduce::column_sums;
use super::structure::repeat_row;
use super::{driver_of, scratch_f32, scratch_like};
use crate::{DType, Error, Result, Tensor};

/// A tensor as row-major matrices of `stride` columns, `batch` numbers apart.
pub(crate) fn matrix(x: &Tensor, stride: usize, batch: usize) -> Result<Matrix> {
    let (_, address) = x.address().ok_or_else(|| Error::cuda("product", "a tensor is on the CPU"))?;
    Ok(Matrix { address, stride, batch })
}

/// x `(S, …, I)`, weight `(S, O, I)`, bias `(S, O)` -> `(S, …, O)`; `residual`, of the output's shape, is added.
pub fn forward(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    apply(x, weight, bias, residual, false)
}

/// As [`forward`]; with `relu`, negative results become 0.
pub fn apply(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
    relu: bool,
) -> Result<Tensor> {
    let mut y = scratch_like(x, x.shape().with_last(weight.dim(1)))?;
    same_type(x, [None, None, residual])?;
    let mut product = layer(x, weight, bias, &y)?;
    let Matrix { stride, batch, .. } = product.c;
    let mut residual = residual.map(|r| matrix(r, stride, batch)).transpose()?;
    // Some releases of cuBLASLt refuse the bias of a single column: it goes ahead, and the product is added to it.
    if let (1, Some(bias), None) = (weight.dim(1), bias, residual) {
        repeat_row(bias, &mut y)?;
        (product.bias, residual) = (None, Some(product.c));
    }
    // SAFETY: the lengths are those of the tensors, all of one type and on one device.
    unsafe { driver_of(x)?.product(&Product { residual, relu, ..product })? };
    Ok(y)
}

/// ReLU(x·Wᵀ + bias) with the streams' outputs side by side: x `(S, …, I)`, weight `(S, O, I)`, bias `(S, O)` ->
/// `(1, …, S·O)`.
pub fn side_by_side(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (s, o) = (weight.dim(0), weight.dim(1));
    let y = scratch_like(x, x.shape().with_dim(0, 1).with_last(s * o))?;
    let product = Product { c: matrix(&y, s * o, o)?, relu: true, ..layer(x, weight, bias, &y)? };
    // SAFETY: as in `apply`; the streams' columns of y lie side by side.
    unsafe { driver_of(x)?.product(&product)? };
    Ok(y)
}

/// y = x·Wᵀ + bias, each stream's rows after those of the one before.
fn layer(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, y: &Tensor) -> Result<Product> {
    let (s, o, i) = (weight.dim(0), weight.dim(1), weight.dim(2));
    let rows = x.len() / (s * i);
    same_type(x, [Some(weight), bias, None])?;
    Ok(Product {
        dtype: x.dtype(),
        c_dtype: x.dtype(),
        count: s,
        shape: (rows, o, i),
        a: matrix(x, i, rows * i)?,
        a_transposed: false,
        b: matrix(weight, i, o * i)?,
        b_transposed: true,
        c: matrix(y, o, rows * o)?,
        bias: bias.map(|b| matrix(b, o, o)).transpose()?.map(|b| b.address),
        residual: None,
        relu: false,
    })
}

/// dx = dy·W.
pub fn backward_input(dy: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let (s, o, i) = (weight.dim(0), weight.dim(1), weight.dim(2));
    let rows = dy.len() / (s * o);
    let dx = scratch_like(dy, dy.shape().with_last(i))?;
    same_type(dy, [Some(weight), None, None])?;
    let product = Product {
        dtype: dy.dtype(),
        c_dtype: dy.dtype(),
        count: s,
        shape: (rows, i, o),
        a: matrix(dy, o, rows * o)?,
        a_transposed: false,
        b: matrix(weight, i, o * i)?,
        b_transposed: false,
        c: matrix(&dx, i, rows * i)?,
        bias: None,
        residual: None,
        relu: false,
    };
    // SAFETY: as in `forward`.
    unsafe { driver_of(dy)?.product(&product)? };
    Ok(dx)
}

/// dW = dyᵀ·x for each of `s` streams, f32 `(S, O, I)`.
pub fn backward_weight(dy: &Tensor, x: &Tensor, s: usize) -> Result<Tensor> {
    let (o, i) = (dy.shape().last(), x.shape().last());
    let rows = dy.len() / (s * o);
    let dw = scratch_f32(dy, [s, o, i])?;
    same_type(dy, [Some(x), None, None])?;
    let product = Product {
        dtype: dy.dtype(),
        c_dtype: DType::F32,
        count: s,
        shape: (o, i, rows),
        a: matrix(dy, o, rows * o)?,
        a_transposed: true,
        b: matrix(x, i, rows * i)?,
        b_transposed: false,
        c: matrix(&dw, i, o * i)?,
        bias: None,
        residual: None,
        relu: false,
    };
    // SAFETY: as in `forward`.
    unsafe { driver_of(dy)?.product(&product)? };
    Ok(dw)
}

/// db = the column sums of dy, for each of `s` streams, f32 `(S, O)`.
pub fn backward_bias(dy: &Tensor, s: usize) -> Result<Tensor> {
    column_sums(dy, s)
}

/// Whether all tensors have the type and the device of `x`.
pub(crate) fn same_type(x: &Tensor, others: [Option<&Tensor>; 3]) -> Result<()> {
    for other in others.into_iter().flatten() {
        if other.dtype() != x.dtype() || other.device() != x.device() {
            let why = format!("{} and {} cannot be multiplied", x.dtype(), other.dtype());
            return Err(Error::shape("product", why, &[x.shape(), other.shape()]));
        }
    }
    Ok(())
}
