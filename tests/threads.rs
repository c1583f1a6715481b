//! The number of threads changes no bit of any result.

use amdanet::data::{Dataset, Split, synth};
use amdanet::model::{Amdanet, Arch, Encoder, ModelConfig};
use amdanet::nn::Pass;
use amdanet::random::Stream;
use amdanet::train::{Config, Examples, Recipe, Trainer};
use amdanet::{Tensor, verify};

/// What `f` gives on 1, 2 and 3 threads.
fn on_threads<T: Send>(f: impl Fn() -> T + Sync) -> [T; 3] {
    [1, 2, 3].map(|n| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
        assert_eq!(pool.install(rayon::current_num_threads), n);
        pool.install(&f)
    })
}

fn bits(x: &Tensor) -> Vec<u32> {
    x.f32().iter().map(|v| v.to_bits()).collect()
}

#[test]
fn forward() {
    let picture = |stream: u64| {
        let mut x = Tensor::scratch([1, 2, 75, 101, 3]);
        let numbers = Stream::new(7, stream);
        x.f32_mut().iter_mut().zip(0..).for_each(|(v, i)| *v = numbers.uniform(i));
        x
    };
    let (visible, infrared) = (picture(0), picture(1));
    for arch in [Arch::Release, Arch::Paper] {
        let mut model = Amdanet::new(ModelConfig::new(Encoder::Nano, arch, 9)).unwrap();
        verify::fill(&mut model.params, 5).unwrap();
        let [one, two, three] = on_threads(|| {
            let out = model.forward(&mut Pass::eval(&model.params), &visible, &infrared).unwrap();
            (bits(out.logits.value()), bits(out.image.value()))
        });
        assert!(one == two, "{arch}: two threads");
        assert!(one == three, "{arch}: three threads");
    }
}

fn config(arch: Arch) -> Config {
    let mut config = Config::new(None, Recipe::Release, Encoder::Nano, arch, Some(synth::CLASSES.len()));
    (config.augment.height, config.augment.width) = (64, 96);
    (config.run.batch, config.run.steps, config.run.seed) = (3, 10, 0);
    (config.optimizer.lr, config.optimizer.warmup_steps) = (1e-3, 1);
    // Blocks are dropped in every step, not only now and then.
    config.model.drop_path = 0.5;
    config
}

fn scenes(folder: &tempfile::TempDir) -> Dataset {
    synth::write(folder.path(), 8, 3, 72, 104, &mut |_| ()).unwrap();
    Dataset::open(folder.path(), Split::Train).unwrap()
}

#[test]
fn training() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = scenes(&folder);
    for arch in [Arch::Release, Arch::Paper] {
        let config = config(arch);
        let [one, two, three] = on_threads(|| {
            let mut model = Amdanet::new(config.model.clone()).unwrap();
            model.params.initialise(4);
            let examples = Examples::new(&dataset, &config).unwrap();
            let mut trainer = Trainer::new(model, config.clone());
            let terms: Vec<_> =
                (0..3).map(|step| trainer.step(&examples.batch(step).unwrap()).unwrap().terms).collect();
            let parameters: Vec<_> = trainer.model.params.iter().map(|(_, p)| bits(&p.value)).collect();
            (terms, parameters)
        });
        if arch == Arch::Release {
            // The masks spare the fusion head in one choice and the segmentation head in the other: both were drawn.
            let term = |step: usize, name: &str| one.0[step].iter().find(|t| t.0 == name).unwrap().1;
            let spared = (0..3).filter(|&s| term(s, "fus") == term(s, "fus_masked")).count();
            assert!(
                (1..3).contains(&spared),
                "choose another seed: {spared} of 3 steps masked the fused maps"
            );
        }
        for (what, other) in [("two", two), ("three", three)] {
            assert!(one.0 == other.0, "{arch}: losses of {what} threads");
            assert!(one.1 == other.1, "{arch}: parameters after three steps on {what} threads");
        }
    }
}

#[test]
fn examples() {
    let folder = tempfile::tempdir().unwrap();
    let (dataset, config) = (scenes(&folder), config(Arch::Release));
    let [one, two, three] = on_threads(|| {
        let examples = Examples::new(&dataset, &config).unwrap();
        // The second epoch begins within these steps.
        let batch = |step| {
            let batch = examples.batch(step).unwrap();
            let bytes = |x: &Tensor| x.as_slice::<u8>().to_vec();
            (bits(&batch.visible), bits(&batch.infrared), bytes(&batch.labels), bytes(&batch.valid))
        };
        (0..4).map(batch).collect::<Vec<_>>()
    });
    assert!(one == two && one == three);
    assert!(one[0] != one[1] && one[0] != one[2], "steps differ");
}
