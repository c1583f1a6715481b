//! Multi-head attention.

use crate::cpu::attention as cpu;
use crate::{Error, Result, Tape, Var};

/// softmax(q·kᵀ/√d)·v by head, over any number of keys; self, salient and cross-modal attention are this.
///
/// q `(S, B, N, C)`, kv `(S, B, M, 2C)` with the keys in the first C channels -> `(S, B, N, C)`; d = C / heads.
///
/// # Errors
/// When the shapes do not fit or C is not a multiple of `heads`.
pub fn attention(tape: &mut Tape, q: &Var, kv: &Var, heads: usize) -> Result<Var> {
    let (qs, ks) = (q.shape(), kv.shape());
    let fits = qs.rank() == 4 && ks.rank() == 4 && qs[..2] == ks[..2] && ks[3] == 2 * qs[3];
    if !fits || heads == 0 || !qs[3].is_multiple_of(heads) || qs.is_empty() || ks.is_empty() {
        let why = format!("q must be (S, B, N, C), kv (S, B, M, 2C), C a multiple of {heads} heads");
        return Err(Error::shape("attention", why, &[qs, ks]));
    }
    let y = cpu::forward(q.value(), kv.value(), heads);
    let (qv, kvv) = (q.value().clone(), kv.value().clone());
    Ok(tape.record([q, kv], y, move |dy, _| {
        let (dq, dkv) = cpu::backward(&dy, &qv, &kvv, heads);
        Ok([Some(dq), Some(dkv)])
    }))
}
