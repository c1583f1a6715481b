//! The kernels that only the fused engine launches, against the operations that they put together, on the CPU.

use amdanet::cuda::scores::Resized;
use amdanet::cuda::windows::Windows;
use amdanet::cuda::{attention, conv, fuse, gate, layer_norm, linear, realign, scores, spatial};
use amdanet::ops::{self, Window};
use amdanet::{DType, Device, Shape, Tape, Tensor, Var};

use crate::device::{all, assert_error, placed};
use crate::gradient::random;

/// Runs `on_device` on every device, in every type, at aligned and other addresses; it gets the activations, which are
/// stored in the type, and has to give what `on_cpu` gives in float32.
#[track_caller]
fn check(
    activations: &[Tensor],
    on_cpu: impl Fn(&[Var]) -> Vec<Tensor>,
    on_device: impl Fn(&Device, DType, &[Tensor]) -> Vec<Tensor>,
) {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let stored: Vec<Tensor> = activations.iter().map(|x| x.cast(dtype).unwrap()).collect();
        let rounded: Vec<Var> = stored.iter().map(|x| Var::constant(x.cast(DType::F32).unwrap())).collect();
        let want = on_cpu(&rounded);
        for (device, offset) in all().iter().flat_map(|device| [(device, 0), (device, 1)]) {
            let there: Vec<Tensor> = stored.iter().map(|x| placed(x, device, offset)).collect();
            let got = on_device(device, dtype, &there);
            assert_eq!(got.len(), want.len());
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                let got = got.to(&Device::Cpu).unwrap();
                if got.dtype() == DType::U8 {
                    assert_eq!(got.as_slice::<u8>(), want.as_slice::<u8>(), "result {i} of {device:?}");
                } else {
                    assert_eq!(got.shape(), want.shape(), "result {i}");
                    assert_error(&got, want, &format!("{dtype}, offset {offset}, result {i} of {device:?}"));
                }
            }
        }
    }
}

fn tape() -> Tape<'static> {
    Tape::off()
}

/// f32 weights on a device.
fn there(device: &Device, x: &Tensor) -> Tensor {
    x.to(device).unwrap()
}

/// Batch, rows, columns, channels.
const MAPS: [(usize, usize, usize, usize); 4] = [(1, 1, 1, 1), (3, 3, 5, 11), (1, 4, 7, 16), (2, 9, 5, 40)];

#[test]
fn a_gate_scores_its_pixels() {
    for (b, h, w, c) in MAPS {
        let x = random([2, b, h, w, c], 1);
        let mut hidden = random([1, b, h, w, c], 2);
        hidden.f32_mut().iter_mut().for_each(|v| *v = v.max(0.0));
        let weight = random([1, 1, c], 3);
        for tau in [None, Some(0.1)] {
            let bias = Tensor::full([1, 1], 0.25);
            check(
                &[x.clone(), hidden.clone()],
                |v| {
                    let [weight, bias] = [&weight, &bias].map(|t| Var::constant(t.clone()));
                    let m = ops::linear(&mut tape(), &v[1], &weight, Some(&bias)).unwrap();
                    let m = ops::sigmoid(&mut tape(), &m).unwrap();
                    let lambda = Var::constant(Tensor::scalar(0.7));
                    vec![ops::gate(&mut tape(), &v[0], &m, &lambda, tau).unwrap().into_value()]
                },
                |device, _, v| {
                    let weight = there(device, &weight.reshape([c]).unwrap());
                    vec![gate::scored(&v[0], &v[1], (&weight, 0.25), 0.7, tau).unwrap()]
                },
            );
        }
    }
}

#[test]
fn realignment_applies_its_sigmoids() {
    for (b, h, w, c) in MAPS {
        let activations = [
            random([2, b, h, w, c], 1),
            random([1, b, h, w, c], 2),
            random([1, 2, b, 2 * c], 3),
            random([1, b, h, w, 2], 4),
        ];
        let prepare = |v: &[Var]| {
            let rows = v[2].value().reshape([2, 1, b, 2 * c]).unwrap();
            let [mean, max] = [0, 1].map(|i| Var::constant(rows.narrow(i..i + 1).unwrap()));
            let channel = ops::add(&mut tape(), &mean, max).unwrap();
            [ops::sigmoid(&mut tape(), &v[1]).unwrap(), ops::sigmoid(&mut tape(), &channel).unwrap()]
        };
        check(
            &activations,
            |v| {
                let [gate, channel] = prepare(v);
                let release = ops::realign_release(&mut tape(), &v[0], &gate, &channel, &v[3]).unwrap();
                let paper = ops::realign_paper(&mut tape(), &v[0], &channel, &v[3]).unwrap();
                vec![release.into_value(), paper.into_value()]
            },
            |_, _, v| {
                vec![
                    realign::raw(&v[0], Some(&v[1]), &v[2], &v[3]).unwrap(),
                    realign::raw(&v[0], None, &v[2], &v[3]).unwrap(),
                ]
            },
        );
    }
}

#[test]
fn weights_of_pixels() {
    for (b, h, w, _) in MAPS {
        let x = random([1, b, h, w, 4], 1);
        let [w1, b1, w2, b2] =
            [random([1, 16, 4], 2), random([1, 16], 3), random([1, 2, 16], 4), random([1, 2], 5)];
        let together = [&w1, &b1, &w2, &b2].map(Tensor::f32).concat();
        let (wide, wide_bias) = (random([1, 2, 7, 7, 4], 6), random([1, 2], 7));
        let wide_together = [wide.f32(), wide_bias.f32()].concat();
        let constant = |x: &Tensor| Var::constant(x.clone());
        check(
            &[x],
            |v| {
                let hidden = ops::linear(&mut tape(), &v[0], &constant(&w1), Some(&constant(&b1))).unwrap();
                let hidden = ops::relu(&mut tape(), &hidden).unwrap();
                let y = ops::linear(&mut tape(), &hidden, &constant(&w2), Some(&constant(&b2))).unwrap();
                let window = Window { stride: 1, padding: 3 };
                let z = ops::conv(&mut tape(), &v[0], &constant(&wide), &constant(&wide_bias), window);
                [y, z.unwrap()].map(|y| ops::sigmoid(&mut tape(), &y).unwrap().into_value()).into()
            },
            |device, _, v| {
                // The kernels read the four statistics of a pixel at once, as they are always placed.
                let v = there(&Device::Cpu, &v[0]).to(device).unwrap();
                let weights = |x: &[f32]| Tensor::from_slice([x.len()], x).unwrap().to(device).unwrap();
                vec![
                    spatial::pointwise(&v, &weights(&together)).unwrap(),
                    spatial::wide(&v, &weights(&wide_together)).unwrap(),
                ]
            },
        );
    }
}

#[test]
fn the_sum_of_resized_maps() {
    for (b, h, w, c) in MAPS {
        let size = |n: usize, by: usize| n.div_ceil(by);
        let mut activations = vec![random([1, b, h, w, c], 1)];
        for (i, by) in [2, 3, 8].into_iter().enumerate() {
            activations.push(random([1, b, size(h, by), size(w, by), c], 2 + i as u64));
        }
        check(
            &activations,
            |v| {
                let mut sum = v[0].clone();
                for map in &v[1..] {
                    let map = ops::resize(&mut tape(), map, h, w).unwrap();
                    sum = ops::add(&mut tape(), &map, sum).unwrap();
                }
                vec![ops::relu(&mut tape(), &sum).unwrap().into_value()]
            },
            |_, _, v| vec![scores::sum(&v[0], [&v[1], &v[2], &v[3]]).unwrap()],
        );
    }
}

#[test]
fn labels_logits_and_probabilities_of_resized_scores() {
    for (b, (h, w), (height, width), classes) in [
        (1, (1, 1), (3, 2), 1),
        (2, (3, 5), (11, 19), 9),
        (1, (4, 3), (16, 12), 8),
        (1, (2, 33), (5, 130), 21),
    ] {
        let stride = usize::next_multiple_of(classes, 8);
        // Values that no rounding makes equal, whatever lies beyond the classes.
        let mut scores_of = random([1, b, h, w, stride], 1);
        scores_of.f32_mut().iter_mut().for_each(|v| *v *= 8.0);
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let stored = scores_of.cast(dtype).unwrap();
            let rounded = stored.cast(DType::F32).unwrap();
            let cut: Vec<f32> =
                rounded.f32().chunks(stride).flat_map(|row| &row[..classes]).copied().collect();
            let cut = Var::constant(Tensor::from_slice([1, b, h, w, classes], &cut).unwrap());
            let logits = ops::resize(&mut tape(), &cut, height, width).unwrap();
            let probabilities = ops::probabilities(&mut tape(), &logits).unwrap();
            for device in all() {
                let make = |shape: Shape, dtype| Tensor::scratch_on(device, shape, dtype).unwrap();
                let mut labels = make([b, height, width].into(), DType::U8);
                let mut floats = [(); 2].map(|()| make([1, b, height, width, classes].into(), DType::F32));
                let [l, p] = &mut floats;
                let out = Resized { labels: &mut labels, logits: Some(l), probabilities: Some(p) };
                scores::labels(&there(device, &stored), classes, out).unwrap();
                let [l, p] = floats.map(|x| x.to(&Device::Cpu).unwrap());
                assert_error(&l, logits.value(), "logits");
                assert_error(&p, &probabilities, "probabilities");
                let mut alone = make([b, height, width].into(), DType::U8);
                let out = Resized { labels: &mut alone, logits: None, probabilities: None };
                scores::labels(&there(device, &stored), classes, out).unwrap();
                let [labels, alone] = [labels, alone].map(|x| x.to(&Device::Cpu).unwrap());
                assert_eq!(labels.as_slice::<u8>(), alone.as_slice::<u8>());
                // The first of the largest scores, of which rounding may choose another one.
                for (label, row) in labels.as_slice::<u8>().iter().zip(l.f32().chunks(classes)) {
                    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                    assert_eq!(usize::from(*label), row.iter().position(|&v| v == most).unwrap());
                }
            }
        }
    }
}

#[test]
fn the_fused_picture() {
    for (b, (h, w), o) in [(1, (1, 1), 4), (2, (13, 37), 16), (1, (9, 6), 5), (1, (40, 33), 8)] {
        let (conv_weight, conv_bias) = (random([1, o, 3, 3, 6], 1), random([1, o], 2));
        let (last, last_bias) = (random([1, 3, o], 3), random([1, 3], 4));
        let mut together = Vec::new();
        for i in 0..54 {
            together.extend((0..o).map(|j| conv_weight.f32()[j * 54 + i]));
        }
        for part in [&conv_bias, &last, &last_bias] {
            together.extend_from_slice(part.f32());
        }
        assert_eq!(together.len(), fuse::weights_len(o));
        let bytes: Vec<u8> = (0..2 * b * h * w * 3).map(|i| (i * 37 % 256) as u8).collect();
        let floats: Vec<f32> = bytes.iter().map(|&v| f32::from(v) / 255.0).collect();
        let bytes = Tensor::from_slice([2, b, h, w, 3], &bytes).unwrap();
        let floats = Tensor::from_slice([2, b, h, w, 3], &floats).unwrap();
        let maps: Vec<Tensor> = [1, 2, 5, 9]
            .into_iter()
            .zip(5..)
            .map(|(by, seed)| random([1, b, h.div_ceil(by), w.div_ceil(by), 9 * o], seed))
            .collect();
        check(
            &maps,
            |v| {
                let constant = |x: &Tensor| Var::constant(x.clone());
                let both = amdanet::ops::concat_streams(&mut tape(), &constant(&floats)).unwrap();
                let window = Window { stride: 1, padding: 1 };
                let base =
                    ops::conv(&mut tape(), &both, &constant(&conv_weight), &constant(&conv_bias), window);
                // The operation adds up two streams; the second has nothing to add.
                let twice = |x: &Var| {
                    let zeros = Tensor::zeros(x.value().shape());
                    Var::constant(Tensor::concat(&[x.value(), &zeros]).unwrap())
                };
                let [p, q, r, s] = [0, 1, 2, 3].map(|i| twice(&v[i]));
                let sum = ops::add_resized_taps(&mut tape(), base.unwrap(), [&p, &q, &r, &s]).unwrap();
                let sum = ops::relu(&mut tape(), &sum).unwrap();
                let y =
                    ops::linear(&mut tape(), &sum, &constant(&last), Some(&constant(&last_bias))).unwrap();
                let y = ops::sigmoid(&mut tape(), &y).unwrap().into_value();
                vec![y.reshape([b, h, w, 3]).unwrap(); 2]
            },
            |device, _, v| {
                let weights = Tensor::from_slice([together.len()], &together).unwrap().to(device).unwrap();
                let maps = [&v[0], &v[1], &v[2], &v[3]];
                [&bytes, &floats]
                    .map(|pictures| {
                        let mut fused = Tensor::scratch_on(device, [b, h, w, 3], DType::U8).unwrap();
                        let mut image = Tensor::scratch_on(device, [b, h, w, 3], DType::F32).unwrap();
                        let pictures = there(device, pictures);
                        fuse::forward(&pictures, maps, &weights, &mut fused, Some(&mut image)).unwrap();
                        let [fused, image] = [fused, image].map(|x| x.to(&Device::Cpu).unwrap());
                        assert_eq!(fused.as_slice::<u8>(), amdanet::data::to_bytes(image.f32()));
                        image
                    })
                    .into()
            },
        );
    }
}

#[test]
fn patches_of_bytes_and_floats() {
    for (b, h, w, o) in [(1, 7, 9, 3), (2, 33, 21, 8)] {
        let bytes: Vec<u8> = (0..2 * b * h * w * 3).map(|i| (i * 91 % 256) as u8).collect();
        let floats: Vec<f32> = bytes.iter().map(|&v| f32::from(v) / 255.0).collect();
        let bytes = Tensor::from_slice([2, b, h, w, 3], &bytes).unwrap();
        let floats = Tensor::from_slice([2, b, h, w, 3], &floats).unwrap();
        let (weight, bias) = (random([2, o, 7, 7, 3], 1), random([2, o], 2));
        let window = Window { stride: 4, padding: 3 };
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let round = |x: &Tensor| Var::constant(x.cast(dtype).unwrap().cast(DType::F32).unwrap());
            let want =
                ops::conv(&mut tape(), &round(&floats), &round(&weight), &round(&bias), window).unwrap();
            let row = 147usize.next_multiple_of(16 / dtype.size());
            let mut padded = Tensor::zeros([2, o, row]);
            let rows = padded.f32_mut().chunks_mut(row).zip(weight.f32().chunks(147));
            rows.for_each(|(to, from)| to[..147].copy_from_slice(from));
            for device in all() {
                let place = |x: &Tensor| there(device, &x.cast(dtype).unwrap());
                for pictures in [&bytes, &floats] {
                    let (pictures, weight) = (there(device, pictures), place(&padded));
                    let y = conv::infer(&pictures, &weight, Some(&place(&bias)), 7, window).unwrap();
                    assert_error(&y.to(&Device::Cpu).unwrap(), want.value(), &format!("{dtype}, {device:?}"));
                }
                assert!(conv::infer(&there(device, &bytes), &place(&padded), None, 3, window).is_err());
            }
        }
    }
}

#[test]
fn products_with_relu_side_by_side() {
    let (x, weight, bias) = (random([2, 3, 5, 7, 24], 1), random([2, 8, 24], 2), random([2, 8], 3));
    check(
        &[x, weight, bias],
        |v| {
            let y = ops::linear(&mut tape(), &v[0], &v[1], Some(&v[2])).unwrap();
            let y = ops::relu(&mut tape(), &y).unwrap();
            let both = ops::concat_streams(&mut tape(), &y).unwrap();
            vec![y.into_value(), both.into_value()]
        },
        |_, _, v| {
            vec![
                linear::apply(&v[0], &v[1], Some(&v[2]), None, true).unwrap(),
                linear::side_by_side(&v[0], &v[1], Some(&v[2])).unwrap(),
            ]
        },
    );
}

#[test]
fn norms_and_attention_without_their_statistics() {
    let (x, weight, bias) = (random([2, 1, 6, 5, 40], 1), random([2, 40], 2), random([2, 40], 3));
    check(
        &[x],
        |v| {
            let [weight, bias] = [&weight, &bias].map(|t| Var::constant(t.clone()));
            vec![ops::layer_norm(&mut tape(), &v[0], &weight, &bias, 1e-6).unwrap().into_value()]
        },
        |device, _, v| {
            let [weight, bias] = [&weight, &bias].map(|t| there(device, t));
            vec![layer_norm::infer(&v[0], &weight, &bias, 1e-6, None).unwrap()]
        },
    );
    for (d, heads) in [(16, 2), (32, 1), (64, 2)] {
        let (q, kv) = (random([2, 1, 70, d * heads], 4), random([2, 1, 33, 2 * d * heads], 5));
        check(
            &[q, kv],
            |v| vec![ops::attention(&mut tape(), &v[0], &v[1], heads).unwrap().into_value()],
            |_, _, v| {
                let scale = (d as f32).powf(-0.5);
                vec![attention::infer(&v[0], &v[1], heads, scale, None).unwrap()]
            },
        );
    }
}

/// The rows of x `(S, B, H, W, C)` in the order of windows of this side.
fn by_windows(x: &Tensor, side: usize) -> Tensor {
    let [h, w, c] = [2, 3, 4].map(|axis| x.dim(axis));
    let mut rows = Vec::with_capacity(x.len());
    for map in x.f32().chunks(h * w * c) {
        for window in 0..h / side * (w / side) {
            let (top, left) = (window / (w / side) * side, window % (w / side) * side);
            for (row, column) in (0..side * side).map(|i| (top + i / side, left + i % side)) {
                rows.extend_from_slice(&map[(row * w + column) * c..][..c]);
            }
        }
    }
    Tensor::from_slice(x.shape(), &rows).unwrap()
}

#[test]
fn norms_write_windows_and_attention_reads_them() {
    let cases = [
        (2, [2, 3, 4, 6], 24, 1),
        (3, [1, 2, 6, 3], 7, 1),
        (4, [2, 1, 12, 16], 64, 2),
        // Blocks enough for large ones.
        (2, [2, 66, 4, 6], 32, 2),
        (1, [1, 2, 3, 5], 8, 1),
    ];
    for (side, [s, b, h, w], c, heads) in cases {
        let x = random([s, b, h, w, c], 1);
        let windows = Windows::of(x.shape(), side);
        assert!(windows.is_some());
        let (weight, bias) = (random([s, c], 2), random([s, c], 3));
        check(
            std::slice::from_ref(&x),
            |v| {
                let [weight, bias] = [&weight, &bias].map(|t| Var::constant(t.clone()));
                let y = ops::layer_norm(&mut tape(), &v[0], &weight, &bias, 1e-6).unwrap();
                vec![by_windows(y.value(), side)]
            },
            |device, _, v| {
                let [weight, bias] = [&weight, &bias].map(|t| there(device, t));
                vec![layer_norm::infer(&v[0], &weight, &bias, 1e-6, windows).unwrap()]
            },
        );
        let tokens = |x: &Tensor| x.reshape([s, b, h * w, c]).unwrap();
        let q = tokens(&by_windows(&x, side));
        check(
            &[q, random([s, b, 9, 2 * c], 4), x],
            |v| {
                let q = Var::constant(tokens(v[2].value()));
                vec![ops::attention(&mut tape(), &q, &v[1], heads).unwrap().into_value()]
            },
            |_, _, v| {
                let scale = ((c / heads) as f32).powf(-0.5);
                vec![attention::infer(&v[0], &v[1], heads, scale, windows).unwrap()]
            },
        );
    }
    let map = Shape::from([1, 1, 6, 9, 8]);
    assert!(Windows::of(map, 2).is_none() && Windows::of(map, 4).is_none() && Windows::of(map, 3).is_some());
}
