//! Launches of `kernels/loss.cu`; see [`crate::cpu::loss`] for the equations.

use super::argmax::{THREADS, Tiles};
use super::{Call, scratch_f32, scratch_like};
use crate::{DType, Error, Result, Tensor};

/// Blocks that fill a device without making many partial sums.
const MOST_PARTS: usize = 2048;

/// Threads of a block that adds up the partial sums of all others.
pub(super) const COMBINING: usize = 1024;

/// `len` numbers in double precision beside `x`, of arbitrary content: for partial sums.
pub(super) fn scratch_f64(x: &Tensor, len: usize) -> Result<Tensor> {
    scratch_f32(x, [len, 2])
}

/// The loss and the number of pixels that count, from the kernel `op` over the rows of `logits` and of `target`.
fn mean(op: &str, logits: &Tensor, target: Option<&Tensor>, labels: &Tensor) -> Result<(Tensor, Tensor)> {
    let tiles = Tiles::new(logits, target.map_or(0, |t| t.dtype().size()));
    let parts = tiles.blocks().min(MOST_PARTS);
    let mut partial = scratch_f64(logits, 2 * parts)?;
    let mut call = Call::new(op, logits)?.input(logits);
    let mut shared = tiles.bytes;
    if let Some(target) = target {
        call = call.input(target);
        shared += tiles.bytes;
    }
    let call = call.input_of(labels, DType::U8).output_of(&mut partial, DType::F32);
    let call = call.operations(if target.is_some() { 8 } else { 3 } * logits.len());
    // SAFETY: logits, target and labels have these rows, and the last tile is guarded; each block has its two partial
    // sums. The tiles fit into the shared memory, and so does a double for each thread.
    unsafe { tiles.launch(call, parts, shared.max(8 * THREADS))? };
    let (mut loss, mut pixels) = (scratch_f32(logits, [1])?, scratch_f32(logits, [1])?);
    let call = Call::untyped("loss_mean", &partial)?
        .input_of(&partial, DType::F32)
        .output_of(&mut loss, DType::F32)
        .output_of(&mut pixels, DType::F32)
        .int(parts)
        .operations(2 * parts);
    // SAFETY: a block walks over the parts; a double for each of its threads fits into the shared memory.
    unsafe { call.launch([1, 1, 1], COMBINING, 8 * COMBINING)? };
    Ok((loss, pixels))
}

/// The gradient of a [`mean`].
fn mean_backward(
    op: &str,
    [dy, pixels]: [&Tensor; 2],
    logits: &Tensor,
    target: Option<&Tensor>,
    labels: &Tensor,
) -> Result<Tensor> {
    let tiles = Tiles::new(logits, target.map_or(0, |t| t.dtype().size()));
    let mut dx = scratch_like(logits, logits.shape())?;
    let mut call = Call::new(op, logits)?.input_of(dy, DType::F32).input_of(pixels, DType::F32).input(logits);
    let mut shared = tiles.bytes;
    if let Some(target) = target {
        call = call.input(target);
        shared += tiles.bytes;
    }
    let call = call.input_of(labels, DType::U8).output(&mut dx);
    let call = call.operations(if target.is_some() { 12 } else { 6 } * logits.len());
    // SAFETY: logits, target, labels and dx have these rows, and the last tile is guarded; the tiles fit into the
    // shared memory.
    unsafe { tiles.launch(call, tiles.blocks(), shared)? };
    Ok(dx)
}

/// `−mean log softmax(x)[label]` over the pixels that are not ignored, and their number; 0 without any.
pub fn cross_entropy(logits: &Tensor, labels: &Tensor) -> Result<(Tensor, Tensor)> {
    mean("cross_entropy", logits, None, labels)
}

/// (softmax(x) − onehot) · dy / n for the n pixels that are not ignored, 0 for the others.
pub fn cross_entropy_backward(
    dy: &Tensor,
    pixels: &Tensor,
    logits: &Tensor,
    labels: &Tensor,
) -> Result<Tensor> {
    mean_backward("cross_entropy_backward", [dy, pixels], logits, None, labels)
}

/// −mean Σₖ softmax(t)ₖ · log softmax(x)ₖ over the pixels that are not ignored, and their number; 0 without any.
pub fn consistency(logits: &Tensor, target: &Tensor, labels: &Tensor) -> Result<(Tensor, Tensor)> {
    mean("consistency", logits, Some(target), labels)
}

/// (softmax(x) − softmax(t)) · dy / n for the n pixels that are not ignored, 0 for the others.
pub fn consistency_backward(
    dy: &Tensor,
    pixels: &Tensor,
    logits: &Tensor,
    target: &Tensor,
    labels: &Tensor,
) -> Result<Tensor> {
    mean_backward("consistency_backward", [dy, pixels], logits, Some(target), labels)
}

/// Dice, and the coefficients `(2, K)` of which its gradient is made.
pub fn dice(logits: &Tensor, labels: &Tensor) -> Result<(Tensor, Tensor)> {
    let tiles = Tiles::new(logits, 4);
    let k = tiles.k;
    if k > THREADS {
        let why = format!("at most {THREADS} classes fit on a device");
        return Err(Error::shape("dice", why, &[logits.shape()]));
    }
    let parts = tiles.blocks().min(MOST_PARTS);
    let mut partial = scratch_f64(logits, parts * 2 * k)?;
    let call = Call::new("dice", logits)?
        .input(logits)
        .input_of(labels, DType::U8)
        .output_of(&mut partial, DType::F32)
        .operations(6 * logits.len());
    let shared = tiles.bytes + 4 * tiles.tile * k + 8 * tiles.tile;
    // SAFETY: logits and labels have these rows, and the last tile is guarded; each block has its 2K partial sums. The
    // shared memory holds a tile, one of floats, and two numbers for each row, and later two floats for each thread.
    unsafe { tiles.launch(call, parts, shared.max(8 * THREADS))? };
    let (mut loss, mut coefficients) = (scratch_f32(logits, [1])?, scratch_f32(logits, [2, k])?);
    let call = Call::untyped("dice_combine", &partial)?
        .input_of(&partial, DType::F32)
        .output_of(&mut loss, DType::F32)
        .output_of(&mut coefficients, DType::F32)
        .int(parts)
        .int(k)
        .operations(partial.len() / 2);
    // SAFETY: a block walks over the parts, with more threads than a part has sums; a double for each fits into the
    // shared memory.
    unsafe { call.launch([1, 1, 1], COMBINING, 8 * COMBINING)? };
    Ok((loss, coefficients))
}

/// The gradient of dice.
pub fn dice_backward(dy: &Tensor, coefficients: &Tensor, logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    let tiles = Tiles::new(logits, 0);
    let mut dx = scratch_like(logits, logits.shape())?;
    let call = Call::new("dice_backward", logits)?
        .input_of(dy, DType::F32)
        .input_of(coefficients, DType::F32)
        .input(logits)
        .input_of(labels, DType::U8)
        .output(&mut dx)
        .operations(9 * logits.len());
    // SAFETY: logits, labels and dx have these rows, and the last tile is guarded; the shared memory holds a tile and
    // the 2K coefficients.
    unsafe { tiles.launch(call, tiles.blocks(), tiles.bytes + 8 * tiles.k)? };
    Ok(dx)
}

/// Σ weight · term.
pub fn weighted_sum(terms: &[(f32, &Tensor)]) -> Result<Tensor> {
    /// Terms of one launch.
    const AT_ONCE: usize = 8;
    let mut sum: Option<Tensor> = None;
    for chunk in terms.chunks(AT_ONCE) {
        let mut total = scratch_f32(chunk[0].1, [1])?;
        let mut call = Call::untyped("weighted_sum", chunk[0].1)?
            .output_of(&mut total, DType::F32)
            .maybe_input_of(sum.as_ref(), DType::F32);
        for i in 0..AT_ONCE {
            let term = chunk.get(i);
            call = call.maybe_input_of(term.map(|t| t.1), DType::F32).float(term.map_or(0.0, |t| t.0));
        }
        // SAFETY: one thread reads each number and writes one.
        unsafe { call.operations(2 * chunk.len()).launch([1, 1, 1], 1, 0)? };
        sum = Some(total);
    }
    sum.ok_or_else(|| Error::cuda("weighted_sum", "there is no term"))
}

/// factor · x, for x of shape `(1)`.
pub fn scale(x: &Tensor, factor: f32) -> Result<Tensor> {
    let mut y = scratch_f32(x, [1])?;
    let call = Call::untyped("scale_number", x)?.input_of(x, DType::F32).output_of(&mut y, DType::F32);
    // SAFETY: one thread reads a number and writes one.
    unsafe { call.float(factor).operations(1).launch([1, 1, 1], 1, 0)? };
    Ok(y)
}
