//! What a training step holds in memory, and for how long. One test only: the counters are those of the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use amdanet::model::{Amdanet, Arch, Encoder, Masking, ModelConfig};
use amdanet::nn::Pass;
use amdanet::tensor::{live_bytes, peak_bytes, reset_peak_bytes};
use amdanet::train::{LossWeights, Targets, losses};
use amdanet::{Device, Tensor, ops};

const B: usize = 2;
const H: usize = 64;
const W: usize = 96;
const CLASSES: usize = 9;

/// The bytes that backward needs of a training pass of release with masked aligned maps (choice 1): what each
/// operation saves, counted by hand from the operations. Vectors of a few numbers for each channel are left out. Blocks
/// that are recomputed save their input.
fn saved(config: &ModelConfig, recompute: bool) -> usize {
    let pixels = B * H * W;
    let (d, f, k) = (config.decoder_dim, config.fusion_dim, config.classes);
    let (mut h, mut w) = (H.div_ceil(4), W.div_ceil(4));
    let finest = B * h * w;
    // The two pictures as streams, which the first convolution reads.
    let mut numbers = 2 * 3 * pixels;
    let mut mask_bytes = 0;
    for i in 0..4 {
        if i > 0 {
            (h, w) = (h.div_ceil(2), w.div_ceil(2));
        }
        let (pairs, c, sr) = (B * h * w, config.dims[i], config.sr[i]);
        // Tokens of both streams, and of both streams after the spatial reduction.
        let (n, m) = (2 * pairs, 2 * B * (h / sr) * (w / sr));
        // Keys and values, and unless nothing is reduced what their convolution and norm made.
        let reduced = if sr > 1 { 4 } else { 2 };
        // Patch embedding: before and after its norm. Its gate: both streams side by side, hidden, the weight before
        // and after.
        numbers += 2 * n * c + n * c + n * c / 2 + pairs;
        // A block: its input, normed, q, heads' output, sum, normed, Mix-FFN before and after the depthwise
        // convolution; two statistics of each norm.
        let inside = n * c * (5 + 2 * config.mlp_ratio) + reduced * m * c + 4 * n;
        numbers += config.depths[i] * (n * c + if recompute { 0 } else { inside });
        // The last norm: before and after.
        numbers += 2 * n * c;
        // Local alignment: side by side, hidden, gate, four statistics, 16 hidden maps and two weights; its output.
        numbers += n * c + pairs * c / 2 + pairs * c + pairs * (4 + 16 + 2) + n * c;
        // Salient enhancement: q, keys and values, sum, output. Cross-modal attention, twice for one stream: the
        // same. The fused map.
        numbers += 3 * n * c + reduced * m * c + 2 * (3 * pairs * c + reduced * (m / 2) * c) + pairs * c;
        // Segmentation head: the projection.
        numbers += pairs * d;
        // Fusion head: masked maps, and both times the projection before and after its norm, and the weights of taps.
        numbers += n * c + 2 * (2 * n * f + 2 * 9 * f * f);
        mask_bytes += n * c;
    }
    // Segmentation head: the sum; twice what dropout left, and the logits.
    numbers += finest * d + 2 * (finest * d + pixels * k);
    // Fusion head, twice: both pictures side by side, before and after the norm, the picture, the gradient of its loss.
    numbers += 2 * pixels * (6 + 2 * f + 3 + 3);
    4 * numbers + mask_bytes
}

/// How far memory rose above what was there before.
#[derive(Debug, PartialEq)]
struct Rise {
    /// Held when the losses were known: what backward needs.
    forward: usize,
    /// The most until then.
    forward_peak: usize,
    /// The most in backward.
    backward_peak: usize,
    /// Held while backward went through the very first operation.
    first_operation: usize,
    /// Held when backward was done: the gradients of parameters.
    gradients: usize,
    /// Held when everything was dropped.
    after: usize,
}

fn train(model: &Amdanet, pictures: &[Tensor; 2], labels: &Tensor, valid: &Tensor, recompute: bool) -> Rise {
    let before = live_bytes();
    let rise = |bytes: usize| bytes.checked_sub(before).unwrap();
    reset_peak_bytes();
    let shapes = model.mask_shapes(B, H, W, 1);
    let masks = shapes
        .into_iter()
        .zip(0..)
        .map(|(s, i)| ops::feature_mask(&Device::Cpu, s, 0.85, 1, i).unwrap())
        .collect();
    let masking = Masking { choice: 1, masks };
    let [visible, infrared] = pictures;
    let mut pass = Pass::train(&model.params, 1);
    pass.recompute = recompute;
    // An operation before all others looks around when its turn comes, which is last.
    let seen = Arc::new(AtomicUsize::new(0));
    let (leaf, see) = (pass.tape.leaf(Tensor::scalar(0.0)), seen.clone());
    let probe = pass.tape.record([&leaf], Tensor::scalar(0.0), move |dy, _| {
        see.store(live_bytes(), Relaxed);
        Ok([Some(dy)])
    });
    let output = model.forward_masked(&mut pass, visible, infrared, &masking).unwrap();
    drop(masking);
    let targets = Targets { visible, infrared, labels, valid };
    let weights = LossWeights::new(Arch::Release);
    let losses = losses(&mut pass.tape, &output, &targets, Arch::Release, &weights).unwrap();
    let tracked = ops::argmax(&mut pass.tape, &output.plain.logits).unwrap_err().to_string();
    assert!(tracked.starts_with("argmax has no backward"), "{tracked}");
    drop(output);
    let total = ops::weighted_sum(&mut pass.tape, &[(1.0, losses.total), (1.0, probe)]).unwrap();
    drop((leaf, losses.terms));
    let (forward, forward_peak) = (rise(live_bytes()), rise(peak_bytes()));
    reset_peak_bytes();
    let step = pass.backward(&total, 1.0).unwrap();
    let (backward_peak, first_operation) = (rise(peak_bytes()), rise(seen.load(Relaxed)));
    drop(total);
    let gradients = rise(live_bytes());
    drop(step);
    Rise { forward, forward_peak, backward_peak, first_operation, gradients, after: rise(live_bytes()) }
}

#[test]
fn a_step_holds_what_backward_needs_and_no_longer() {
    // One thread, so that scratch memory of parallel tasks is the same in every run.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    pool.install(check);
}

fn check() {
    // Dropped blocks would save a little less and a little more.
    let config = ModelConfig { drop_path: 0.0, ..ModelConfig::new(Encoder::Nano, Arch::Release, CLASSES) };
    let mut model = Amdanet::new(config).unwrap();
    model.params.initialise(1);
    let picture = |seed: u64| {
        let mut x = Tensor::scratch([1, B, H, W, 3]);
        let numbers = amdanet::random::Stream::new(seed, 0);
        x.f32_mut().iter_mut().zip(0..).for_each(|(v, i)| *v = numbers.uniform(i));
        x
    };
    let pictures = [picture(1), picture(2)];
    let ids: Vec<u8> = (0..B * H * W).map(|i| (i / 7 % CLASSES) as u8).collect();
    let labels = Tensor::from_slice([B, H, W], &ids).unwrap();
    let valid = Tensor::from_slice([B, H, W], &vec![1u8; B * H * W]).unwrap();

    let [first, recomputed] =
        [false, true].map(|recompute| train(&model, &pictures, &labels, &valid, recompute));
    for (rise, recompute) in [(&first, false), (&recomputed, true)] {
        assert_eq!(rise.after, 0, "everything of a step is freed with it");
        let saved = saved(model.config(), recompute);
        let share = rise.forward as f64 / saved as f64;
        let held = rise.forward;
        assert!((0.97..1.03).contains(&share), "{held} bytes are held for backward, {saved} are needed");
    }

    // Above what is saved, forward and backward each have one operation's results and scratch in hand; the widest is
    // the backward of the fusion head's taps: nine groups of channels for both streams on the four grids, a sixteenth
    // of the pixels and less, and the rows of these grids for every row of the picture, three groups wide.
    let pixels = 4 * B * H * W;
    let f = model.config().fusion_dim;
    let widest = pixels * (2 * 9 * f) / 12 + pixels * (3 * f) / 2;
    for rise in [&first, &recomputed] {
        for (when, peak) in [("forward", rise.forward_peak), ("backward", rise.backward_peak)] {
            assert!(peak < rise.forward + widest, "{when} rises to {peak}, {} are saved", rise.forward);
        }
    }
    // Gradients of intermediates are gone, and were before backward was over: what is left has the size of the
    // parameters, rounded up to cache lines, and the batch statistics.
    let trained = model.params.iter().filter(|(_, p)| p.role != amdanet::nn::Role::Statistic);
    let lines: usize = trained.map(|(_, p)| (4 * p.value.len()).next_multiple_of(64)).sum();
    for held in [&first, &recomputed].map(|rise| [rise.first_operation, rise.gradients]).concat() {
        assert!((lines..lines + 8192).contains(&held), "{held} for {lines}");
    }

    for again in 0..2 {
        let rise = train(&model, &pictures, &labels, &valid, false);
        assert_eq!(rise, first, "repetition {again}");
    }

    let before = live_bytes();
    reset_peak_bytes();
    let output = model.forward(&mut Pass::eval(&model.params), &pictures[0], &pictures[1]).unwrap();
    let peak = peak_bytes() - before;
    assert_eq!(live_bytes() - before, pixels * (CLASSES + 3), "logits and picture alone are alive");
    drop(output);
    assert_eq!(live_bytes(), before);
    assert!(2 * peak < first.forward, "evaluation takes {peak}, training holds {}", first.forward);
}
