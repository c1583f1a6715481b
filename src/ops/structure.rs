//! Operations that move numbers and compute none.

use std::ops::Range;

use rayon::prelude::*;

use crate::{Error, Result, Shape, Tape, Tensor, Var};

/// Entry `index` of the leading axis, as a leading axis of 1; shares the buffer of `x`.
///
/// # Errors
/// When there is no such entry.
pub fn select(tape: &mut Tape, x: &Var, index: usize) -> Result<Var> {
    let y = x.value().narrow(index..index + 1)?;
    let shape = x.shape();
    Ok(tape.record([x], y, move |dy, _| {
        let mut dx = Tensor::zeros(shape);
        dx.f32_mut()[index * dy.len()..(index + 1) * dy.len()].copy_from_slice(dy.f32());
        Ok([Some(dx)])
    }))
}

/// The same numbers under another shape.
///
/// # Errors
/// When the number of elements differs.
pub fn reshape(tape: &mut Tape, x: &Var, shape: impl Into<Shape>) -> Result<Var> {
    let y = x.value().reshape(shape)?;
    let back = x.shape();
    Ok(tape.record([x], y, move |dy, _| Ok([Some(dy.reshape(back)?)])))
}

/// The channels of both streams side by side: `(2, …, C)` -> `(1, …, 2C)`.
///
/// # Errors
/// When there are not two streams.
pub fn concat_streams(tape: &mut Tape, x: &Var) -> Result<Var> {
    let shape = x.shape();
    if shape.rank() < 2 || shape[0] != 2 {
        return Err(Error::shape("concat_streams", "x must be (2, ..., C)", &[shape]));
    }
    let c = shape.last();
    let mut y = Tensor::scratch(shape.with_dim(0, 1).with_last(2 * c));
    let (a, b) = x.value().f32().split_at(x.value().len() / 2);
    let rows = y.f32_mut().par_chunks_exact_mut(2 * c).with_min_len(256);
    rows.zip(a.par_chunks_exact(c)).zip(b.par_chunks_exact(c)).for_each(|((y, a), b)| {
        y[..c].copy_from_slice(a);
        y[c..].copy_from_slice(b);
    });
    Ok(tape.record([x], y, move |dy, _| {
        let mut dx = Tensor::scratch(shape);
        let half = dx.len() / 2;
        let (a, b) = dx.f32_mut().split_at_mut(half);
        let rows = dy.f32().par_chunks_exact(2 * c).with_min_len(256);
        rows.zip(a.par_chunks_exact_mut(c)).zip(b.par_chunks_exact_mut(c)).for_each(|((dy, a), b)| {
            a.copy_from_slice(&dy[..c]);
            b.copy_from_slice(&dy[c..]);
        });
        Ok([Some(dx)])
    }))
}

/// The channels `range` of x.
///
/// # Errors
/// When x does not have them.
pub fn select_channels(tape: &mut Tape, x: &Var, range: Range<usize>) -> Result<Var> {
    let shape = x.shape();
    let c = shape.last();
    if range.start >= range.end || range.end > c {
        return Err(Error::shape(
            "select_channels",
            format!("{range:?} is not within the channels"),
            &[shape],
        ));
    }
    let mut y = Tensor::scratch(shape.with_last(range.len()));
    for (y, x) in y.f32_mut().chunks_exact_mut(range.len()).zip(x.value().f32().chunks_exact(c)) {
        y.copy_from_slice(&x[range.clone()]);
    }
    Ok(tape.record([x], y, move |dy, _| {
        let mut dx = Tensor::zeros(shape);
        for (dx, dy) in dx.f32_mut().chunks_exact_mut(c).zip(dy.f32().chunks_exact(range.len())) {
            dx[range.clone()].copy_from_slice(dy);
        }
        Ok([Some(dx)])
    }))
}
