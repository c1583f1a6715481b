//! The end of local alignment: channel and spatial weights applied to both streams.

use crate::cpu::realign as cpu;
use crate::cuda::realign as cuda;
use crate::{Error, Result, Tape, Var};

fn check(op: &'static str, x: &Var, gate: Option<&Var>, channel: &Var, spatial: &Var) -> Result<()> {
    let (xs, cs, ss) = (x.shape(), channel.shape(), spatial.shape());
    let fits = xs.rank() == 5
        && xs[0] == 2
        && !xs.is_empty()
        && *cs == [1, 1, xs[1], 2 * xs[4]]
        && *ss == [1, xs[1], xs[2], xs[3], 2];
    if !fits {
        let why = "x must be (2, B, H, W, C), channel (1, 1, B, 2C), spatial (1, B, H, W, 2)";
        return Err(Error::shape(op, why, &[xs, cs, ss]));
    }
    match gate {
        Some(gate) if gate.shape() != xs.with_dim(0, 1) => {
            Err(Error::shape(op, "the gate must be (1, B, H, W, C)", &[xs, gate.shape()]))
        }
        _ => Ok(()),
    }
}

/// The published network's end of local alignment.
///
/// With the streams a, b, the gate G, channel weights w and spatial weights s: W_a = G·w_a·s_a, W_b = G·w_b·s_b,
/// a' = a + W_a·b, b' = b + W_b·a, and the outputs σ(a'·W_a − a')·a' + a'·W_a and the same of b' and W_b.
///
/// x `(2, B, H, W, C)`, gate `(1, B, H, W, C)`, channel `(1, 1, B, 2C)` of w_a before w_b, spatial `(1, B, H, W, 2)`
/// -> `(2, B, H, W, C)`.
///
/// # Errors
/// When the shapes do not fit, or a device reports an error.
pub fn realign_release(tape: &mut Tape, x: &Var, gate: &Var, channel: &Var, spatial: &Var) -> Result<Var> {
    check("realign_release", x, Some(gate), channel, spatial)?;
    let [xt, gt, ct, st] = [x, gate, channel, spatial].map(Var::value);
    let y = on_device_of!(xt, release_forward(xt, gt, ct, st))?;
    let [xv, gv, cv, sv] = [x, gate, channel, spatial].map(|v| v.value().clone());
    Ok(tape.record([x, gate, channel, spatial], y, move |dy, _| {
        let d = on_device_of!(xv, try release_backward(dy, &xv, &gv, &cv, &sv))?;
        Ok([Some(d.x), Some(d.gate), Some(d.channel), Some(d.spatial)])
    }))
}

/// The sum of equations 7 and 9: r(x, w) + r(x, s) for each stream x with its channel weights w and spatial weights s,
/// where r(x, w) = σ(w·x − x)·x + x.
///
/// x `(2, B, H, W, C)`, channel `(1, 1, B, 2C)` of stream 0 before stream 1, spatial `(1, B, H, W, 2)`
/// -> `(2, B, H, W, C)`.
///
/// # Errors
/// When the shapes do not fit, or a device reports an error.
pub fn realign_paper(tape: &mut Tape, x: &Var, channel: &Var, spatial: &Var) -> Result<Var> {
    check("realign_paper", x, None, channel, spatial)?;
    let y = on_device_of!(x.value(), paper_forward(x.value(), channel.value(), spatial.value()))?;
    let [xv, cv, sv] = [x, channel, spatial].map(|v| v.value().clone());
    Ok(tape.record([x, channel, spatial], y, move |dy, _| {
        let (dx, dchannel, dspatial) = on_device_of!(xv, try paper_backward(dy, &xv, &cv, &sv))?;
        Ok([Some(dx), Some(dchannel), Some(dspatial)])
    }))
}
