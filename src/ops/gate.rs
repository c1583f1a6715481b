//! The end of semantic consistency inference (equations 1 to 5).

use crate::cpu::gate as cpu;
use crate::cuda::gate as cuda;
use crate::{Error, Result, Tape, Var};

/// Moves the two streams a, b of x towards each other, by the weight m of each pixel.
///
/// Without `tau`, the published network: D = λ·m·(b − a), and the outputs are exchanged: (b − D, a + D).
/// With it, equations 1 to 5: D = g·λ·m·(a − b), outputs (a − D, b + D), where g = 1 at pixels with
/// cos(a, b) < τ and 0 elsewhere; norms in the cosine are at least 1e-8, and no gradient flows through g.
///
/// x `(2, B, H, W, C)`, m `(1, B, H, W, 1)`, λ `(1)` -> `(2, B, H, W, C)`.
///
/// # Errors
/// When the shapes do not fit, or a device reports an error.
pub fn gate(tape: &mut Tape, x: &Var, m: &Var, lambda: &Var, tau: Option<f32>) -> Result<Var> {
    let (xs, ms, ls) = (x.shape(), m.shape(), lambda.shape());
    let fits =
        xs.rank() == 5 && xs[0] == 2 && !xs.is_empty() && ms == xs.with_dim(0, 1).with_last(1) && *ls == [1];
    if !fits {
        let why = "x must be (2, B, H, W, C), m (1, B, H, W, 1), lambda (1)";
        return Err(Error::shape("gate", why, &[xs, ms, ls]));
    }
    let y = on_device_of!(x.value(), forward(x.value(), m.value(), lambda.value(), tau))?;
    let [xv, mv, lv] = [x, m, lambda].map(|v| v.value().clone());
    Ok(tape.record([x, m, lambda], y, move |dy, _| {
        let (dx, dm, dlambda) = on_device_of!(xv, backward(dy, &xv, &mv, &lv, tau))?;
        Ok([Some(dx), Some(dm), Some(dlambda)])
    }))
}
