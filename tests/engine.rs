//! The fused engine gives what the ordinary pass gives.

use amdanet::data::{self, to_bytes};
use amdanet::infer::product::{Finish, Grid, Instructions, Packed, product};
use amdanet::infer::{Engine, MOST_SHAPES, Pairs, Pinned, Pixels, Session, Wanted};
use amdanet::model::{Amdanet, Arch, Encoder, ModelConfig};
use amdanet::nn::Pass;
use amdanet::random::Stream;
use amdanet::{DType, Precision, Tensor, verify};

#[path = "common/device.rs"]
mod device;
use device::device;

fn model(encoder: Encoder, arch: Arch) -> Amdanet {
    let mut model = Amdanet::new(ModelConfig::new(encoder, arch, 9)).unwrap();
    verify::fill(&mut model.params, 5).unwrap();
    model
}

fn pictures(batch: usize, h: usize, w: usize) -> [Tensor; 2] {
    [0, 1].map(|stream| {
        let mut x = Tensor::scratch([1, batch, h, w, 3]);
        let numbers = Stream::new(7, stream);
        x.f32_mut().iter_mut().zip(0..).for_each(|(v, i)| *v = numbers.uniform(i));
        x
    })
}

const ALL: Wanted = Wanted { image: true, logits: true, probabilities: true };

/// ‖x − reference‖ / ‖reference‖.
fn error(x: &[f32], reference: &[f32]) -> f64 {
    assert_eq!(x.len(), reference.len());
    let square = |v: f64| v * v;
    let difference: f64 = x.iter().zip(reference).map(|(&a, &b)| square(f64::from(a) - f64::from(b))).sum();
    (difference / reference.iter().map(|&v| square(f64::from(v))).sum::<f64>()).sqrt()
}

#[test]
fn the_engine_agrees_with_the_ordinary_pass() {
    for encoder in [Encoder::Nano, Encoder::B0] {
        for arch in [Arch::Release, Arch::Paper] {
            let model = model(encoder, arch);
            let mut session = Engine::new(&model).unwrap().session();
            for (h, w) in [(32, 32), (75, 101), (96, 128)] {
                let [visible, infrared] = pictures(2, h, w);
                let want = model.forward(&mut Pass::eval(&model.params), &visible, &infrared).unwrap();
                let got = session.run(&Pairs::new(&visible, &infrared).unwrap(), ALL).unwrap();
                let errors = [
                    error(got.logits.unwrap(), want.logits.value().f32()),
                    error(got.image.unwrap(), want.image.value().f32()),
                ];
                println!("{encoder} {arch} {h}x{w}: {errors:?}");
                assert!(errors.iter().all(|&e| e < 1e-5), "{encoder} {arch} {h}x{w}: {errors:?}");
            }
        }
    }
}

/// Every output, bit for bit.
fn bits(session: &mut Session, [visible, infrared]: &[Tensor; 2]) -> (Vec<u8>, Vec<u8>, Vec<Vec<u32>>) {
    let output = session.run(&Pairs::new(visible, infrared).unwrap(), ALL).unwrap();
    let floats = [output.image, output.logits, output.probabilities];
    let floats = floats.map(|x| x.unwrap().iter().map(|v| v.to_bits()).collect()).to_vec();
    (output.labels.to_vec(), output.fused.to_vec(), floats)
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let pictures = pictures(2, 75, 101);
    for arch in [Arch::Release, Arch::Paper] {
        let engine = Engine::new(&model(Encoder::Nano, arch)).unwrap();
        let [one, two, three] = [1, 2, 3].map(|n| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
            pool.install(|| bits(&mut engine.session(), &pictures))
        });
        assert!(one == two && one == three, "{arch}");
    }
}

#[test]
fn shapes_beyond_those_that_are_kept_change_no_bit() {
    let on_cpu = Engine::new(&model(Encoder::Nano, Arch::Release)).unwrap();
    let on_device = on_cpu.clone().to(&device(Precision::F32), DType::F16).unwrap();
    for engine in [on_cpu, on_device] {
        let mut session = engine.session();
        for width in (32..=32 + MOST_SHAPES).chain([32]) {
            let pictures = pictures(1, 32, width);
            assert!(bits(&mut session, &pictures) == bits(&mut engine.session(), &pictures), "width {width}");
        }
    }
}

#[test]
fn bytes_say_what_floats_say() {
    let model = model(Encoder::Nano, Arch::Release);
    let engine = Engine::new(&model).unwrap();
    let (h, w) = (40, 56);
    let bytes: Vec<Vec<u8>> =
        [3, 5].map(|step| (0..h * w * 3).map(|i| (i * step % 256) as u8).collect()).to_vec();
    let floats = [0, 1].map(|i| {
        let numbers: Vec<f32> = bytes[i].iter().map(|&b| f32::from(b) / 255.0).collect();
        Tensor::from_slice([1, 1, h, w, 3], &numbers).unwrap()
    });
    let mut session = engine.session();
    let from_bytes = Pairs {
        batch: 1,
        height: h,
        width: w,
        visible: Pixels::Bytes(&bytes[0]),
        infrared: Pixels::Bytes(&bytes[1]),
    };
    let plain = session.run(&from_bytes, Wanted::default()).unwrap();
    assert!(plain.image.is_none() && plain.logits.is_none() && plain.probabilities.is_none());
    let (labels, fused) = (plain.labels.to_vec(), plain.fused.to_vec());
    let all = session.run(&Pairs::new(&floats[0], &floats[1]).unwrap(), ALL).unwrap();
    assert!(labels == all.labels && fused == all.fused);
    assert_eq!(to_bytes(all.image.unwrap()), fused);
    for (row, logits) in all.probabilities.unwrap().chunks(9).zip(all.logits.unwrap().chunks(9)) {
        assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        let best = |x: &[f32]| (0..9).max_by(|&a, &b| x[a].total_cmp(&x[b])).unwrap();
        assert!(row[best(logits)] >= row[best(row)]);
    }
}

#[test]
fn misuse_is_an_error() {
    let engine = Engine::new(&model(Encoder::Nano, Arch::Release)).unwrap();
    let mut session = engine.session();
    let bytes = vec![0; 64 * 64 * 3];
    let pairs = |batch, height, width| Pairs {
        batch,
        height,
        width,
        visible: Pixels::Bytes(&bytes),
        infrared: Pixels::Bytes(&bytes),
    };
    for (batch, h, w) in [(0, 64, 64), (1, 31, 64), (1, 64, 65), (2, 64, 64)] {
        let message = session.run(&pairs(batch, h, w), Wanted::default()).err().unwrap().to_string();
        assert!(message.contains(&format!("{batch} pairs of {w}x{h} pixels")), "{message}");
    }
    assert!(session.run(&pairs(1, 64, 64), Wanted::default()).is_ok());
    let plan = session.plan(&pairs(1, 64, 64), Wanted::default()).unwrap().to_string();
    assert!(plan.contains("level 3 block attention") && plan.contains("arena"), "{plan}");
}

/// A matrix in the layout `grid` within a slice whose other numbers are NaN.
fn spread(m: usize, n: usize, grid: Grid, f: impl Fn(usize, usize) -> f32) -> Vec<f32> {
    let mut out = vec![f32::NAN; grid.span(m, n)];
    for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
        out[j / grid.block * grid.next + i * grid.row + j % grid.block] = f(i, j);
    }
    out
}

#[test]
fn products_of_every_tail() {
    let sizes_m = [1, 2, 5, 6, 7, 11, 12, 13, 25];
    let sizes_n = [1, 15, 16, 17, 31, 32, 33, 48, 49];
    let number = |i: usize, j: usize| ((i * 31 + j * 17) % 23) as f32 / 8.0 - 1.0;
    for instructions in Instructions::available() {
        for (m, n, k) in sizes_m
            .into_iter()
            .flat_map(|m| sizes_n.into_iter().map(move |n| (m, n)))
            .flat_map(|(m, n)| [1, 3, 31, 32, 33, 70].map(|k| (m, n, k)))
        {
            let weight: Vec<f32> = (0..n * k).map(|i| number(i % k, i / k + 5)).collect();
            let bias: Vec<f32> = (0..n).map(|j| number(j, 3)).collect();
            for variant in 0..4 {
                let (biased, add, relu) = (variant != 0, variant >= 2, variant == 3);
                let wide = |count: usize| Grid::rows(count.next_multiple_of(32) + 5);
                let a_grid = if variant == 1 { Grid::panels(m + 1) } else { wide(k) };
                let out_grid = if variant == 2 { Grid::panels(m) } else { wide(n) };
                let a = spread(m, k, a_grid, number);
                let mut out = spread(m, n, out_grid, |i, j| number(j, i));
                let packed = Packed::new(&weight, k, n, biased.then_some(&bias[..]));
                let finish = Finish { add, relu };
                product(instructions, m, (&a, a_grid), packed.view(), (&mut out, out_grid), finish);
                let want = spread(m, n, out_grid, |i, j| {
                    let sum: f64 =
                        (0..k).map(|l| f64::from(number(i, l)) * f64::from(weight[j * k + l])).sum();
                    let before = if add { f64::from(number(j, i)) } else { 0.0 };
                    let sum = sum + before + if biased { f64::from(bias[j]) } else { 0.0 };
                    if relu { sum.max(0.0) as f32 } else { sum as f32 }
                });
                for (got, want) in out.iter().zip(&want) {
                    let close = (got - want).abs() < 1e-4 || got.is_nan() && want.is_nan();
                    assert!(close, "{instructions:?} {m}x{n}x{k} variant {variant}: {got} is not {want}");
                }
            }
        }
    }
}

#[test]
fn every_instruction_set_computes_the_network() {
    let model = model(Encoder::Nano, Arch::Release);
    let [visible, infrared] = pictures(1, 64, 96);
    let want = model.forward(&mut Pass::eval(&model.params), &visible, &infrared).unwrap();
    for instructions in Instructions::available() {
        let mut session = Engine::new(&model).unwrap().with(instructions).unwrap().session();
        let got = session.run(&Pairs::new(&visible, &infrared).unwrap(), ALL).unwrap();
        assert!(error(got.logits.unwrap(), want.logits.value().f32()) < 1e-5, "{instructions:?}");
    }
}

#[test]
fn a_device_computes_the_network() {
    for encoder in [Encoder::Nano, Encoder::B0] {
        for arch in [Arch::Release, Arch::Paper] {
            let engine = Engine::new(&model(encoder, arch)).unwrap();
            for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::F16, 5e-3), (DType::BF16, 4e-2)] {
                let device = device(Precision::F32);
                let mut session = engine.clone().to(&device, dtype).unwrap().session();
                for (h, w) in [(32, 32), (75, 101), (64, 96)] {
                    let [visible, infrared] = pictures(2, h, w);
                    let pairs = Pairs::new(&visible, &infrared).unwrap();
                    let mut on_cpu = engine.session();
                    let want = on_cpu.run(&pairs, ALL).unwrap();
                    let got = session.run(&pairs, ALL).unwrap();
                    let errors = [
                        error(got.logits.unwrap(), want.logits.unwrap()),
                        error(got.probabilities.unwrap(), want.probabilities.unwrap()),
                        error(got.image.unwrap(), want.image.unwrap()),
                    ];
                    println!("{encoder} {arch} {dtype} {h}x{w}: {errors:?}");
                    assert!(errors.iter().all(|&e| e < tolerance), "{encoder} {arch} {dtype}: {errors:?}");
                    assert_eq!(to_bytes(got.image.unwrap()), got.fused);
                    let results = [got.labels, got.fused].map(<[u8]>::to_vec);
                    let same = got.labels.iter().zip(want.labels).filter(|(a, b)| a == b).count();
                    assert!(dtype != DType::F32 || same as f64 >= 0.999 * results[0].len() as f64);
                    let pinned = [visible, infrared].map(|x| Pinned::new::<f32>(&device, x));
                    let pairs = Pairs::new(pinned[0].tensor(), pinned[1].tensor()).unwrap();
                    let got = session.run(&pairs, ALL).unwrap();
                    assert_eq!([got.labels, got.fused], results.each_ref().map(Vec::as_slice));
                }
            }
        }
    }
}

/// On real pairs half precision says what float32 says: 99.8 % of the labels, and the fused picture within 1 of 255 on
/// 99.9 %. `AMDANET_PAIRS` names a flat data set.
#[test]
fn half_precision_agrees_on_real_pairs() {
    let Some(folder) = std::env::var_os("AMDANET_PAIRS").map(std::path::PathBuf::from) else {
        println!("AMDANET_PAIRS is not set: nothing is checked");
        return;
    };
    let found = data::pairs(&folder.join("Visible"), &folder.join("Infrared")).unwrap();
    assert!(found.pairs.len() >= 2, "{}", folder.display());
    let engine = Engine::new(&model(Encoder::B0, Arch::Release)).unwrap();
    let mut half = engine.clone().to(&device(Precision::F32), DType::F16).unwrap().session();
    for pair in [&found.pairs[0], &found.pairs[found.pairs.len() / 2]] {
        let (visible, infrared) = data::read_pair(pair, data::Limits::default()).unwrap();
        let pairs = Pairs {
            batch: 1,
            height: visible.height,
            width: visible.width,
            visible: Pixels::Floats(&visible.rgb),
            infrared: Pixels::Floats(&infrared.rgb),
        };
        let mut full = engine.session();
        let want = full.run(&pairs, Wanted::default()).unwrap();
        let got = half.run(&pairs, Wanted::default()).unwrap();
        let share = |a: &[u8], b: &[u8], most: u8| {
            let near = a.iter().zip(b).filter(|(a, b)| a.abs_diff(**b) <= most).count();
            near as f64 / a.len() as f64
        };
        let (labels, fused) = (share(got.labels, want.labels, 0), share(got.fused, want.fused, 1));
        println!("{}: labels {labels:.5}, fused {fused:.5}", pair.name);
        assert!(labels >= 0.998 && fused >= 0.999, "{}: labels {labels:.5}, fused {fused:.5}", pair.name);
    }
}
