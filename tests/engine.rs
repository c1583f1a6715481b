//! The fused engine gives what the ordinary pass gives.

use amdanet::infer::{Engine, Pairs, Wanted};
use amdanet::model::{Amdanet, Arch, Encoder, ModelConfig};
use amdanet::nn::Pass;
use amdanet::random::Stream;
use amdanet::{Tensor, verify};

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
