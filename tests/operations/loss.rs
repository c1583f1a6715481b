use std::slice::from_ref;

use amdanet::{DType, Device, Result, Tape, Tensor, Var, ops};

use crate::device;
use crate::gradient::{check, dot, random};

/// Batch, rows, columns, classes: odd sizes, one pixel, one class, and several blocks of pixels.
const CASES: [(usize, usize, usize, usize); 5] =
    [(2, 5, 7, 5), (1, 1, 1, 3), (3, 3, 1, 1), (1, 41, 53, 9), (1, 3, 2, 255)];

fn logits((b, h, w, k): (usize, usize, usize, usize), seed: u64) -> Tensor {
    let mut x = random([1, b, h, w, k], seed);
    x.f32_mut().iter_mut().for_each(|v| *v *= 3.0);
    x
}

/// (7i) mod 11, of which values past the classes become 255 or another class.
fn labels((b, h, w, k): (usize, usize, usize, usize)) -> Tensor {
    let label = |i: usize| match i * 7 % 11 {
        l if l < k => l as u8,
        l if l < 8 => (l % k) as u8,
        _ => 255,
    };
    Tensor::from_slice([b, h, w], &(0..b * h * w).map(label).collect::<Vec<u8>>()).unwrap()
}

type Loss = fn(&mut Tape, &Var, &Tensor) -> Result<Var>;

fn consistency(t: &mut Tape, x: &Var, labels: &Tensor) -> Result<Var> {
    let s = x.shape();
    let target = Var::constant(logits((s[1], s[2], s[3], s[4]), 2));
    ops::consistency(t, x, &target, labels)
}

const LOSSES: [(&str, Loss); 3] =
    [("cross_entropy", ops::cross_entropy), ("dice", ops::dice), ("consistency", consistency)];

fn softmax(x: &[f32]) -> Vec<f64> {
    let e: Vec<f64> = x.iter().map(|&v| f64::from(v).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.iter().map(|e| e / sum).collect()
}

/// The three losses by their definitions.
fn plain(x: &Tensor, target: &Tensor, labels: &[u8]) -> [f64; 3] {
    let k = x.shape().last();
    let p: Vec<Vec<f64>> = x.f32().chunks(k).map(softmax).collect();
    let t: Vec<Vec<f64>> = target.f32().chunks(k).map(softmax).collect();
    let valid: Vec<usize> = (0..labels.len()).filter(|&i| labels[i] != 255).collect();
    let mean = |f: &dyn Fn(usize) -> f64| valid.iter().map(|&i| f(i)).sum::<f64>() / valid.len() as f64;
    let entropy = mean(&|i| -p[i][labels[i] as usize].ln());
    let consistency = mean(&|i| -(0..k).map(|c| t[i][c] * p[i][c].ln()).sum::<f64>());
    let mut dice = 1.0;
    for c in 0..k {
        let (mut inter, mut total) = (0.0, 0.0);
        for (p, &l) in p.iter().zip(labels) {
            let hot = if (if l == 255 { 0 } else { l as usize }) == c { 1.0 } else { 0.0 };
            inter += p[c] * hot;
            total += p[c] + hot;
        }
        dice -= (2.0 * inter + 1e-5) / (total + 1e-5) / k as f64;
    }
    [entropy, dice, consistency]
}

#[test]
fn match_a_plain_loop() {
    for case in CASES {
        let (x, labels) = (logits(case, 1), labels(case));
        let want = plain(&x, &logits(case, 2), labels.as_slice());
        for ((name, loss), want) in LOSSES.iter().zip(want) {
            let got = loss(&mut Tape::off(), &Var::constant(x.clone()), &labels).unwrap().value().item();
            assert!(
                (f64::from(got) - want).abs() < 1e-6 * want.abs().max(0.3),
                "{name} {case:?} {got} {want}"
            );
        }
    }
}

#[test]
fn match_pytorch() {
    // F.cross_entropy, and dice_loss and losses()["cr"] of the reference, in f64, on logits(.., 1) and labels(..):
    // the loss, the norm of its gradient, and the product of the gradient with random(.., 4).
    let want = [
        [2.877_984_709_653, 0.154_385_804_135, 0.091_464_607_736],
        [0.858_247_353_021, 0.018_869_356_611, 0.004_754_777_662],
        [2.534_402_166_588, 0.108_228_363_503, 0.090_450_652_669],
    ];
    for ((name, loss), want) in LOSSES.iter().zip(want) {
        let mut tape = Tape::new();
        let x = tape.leaf(logits(CASES[0], 1));
        let y = loss(&mut tape, &x, &labels(CASES[0])).unwrap();
        let dx = tape.backward(&y).unwrap().take(&x).unwrap();
        let got = [y.value().item().into(), dot(&dx, &dx).sqrt(), dot(&dx, &random(dx.shape(), 4))];
        for (got, want) in got.iter().zip(want) {
            assert!((got - want).abs() < 2e-6 * want.abs(), "{name}: {got} but {want}");
        }
    }
}

#[test]
fn gradients() {
    for case in CASES {
        let labels = labels(case);
        for (_, loss) in LOSSES {
            check(&[logits(case, 1)], |t, v| loss(t, &v[0], &labels));
        }
    }
    let number = |seed| random([1], seed);
    check(&[number(1), number(2), number(3)], |t, v| {
        ops::weighted_sum(t, &[(0.5, v[0].clone()), (-2.0, v[1].clone()), (1.0, v[2].clone())])
    });
}

#[test]
fn on_a_device() {
    // Rows of whole groups of 16 bytes, the widest row of classes, several blocks of pixels, and a batch of three.
    let more = [(1, 4, 8, 16), (2, 3, 50, 8), (3, 7, 9, 40), (1, 33, 300, 2), (1, 1, 40, 254)];
    for case in CASES.into_iter().chain(more) {
        // The target's values, eighths, are the same in all types.
        let mut target = logits(case, 2);
        target.f32_mut().iter_mut().for_each(|v| *v = (*v * 8.0).round() / 8.0);
        let labels = labels(case);
        // With large logits most probabilities are 0 or 1 and most gradients nothing but rounding: where there are many
        // pixels, the undecided ones outweigh those.
        let scales = if labels.len() > 30 { vec![1.0, 100.0] } else { vec![1.0] };
        for scale in scales {
            let mut x = logits(case, 1);
            x.f32_mut().iter_mut().for_each(|v| *v *= scale);
            for loss in [ops::cross_entropy, ops::dice] {
                device::check(from_ref(&x), &[], from_ref(&labels), |t, v, c| loss(t, &v[0], &c[0]));
            }
            device::check(&[x], &[], &[labels.clone(), target.clone()], |t, v, c| {
                let target = Var::constant(c[1].cast(v[0].value().dtype())?);
                ops::consistency(t, &v[0], &target, &c[0])
            });
        }
    }
}

#[test]
fn a_weighted_sum_on_a_device() {
    // More terms than one launch takes.
    for n in [1, 3, 8, 19] {
        let terms: Vec<Tensor> = (0..n).map(|i| random([1], i)).collect();
        device::check(&[], &terms, &[], |t, v, _| {
            let weighted: Vec<(f32, Var)> =
                (1u8..).map(|i| f32::from(i) * 0.3 - 1.0).zip(v.to_vec()).collect();
            ops::weighted_sum(t, &weighted)
        });
    }
}

#[test]
fn on_a_device_labels_that_are_no_class_are_ignored() {
    let case = (2, 9, 31, 5);
    let labels = labels(case);
    let mut bad = labels.clone();
    for label in bad.as_mut_slice::<u8>().iter_mut().filter(|label| **label == 255) {
        *label = 5;
    }
    bad.as_mut_slice::<u8>()[0] = 254;
    let mut ignored = labels.clone();
    ignored.as_mut_slice::<u8>()[0] = 255;
    let every = Tensor::from_slice([2, 9, 31], &[255u8; 2 * 9 * 31]).unwrap();
    for device in device::all() {
        for (given, meant) in [(&bad, &ignored), (&every, &every)] {
            for (name, loss) in LOSSES {
                let run = |device: &Device, labels: &Tensor| {
                    let place = |x: Tensor| x.to(device).unwrap();
                    let mut tape = Tape::new();
                    let x = tape.leaf(place(logits(case, 1)));
                    let labels = place(labels.clone());
                    let y = match name {
                        "consistency" => {
                            let target = Var::constant(place(logits(case, 2)));
                            ops::consistency(&mut tape, &x, &target, &labels).unwrap()
                        }
                        _ => loss(&mut tape, &x, &labels).unwrap(),
                    };
                    let dx = tape.backward(&y).unwrap().take(&x).unwrap();
                    [y.into_value(), dx].map(|x| x.to(&Device::Cpu).unwrap())
                };
                let want = run(&Device::Cpu, meant);
                for (got, want) in run(device, given).iter().zip(&want) {
                    device::assert_error(got, want, name);
                }
            }
        }
    }
}

#[test]
fn tensors_on_two_devices_are_an_error() {
    let case = CASES[0];
    let device = &device::all()[0];
    let (x, labels) = (Var::constant(logits(case, 1)), labels(case).to(device).unwrap());
    let e = ops::cross_entropy(&mut Tape::off(), &x, &labels).unwrap_err().to_string();
    assert!(e.contains("cross_entropy") && e.contains("cpu"), "{e}");
    let x = Var::constant(x.value().cast(DType::F16).unwrap().to(device).unwrap());
    assert!(ops::consistency(&mut Tape::off(), &x, &Var::constant(logits(case, 1)), &labels).is_err());
}

#[test]
fn the_target_of_consistency_gets_no_gradient() {
    let mut tape = Tape::new();
    let (x, target) = (tape.leaf(logits(CASES[0], 1)), tape.leaf(logits(CASES[0], 2)));
    let y = ops::consistency(&mut tape, &x, &target, &labels(CASES[0])).unwrap();
    let mut gradients = tape.backward(&y).unwrap();
    assert!(gradients.take(&target).is_none() && gradients.take(&x).is_some());
}

#[test]
fn large_logits_and_ignored_pictures_are_finite() {
    let labels = Tensor::from_slice([1, 1, 2], &[0u8, 1]).unwrap();
    let ignored = Tensor::from_slice([1, 1, 2], &[255u8, 255]).unwrap();
    for (name, loss) in LOSSES {
        for (labels, sign) in [(&labels, 1.0), (&labels, -1.0), (&ignored, 1.0)] {
            let mut tape = Tape::new();
            let data = [300.0, -300.0, 0.0, 1e30, 0.0, -1e30].map(|v: f32| v * sign);
            let x = tape.leaf(Tensor::from_slice([1, 1, 1, 2, 3], &data).unwrap());
            let y = loss(&mut tape, &x, labels).unwrap();
            let dx = tape.backward(&y).unwrap().take(&x).unwrap();
            assert!(y.value().item().is_finite() && dx.f32().iter().all(|d| d.is_finite()), "{name}");
            assert!(!dx.f32().iter().any(|d| d.is_subnormal()), "{name}");
            if labels.as_slice::<u8>()[0] == 255 && name != "dice" {
                assert_eq!((y.value().item(), dx.f32()), (0.0, [0.0; 6].as_slice()), "{name}");
            }
        }
    }
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let case = (2, 61, 67, 9);
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            LOSSES.map(|(_, loss)| {
                let mut tape = Tape::new();
                let x = tape.leaf(logits(case, 1));
                let y = loss(&mut tape, &x, &labels(case)).unwrap();
                let dx = tape.backward(&y).unwrap().take(&x).unwrap();
                (y.value().item().to_bits(), dx.f32().iter().map(|v| v.to_bits()).collect::<Vec<_>>())
            })
        })
    };
    assert!(run(1) == run(5));
}

#[test]
fn a_weight_of_zero_switches_a_term_off() {
    let mut tape = Tape::new();
    let (a, b) = (tape.leaf(Tensor::scalar(2.0)), tape.leaf(Tensor::scalar(f32::NAN)));
    let y = ops::weighted_sum(&mut tape, &[(0.0, b.clone()), (1.5, a.clone())]).unwrap();
    assert_eq!(y.value().item(), 3.0);
    let mut gradients = tape.backward(&y).unwrap();
    assert_eq!(gradients.take(&a).unwrap().item(), 1.5);
    assert!(gradients.take(&b).is_none());
    assert_eq!(ops::weighted_sum(&mut Tape::off(), &[]).unwrap().value().item(), 0.0);
    assert!(ops::weighted_sum(&mut Tape::off(), &[(1.0, Var::constant(Tensor::zeros([2])))]).is_err());
}

#[test]
fn bad_labels_and_shapes_are_named() {
    let x = Var::constant(Tensor::zeros([1, 2, 2, 3, 5]));
    let mut classes = [0u8; 12];
    classes[10] = 5;
    let labels = Tensor::from_slice([2, 2, 3], &classes).unwrap();
    let other = Tensor::from_slice([2, 3, 2], &[0u8; 12]).unwrap();
    for (name, loss) in LOSSES {
        let e = loss(&mut Tape::off(), &x, &labels).unwrap_err().to_string();
        assert!(e.contains(name) && e.contains("label 5 in sample 1 at row 1, column 1"), "{e}");
        let e = loss(&mut Tape::off(), &x, &other).unwrap_err().to_string();
        assert!(e.contains("(1, 2, 2, 3, 5)") && e.contains("(2, 3, 2)"), "{e}");
        assert!(loss(&mut Tape::off(), &x, &Tensor::zeros([2, 2, 3])).is_err());
    }
}
