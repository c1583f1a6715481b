//! Training and the fused engine on a CUDA device that fails: always a clean error, nothing leaks, nothing is lost.

use std::sync::Arc;

use amdanet::cuda::trace::Trace;
use amdanet::data::Batch;
use amdanet::infer::{Engine, Pairs, Pixels, Session, Wanted};
use amdanet::model::{Amdanet, Arch, Encoder};
use amdanet::random::Stream;
use amdanet::train::{Config, Recipe, Trainer};
use amdanet::{DType, Device, Tensor};
use emulator::{Emulator, Failing, Options};

const CLASSES: usize = 5;

fn batch() -> Batch {
    let (b, h, w) = (2, 32, 48);
    let numbers = Stream::new(3, 1);
    let picture = |from: u64| {
        let data: Vec<f32> = (0..(b * h * w * 3) as u64).map(|i| numbers.uniform(from + i)).collect();
        Tensor::from_slice([1, b, h, w, 3], &data).unwrap()
    };
    let labels: Vec<u8> = (0..b * h * w).map(|i| (numbers.word(i as u64) % CLASSES as u32) as u8).collect();
    Batch {
        visible: picture(0),
        infrared: picture(1 << 20),
        labels: Tensor::from_slice([b, h, w], &labels).unwrap(),
        valid: Tensor::from_slice([b, h, w], &vec![1u8; b * h * w]).unwrap(),
    }
}

fn trainer(device: &Device, arch: Arch, compute: DType) -> Trainer {
    let mut config = Config::new(None, Recipe::Release, Encoder::Nano, arch, Some(CLASSES));
    (config.augment.height, config.augment.width) = (32, 48);
    (config.run.batch, config.run.steps) = (2, 10);
    (config.optimizer.lr, config.optimizer.warmup_steps) = (1e-3, 1);
    // AdamW's first step goes by the sign of a gradient alone; with this ε the noise of a gradient that is zero in
    // exact arithmetic moves nothing.
    config.optimizer.eps = 1e-3;
    let mut model = Amdanet::new(config.model.clone()).unwrap();
    model.params.initialise(4);
    model.params.place(device, compute).unwrap();
    Trainer::new(model, config)
}

fn parameters(trainer: &Trainer) -> Vec<Vec<f32>> {
    let on_cpu = |x: &Tensor| x.to(&Device::Cpu).unwrap().f32().to_vec();
    trainer.model.params.iter().map(|(_, p)| on_cpu(&p.value)).collect()
}

#[test]
fn training_on_a_device_is_training_on_the_cpu() {
    for arch in [Arch::Release, Arch::Paper] {
        let emulator = Emulator::new(Options::default());
        let mut trainers =
            [Device::Cpu, Device::Cuda(emulator)].map(|device| trainer(&device, arch, DType::F32));
        for step in 0..3 {
            let [cpu, cuda] = trainers.each_mut().map(|trainer| trainer.step(&batch()).unwrap());
            for ((name, cpu), (_, cuda)) in cpu.terms.iter().zip(&cuda.terms) {
                assert!(
                    (cpu - cuda).abs() <= 1e-4 * cpu.abs(),
                    "{arch}, step {step}: {name} {cpu} but {cuda}"
                );
            }
        }
    }
}

#[test]
fn half_precision_learns() {
    for compute in [DType::F16, DType::BF16] {
        let device = Device::Cuda(Emulator::new(Options::default()));
        let mut trainer = trainer(&device, Arch::Release, compute);
        let losses: Vec<f32> = (0..6).map(|_| trainer.step(&batch()).unwrap().loss).collect();
        assert!(losses.iter().all(|l| l.is_finite()), "{compute}: {losses:?}");
        assert!(losses[5] < losses[0], "{compute}: {losses:?}");
    }
}

#[test]
fn two_runs_have_the_same_bits() {
    let run = |seed| {
        let device = Device::Cuda(Emulator::new(Options { shuffle: Some(seed), ..Options::default() }));
        let mut trainer = trainer(&device, Arch::Release, DType::F32);
        let losses: Vec<u32> = (0..2).map(|_| trainer.step(&batch()).unwrap().loss.to_bits()).collect();
        (losses, parameters(&trainer))
    };
    assert!(run(1) == run(2));
}

/// Every call of a step to the driver fails once, without a device behind it.
#[test]
fn a_failure_anywhere_is_a_clean_error() {
    let failing = Failing::new(Trace::new(None));
    let device = Device::Cuda(failing.clone());
    let mut trainer = trainer(&device, Arch::Release, DType::F32);
    let batch = batch();
    trainer.step(&batch).unwrap();
    let (before, calls) = (failing.live_bytes(), failing.calls());
    trainer.step(&batch).unwrap();
    let calls = failing.calls() - calls;
    assert!(calls > 500, "{calls}");
    for n in 1..=calls {
        failing.fail_at(n);
        let steps = trainer.steps();
        let e = trainer.step(&batch).err().unwrap_or_else(|| panic!("call {n} of {calls} did not fail"));
        assert!(e.to_string().ends_with("injected failure"), "call {n}: {e}");
        assert_eq!(failing.live_bytes(), before, "call {n} leaks");
        assert_eq!(trainer.steps(), steps, "call {n}: a step that failed counts");
    }
    trainer.step(&batch).unwrap();
}

/// After a failure the step can be taken again, and gives what it would have given.
#[test]
fn a_failed_step_can_be_taken_again() {
    let emulator: Arc<Emulator> = Emulator::new(Options::default());
    let failing = Failing::new(emulator);
    let device = Device::Cuda(failing.clone());
    let batch = batch();
    let mut undisturbed = trainer(&device, Arch::Release, DType::F32);
    let start = failing.calls();
    undisturbed.step(&batch).unwrap();
    let calls = failing.calls() - start;
    let want = parameters(&undisturbed);
    for n in [1, calls / 7, calls / 3, calls / 2, calls - calls / 5, calls - 3] {
        let mut trainer = trainer(&device, Arch::Release, DType::F32);
        failing.fail_at(n);
        assert!(trainer.step(&batch).is_err(), "call {n}");
        trainer.step(&batch).unwrap();
        assert!(parameters(&trainer) == want, "a failure at call {n} of {calls} left something behind");
    }
}

/// Pictures of bytes, of a nano network's engine.
fn run(session: &mut Session, pictures: &[u8], wanted: Wanted) -> amdanet::Result<Vec<u8>> {
    let pixels = Pixels::Bytes(pictures);
    let pairs = Pairs { batch: 1, height: 32, width: 48, visible: pixels, infrared: pixels };
    session.run(&pairs, wanted).map(|output| [output.labels, output.fused].concat())
}

#[test]
fn the_engine_launches_one_graph_and_survives_any_failure() {
    let model = Amdanet::new(amdanet::model::ModelConfig::new(Encoder::Nano, Arch::Release, 9)).unwrap();
    let engine = Engine::new(&model).unwrap();
    let pictures: Vec<u8> = (0..32 * 48 * 3).map(|i| (i * 7 % 256) as u8).collect();
    let wanted = Wanted { probabilities: true, ..Wanted::default() };
    let failing = Failing::new(Emulator::new(Options::default()));
    let device = Device::Cuda(failing.clone());
    let first = failing.calls();
    let mut session = engine.clone().to(&device, DType::F16).unwrap().session();
    let packed = failing.calls();
    let want = run(&mut session, &pictures, wanted).unwrap();
    let planned = failing.calls();
    let live = failing.live_bytes();
    assert_eq!(run(&mut session, &pictures, wanted).unwrap(), want);
    // An upload for each picture; the launches are those of the graph, which are not counted.
    assert_eq!(failing.calls() - planned, 2);
    assert_eq!(failing.live_bytes(), live);
    failing.fail_at(1);
    assert!(run(&mut session, &pictures, wanted).is_err());
    assert_eq!(run(&mut session, &pictures, wanted).unwrap(), want);
    drop(session);
    assert_eq!(failing.live_bytes(), 0);

    for n in (1..=packed - first).step_by(7) {
        failing.fail_at(n);
        let e =
            engine.clone().to(&device, DType::F16).err().unwrap_or_else(|| panic!("call {n} did not fail"));
        assert!(e.to_string().ends_with("injected failure"), "call {n}: {e}");
        assert_eq!(failing.live_bytes(), 0, "call {n} leaks");
    }
    let engine = engine.to(&device, DType::F16).unwrap();
    let live = failing.live_bytes();
    let mut without_graph = 0;
    for n in (1..=planned - packed).step_by(5) {
        let mut session = engine.session();
        failing.fail_at(n);
        match run(&mut session, &pictures, wanted) {
            Err(e) => assert!(e.to_string().ends_with("injected failure"), "call {n}: {e}"),
            // What a capture meets, the work that was queued before it does not: the next run captures again.
            Ok(results) => {
                assert_eq!(results, want, "call {n}");
                without_graph += 1;
                let before = failing.calls();
                assert_eq!(run(&mut session, &pictures, wanted).unwrap(), want, "after call {n}");
                assert!(failing.calls() - before > 100, "call {n} did not fail");
                let before = failing.calls();
                assert_eq!(run(&mut session, &pictures, wanted).unwrap(), want, "after call {n}");
                assert_eq!(failing.calls() - before, 2, "there is no graph after call {n}");
            }
        }
        assert_eq!(run(&mut session, &pictures, wanted).unwrap(), want, "after a failure at call {n}");
        drop(session);
        assert_eq!(failing.live_bytes(), live, "call {n} leaks");
    }
    assert!(without_graph > 10);
}

/// What a trace lists and what is computed are the same with the caches flushed before each launch.
#[test]
fn launches_are_timed_with_cold_caches() {
    let flush = 1 << 20;
    let emulator = Failing::new(Emulator::new(Options::default()));
    let trace = Trace::cold(emulator.clone(), flush).unwrap();
    let device = Device::Cuda(trace.clone());
    let plain = Tensor::from_slice([1, 64, 8], &[1.0f32; 512]).unwrap();
    let x = plain.to(&device).unwrap();
    trace.take().unwrap();
    let calls = emulator.calls();
    let products = [(); 3].map(|()| amdanet::cuda::linear::forward(&x, &x, None, None).unwrap());
    // An allocation and the product, and before it sums over the memory that is read: partial ones, then all.
    assert_eq!(emulator.calls() - calls, 3 * (2 + 4));
    let entries = trace.take().unwrap();
    let [entry] = &entries[..] else { panic!("{entries:?}") };
    assert_eq!((entry.count, entry.milliseconds.len()), (3, 3));
    assert!(entry.milliseconds.iter().all(|ms| *ms > 0.0), "{entries:?}");
    assert!(products.iter().all(|p| p.to(&Device::Cpu).unwrap().f32() == [8.0; 64 * 64]));
    assert!(emulator.live_bytes() >= flush);
    drop((products, x, device, trace));
    assert_eq!(emulator.live_bytes(), 0);
}
