//! Matrix products of linear layers; see [`crate::cpu::linear`].

use super::driver::{Matrix, Product};
use super::reduce::{column_sums, sum_partials};
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

/// dx = dy·W + `sum`, which is of the shape of dx.
pub fn backward_input(dy: &Tensor, weight: &Tensor, sum: Option<&Tensor>) -> Result<Tensor> {
    let (s, o, i) = (weight.dim(0), weight.dim(1), weight.dim(2));
    let rows = dy.len() / (s * o);
    let dx = scratch_like(dy, dy.shape().with_last(i))?;
    same_type(dy, [Some(weight), sum, None])?;
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
        residual: sum.map(|sum| matrix(sum, i, rows * i)).transpose()?,
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
    same_type(dy, [Some(x), None, None])?;
    let gradient = WeightGradient { count: s, o, i, rows };
    let parts = gradient.parts();
    let partial = scratch_f32(dy, [s, parts, o * i])?;
    let address = |x: &Tensor| -> Result<u64> { Ok(matrix(x, 0, 0)?.address) };
    // SAFETY: dy and x have s times `rows` rows, and `partial` is as long as the gradients of all parts.
    unsafe { gradient.queue(dy, address(dy)?, address(x)?, address(&partial)?)? };
    sum_parts(partial, s, parts)?.reshape([s, o, i])
}

/// The products of the gradients of `count` weights `(O, I)` that were used on `rows` rows each.
#[derive(Clone, Copy)]
pub(crate) struct WeightGradient {
    pub count: usize,
    pub o: usize,
    pub i: usize,
    pub rows: usize,
}

impl WeightGradient {
    /// Into how many parts the rows are divided, evenly: as many as make work for a whole device, because a weight
    /// alone is a few tiles of a product with a long sum.
    pub fn parts(self) -> usize {
        /// Rows and columns of a tile, tiles that fill a large device, and rows that are worth a part.
        const TILE: usize = 128;
        const TILES: usize = 132;
        const LEAST: usize = 512;
        let tiles = self.count * self.o.div_ceil(TILE) * self.i.div_ceil(TILE);
        let most = (TILES / tiles).min(self.rows / LEAST).max(1);
        (1..=most).rev().find(|&parts| self.rows.is_multiple_of(parts)).unwrap_or(1)
    }

    /// Queues dyᵀ·x of each part, f32 `(count, parts, O, I)`, of matrices that lie one after another at these addresses:
    /// dy `(count, rows, O)` and x `(count, rows, I)`, of the type and on the device of the tensor `like`.
    ///
    /// # Safety
    /// The matrices have these lengths, and nobody else uses `dw`.
    pub unsafe fn queue(self, like: &Tensor, dy: u64, x: u64, dw: u64) -> Result<()> {
        let Self { count, o, i, rows } = self;
        let parts = self.parts();
        let rows = rows / parts;
        let product = Product {
            dtype: like.dtype(),
            c_dtype: DType::F32,
            count: count * parts,
            shape: (o, i, rows),
            a: Matrix { address: dy, stride: o, batch: rows * o },
            a_transposed: true,
            b: Matrix { address: x, stride: i, batch: rows * i },
            b_transposed: false,
            c: Matrix { address: dw, stride: i, batch: o * i },
            bias: None,
            residual: None,
            relu: false,
        };
        // SAFETY: the caller vouches for the matrices.
        unsafe { driver_of(like)?.product(&product) }
    }
}

/// The sums over the parts of `partial`, f32 `(s, parts, len)`.
pub(crate) fn sum_parts(partial: Tensor, s: usize, parts: usize) -> Result<Tensor> {
    if parts == 1 {
        return Ok(partial);
    }
    let mut sums = scratch_f32(&partial, [s, partial.len() / (s * parts)])?;
    sum_partials(&partial, &mut sums, s, parts, 1.0)?;
    Ok(sums)
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
