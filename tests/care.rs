//! Numerical care in the training step: what is not finite is skipped and named; gradients are limited, accumulated and
//! computed with less memory; weights are averaged.

use amdanet::checkpoint::{self, State};
use amdanet::data::{Batch, ClassSet, Dataset, Split, synth};
use amdanet::model::{Amdanet, Arch, Encoder};
use amdanet::nn::{Role, Step};
use amdanet::random::Stream;
use amdanet::train::{Config, Examples, Recipe, Run, Trainer};
use amdanet::{DType, Device, Tensor};
use emulator::{Emulator, Options};

const CLASSES: usize = 5;
const H: usize = 32;
const W: usize = 48;

/// `b` random examples; other ones for another `seed`.
fn batch(b: usize, seed: u64) -> Batch {
    let numbers = Stream::new(seed, 1);
    let picture = |from: u64| {
        let data: Vec<f32> = (0..(b * H * W * 3) as u64).map(|i| numbers.uniform(from + i)).collect();
        Tensor::from_slice([1, b, H, W, 3], &data).unwrap()
    };
    let labels: Vec<u8> = (0..b * H * W).map(|i| (numbers.word(i as u64) % CLASSES as u32) as u8).collect();
    Batch {
        visible: picture(0),
        infrared: picture(1 << 20),
        labels: Tensor::from_slice([b, H, W], &labels).unwrap(),
        valid: Tensor::from_slice([b, H, W], &vec![1u8; b * H * W]).unwrap(),
    }
}

/// The examples of one batch after those of another.
fn joined(a: &Batch, b: &Batch) -> Batch {
    let bytes = |a: &Tensor, b: &Tensor| Tensor::concat(&[a, b]).unwrap();
    let pictures = |a: &Tensor, b: &Tensor| {
        let flat = |x: &Tensor| x.reshape([x.dim(1), H, W, 3]).unwrap();
        let both = bytes(&flat(a), &flat(b));
        both.reshape([1, both.dim(0), H, W, 3]).unwrap()
    };
    Batch {
        visible: pictures(&a.visible, &b.visible),
        infrared: pictures(&a.infrared, &b.infrared),
        labels: bytes(&a.labels, &b.labels),
        valid: bytes(&a.valid, &b.valid),
    }
}

/// Many blocks are dropped, so that each step shows whether the right ones are.
fn config(arch: Arch) -> Config {
    let mut config = Config::new(None, Recipe::Release, Encoder::Nano, arch, Some(CLASSES));
    (config.augment.height, config.augment.width) = (H, W);
    (config.run.batch, config.run.steps, config.model.drop_path) = (2, 10, 0.5);
    (config.optimizer.lr, config.optimizer.warmup_steps) = (1e-3, 1);
    config
}

fn trainer(config: &Config, device: &Device, compute: DType) -> Trainer {
    let mut model = Amdanet::new(config.model.clone()).unwrap();
    model.params.initialise(4);
    model.params.place(device, compute).unwrap();
    config.validate().unwrap();
    Trainer::new(model, config.clone())
}

fn on_cpu(config: &Config) -> Trainer {
    trainer(config, &Device::Cpu, DType::F32)
}

fn numbers(model: &Amdanet) -> Vec<Vec<f32>> {
    model.params.iter().map(|(_, p)| p.value.to(&Device::Cpu).unwrap().f32().to_vec()).collect()
}

/// The bits of all weights, statistics and moments, without moments that are zero, as they start.
fn bits(trainer: &Trainer) -> Vec<u32> {
    let state = trainer.state().unwrap().0;
    let moments = state.values().flat_map(|array| &array.data).filter(|&&x| x != 0.0);
    let weights = numbers(&trainer.model).concat();
    weights.iter().chain(moments).map(|x| x.to_bits()).collect()
}

/// The numbers of the parameter with this published name, for writing.
fn poison(trainer: &mut Trainer, name: &str, f: impl Fn(&mut [f32])) {
    let find = trainer.model.params.published().find(|(_, _, n)| *n == name);
    let (id, stream, _) = find.unwrap_or_else(|| panic!("no {name}"));
    let param = trainer.model.params.get(id);
    let mut data = param.export(&param.value.to(&Device::Cpu).unwrap(), stream);
    f(&mut data);
    trainer.model.params.import(id, stream, &data).unwrap();
}

/// Takes the steps that may be bad, each of which must change nothing, then the one that is too many; its error.
#[track_caller]
fn named(trainer: &mut Trainer, batch: &Batch, allowed: usize) -> String {
    let before = bits(trainer);
    for bad in 1..=allowed {
        let progress = trainer.step(batch).unwrap();
        assert!(progress.skipped && progress.bad_steps == bad, "{progress:?}");
        assert_eq!(trainer.steps(), bad);
    }
    let e = trainer.step(batch).unwrap_err().to_string();
    assert_eq!(trainer.steps(), allowed, "a step that is an error does not count");
    assert!(bits(trainer) == before, "a bad step changed something: {e}");
    assert!(e.contains(&format!("for {} steps in a row", allowed + 1)), "{e}");
    e
}

#[test]
fn what_is_not_finite_is_skipped_and_named() {
    let mut config = config(Arch::Release);
    config.run.max_bad_steps = 3;
    let weight = "backbone.extra_block3.1.mlp.fc2.weight";
    let nan = |data: &mut [f32]| data[7] = f32::NAN;
    let mut poisoned = on_cpu(&config);
    poison(&mut poisoned, weight, nan);
    let e = named(&mut poisoned, &batch(2, 1), 2);
    assert!(
        e.contains("the parameter backbone.extra_block3.1.mlp.fc2.weight has 1 NaN of 8192 values"),
        "{e}"
    );
    assert!(e.starts_with("step 3: ") && e.contains("loss NaN (seg NaN"), "{e}");

    config.run.max_bad_steps = 1;
    let mut input = batch(2, 1);
    input.infrared.f32_mut()[H * W * 3 + 5] = f32::INFINITY;
    let mut trainer = on_cpu(&config);
    // Not what the step stumbles over.
    poison(&mut trainer, "decode_head.linear_fuse.1.running_var", |data| data[0] = f32::INFINITY);
    let e = named(&mut trainer, &input, 0);
    assert!(e.contains("the infrared picture of example 2 of the step has 1 infinite of 4608 values"), "{e}");

    // Finite weights that make infinite sums.
    for (recompute, accumulate) in [(false, 1), (true, 2)] {
        (config.run.recompute, config.run.accumulate) = (recompute, accumulate);
        let mut trainer = on_cpu(&config);
        poison(&mut trainer, "backbone.block2.0.mlp.fc1.weight", |data| data.fill(3e38));
        let e = named(&mut trainer, &batch(2, 1), 0);
        assert!(e.contains("first of this step: backbone.block2.0.mlp.fc1: output has "), "{e}");
        assert!(e.contains(" infinite of 3072 values") || e.contains(" of 1536 values"), "{e}");
        assert_eq!(e.contains("(micro-batch 1 of 2)"), accumulate == 2, "{e}");
    }
    (config.run.recompute, config.run.accumulate) = (false, 1);

    // A loss that is just finite, and gradients that are not.
    config.loss.seg = 1e38;
    let e = named(&mut on_cpu(&config), &batch(2, 1), 0);
    assert!(e.contains("the gradient of ") && e.contains(" values, all outputs are finite"), "{e}");
    // A loss that is not.
    config.loss.seg = 3e38;
    let e = named(&mut on_cpu(&config), &batch(2, 1), 0);
    assert!(e.contains("the term sum of the loss is inf"), "{e}");
}

#[test]
fn a_good_step_forgets_the_bad_ones() {
    let mut config = config(Arch::Paper);
    config.run.max_bad_steps = 2;
    let (good, mut bad) = (batch(2, 1), batch(2, 2));
    bad.visible.f32_mut()[0] = f32::NAN;
    let mut trainer = on_cpu(&config);
    for i in 0..3 {
        let before = bits(&trainer);
        let progress = trainer.step(&bad).unwrap();
        assert!(
            progress.skipped && progress.bad_steps == 1 && progress.gradient_norm.is_nan(),
            "{progress:?}"
        );
        assert!(bits(&trainer) == before);
        if i == 0 {
            // Counted on after a stop: the next bad step is one too many.
            let (state, meta) = trainer.state().unwrap();
            let mut resumed = on_cpu(&config);
            resumed.restore(&state, &meta).unwrap();
            assert!(resumed.step(&bad).is_err());
        }
        let progress = trainer.step(&good).unwrap();
        assert!(!progress.skipped && progress.bad_steps == 0 && progress.gradient_norm > 0.0, "{progress:?}");
        assert!(bits(&trainer) != before);
    }
    trainer.step(&bad).unwrap();
    assert!(trainer.step(&bad).unwrap_err().to_string().contains("visible picture of example 1"));
}

#[test]
fn on_a_device_too() {
    let mut config = config(Arch::Release);
    config.run.max_bad_steps = 1;
    let device = Device::Cuda(Emulator::new(Options::default()));
    let mut overflowing = trainer(&config, &device, DType::F32);
    poison(&mut overflowing, "backbone.extra_block1.0.mlp.fc1.weight", |data| data.fill(3e38));
    let e = named(&mut overflowing, &batch(2, 1), 0);
    assert!(e.contains("first of this step: backbone.extra_block1.0.mlp.fc1: output has"), "{e}");
    // Half precision first tries a smaller scale of the loss, and such steps are not counted.
    let mut half = trainer(&config, &device, DType::F16);
    poison(&mut half, "backbone.sci_1.mlp.0.bias", |data| data[0] = f32::NAN);
    let progress = half.step(&batch(2, 1)).unwrap();
    assert!(progress.skipped && progress.bad_steps == 0 && progress.loss_scale == 65536.0, "{progress:?}");
    assert_eq!(half.step(&batch(2, 1)).unwrap().loss_scale, 32768.0);
}

/// First moments, which are (1 − β₁) of the gradient after one step.
fn moments(trainer: &Trainer) -> State {
    let mut state = trainer.state().unwrap().0;
    state.retain(|name, _| name.starts_with("exp_avg."));
    assert!(state.len() > 300, "{}", state.len());
    state
}

/// ‖a − f(b)‖ / ‖a‖ over all first moments.
fn distance(a: &State, b: &State, f: impl Fn(f32) -> f64) -> f64 {
    assert!(a.keys().eq(b.keys()));
    let (mut difference, mut norm) = (0.0, 0.0);
    for (a, b) in a.values().zip(b.values()) {
        for (&a, &b) in a.data.iter().zip(&b.data) {
            difference += (f64::from(a) - f(b)).powi(2);
            norm += f64::from(a).powi(2);
        }
    }
    (difference / norm).sqrt()
}

#[test]
fn clipping_scales_the_gradient_to_the_norm() {
    let mut config = config(Arch::Release);
    let mut free = on_cpu(&config);
    let norm = free.step(&batch(2, 1)).unwrap().gradient_norm;
    config.optimizer.max_norm = f64::from(norm) * 1.01;
    let mut above = on_cpu(&config);
    above.step(&batch(2, 1)).unwrap();
    assert!(bits(&above) == bits(&free), "a limit above the norm changes nothing");
    config.optimizer.max_norm = f64::from(norm) / 5.0;
    let mut clipped = on_cpu(&config);
    assert_eq!(clipped.step(&batch(2, 1)).unwrap().gradient_norm, norm, "the norm before it was limited");
    let (clipped, free) = (moments(&clipped), moments(&free));
    assert!(distance(&clipped, &free, |x| f64::from(x) / 5.0) < 1e-6);
    let square: f64 = clipped.values().flat_map(|a| &a.data).map(|&x| f64::from(x).powi(2)).sum();
    // Moments are a tenth of the gradient.
    assert!((square.sqrt() * 10.0 / config.optimizer.max_norm - 1.0).abs() < 1e-5);
}

/// Copies of a batch have its batch norm statistics, so one batch of both is their accumulation.
#[test]
fn accumulated_copies_are_one_larger_batch() {
    for arch in [Arch::Release, Arch::Paper] {
        let mut config = config(arch);
        (config.model.drop_path, config.model.dropout, config.run.mask_keep) = (0.0, 0.0, 1.0);
        let one = batch(2, 1);
        let two = joined(&one, &one);
        let take = |accumulate: usize, batch: &Batch| {
            let mut config = config.clone();
            config.run.accumulate = accumulate;
            let mut trainer = on_cpu(&config);
            let progress = trainer.step(batch).unwrap();
            (progress, moments(&trainer))
        };
        let (accumulated, larger, single) = (take(2, &two), take(1, &two), take(1, &one));
        for other in [&larger, &single] {
            let distance = distance(&accumulated.1, &other.1, f64::from);
            assert!(distance < 1e-5, "{arch}: {distance}");
            let (a, b) = (accumulated.0.gradient_norm, other.0.gradient_norm);
            assert!((a - b).abs() < 1e-5 * b, "{arch}: {a} {b}");
            assert!((accumulated.0.loss - other.0.loss).abs() < 1e-5);
            for (a, b) in accumulated.0.terms.iter().zip(&other.0.terms) {
                assert!(a.0 == b.0 && (a.1 - b.1).abs() < 1e-5, "{a:?} {b:?}");
            }
        }
    }
}

/// A step of two micro-batches draws what two steps draw; its gradient is the mean of theirs, and running statistics
/// see both.
#[test]
fn an_accumulated_gradient_is_the_mean_of_its_micro_batches() {
    let mut config = config(Arch::Release);
    // Steps that change no weight, and first moments that are the gradient.
    (config.optimizer.lr, config.optimizer.beta1) = (1e-30, 0.0);
    let (first, second) = (batch(2, 1), batch(2, 2));
    let mut steps = on_cpu(&config);
    let one = steps.step(&first).unwrap();
    let of_first = moments(&steps);
    let two = steps.step(&second).unwrap();
    let mut mean = moments(&steps);
    for (sum, other) in mean.values_mut().zip(of_first.values()) {
        sum.data.iter_mut().zip(&other.data).for_each(|(x, y)| *x = 0.5 * (*x + y));
    }
    config.run.accumulate = 2;
    let mut accumulated = on_cpu(&config);
    let progress = accumulated.step(&joined(&first, &second)).unwrap();
    let distance = distance(&moments(&accumulated), &mean, f64::from);
    assert!(distance < 1e-6, "{distance}");
    assert!((progress.loss - 0.5 * (one.loss + two.loss)).abs() < 1e-5);
    let statistics = |trainer: &Trainer| -> Vec<f32> {
        let list = trainer.model.params.iter().filter(|(_, p)| p.role == Role::Statistic);
        list.flat_map(|(_, p)| p.value.f32().to_vec()).collect()
    };
    assert!(statistics(&accumulated) == statistics(&steps), "running statistics see both, in order");
    let e = accumulated.step(&batch(3, 1)).unwrap_err().to_string();
    assert!(e.contains("2 equal micro-batches (run.accumulate); shapes (3, 32, 48)"), "{e}");
}

#[test]
fn recomputation_changes_no_bit() {
    let emulator = || Device::Cuda(Emulator::new(Options::default()));
    let cases = [
        (Device::Cpu, Arch::Release, DType::F32, 2),
        (Device::Cpu, Arch::Paper, DType::F32, 2),
        (emulator(), Arch::Release, DType::F32, 1),
        (emulator(), Arch::Paper, DType::F32, 1),
        (emulator(), Arch::Release, DType::BF16, 1),
    ];
    for (device, arch, compute, steps) in cases {
        let run = |recompute| {
            let mut config = config(arch);
            config.run.recompute = recompute;
            let mut trainer = trainer(&config, &device, compute);
            let progress: Vec<_> = (0..steps)
                .map(|i| trainer.step(&batch(2, i)).unwrap())
                .inspect(|p| assert!(!p.skipped && p.gradient_norm > 0.0))
                .map(|p| (p.loss.to_bits(), p.gradient_norm.to_bits()))
                .collect();
            (progress, bits(&trainer))
        };
        assert!(run(true) == run(false), "{device:?}, {arch}, {compute}");
    }
}

#[test]
fn averaged_weights_follow_the_rule() {
    let mut config = config(Arch::Release);
    (config.run.ema, config.optimizer.lr) = (0.2, 1e-2);
    let mut trainer = on_cpu(&config);
    let start = numbers(&trainer.model);
    let mut want: Vec<Vec<f64>> = start.iter().map(|p| p.iter().map(|&x| f64::from(x)).collect()).collect();
    let mut bad = batch(2, 9);
    bad.visible.f32_mut()[0] = f32::NAN;
    // 2/11 and 3/12 of the past, of which the second is more than what was asked for.
    for (step, decay) in [(0, 2.0 / 11.0), (1, 0.2), (2, 0.2)] {
        trainer.step(&batch(2, step)).unwrap();
        assert!(trainer.step(&bad).unwrap().skipped, "a bad step is no step for the average");
        for (want, now) in want.iter_mut().zip(numbers(&trainer.model)) {
            want.iter_mut().zip(now).for_each(|(w, x)| *w = decay * *w + (1.0 - decay) * f64::from(x));
        }
    }
    let averaged = trainer.averaged().unwrap().unwrap();
    let raw = numbers(&trainer.model);
    let mut moved = 0;
    for ((((_, param), got), want), raw) in
        averaged.params.iter().zip(numbers(&averaged)).zip(&want).zip(&raw)
    {
        if param.role == Role::Statistic {
            assert!(got == *raw, "{:?}: running statistics are the newest", param.names);
            continue;
        }
        moved += usize::from(got != *raw);
        for (got, want) in got.iter().zip(want) {
            assert!((f64::from(*got) - want).abs() < 1e-6, "{:?}: {got} {want}", param.names);
        }
    }

    // A query's bias has no gradient where there is one key.
    assert!(moved > 200, "{moved}");
    config.run.ema = 0.0;
    assert!(on_cpu(&config).averaged().unwrap().is_none());
}

#[test]
fn all_of_it_on_a_device_is_all_of_it_on_the_cpu() {
    let mut config = config(Arch::Release);
    // With this ε the noise of a gradient that is zero in exact arithmetic moves nothing.
    (config.optimizer.eps, config.optimizer.max_norm) = (1e-3, 0.1);
    (config.run.accumulate, config.run.recompute, config.run.ema) = (2, true, 0.9);
    let emulator = Device::Cuda(Emulator::new(Options::default()));
    let [cpu, cuda] = [Device::Cpu, emulator].map(|device| {
        let mut trainer = trainer(&config, &device, DType::F32);
        let progress = trainer.step(&batch(2, 1)).unwrap();
        assert!(progress.gradient_norm > 0.1 && !progress.skipped);
        (progress, numbers(&trainer.model), numbers(&trainer.averaged().unwrap().unwrap()))
    });
    assert!((cpu.0.gradient_norm / cuda.0.gradient_norm - 1.0).abs() < 1e-4);
    assert!((cpu.0.loss - cuda.0.loss).abs() < 1e-4 * cpu.0.loss);
    for (cpu, cuda) in [(&cpu.1, &cuda.1), (&cpu.2, &cuda.2)] {
        let pairs = cpu.iter().flatten().zip(cuda.iter().flatten());
        let most = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(most < 2e-5, "{most}");
    }
}

#[test]
fn averages_survive_a_stop() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("run");
    let classes = ClassSet::unnamed(CLASSES).unwrap();
    let mut config = config(Arch::Paper);
    config.run.ema = 0.99;
    let mut whole = on_cpu(&config);
    let run = Run::create(&root, &config, "no pairs", "cpu", 1).unwrap();
    for step in 0..2 {
        whole.step(&batch(2, step)).unwrap();
    }
    run.save(&whole, &classes).unwrap();
    drop(run);
    let mut resumed = on_cpu(&config);
    let run =
        Run::resume(&root, &config, "no pairs", "cpu", 1, &mut resumed, |note| panic!("{note}")).unwrap();
    for trainer in [&mut whole, &mut resumed] {
        trainer.step(&batch(2, 2)).unwrap();
    }
    let averaged = |trainer: &Trainer| numbers(&trainer.averaged().unwrap().unwrap());
    assert!(averaged(&resumed) == averaged(&whole) && bits(&resumed) == bits(&whole));
    assert!(averaged(&whole) != numbers(&whole.model));
    run.save(&resumed, &classes).unwrap();
    let load = |name| numbers(&checkpoint::load(&root.join("checkpoints").join(name), None).unwrap().model);
    assert!(load("ema.safetensors") == averaged(&whole), "the averaged weights have a file of their own");
    assert!(load("last.safetensors") == numbers(&whole.model), "the weights to go on with are not averaged");
}

#[test]
fn gradients_of_two_passes_are_added_where_there_are_any() {
    let one = |x: f32| Some(Tensor::full([2], x));
    let mut step = Step { gradients: vec![one(1.0), None, one(2.0), None], statistics: Vec::new() };
    step.add(Step { gradients: vec![one(3.0), one(4.0), None, None], statistics: Vec::new() }).unwrap();
    let sums: Vec<_> = step.gradients.iter().map(|g| g.as_ref().map(|g| g.f32()[1])).collect();
    assert_eq!(sums, [Some(4.0), Some(4.0), Some(2.0), None]);
}

#[test]
fn a_step_has_the_examples_of_its_micro_batches() {
    let folder = tempfile::tempdir().unwrap();
    synth::write(folder.path(), 8, 3, 40, 60, &mut |_| ()).unwrap();
    let dataset = Dataset::open(folder.path(), Split::Train).unwrap();
    let mut whole = config(Arch::Release);
    let single = whole.clone();
    whole.run.accumulate = 3;
    let [whole, single] = [&whole, &single].map(|config| Examples::new(&dataset, config).unwrap());
    for step in 0..2 {
        let [a, b, c] = [0, 1, 2].map(|i| single.batch(3 * step + i).unwrap());
        let (got, want) = (whole.batch(step).unwrap(), joined(&joined(&a, &b), &c));
        assert!(got.visible.f32() == want.visible.f32() && got.infrared.f32() == want.infrared.f32());
        assert!(got.labels.as_slice::<u8>() == want.labels.as_slice::<u8>());
        assert_eq!(whole.epoch(step), single.epoch(3 * step));
    }
    assert!(whole.epoch(2) > 0);
}
