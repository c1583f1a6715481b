use amdanet::ops::{self, FusionTarget};
use amdanet::{Device, Tape, Tensor, Var};

use crate::device;
use crate::gradient::{check_with, dot, random, relative_error};

const TARGETS: [FusionTarget; 2] = [FusionTarget::LargerGradient, FusionTarget::BrighterSource];

/// Odd sizes, one pixel, one row, one column, and more rows than one task has.
const CASES: [[usize; 3]; 5] = [[2, 5, 7], [1, 1, 1], [3, 1, 4], [1, 17, 1], [2, 35, 3]];

struct Inputs {
    image: Tensor,
    visible: Tensor,
    infrared: Tensor,
    valid: Tensor,
}

/// The visible picture reaches outside [0, 1]; the last sample is invalid from column 5 on, and elsewhere all is
/// valid.
fn inputs([b, h, w]: [usize; 3]) -> Inputs {
    let uniform = |seed, scale| {
        let mut x = random([1, b, h, w, 3], seed);
        x.f32_mut().iter_mut().for_each(|v| *v = *v * scale + 0.5);
        x
    };
    let valid: Vec<u8> = (0..b * h * w).map(|i| (i / (h * w) + 1 < b || i % w < 5) as u8).collect();
    Inputs {
        image: uniform(1, 0.5),
        visible: uniform(2, 0.6),
        infrared: uniform(3, 0.5),
        valid: Tensor::from_slice([b, h, w], &valid).unwrap(),
    }
}

fn loss(tape: &mut Tape, image: &Var, i: &Inputs, target: FusionTarget) -> Var {
    ops::fusion_loss(tape, image, &i.visible, &i.infrared, &i.valid, target).unwrap()
}

/// The loss by its definition, in f64.
fn plain(image: &[f64], i: &Inputs, target: FusionTarget) -> f64 {
    let (h, w) = (i.valid.dim(1) as isize, i.valid.dim(2) as isize);
    let n = image.len();
    let valid = i.valid.as_slice::<u8>();
    let p: Vec<f64> = (0..n).map(|k| image[k] * f64::from(valid[k / 3])).collect();
    let s: Vec<f64> = i.visible.f32().iter().map(|&v| f64::from(v).clamp(0.0, 1.0).powf(0.8)).collect();
    let ir: Vec<f64> = i.infrared.f32().iter().map(|&v| v.into()).collect();
    let peak: Vec<f64> = s.iter().zip(&ir).map(|(a, b)| a.max(*b)).collect();
    let difference: Vec<f64> = p.iter().zip(&peak).map(|(a, b)| a - b).collect();
    let sobel = |x: &[f64], k: usize, vertical: bool| -> f64 {
        let (y, column) = (k as isize / 3 / w % h, k as isize / 3 % w);
        let mut sum = 0.0;
        for dy in -1..=1 {
            for dx in -1..=1isize {
                let kernel = if vertical { -dy * (2 - dx * dx) } else { dx * (2 - dy * dy) };
                if (0..h).contains(&(y + dy)) && (0..w).contains(&(column + dx)) {
                    sum += kernel as f64 * x[(k as isize + (dy * w + dx) * 3) as usize];
                }
            }
        }
        sum
    };
    let chroma = |x: &[f64]| {
        let y = 0.299 * x[0] + 0.587 * x[1] + 0.114 * x[2];
        [0.713 * (x[0] - y), 0.564 * (x[2] - y)]
    };
    let mut total = 0.0;
    for k in 0..n {
        for vertical in [false, true] {
            let of = |x: &[f64]| sobel(x, k, vertical);
            let d = match target {
                FusionTarget::LargerGradient => of(&p) - of(&s).max(of(&ir)),
                FusionTarget::BrighterSource => of(&difference),
            };
            total += 0.5 * d.abs();
        }
        if target == FusionTarget::LargerGradient {
            total += 0.5 * difference[k].abs();
        }
    }
    for (p, s) in p.chunks(3).zip(s.chunks(3)) {
        total += 3.0 * chroma(p).iter().zip(chroma(s)).map(|(a, b)| (a - b).abs()).sum::<f64>();
    }
    total / n as f64
}

#[test]
fn value_and_every_gradient_match_a_plain_loop() {
    for case in CASES {
        let i = inputs(case);
        let image: Vec<f64> = i.image.f32().iter().map(|&v| v.into()).collect();
        for target in TARGETS {
            let mut tape = Tape::new();
            let x = tape.leaf(i.image.clone());
            let y = loss(&mut tape, &x, &i, target);
            let want = plain(&image, &i, target);
            assert!((f64::from(y.value().item()) - want).abs() < 1e-6 * want, "{case:?} {target:?}");
            let dx = tape.backward(&y).unwrap().take(&x).unwrap();
            // The loss is piecewise linear, so central differences in f64 are exact away from its kinks.
            let numeric: Vec<f32> = (0..image.len())
                .map(|k| {
                    let at = |h: f64| {
                        let mut moved = image.clone();
                        moved[k] += h;
                        plain(&moved, &i, target)
                    };
                    ((at(1e-7) - at(-1e-7)) / 2e-7) as f32
                })
                .collect();
            assert!(relative_error(dx.f32(), &numeric) < 1e-5, "{case:?} {target:?}");
        }
    }
}

#[test]
fn matches_pytorch() {
    // fusion_loss of the reference in f64 for the first case: the loss, the norm of the image's gradient, and the
    // product of the gradient with random(.., 4).
    let want = [
        [1.781_900_463_583, 0.262_299_215_463, 0.103_870_772_145],
        [1.582_067_473_205, 0.272_161_057_462, -0.028_996_681_918],
    ];
    let i = inputs(CASES[0]);
    for (target, want) in TARGETS.into_iter().zip(want) {
        let mut tape = Tape::new();
        let x = tape.leaf(i.image.clone());
        let y = loss(&mut tape, &x, &i, target);
        let dx = tape.backward(&y).unwrap().take(&x).unwrap();
        let got = [y.value().item().into(), dot(&dx, &dx).sqrt(), dot(&dx, &random(dx.shape(), 4))];
        for (got, want) in got.iter().zip(want) {
            assert!((got - want).abs() < 2e-6 * want.abs(), "{target:?}: {got} but {want}");
        }
    }
}

#[test]
fn gradients() {
    // A step small enough to meet no kink.
    let i = inputs([1, 2, 2]);
    for target in TARGETS {
        check_with(std::slice::from_ref(&i.image), 2e-3, 2e-3, |t, v| Ok(loss(t, &v[0], &i, target)));
    }
}

#[test]
fn on_a_device() {
    // One tile, several with rests in both directions, and several samples of them.
    for case in CASES.into_iter().chain([[1, 16, 32], [1, 18, 34], [3, 37, 70]]) {
        let i = inputs(case);
        for target in TARGETS {
            device::check(std::slice::from_ref(&i.image), &[], &constants(&i), |t, v, c| {
                ops::fusion_loss(t, &v[0], &c[0], &c[1], &c[2], target)
            });
        }
    }
}

/// Where differences vanish their sign is 0: greys, black and white, and equal pictures have many such places.
#[test]
fn equal_colours_on_a_device() {
    let mut i = inputs([2, 21, 40]);
    let level = |k: usize| [0.0, 1.0, 0.375, 0.8125][k * 7 % 11 % 4];
    for (k, v) in i.image.f32_mut().iter_mut().enumerate() {
        *v = level(k / 3);
    }
    for (k, v) in i.visible.f32_mut().iter_mut().enumerate() {
        *v = level(k / 3 + k / 90);
    }
    for (k, v) in i.infrared.f32_mut().iter_mut().enumerate() {
        *v = level(k / 3 + k / 200);
    }
    for target in TARGETS {
        device::check(std::slice::from_ref(&i.image), &[], &constants(&i), |t, v, c| {
            ops::fusion_loss(t, &v[0], &c[0], &c[1], &c[2], target)
        });
    }
}

fn constants(i: &Inputs) -> [Tensor; 3] {
    [&i.visible, &i.infrared, &i.valid].map(Tensor::clone)
}

#[test]
fn without_a_recording_only_the_value_is_computed() {
    let i = inputs([2, 19, 9]);
    for target in TARGETS {
        let mut tape = Tape::new();
        let x = tape.leaf(i.image.clone());
        let y = loss(&mut tape, &x, &i, target).value().item();
        assert_eq!(loss(&mut tape, &x.detach(), &i, target).value().item(), y);
        assert_eq!(loss(&mut Tape::off(), &x, &i, target).value().item(), y);
        for device in device::all() {
            let [image, visible, infrared, valid] =
                [&i.image, &i.visible, &i.infrared, &i.valid].map(|x| x.to(device).unwrap());
            let image = Var::constant(image);
            let got = ops::fusion_loss(&mut Tape::new(), &image, &visible, &infrared, &valid, target);
            let got = got.unwrap().value().to(&Device::Cpu).unwrap();
            device::assert_error(&got, &Tensor::scalar(y), "the value alone");
        }
    }
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let i = inputs([2, 50, 31]);
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            TARGETS.map(|target| {
                let mut tape = Tape::new();
                let x = tape.leaf(i.image.clone());
                let y = loss(&mut tape, &x, &i, target);
                let dx = tape.backward_with(&y, Tensor::scalar(0.25)).unwrap().take(&x).unwrap();
                (y.value().item().to_bits(), dx.f32().iter().map(|v| v.to_bits()).collect::<Vec<_>>())
            })
        })
    };
    assert!(run(1) == run(5));
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    let (i, other) = (inputs([2, 5, 7]), inputs([2, 7, 5]));
    let image = Var::constant(i.image.clone());
    for (visible, infrared, valid) in [
        (&other.visible, &i.infrared, &i.valid),
        (&i.visible, &other.infrared, &i.valid),
        (&i.visible, &i.infrared, &other.valid),
    ] {
        let e = ops::fusion_loss(&mut Tape::off(), &image, visible, infrared, valid, TARGETS[0]);
        let e = e.unwrap_err().to_string();
        assert!(e.contains("fusion_loss") && e.contains("7, 5"), "{e}");
    }
    let elsewhere = i.infrared.to(&device::all()[0]).unwrap();
    let e = ops::fusion_loss(&mut Tape::off(), &image, &i.visible, &elsewhere, &i.valid, TARGETS[0]);
    assert!(e.unwrap_err().to_string().contains("fusion_loss"));
    let valid = Tensor::zeros([2, 5, 7]);
    assert!(ops::fusion_loss(&mut Tape::off(), &image, &i.visible, &i.infrared, &valid, TARGETS[0]).is_err());
}
