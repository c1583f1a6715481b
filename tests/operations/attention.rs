use amdanet::{DType, Device, Tape, Tensor, Var, ops};

use crate::device;
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

/// The output and the gradients of q and kv in the type `dtype` as a program without this kernel would find them: every
/// matrix that a product needs is rounded to the type, and so is every result. All else is f64.
fn rounded_steps(q: &Tensor, kv: &Tensor, dy: &Tensor, heads: usize, dtype: DType) -> [Tensor; 3] {
    let round = |x: Vec<f64>| -> Vec<f64> {
        let x: Vec<f32> = x.into_iter().map(|x| x as f32).collect();
        let x = Tensor::from_slice([x.len()], &x).unwrap().cast(dtype).unwrap().cast(DType::F32).unwrap();
        x.f32().iter().map(|&x| f64::from(x)).collect()
    };
    let (n, m, c) = (q.dim(2), kv.dim(2), q.dim(3));
    let (d, scale) = (c / heads, ((c / heads) as f64).powf(-0.5));
    let mut results = [vec![0.0; q.len()], vec![0.0; q.len()], vec![0.0; kv.len()]];
    for sample in 0..q.dim(0) * q.dim(1) {
        for at in (0..c).step_by(d) {
            let q_at = |i: usize, e: usize| (sample * n + i) * c + at + e;
            let k_at = |j: usize, e: usize| (sample * m + j) * 2 * c + at + e;
            let v_at = |j: usize, e: usize| k_at(j, e) + c;
            let [q, kv, dy] = [q, kv, dy].map(|x| |i: usize| f64::from(x.f32()[i]));
            let rows = |f: &dyn Fn(usize, usize) -> f64| round((0..n * m).map(|i| f(i / m, i % m)).collect());
            let sum = |len: usize, f: &dyn Fn(usize) -> f64| (0..len).map(f).sum::<f64>();
            let s = rows(&|i, j| scale * sum(d, &|e| q(q_at(i, e)) * kv(k_at(j, e))));
            let most: Vec<f64> = s.chunks(m).map(|s| s.iter().copied().fold(f64::MIN, f64::max)).collect();
            let total: Vec<f64> =
                s.chunks(m).zip(&most).map(|(s, most)| s.iter().map(|s| (s - most).exp()).sum()).collect();
            let p = rows(&|i, j| (s[i * m + j] - most[i]).exp() / total[i]);
            let dp = rows(&|i, j| sum(d, &|e| dy(q_at(i, e)) * kv(v_at(j, e))));
            let mean: Vec<f64> = (0..n).map(|i| sum(m, &|j| p[i * m + j] * dp[i * m + j])).collect();
            let ds = rows(&|i, j| p[i * m + j] * (dp[i * m + j] - mean[i]));
            for e in 0..d {
                for i in 0..n {
                    results[0][q_at(i, e)] = sum(m, &|j| p[i * m + j] * kv(v_at(j, e)));
                    results[1][q_at(i, e)] = scale * sum(m, &|j| ds[i * m + j] * kv(k_at(j, e)));
                }
                for j in 0..m {
                    results[2][k_at(j, e)] = scale * sum(n, &|i| ds[i * m + j] * q(q_at(i, e)));
                    results[2][v_at(j, e)] = sum(n, &|i| p[i * m + j] * dy(q_at(i, e)));
                }
            }
        }
    }
    let [y, dq, dkv] = results.map(|x| round(x).iter().map(|&x| x as f32).collect::<Vec<_>>());
    [(q.shape(), y), (q.shape(), dq), (kv.shape(), dkv)].map(|(s, x)| Tensor::from_slice(s, &x).unwrap())
}

fn norm(x: &Tensor) -> f64 {
    x.f32().iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt()
}

/// Compares every device with the CPU, in every type. Of half precision the rule is FlashAttention's: the error is at
/// most twice that of [`rounded_steps`].
fn check_device(q: &Tensor, kv: &Tensor, heads: usize) {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let round = |x: &Tensor| x.cast(dtype).unwrap().cast(DType::F32).unwrap();
        let inputs = [round(q), round(kv)];
        let run = |device: &Device, dtype_there, offset| {
            device::run(device, dtype_there, offset, dtype, (&inputs, &[], &[]), |t, v, _| {
                ops::attention(t, &v[0], &v[1], heads)
            })
        };
        let want = run(&Device::Cpu, DType::F32, 0);
        let dkv = want[2].clone();
        let most = if dtype == DType::F32 {
            [1e-5; 3]
        } else {
            let dy = round(&random(q.shape(), 99));
            let plain = rounded_steps(&inputs[0], &inputs[1], &dy, heads, dtype);
            // Where nothing is rounded, or all that is left of a gradient is rounding, f32 is the limit.
            [0, 1, 2].map(|i| 1e-5 + 2.0 * relative_error(plain[i].f32(), want[i].f32()))
        };
        let mut first: Option<Vec<Tensor>> = None;
        for device in device::all() {
            for offset in [0, 1] {
                let got: Vec<Tensor> =
                    run(device, dtype, offset).iter().map(|x| x.cast(DType::F32).unwrap()).collect();
                for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                    assert_eq!(got.shape(), want.shape(), "result {i}");
                    let error = match want.f32().iter().all(|&x| x == 0.0) {
                        // A query's gradient where there is one key: what is left are roundings of what cancels.
                        true => norm(got) / norm(&dkv),
                        false => relative_error(got.f32(), want.f32()),
                    };
                    let what =
                        format!("{} by {}, {heads} heads, {dtype}, offset {offset}", q.shape(), kv.shape());
                    assert!(error <= most[i], "{what}, result {i}: {error:.2e}, at most {:.2e}", most[i]);
                }
                let first = first.get_or_insert_with(|| got.clone());
                for (i, (one, two)) in first.iter().zip(&got).enumerate() {
                    assert!(
                        offset != 0 || one.f32() == two.f32(),
                        "result {i} in {dtype} depends on the order"
                    );
                }
            }
        }
    }
}

#[test]
fn on_a_device() {
    // Heads of 64, 32 and 16 channels with a last tile of keys that is not full; 24 and 128, which are padded or wide;
    // 100 and 5, which no vectors fit.
    let more = [
        (2, 1, 66, 67, 128, 2),
        (1, 3, 65, 129, 64, 2),
        (2, 1, 140, 40, 64, 4),
        (1, 1, 10, 7, 48, 2),
        (1, 1, 65, 35, 128, 1),
        (1, 1, 9, 35, 200, 2),
        (1, 1, 10, 7, 15, 3),
    ];
    for (s, b, n, m, c, heads) in CASES.into_iter().chain(more) {
        check_device(&random([s, b, n, c], 1), &random([s, b, m, 2 * c], 2), heads);
    }
}

#[test]
fn many_samples_on_a_device() {
    // Enough blocks for the kernels that take 128 queries to a block.
    for (b, n, m, c, heads) in [(34, 130, 3, 256, 4), (67, 129, 65, 32, 2)] {
        let (q, kv) = (random([1, b, n, c], 1), random([1, b, m, 2 * c], 2));
        for dtype in [DType::F16, DType::BF16] {
            let [q, kv] = [&q, &kv].map(|x| x.cast(dtype).unwrap());
            let [q32, kv32] = [&q, &kv].map(|x| x.cast(DType::F32).unwrap());
            let run = |q: &Tensor, kv: &Tensor, device: &Device| {
                let [q, kv] = [q, kv].map(|x| Var::constant(x.to(device).unwrap()));
                let y = ops::attention(&mut Tape::off(), &q, &kv, heads).unwrap();
                y.into_value().to(&Device::Cpu).unwrap().cast(DType::F32).unwrap()
            };
            let want = run(&q32, &kv32, &Device::Cpu);
            let [plain, ..] = rounded_steps(&q32, &kv32, &want, heads, dtype);
            let most = 2.0 * relative_error(plain.f32(), want.f32());
            for device in device::all() {
                let error = relative_error(run(&q, &kv, device).f32(), want.f32());
                assert!(error <= most, "{dtype}: {error:.2e}, at most {most:.2e}");
            }
        }
    }
}

#[test]
fn large_scores_on_a_device() {
    // Scores of ±16384 that differ by at most 4 between keys, all of them exact in f32.
    let (n, m, d) = (9, 70, 16);
    let (mut q, mut kv) = (random([1, 1, n, d], 1), random([1, 1, m, 2 * d], 2));
    for (i, q) in q.f32_mut().chunks_mut(d).enumerate() {
        q[0] = 4.0;
        q[1] = [4096.0, -4096.0][i % 2];
    }
    for kv in kv.f32_mut().chunks_mut(2 * d) {
        kv[0] = (kv[0] * 32.0).round() / 16.0;
        kv[1] = 16.0;
        kv[2..d].fill(0.0);
    }
    check_device(&q, &kv, 1);
}

#[test]
fn heads_too_wide_for_a_device() {
    let device = &device::all()[0];
    let [q, kv] = [random([1, 1, 2, 130], 1), random([1, 1, 3, 260], 2)];
    let [q, kv] = [q, kv].map(|x| Var::constant(x.to(device).unwrap()));
    let e = ops::attention(&mut Tape::off(), &q, &kv, 1).unwrap_err().to_string();
    assert!(e.contains("128 channels"), "{e}");
}
