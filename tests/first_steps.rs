//! The losses of a run's first steps are the reference's: the order of an epoch, augmentation, masks, both predictions,
//! every term, and AdamW with its schedule, on files of a data set.

use std::path::{Path, PathBuf};

use amdanet::data::{Dataset, Split, synth};
use amdanet::model::{Amdanet, Arch, Encoder};
use amdanet::train::{Config, Examples, Recipe, Trainer};
use amdanet::verify;

/// Architecture, recipe, and the terms of the loss of one step; the steps of a run follow each other.
type Row = (Arch, Recipe, &'static [(&'static str, f64)]);

/// `amdanet synth --out DATA --pairs 12 --seed 1 --size 64x96; python benches/peers/first_steps.py DATA 64 96 4`
#[rustfmt::skip]
const SCENES: &[Row] = &[
    (Arch::Release, Recipe::Release, &[("dice", 0.94166099), ("dice_masked", 0.93556902), ("fus", 0.53520474), ("fus_masked", 0.53520474), ("seg", 2.75249630), ("seg_masked", 2.60477473), ("total", 6.15620002)]),
    (Arch::Release, Recipe::Release, &[("dice", 0.94618741), ("dice_masked", 0.94618741), ("fus", 0.47767848), ("fus_masked", 0.52224382), ("seg", 2.61382249), ("seg_masked", 2.61382249), ("total", 6.00214684)]),
    (Arch::Release, Recipe::Release, &[("dice", 0.94159469), ("dice_masked", 0.94159469), ("fus", 0.42564858), ("fus_masked", 0.45483659), ("seg", 2.62310061), ("seg_masked", 2.62310061), ("total", 5.95939593)]),
    (Arch::Release, Recipe::Release, &[("dice", 0.92322323), ("dice_masked", 0.92322323), ("fus", 0.30799741), ("fus_masked", 0.33681902), ("seg", 2.46374411), ("seg_masked", 2.46374411), ("total", 5.62594167)]),
    (Arch::Release, Recipe::Paper, &[("dice", 0.94166099), ("dice_masked", 0.93556902), ("fus", 0.53520474), ("fus_masked", 0.53520474), ("seg", 2.75249630), ("seg_masked", 2.60477473), ("total", 6.15620002)]),
    (Arch::Release, Recipe::Paper, &[("dice", 0.94633204), ("dice_masked", 0.94633204), ("fus", 0.47774598), ("fus_masked", 0.52230864), ("seg", 2.61841250), ("seg_masked", 2.61841250), ("total", 6.00829587)]),
    (Arch::Release, Recipe::Paper, &[("dice", 0.94219400), ("dice_masked", 0.94219400), ("fus", 0.42577753), ("fus_masked", 0.45481840), ("seg", 2.63612667), ("seg_masked", 2.63612667), ("total", 5.97723670)]),
    (Arch::Release, Recipe::Paper, &[("dice", 0.92316080), ("dice_masked", 0.92316080), ("fus", 0.30841244), ("fus_masked", 0.33748215), ("seg", 2.46324999), ("seg_masked", 2.46324999), ("total", 5.62554125)]),
    (Arch::Paper, Recipe::Release, &[("cr", 2.08298311), ("fus", 0.41580821), ("seg", 2.54659886), ("total", 3.79599452)]),
    (Arch::Paper, Recipe::Release, &[("cr", 2.10962557), ("fus", 0.35174507), ("seg", 2.46943183), ("total", 3.70011715)]),
    (Arch::Paper, Recipe::Release, &[("cr", 2.17182797), ("fus", 0.35300183), ("seg", 2.31250221), ("total", 3.57491711)]),
    (Arch::Paper, Recipe::Release, &[("cr", 2.06758960), ("fus", 0.26070569), ("seg", 2.47774382), ("total", 3.64189147)]),
    (Arch::Paper, Recipe::Paper, &[("cr", 2.08298311), ("fus", 0.41580821), ("seg", 2.54659886), ("total", 3.79599452)]),
    (Arch::Paper, Recipe::Paper, &[("cr", 2.10947719), ("fus", 0.35184064), ("seg", 2.47144250), ("total", 3.70210141)]),
    (Arch::Paper, Recipe::Paper, &[("cr", 2.17148783), ("fus", 0.35334464), ("seg", 2.31701859), ("total", 3.57943483)]),
    (Arch::Paper, Recipe::Paper, &[("cr", 2.06672572), ("fus", 0.26078051), ("seg", 2.48408080), ("total", 3.64783392)]),
];

/// `python benches/peers/first_steps.py PAIRS 192 256 4`, on 14 pairs of the MSRS set, scaled and cropped.
#[rustfmt::skip]
const PAIRS: &[Row] = &[
    (Arch::Release, Recipe::Release, &[("dice", 0.96813977), ("dice_masked", 0.96870719), ("fus", 0.44837975), ("fus_masked", 0.44837975), ("seg", 1.94991162), ("seg_masked", 1.95534565), ("total", 5.19566597)]),
    (Arch::Release, Recipe::Release, &[("dice", 0.97085621), ("dice_masked", 0.97085621), ("fus", 0.32132344), ("fus_masked", 0.40096723), ("seg", 1.99597809), ("seg_masked", 1.99597809), ("total", 5.18301666)]),
    (Arch::Release, Recipe::Release, &[("dice", 0.95951998), ("dice_masked", 0.95951998), ("fus", 0.47518893), ("fus_masked", 0.53491278), ("seg", 1.84574753), ("seg_masked", 1.84574753), ("total", 5.07730704)]),
    (Arch::Release, Recipe::Release, &[("dice", 0.95893082), ("dice_masked", 0.95893082), ("fus", 0.44009102), ("fus_masked", 0.51196265), ("seg", 1.98978745), ("seg_masked", 1.98978745), ("total", 5.23259752)]),
    (Arch::Release, Recipe::Paper, &[("dice", 0.96813977), ("dice_masked", 0.96870719), ("fus", 0.44837975), ("fus_masked", 0.44837975), ("seg", 1.94991162), ("seg_masked", 1.95534565), ("total", 5.19566597)]),
    (Arch::Release, Recipe::Paper, &[("dice", 0.97084659), ("dice_masked", 0.97084659), ("fus", 0.32128967), ("fus_masked", 0.40097049), ("seg", 1.99599108), ("seg_masked", 1.99599108), ("total", 5.18299277)]),
    (Arch::Release, Recipe::Paper, &[("dice", 0.95956035), ("dice_masked", 0.95956035), ("fus", 0.47524170), ("fus_masked", 0.53480744), ("seg", 1.84745728), ("seg_masked", 1.84745728), ("total", 5.07954520)]),
    (Arch::Release, Recipe::Paper, &[("dice", 0.95905633), ("dice_masked", 0.95905633), ("fus", 0.44053828), ("fus_masked", 0.51212164), ("seg", 1.99417491), ("seg_masked", 1.99417491), ("total", 5.23865902)]),
    (Arch::Paper, Recipe::Release, &[("cr", 2.03593132), ("fus", 0.33584460), ("seg", 1.98877589), ("total", 3.17466385)]),
    (Arch::Paper, Recipe::Release, &[("cr", 2.15227081), ("fus", 0.26827846), ("seg", 2.00328396), ("total", 3.21355860)]),
    (Arch::Paper, Recipe::Release, &[("cr", 2.13127476), ("fus", 0.32837827), ("seg", 1.89591956), ("total", 3.12574607)]),
    (Arch::Paper, Recipe::Release, &[("cr", 2.14834485), ("fus", 0.26461447), ("seg", 1.89655362), ("total", 3.10303328)]),
    (Arch::Paper, Recipe::Paper, &[("cr", 2.03593132), ("fus", 0.33584460), ("seg", 1.98877589), ("total", 3.17466385)]),
    (Arch::Paper, Recipe::Paper, &[("cr", 2.15191265), ("fus", 0.26822617), ("seg", 2.00454984), ("total", 3.21461925)]),
    (Arch::Paper, Recipe::Paper, &[("cr", 2.12987267), ("fus", 0.32832643), ("seg", 1.89499431), ("total", 3.12409386)]),
    (Arch::Paper, Recipe::Paper, &[("cr", 2.14945464), ("fus", 0.26517792), ("seg", 1.90250893), ("total", 3.10982521)]),
];

fn holds(data: &Path, (height, width): (usize, usize), table: &[Row]) {
    let dataset = Dataset::open(data, Split::Train).unwrap();
    let classes = amdanet::data::ClassSet::mfnet();
    let dataset = dataset.with_classes(classes);
    // The first step's losses are outputs; those after it come after steps, in which AdamW turns the rounding of the
    // smallest gradients into whole steps (PyTorch's own float32 is off by up to 8e-6 in the fourth).
    let tolerance = |step| if step == 0 { verify::tolerance::OUTPUT } else { verify::tolerance::AFTER };
    for run in table.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
        let (arch, recipe, _) = run[0];
        let mut config = Config::new(None, recipe, Encoder::Nano, arch, Some(9));
        (config.augment.height, config.augment.width) = (height, width);
        (config.run.batch, config.run.steps, config.run.seed) = (2, 100, 3);
        config.optimizer.warmup_steps = 2;
        (config.model.drop_path, config.model.dropout) = (0.0, 0.0);
        let mut model = Amdanet::new(config.model.clone()).unwrap();
        verify::fill(&mut model.params, 2025).unwrap();
        let mut trainer = Trainer::new(model, config.clone());
        let examples = Examples::new(&dataset, &config).unwrap();
        for (step, (_, _, terms)) in run.iter().enumerate() {
            let done = trainer.step(&examples.batch(step).unwrap()).unwrap();
            let ours = |name: &str| match name {
                "total" => done.loss,
                _ => done.terms.iter().find(|(n, _)| *n == name).unwrap().1,
            };
            for (name, reference) in *terms {
                let error = (f64::from(ours(name)) - reference).abs() / reference;
                println!("{arch} {recipe:?} step {step} {name}: {error:.1e}");
                assert!(
                    error <= tolerance(step),
                    "{arch}, {recipe:?}, step {step}: {name} is {} instead of {reference}",
                    ours(name)
                );
            }
        }
    }
}

#[test]
fn on_drawn_scenes() {
    let folder = tempfile::tempdir().unwrap();
    synth::write(folder.path(), 12, 1, 64, 96, &mut |_| ()).unwrap();
    holds(folder.path(), (64, 96), SCENES);
}

/// The pairs do not come with the project: `AMDANET_PAIRS` names their folder where they are.
#[test]
fn on_real_pairs() {
    match std::env::var_os("AMDANET_PAIRS") {
        Some(folder) => holds(&PathBuf::from(folder), (192, 256), PAIRS),
        None => println!("AMDANET_PAIRS is not set: real pairs were not tried"),
    }
}
