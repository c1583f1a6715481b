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

/// A piece of a tensor as `cast_all` sees it: addresses and numbers.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
struct Piece {
    from: u64,
    to: u64,
    len: u64,
}

/// The most numbers of a block of `cast_all`: many, because the table of pieces goes to the device each time.
const PIECE: usize = 16384;

/// Float32 tensors of one device as 16-bit `dtype`, in one launch: the parts of one buffer, each from a multiple of 256
/// bytes on.
pub fn cast_all(tensors: &[&Tensor], dtype: DType) -> Result<Vec<Tensor>> {
    let Some(first) = tensors.first() else { return Ok(Vec::new()) };
    let device = first.device();
    if let Some(wrong) = tensors.iter().find(|x| x.dtype() != DType::F32 || x.device() != device) {
        let why =
            format!("a {} tensor on {:?}, where all are f32 on {device:?}", wrong.dtype(), wrong.device());
        return Err(Error::shape("cast_all", why, &[wrong.shape()]));
    }
    let room = |x: &Tensor| x.len().next_multiple_of(256 / dtype.size());
    let all = Tensor::scratch_on(&device, [tensors.iter().map(|x| room(x)).sum()], dtype)?;
    let no_tensor = || Error::cuda("cast_all", "a tensor is on the CPU");
    let (_, base) = all.address().ok_or_else(no_tensor)?;
    let (mut starts, mut pieces) = (Vec::with_capacity(tensors.len()), Vec::new());
    let (mut start, mut numbers) = (0, 0);
    for x in tensors {
        let (_, from) = x.address().ok_or_else(no_tensor)?;
        pieces.extend((0..x.len()).step_by(PIECE).map(|at| Piece {
            from: from + 4 * at as u64,
            to: base + ((start + at) * dtype.size()) as u64,
            len: PIECE.min(x.len() - at) as u64,
        }));
        starts.push(start);
        (start, numbers) = (start + room(x), numbers + x.len());
    }
    if !pieces.is_empty() {
        let table: &[u8] = bytemuck::cast_slice(&pieces);
        let table = Tensor::from_slice([table.len()], table)?.to(&device)?;
        let call = Call::untyped(&format!("cast_all_{dtype}"), &table)?.input_of(&table, DType::U8);
        let call = call.bytes((4 + dtype.size()) * numbers).operations(0);
        // SAFETY: a block for each piece, which lies within its tensor and within the part of `all` that is for it; the
        // tensors are borrowed, and `all` is new.
        unsafe { call.launch([pieces.len(), 1, 1], THREADS, 0)? };
    }
    let part = |(x, start): (&&Tensor, usize)| all.narrow(start..start + x.len())?.reshape(x.shape());
    tensors.iter().zip(starts).map(part).collect()
}
