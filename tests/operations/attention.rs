use amdanet::{Tape, Tensor, Var, ops};

use crate::gradient::{check_with, random, relative_error};

/// Streams, batch, queries, keys, channels, heads.
const CASES: [(usize, usize, usize, usize, usize, usize); 6] = [
    (1, 1, 1, 1, 4, 1),
    (2, 3, 5, 7, 8, 2),
    (1, 1, 300, 17, 12, 3),
    (2, 1, 129, 1, 16, 1),
    (1, 2, 1100, 33, 16, 2),
    (1, 1, 3, 131, 64, 1),
];

fn plain(q: &Tensor, kv: &Tensor, heads: usize) -> Vec<f32> {
    let (n, m, c) = (q.dim(2), kv.dim(2), q.dim(3));
    let d = c / heads;
    let mut y = vec![0.0; q.len()];
    for sample in 0..q.dim(0) * q.dim(1) {
        let (q, kv) = (&q.f32()[sample * n * c..][..n * c], &kv.f32()[sample * m * 2 * c..][..m * 2 * c]);
        for (i, head) in (0..n).flat_map(|i| (0..heads).map(move |h| (i, h))) {
            let score = |j: usize| -> f64 {
                let dot: f64 = (head * d..head * d + d)
                    .map(|e| f64::from(q[i * c + e]) * f64::from(kv[j * 2 * c + e]))
                    .sum();
                dot / (d as f64).sqrt()
            };
            let scores: Vec<f64> = (0..m).map(score).collect();
            let most = scores.iter().copied().fold(f64::MIN, f64::max);
            let total: f64 = scores.iter().map(|s| (s - most).exp()).sum();
            for e in head * d..head * d + d {
                let sum: f64 =
                    (0..m).map(|j| (scores[j] - most).exp() * f64::from(kv[j * 2 * c + c + e])).sum();
                y[(sample * n + i) * c + e] = (sum / total) as f32;
            }
        }
    }
    y
}

#[test]
fn matches_a_plain_loop() {
    for (s, b, n, m, c, heads) in CASES {
        let (q, kv) = (random([s, b, n, c], 1), random([s, b, m, 2 * c], 2));
        let want = plain(&q, &kv, heads);
        let y = ops::attention(&mut Tape::off(), &Var::constant(q), &Var::constant(kv), heads).unwrap();
        assert!(relative_error(y.value().f32(), &want) < 2e-6, "{s} {b} {n} {m} {c} {heads}");
    }
}

#[test]
fn large_scores_do_not_overflow() {
    let scaled = |shape: [usize; 4], seed| {
        let mut t = random(shape, seed);
        t.f32_mut().iter_mut().for_each(|v| *v *= 300.0);
        t
    };
    let (q, kv) = (scaled([1, 1, 9, 8], 1), scaled([1, 1, 11, 16], 2));
    let want = plain(&q, &kv, 1);
    let y = ops::attention(&mut Tape::off(), &Var::constant(q), &Var::constant(kv), 1).unwrap();
    // The scores are of the order 10⁵, so their own rounding decides between near ties.
    assert!(relative_error(y.value().f32(), &want) < 1e-3);
}

#[test]
fn gradients() {
    for (s, b, n, m, c, heads) in CASES {
        let inputs = [random([s, b, n, c], 1), random([s, b, m, 2 * c], 2)];
        check_with(&inputs, 0.1, 1e-3, |t, v| ops::attention(t, &v[0], &v[1], heads));
    }
}

#[test]
fn heads_must_divide_the_channels() {
    let (q, kv) = (Var::constant(random([1, 1, 2, 6], 1)), Var::constant(random([1, 1, 2, 12], 1)));
    for heads in [0, 4] {
        let e = ops::attention(&mut Tape::off(), &q, &kv, heads).unwrap_err().to_string();
        assert!(e.contains("attention") && e.contains("(1, 1, 2, 6)"), "{e}");
    }
}
