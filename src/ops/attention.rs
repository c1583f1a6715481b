//! Multi-head attention.

use crate::cpu::attention as cpu;
use crate::cuda::attention as cuda;
use crate::{Error, Result, Tape, Var};

/// softmax(q·kᵀ/√d)·v by head, over any number of keys; self, salient and cross-modal attention are this.
///
/// q `(S, B, N, C)`, kv `(S, B, M, 2C)` with the keys in the first C channels -> `(S, B, N, C)`; d = C / heads.
///
/// # Errors
/// When the shapes do not fit, C is not a multiple of `heads`, or on a device a head has more than 128 channels.
pub fn attention(tape: &mut Tape, q: &Var, kv: &Var, heads: usize) -> Result<Var> {
    let (qs, ks) = (q.shape(), kv.shape());
    let fits = qs.rank() == 4 && ks.rank() == 4 && qs[..2] == ks[..2] && ks[3] == 2 * qs[3];
    if !fits || heads == 0 || !qs[3].is_multiple_of(heads) || qs.is_empty() || ks.is_empty() {
        let why = format!("q must be (S, B, N, C), kv (S, B, M, 2C), C a multiple of {heads} heads");
        return Err(Error::shape("attention", why, &[qs, ks]));
    }
    let (qv, kvv) = (q.value().clone(), kv.value().clone());
    // The CPU computes all of it again; the device keeps its output and a few numbers of each row.
    let (y, saved) = if qv.is_on_cpu() {
        (cpu::forward(&qv, &kvv, heads), None)
    } else {
        let (y, statistics) = cuda::forward(&qv, &kvv, heads)?;
        (y.clone(), Some((y, statistics)))
    };
    Ok(tape.record([q, kv], y, move |dy, _| {
        let (dq, dkv) = match &saved {
            None => cpu::backward(&dy, &qv, &kvv, heads),
            Some((y, statistics)) => cuda::backward(&dy, &qv, &kvv, y, statistics, heads)?,
        };
        Ok([Some(dq), Some(dkv)])
    }))
}
