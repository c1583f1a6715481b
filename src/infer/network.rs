//! The network as a plan: the same order as [`crate::model`], with fused steps.

use std::sync::Arc;

use super::align::{self, Statistics};
use super::arena::Slice;
use super::encoder::{self, Map, Patches, Queries};
use super::heads::{self, Grids};
use super::pack::{Attention, Block, Weights};
use super::plan::{Builder, Program};
use crate::model::Arch;

/// What is computed besides the labels and the fused picture in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Wanted {
    /// The fused picture in (0, 1).
    pub image: bool,
    /// The scores of every class for every pixel.
    pub logits: bool,
    /// Their softmax.
    pub probabilities: bool,
}

/// A plan with the places of its inputs and outputs.
pub struct Network {
    /// The steps.
    pub program: Program,
    /// Both pictures in [0, 1], `(2, B, H, W, 3)`.
    pub pictures: Slice,
    /// The fused picture as bytes, `(B, H, W, 3)`.
    pub fused: Slice,
    /// The labels as bytes, `(B, H, W)`.
    pub labels: Slice,
    /// What else was wanted: `(B, H, W, 3)`, and `(B, H, W, classes)` twice.
    pub extra: [Option<Slice>; 3],
}

/// The keys and values of one attention.
#[derive(Clone, Copy)]
struct Keys {
    packed: Slice,
    count: usize,
    heads: usize,
}

struct Maker<'a> {
    weights: &'a Arc<Weights>,
    plan: Builder,
}

/// The plan for pictures of this size.
pub fn network(weights: &Arc<Weights>, batch: usize, height: usize, width: usize, wanted: Wanted) -> Network {
    Maker { weights, plan: Builder::default() }.network(batch, height, width, wanted)
}

impl Maker<'_> {
    fn network(mut self, batch: usize, height: usize, width: usize, wanted: Wanted) -> Network {
        let config = &self.weights.config;
        let paper = config.arch == Arch::Paper;
        let picture = Map { streams: 2, batch, h: height, w: width, c: 3 };
        let pictures = self.plan.buffer(picture.len());
        let (mut from, mut streams) = (picture, pictures);
        let (mut segments, mut taps) = (Vec::new(), Vec::new());
        for level in 0..4 {
            let (kernel, stride) = if level == 0 { (7, 4) } else { (3, 2) };
            let [h, w] = [from.h, from.w].map(|n| n.div_ceil(stride));
            let map = Map { h, w, c: config.dims[level], ..from };
            let patches = Patches { kernel, stride, padding: kernel / 2, across: w };
            let x = self.embed(level, (streams, from), patches, map);
            if !paper {
                self.consistency(level, x, map);
            }
            for index in 0..config.depths[level] {
                self.block(level, index, x, map);
            }
            self.normalize(level, x, map);
            if paper {
                self.consistency(level, x, map);
            }
            let aligned = self.align(level, x, map);
            segments.push((self.global(level, aligned, map), map.single()));
            taps.push((self.taps(level, aligned, map), map.single()));
            (from, streams) = (map, if paper { x } else { aligned });
        }
        let scores = self.scores(&segments);
        let finest = segments[0].1;
        let pixels = batch * height * width;
        let labels = self.labels(scores, finest, (height, width));
        let logits =
            (wanted.logits || wanted.probabilities).then(|| self.logits(scores, finest, (height, width)));
        let probabilities = match logits {
            Some(logits) if wanted.probabilities => Some(self.probabilities(logits)),
            _ => None,
        };
        let (fused, image) = self.fuse((pictures, picture), &taps, wanted.image, pixels);
        let extra = [image, logits.filter(|_| wanted.logits), probabilities];
        let outputs: Vec<Slice> = [fused, labels].into_iter().chain(extra.into_iter().flatten()).collect();
        let program = self.plan.finish(&[pictures], &outputs);
        Network { program, pictures, fused, labels, extra }
    }

    fn embed(&mut self, level: usize, (x, from): (Slice, Map), patches: Patches, map: Map) -> Slice {
        let (w, out) = (self.weights.clone(), self.plan.buffer(map.len()));
        let layer = &w.levels[level].embed[0];
        let operations = 2 * map.all_pixels() * layer.k() * layer.n();
        let scratch = encoder::embed_scratch(layer);
        self.plan.step(
            at(level, "patch embedding"),
            [x, out],
            operations,
            scratch,
            move |context, [x, out]| {
                let weights = (&w.levels[level].embed[..], &w.levels[level].embed_norm[..]);
                encoder::embed(context, (x, from), patches, weights, (out, map));
            },
        );
        out
    }

    /// Semantic consistency inference, in place.
    fn consistency(&mut self, level: usize, x: Slice, map: Map) {
        let config = &self.weights.config;
        let tau = (config.arch == Arch::Paper).then_some(config.tau);
        let Some(sci) = self.weights.levels[level].sci.clone() else { return };
        let operations = 2 * map.all_pixels() / 2 * (2 * map.c * map.c + map.c);
        let scratch = align::consistency_scratch(map);
        self.plan.step(at(level, "semantic consistency"), [x], operations, scratch, move |context, [x]| {
            align::consistency(context, &sci, tau, x, map);
        });
    }

    /// A transformer block, in place.
    fn block(&mut self, level: usize, index: usize, x: Slice, map: Map) {
        let block = self.weights.levels[level].blocks[index].clone();
        let name = |what: &str| at(level, &format!("block {what}"));
        let keys = self.keys(name("keys"), &block.attention, Some(&block), x, map);
        let operations = attention_operations(map, keys.count) + 2 * map.len() * map.c;
        let scratch = encoder::attend_scratch(map, keys.count);
        let b = block.clone();
        self.plan.step(name("attention"), [keys.packed, x], operations, scratch, move |context, [kv, x]| {
            let queries = Queries::InPlace(&b.norm1, &b.proj);
            encoder::attend(context, map, (queries, &b.attention.q), (kv, keys.count, keys.heads), x);
        });
        let (width, b) = (block.fc1[0].n(), block.clone());
        let hidden = self.plan.buffer(encoder::hidden_len(map, width));
        let operations = 2 * map.len() * width;
        let scratch = encoder::mix_scratch(map, width);
        self.plan.step(name("expand"), [x, hidden], operations, scratch, move |context, [x, hidden]| {
            encoder::expand(context, (x, map), &b, hidden);
        });
        let operations = operations + 2 * 9 * map.all_pixels() * width;
        self.plan.step(name("contract"), [hidden, x], operations, scratch, move |context, [hidden, x]| {
            encoder::contract(context, (hidden, map), &block, x);
        });
    }

    /// The keys and values of x, behind the first norm of `block` if there is one.
    fn keys(
        &mut self,
        name: String,
        attention: &Arc<Attention>,
        block: Option<&Arc<Block>>,
        x: Slice,
        map: Map,
    ) -> Keys {
        let (heads, sr, count) = (attention.heads, attention.sr, map.keys(attention.sr));
        let images = map.streams * map.batch;
        let kv = self.plan.buffer(images * count * 2 * map.c);
        let packed = self.plan.buffer(images * heads * encoder::head_len(count, map.c / heads));
        let reduction = if sr > 1 { sr * sr * map.c * map.c } else { 0 };
        let operations = 2 * images * count * (reduction + 2 * map.c * map.c);
        let scratch = encoder::keys_scratch(map, attention);
        let (attention, block) = (attention.clone(), block.cloned());
        self.plan.step(name, [x, kv, packed], operations, scratch, move |context, [x, kv, packed]| {
            let norm = block.as_ref().map(|b| &b.norm1[..]);
            encoder::keys(context, x, map, norm, &attention, (kv, packed));
        });
        Keys { packed, count, heads }
    }

    fn normalize(&mut self, level: usize, x: Slice, map: Map) {
        let w = self.weights.clone();
        self.plan.step(at(level, "norm"), [x], 0, 0, move |_, [x]| {
            encoder::normalize(&w.levels[level].norm, map, x);
        });
    }

    /// Local alignment; x itself in a network without it.
    fn align(&mut self, level: usize, x: Slice, map: Map) -> Slice {
        let Some(local) = self.weights.levels[level].local.clone() else { return x };
        let partial = self.plan.buffer(align::partial_len(map));
        let spatial = self.plan.buffer(2 * map.all_pixels());
        self.plan.step(
            at(level, "statistics"),
            [x, partial, spatial],
            0,
            0,
            move |_, [x, partial, spatial]| {
                align::statistics(x, map, partial, spatial);
            },
        );
        let (l, channel) = (local.clone(), self.plan.buffer(2 * map.batch * map.c));
        let (operations, scratch) = (8 * map.batch * 2 * map.c * (map.c / 2), align::channel_scratch(map));
        let name = at(level, "channel weights");
        self.plan.step(name, [partial, channel], operations, scratch, move |context, [partial, channel]| {
            align::channel_weights(context, &l, partial, map, channel);
        });
        let out = self.plan.buffer(map.len());
        let gate = if local.gate.is_some() { 3 * map.c * (map.c / 2) } else { 0 };
        let operations = 2 * map.all_pixels() / 2 * gate;
        let scratch = align::align_scratch(map);
        let buffers = [x, spatial, channel, out];
        self.plan.step(at(level, "local alignment"), buffers, operations, scratch, move |context, views| {
            let [x, spatial, channel, out] = views;
            let statistics = Statistics { spatial, channel };
            align::align(context, &local, (x, map), &statistics, out);
        });
        out
    }

    /// Global alignment, and the level's part of the segmentation head's hidden layer.
    fn global(&mut self, level: usize, x: Slice, both: Map) -> Slice {
        let (w, map) = (self.weights.clone(), both.single());
        let outputs = w.levels[level].segment.n();
        let out = self.plan.buffer(map.all_pixels() * outputs);
        let last = 2 * map.len() * outputs;
        let Some(global) = w.levels[level].global.clone() else {
            let (buffers, scratch) = ([x.part(0, 2), x.part(1, 2), out], encoder::sum_scratch(map));
            self.plan.step(
                at(level, "sum of the streams"),
                buffers,
                last,
                scratch,
                move |context, [a, b, out]| {
                    encoder::sum_linear(context, [a, b], map, &w.levels[level].segment, out);
                },
            );
            return out;
        };
        let name = |what: &str| at(level, &format!("salient {what}"));
        let keys = self.keys(name("keys"), &global.salient, None, x, both);
        let (g, enhanced) = (global.clone(), self.plan.buffer(both.len()));
        let scratch = encoder::attend_scratch(both, keys.count);
        let operations = attention_operations(both, keys.count) + 2 * both.len() * both.c;
        let buffers = [keys.packed, x, enhanced];
        self.plan.step(name("attention"), buffers, operations, scratch, move |context, [kv, x, out]| {
            let queries = (Queries::Project(x, &g.salient_proj), &g.salient.q[..]);
            encoder::attend(context, both, queries, (kv, keys.count, keys.heads), out);
        });

        let name = |what: &str| at(level, &format!("cross-modal {what}"));
        let [visible, infrared] = [enhanced.part(0, 2), enhanced.part(1, 2)];
        let keys = self.keys(name("keys"), &global.cross[0], None, infrared, map);
        let middle = self.plan.buffer(map.len());
        let operations = attention_operations(map, keys.count);
        let (g, buffers) = (global.clone(), [keys.packed, visible, middle]);
        self.plan.step(name("attention"), buffers, operations, scratch, move |context, [kv, x, out]| {
            let queries = (Queries::Sum(x), &g.cross[0].q[..]);
            encoder::attend(context, map, queries, (kv, keys.count, keys.heads), out);
        });
        let keys = self.keys(name("keys"), &global.cross[1], None, middle, map);
        let (operations, buffers) = (operations + last, [keys.packed, infrared, out]);
        self.plan.step(name("attention"), buffers, operations, scratch, move |context, [kv, x, out]| {
            let project = std::slice::from_ref(&w.levels[level].segment);
            let queries = (Queries::Project(x, project), &global.cross[1].q[..]);
            encoder::attend(context, map, queries, (kv, keys.count, keys.heads), out);
        });
        out
    }

    fn taps(&mut self, level: usize, x: Slice, map: Map) -> Slice {
        let w = self.weights.clone();
        let l = &w.levels[level];
        let (o, outputs) = (l.points[0].n(), l.taps.n());
        let out = self.plan.buffer(map.single().all_pixels() * outputs);
        let operations = 2 * (map.len() * o + map.single().all_pixels() * 2 * o * outputs);
        let scratch = heads::taps_scratch(o);
        self.plan.step(at(level, "fusion taps"), [x, out], operations, scratch, move |context, [x, out]| {
            let l = &w.levels[level];
            heads::taps(context, (x, map), &l.points, &l.taps, out);
        });
        out
    }

    /// Distance between the scores of neighbouring pixels.
    fn stride(&self) -> usize {
        self.weights.config.classes.next_multiple_of(16)
    }

    fn scores(&mut self, segments: &[(Slice, Map)]) -> Slice {
        let (w, stride) = (self.weights.clone(), self.stride());
        let [(fine, finest), (b, mb), (c, mc), (d, md)] = *segments else { unreachable!("four levels") };
        let out = self.plan.buffer(finest.all_pixels() * stride);
        let grids = [mb, mc, md].map(|map| Grids::new(map, finest.h, finest.w));
        let dim = w.predict.k();
        let operations = 2 * finest.all_pixels() * dim * w.predict.n();
        let widest = mb.w.max(mc.w).max(md.w);
        let scratch = heads::scores_scratch(finest, widest, dim);
        let buffers = [fine, b, c, d, out];
        self.plan.step("scores", buffers, operations, scratch, move |context, [fine, b, c, d, out]| {
            let coarse = [(&*b, mb, &grids[0]), (&*c, mc, &grids[1]), (&*d, md, &grids[2])];
            heads::scores(context, (fine, finest), coarse, &w.predict, (out, stride));
        });
        out
    }

    fn labels(&mut self, scores: Slice, finest: Map, (h, w): (usize, usize)) -> Slice {
        let (pixels, stride, classes) = (finest.batch * h * w, self.stride(), self.weights.config.classes);
        let out = self.plan.buffer(pixels.div_ceil(4));
        let (grids, scratch) = (Grids::new(finest, h, w), heads::resized_scratch(finest, w, stride));
        self.plan.step("labels", [scores, out], 0, scratch, move |context, [scores, out]| {
            let out = &mut bytemuck::cast_slice_mut(out)[..pixels];
            heads::labels(context, (scores, finest, stride), &grids, classes, out);
        });
        out
    }

    fn logits(&mut self, scores: Slice, finest: Map, (h, w): (usize, usize)) -> Slice {
        let (stride, classes) = (self.stride(), self.weights.config.classes);
        let out = self.plan.buffer(finest.batch * h * w * classes);
        let (grids, scratch) = (Grids::new(finest, h, w), heads::resized_scratch(finest, w, stride));
        self.plan.step("logits", [scores, out], 0, scratch, move |context, [scores, out]| {
            heads::logits(context, (scores, finest, stride), &grids, classes, out);
        });
        out
    }

    fn probabilities(&mut self, logits: Slice) -> Slice {
        let (out, classes) = (self.plan.buffer(logits.len), self.weights.config.classes);
        self.plan.step("probabilities", [logits, out], 0, 0, move |_, [logits, out]| {
            out.copy_from_slice(logits);
            heads::softmax(out, classes);
        });
        out
    }

    /// The fused picture as bytes, and in (0, 1) if it is wanted.
    fn fuse(
        &mut self,
        (pictures, picture): (Slice, Map),
        taps: &[(Slice, Map)],
        wanted: bool,
        pixels: usize,
    ) -> (Slice, Option<Slice>) {
        let w = self.weights.clone();
        let [(a, ma), (b, mb), (c, mc), (d, md)] = *taps else { unreachable!("four levels") };
        let grids = [ma, mb, mc, md].map(|map| Grids::new(map, picture.h, picture.w));
        let (bytes, o) = (3 * pixels, w.pictures.n());
        let scratch = heads::fuse_scratch(picture.w, ma.w.max(mb.w).max(mc.w).max(md.w), o);
        let operations = 2 * pixels * (w.pictures.k() * o + 3 * o);
        let fused = self.plan.buffer(bytes.div_ceil(4));
        let out = if wanted { self.plan.buffer(bytes) } else { fused };
        let buffers = [pictures, a, b, c, d, out];
        self.plan.step("fused picture", buffers, operations, scratch, move |context, views| {
            let [pictures, a, b, c, d, out] = views;
            let maps =
                [(&*a, ma, &grids[0]), (&*b, mb, &grids[1]), (&*c, mc, &grids[2]), (&*d, md, &grids[3])];
            let pictures = (&*pictures, picture);
            if wanted {
                heads::fuse(context, &w, pictures, maps, out, |row, out| out.copy_from_slice(row));
            } else {
                let out = &mut bytemuck::cast_slice_mut(out)[..bytes];
                heads::fuse(context, &w, pictures, maps, out, heads::to_bytes);
            }
        });
        if !wanted {
            return (fused, None);
        }
        self.plan.step("bytes", [out, fused], 0, 0, move |_, [image, fused]| {
            heads::to_bytes(image, &mut bytemuck::cast_slice_mut(fused)[..bytes]);
        });
        (fused, Some(out))
    }
}

fn at(level: usize, what: &str) -> String {
    format!("level {} {what}", level + 1)
}

/// Of the queries and of the two products with the scores.
fn attention_operations(map: Map, keys: usize) -> usize {
    2 * map.len() * map.c + 2 * 2 * map.len() * keys
}
