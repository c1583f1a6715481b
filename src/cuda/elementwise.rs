//! Launches of `kernels/elementwise.cu`: operations on each number alone.

use super::{Call, scratch_like};
use crate::{DType, Error, Result, Tensor};

/// Threads of a block.
const THREADS: usize = 256;

/// Starts `op` on x, and on `other` if there is one: a number of the output for each number of x.
fn map(op: &str, x: &Tensor, other: Option<&Tensor>, y: &mut Tensor, operations: usize) -> Result<()> {
    let mut call = Call::new(op, x)?.input(x);
    if let Some(other) = other {
        call = call.input(other);
    }
    let (len, dtype) = (x.len(), y.dtype());
    // A thread of a cast takes one number.
    let lanes = if dtype == x.dtype() { 16 / dtype.size() } else { 1 };
    let (call, threads) = call.output_of(y, dtype).operations(operations * len).groups(len, lanes);
    // SAFETY: a thread for each group of `lanes` numbers at aligned addresses, then one for each of the other numbers,
    // guarded; all tensors have as many numbers as x.
    unsafe { call.launch([threads.div_ceil(THREADS), 1, 1], THREADS, 0) }
}

fn unary(op: &str, x: &Tensor, operations: usize) -> Result<Tensor> {
    let mut y = scratch_like(x, x.shape())?;
    map(op, x, None, &mut y, operations)?;
    Ok(y)
}

fn binary(op: &str, x: &Tensor, other: &Tensor, operations: usize) -> Result<Tensor> {
    let mut y = scratch_like(x, x.shape())?;
    map(op, x, Some(other), &mut y, operations)?;
    Ok(y)
}

/// x += y.
pub fn add_assign(x: &mut Tensor, y: &Tensor) -> Result<()> {
    *x = binary("add", x, y, 1)?;
    Ok(())
}

/// max(x, 0).
pub fn relu(x: &Tensor) -> Result<Tensor> {
    unary("relu", x, 1)
}

/// The gradient of [`relu`] from its output `y`.
pub fn relu_backward(dy: Tensor, y: &Tensor) -> Result<Tensor> {
    binary("relu_backward", &dy, y, 1)
}

/// σ(x).
pub fn sigmoid(x: &Tensor) -> Result<Tensor> {
    unary("sigmoid", x, 4)
}

/// The gradient of [`sigmoid`] from its output `y`.
pub fn sigmoid_backward(dy: Tensor, y: &Tensor) -> Result<Tensor> {
    binary("sigmoid_backward", &dy, y, 3)
}

/// GELU(x).
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    unary("gelu", x, 8)
}

/// The gradient of [`gelu`] from its input `x`.
pub fn gelu_backward(dy: Tensor, x: &Tensor) -> Result<Tensor> {
    binary("gelu_backward", &dy, x, 14)
}

/// The same numbers as `dtype`.
pub fn cast(x: &Tensor, dtype: DType) -> Result<Tensor> {
    if x.dtype() == DType::U8 || dtype == DType::U8 {
        let why = format!("no conversion from {} to {dtype}", x.dtype());
        return Err(Error::shape("cast", why, &[x.shape()]));
    }
    let mut y = Tensor::scratch_on(&x.device(), x.shape(), dtype)?;
    map(&format!("cast_{dtype}"), x, None, &mut y, 0)?;
    Ok(y)
}
