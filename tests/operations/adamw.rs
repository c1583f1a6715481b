use amdanet::cpu::adamw::{AdamW, Outcome, Parameter, Scaling};
use amdanet::nn::{Init, Layout, Params, Role, Scope, Step};
use amdanet::train::Optimizer;
use amdanet::{Device, Tensor, cpu, cuda};

use crate::device;
use crate::gradient::{random, relative_error};

/// Parameters of odd sizes, more than a block's chunk, of one number and of none; each second one decays, and the
/// third has no gradient.
const LENGTHS: [usize; 6] = [7, 1, 5000, 0, 12_288, 4097];

struct Run {
    device: Device,
    values: Vec<Tensor>,
    m: Vec<Tensor>,
    v: Vec<Tensor>,
}

impl Run {
    fn new(device: &Device) -> Self {
        let place = |f: &dyn Fn(usize, u64) -> Tensor| {
            LENGTHS.iter().zip(0..).map(|(&len, i)| f(len, i).to(device).unwrap()).collect::<Vec<_>>()
        };
        let zeros = |len: usize, _| Tensor::zeros([len]);
        Self {
            device: device.clone(),
            values: place(&|len, i| random([len], i)),
            m: place(&zeros),
            v: place(&zeros),
        }
    }

    /// Step `t`, of which the gradients are random, times `scale`; number `planted.1` of gradient `planted.0` is another.
    fn step(
        &mut self,
        t: u64,
        scale: f32,
        planted: Option<(usize, usize, f32)>,
        scaling: Scaling,
    ) -> Outcome {
        let gradient = |(i, &len): (usize, &usize)| {
            let mut g = random([len], 100 * t + i as u64);
            g.f32_mut().iter_mut().for_each(|g| *g *= scale);
            match planted {
                Some((parameter, at, value)) if parameter == i => g.f32_mut()[at] = value,
                _ => (),
            }
            // One number before it makes an address that is no multiple of 16.
            let shifted = Tensor::from_slice([len + 1], &[&[0.0], g.f32()].concat()).unwrap();
            let on_device = if i == 4 {
                shifted.to(&self.device).unwrap().narrow(1..len + 1)
            } else {
                g.to(&self.device)
            };
            (i != 2).then(|| on_device.unwrap())
        };
        let gradients: Vec<Option<Tensor>> = LENGTHS.iter().enumerate().map(gradient).collect();
        let moments = self.m.iter_mut().zip(&mut self.v);
        let mut parameters: Vec<Parameter> =
            (self.values.iter_mut().zip(moments).zip(&gradients).enumerate())
                .map(|(i, ((value, (m, v)), gradient))| {
                    let weight_decay = if i % 2 == 0 { 0.1 } else { 0.0 };
                    Parameter { value, gradient: gradient.as_ref(), m, v, weight_decay }
                })
                .collect();
        let rule = AdamW::default();
        match self.device {
            Device::Cpu => cpu::adamw::step(&rule, &mut parameters, 0.01, t, scaling),
            _ => cuda::adamw::step(&rule, &mut parameters, 0.01, t, scaling),
        }
        .unwrap()
    }

    /// All numbers: values, first and second moments.
    fn numbers(&self) -> [Vec<f32>; 3] {
        let host = |list: &[Tensor]| list.iter().map(|x| x.to(&Device::Cpu).unwrap()).collect::<Vec<_>>();
        [&self.values, &self.m, &self.v]
            .map(|list| host(list).iter().flat_map(|x| x.f32().to_vec()).collect())
    }
}

fn bits(numbers: &[Vec<f32>; 3]) -> [Vec<u32>; 3] {
    numbers.each_ref().map(|list| list.iter().map(|x| x.to_bits()).collect())
}

#[test]
fn on_a_device() {
    let half = Scaling { unscale: 1.0 / 65536.0, max_norm: Some(3.0) };
    let runs: [(f32, Scaling); 4] = [
        (1.0, Scaling::default()),
        (65536.0, half),
        // Gradients whose squares no float can hold, and some whose squares are none.
        (1e25, Scaling { max_norm: Some(1.0), ..Scaling::default() }),
        (1e-25, Scaling { max_norm: Some(1.0), ..Scaling::default() }),
    ];
    for (scale, scaling) in runs {
        let mut reference = Run::new(&Device::Cpu);
        let mut devices: Vec<Run> = device::all().iter().map(Run::new).collect();
        // A shared tensor is left as it was.
        let shared = devices[0].values[4].clone();
        for t in 1..=4 {
            let want = reference.step(t, scale, None, scaling);
            for run in &mut devices {
                let got = run.step(t, scale, None, scaling);
                assert!(got.finite && want.finite);
                assert!((got.norm - want.norm).abs() <= 1e-6 * want.norm, "{got:?} but {want:?}");
                for (got, want) in run.numbers().iter().zip(&reference.numbers()) {
                    assert!(relative_error(got, want) < 1e-6, "step {t} at scale {scale}");
                }
            }
        }
        assert_eq!(shared.to(&Device::Cpu).unwrap().f32(), random([12_288], 4).f32());
        let [first, second] = [0, devices.len() - 1].map(|i| bits(&devices[i].numbers()));
        assert!(first == second, "the order of threads changes the bits");
    }
}

#[test]
fn a_gradient_that_is_not_finite_changes_nothing() {
    for device in std::iter::once(&Device::Cpu).chain(device::all()) {
        let mut run = Run::new(device);
        run.step(1, 1.0, None, Scaling::default());
        let before = bits(&run.numbers());
        for value in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
            for (parameter, at) in [(0, 6), (1, 0), (4, 12_287), (5, 4096)] {
                let planted = Some((parameter, at, value));
                for max_norm in [None, Some(1.0)] {
                    let scaling = Scaling { unscale: 0.5, max_norm };
                    let outcome = run.step(2, 1.0, planted, scaling);
                    assert!(!outcome.finite && !outcome.norm.is_finite(), "{outcome:?}");
                    assert!(bits(&run.numbers()) == before, "{value} in gradient {parameter} of {device:?}");
                }
            }
        }
        assert!(run.step(2, 1.0, None, Scaling::default()).finite);
        assert!(bits(&run.numbers()) != before);
    }
}

#[test]
fn the_norm_is_that_of_all_gradients_and_limits_their_length() {
    let mut plain = Run::new(&Device::Cpu);
    let mut square = 0.0;
    for (i, &len) in LENGTHS.iter().enumerate().filter(|(i, _)| *i != 2) {
        square += random([len], 100 + i as u64).f32().iter().map(|&g| f64::from(g).powi(2)).sum::<f64>();
    }
    let outcome = plain.step(1, 1.0, None, Scaling::default());
    assert!((f64::from(outcome.norm) - square.sqrt()).abs() < 1e-6 * square.sqrt());
    // A limit above the norm leaves every bit; one below gives what the shortened gradients give.
    for (max_norm, scale) in [(2.0 * outcome.norm, 1.0), (0.25 * outcome.norm, 0.25)] {
        let (mut limited, mut shortened) = (Run::new(&Device::Cpu), Run::new(&Device::Cpu));
        let got = limited.step(1, 1.0, None, Scaling { max_norm: Some(max_norm), ..Scaling::default() });
        assert_eq!(got.norm, outcome.norm);
        shortened.step(1, scale, None, Scaling::default());
        for (got, want) in limited.numbers().iter().zip(&shortened.numbers()) {
            assert!(relative_error(got, want) < 1e-6);
        }
        assert_eq!(bits(&limited.numbers()) == bits(&plain.numbers()), scale == 1.0);
    }
}

#[test]
fn the_optimizer_counts_the_steps_that_it_takes() {
    for device in std::iter::once(&Device::Cpu).chain(device::all()) {
        let mut params = Params::default();
        let mut scope = Scope::new(&mut params);
        for (name, role) in [("w", Role::Weight), ("b", Role::NoDecay), ("s", Role::Statistic)] {
            scope.param(name, Layout::Same, [33], Init::Constant(1.0), role);
        }
        params.initialise(1);
        params.place(device, amdanet::DType::F32).unwrap();
        let mut optimizer = Optimizer::new(&params, AdamW::default(), 0.1);
        let mut take = |bias: f32| {
            let gradients = vec![None, Some(Tensor::full([1, 33], bias).to(device).unwrap()), None];
            let step = Step { gradients, statistics: Vec::new() };
            let outcome = optimizer.step(&mut params, step, 0.5, Scaling::default()).unwrap();
            let values: Vec<f32> =
                params.iter().map(|(_, p)| p.value.to(&Device::Cpu).unwrap().f32()[32]).collect();
            (outcome.finite, optimizer.steps(), values)
        };
        // The weight decays without a gradient; the first step is as long as the learning rate.
        assert_eq!(take(2.0), (true, 1, vec![0.95, 0.5, 1.0]));
        assert_eq!(take(f32::NAN), (false, 1, vec![0.95, 0.5, 1.0]));
        assert_eq!(take(2.0).1, 2);
    }
}
