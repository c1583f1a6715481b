use amdanet::ops::{self, Window};
use amdanet::{DType, Device, Tape, Tensor, Var};

use crate::device;
use crate::gradient::{check_with, random, relative_error};

/// Streams, batch, height, width, inputs, outputs, kernel, stride, padding.
const CASES: [[usize; 9]; 9] = [
    [1, 1, 1, 1, 1, 1, 1, 1, 0],
    [2, 2, 13, 9, 3, 5, 7, 4, 3],
    [2, 1, 7, 10, 5, 6, 3, 2, 1],
    [1, 3, 6, 5, 7, 2, 3, 1, 1],
    [1, 1, 9, 8, 4, 2, 7, 1, 3],
    [2, 1, 19, 17, 3, 4, 8, 8, 0],
    [1, 2, 9, 5, 4, 3, 2, 2, 0],
    [1, 1, 40, 41, 2, 3, 3, 1, 1],
    [1, 1, 2, 1, 2, 3, 7, 4, 3],
];

fn plain(x: &Tensor, w: &Tensor, bias: &Tensor, window: Window) -> Vec<f32> {
    let [s, b, h, wd, i] = [0, 1, 2, 3, 4].map(|a| x.dim(a) as isize);
    let [_, o, kh, kw, _] = [0, 1, 2, 3, 4].map(|a| w.dim(a) as isize);
    let (stride, pad) = (window.stride as isize, window.padding as isize);
    let (ho, wo) = ((h + 2 * pad - kh) / stride + 1, (wd + 2 * pad - kw) / stride + 1);
    let mut y = Vec::new();
    for n in 0..s * b * ho * wo * o {
        let (out, ox, oy) = (n % o, n / o % wo, n / (o * wo) % ho);
        let (sample, stream) = (n / (o * wo * ho), n / (o * wo * ho * b));
        let mut sum = f64::from(bias.f32()[(stream * o + out) as usize]);
        for (ky, kx) in (0..kh).flat_map(|ky| (0..kw).map(move |kx| (ky, kx))) {
            let (iy, ix) = (oy * stride + ky - pad, ox * stride + kx - pad);
            if (0..h).contains(&iy) && (0..wd).contains(&ix) {
                for c in 0..i {
                    let at = (((sample * h + iy) * wd + ix) * i + c) as usize;
                    let wat = ((((stream * o + out) * kh + ky) * kw + kx) * i + c) as usize;
                    sum += f64::from(x.f32()[at]) * f64::from(w.f32()[wat]);
                }
            }
        }
        y.push(sum as f32);
    }
    y
}

fn inputs([s, b, h, w, i, o, k, _, _]: [usize; 9]) -> [Tensor; 3] {
    [random([s, b, h, w, i], 1), random([s, o, k, k, i], 2), random([s, o], 3)]
}

#[test]
fn matches_a_plain_loop() {
    for case in CASES {
        let window = Window { stride: case[7], padding: case[8] };
        let [x, w, b] = inputs(case);
        let want = plain(&x, &w, &b, window);
        let [x, w, b] = [x, w, b].map(Var::constant);
        let y = ops::conv(&mut Tape::off(), &x, &w, &b, window).unwrap();
        assert!(relative_error(y.value().f32(), &want) < 1e-6, "{case:?}");
    }
}

#[test]
fn gradients() {
    for case in CASES {
        let window = Window { stride: case[7], padding: case[8] };
        check_with(&inputs(case), 0.5, 1e-4, |t, v| ops::conv(t, &v[0], &v[1], &v[2], window));
    }
}

#[test]
fn on_a_device() {
    let more = [
        // Vectors: 8 and 16 channels; windows that touch; a single pixel; windows as wide as the input.
        [2, 3, 9, 11, 8, 16, 3, 2, 1],
        [1, 3, 8, 12, 16, 8, 4, 4, 0],
        [2, 2, 5, 7, 8, 3, 1, 1, 0],
        [1, 2, 12, 4, 3, 5, 4, 4, 0],
        [2, 1, 6, 7, 24, 8, 3, 1, 1],
        [1, 1, 7, 9, 2, 3, 3, 3, 2],
        [1, 2, 9, 9, 2, 3, 1, 2, 0],
        [1, 1, 4, 5, 3, 2, 3, 1, 4],
    ];
    for case in CASES.into_iter().chain(more) {
        let window = Window { stride: case[7], padding: case[8] };
        device::check(&inputs(case), &[], &[], |t, v, _| ops::conv(t, &v[0], &v[1], &v[2], window));
    }
}

/// More patches than are gathered at once, in whole rows and in whole images.
#[test]
fn in_parts_on_a_device() {
    for case in [[1, 3, 130, 161, 12, 1, 7, 2, 3], [2, 2, 110, 80, 7, 1, 7, 1, 3]] {
        let window = Window { stride: case[7], padding: case[8] };
        let inputs = inputs(case);
        let run = |device: &Device, dtype| {
            device::run(device, dtype, 0, DType::F32, (&inputs, &[], &[]), |t, v, _| {
                ops::conv(t, &v[0], &v[1], &v[2], window)
            })
        };
        let want = run(&Device::Cpu, DType::F32);
        for (i, (got, want)) in run(&device::all()[0], DType::F32).iter().zip(&want).enumerate() {
            device::assert_error(got, want, &format!("result {i} of {case:?}"));
        }
    }
}

#[test]
fn a_kernel_larger_than_the_input_is_an_error() {
    let [x, w, b] = inputs([1, 1, 5, 9, 2, 2, 8, 8, 0]).map(Var::constant);
    let e =
        ops::conv(&mut Tape::off(), &x, &w, &b, Window { stride: 8, padding: 0 }).unwrap_err().to_string();
    assert!(e.contains("conv") && e.contains("(1, 1, 5, 9, 2)"), "{e}");
    assert!(ops::conv(&mut Tape::off(), &x, &w, &b, Window { stride: 0, padding: 3 }).is_err());
}
