//! Steps of the encoder, and of attention wherever it is: each a parallel loop over blocks of rows, whose
//! intermediate results stay in scratch memory.
#![allow(clippy::needless_range_loop)] // An iterator's calls, where they are not inlined, forbid vector instructions.

use rayon::prelude::*;

use super::pack::{Attention, Block, Depthwise};
use super::plan::{Context, scratch_len};
use super::product::{Finish, Grid, PANEL, Packed, Right, prefetch};
use super::vector::{self, Norm, load, multiply_add, store};
use crate::cpu::simd;

/// The most rows of one task: a multiple of the tile, few enough to stay in the cache.
pub const ROWS: usize = 96;

/// Rows of one task: fewer where a picture has few.
fn rows_of(map: Map) -> usize {
    (map.pixels() / 8).next_multiple_of(12).clamp(24, ROWS)
}

/// Queries whose scores are alive at once.
const QUERIES: usize = 24;

/// Distance between rows of scratch memory: rows whose distance is a multiple of a page would share lines of the cache.
pub fn stride(k: usize) -> usize {
    if k.is_multiple_of(512) { k + PANEL } else { k }
}

/// A feature map of S streams and B pictures, `(S, B, H, W, C)`.
#[derive(Clone, Copy, Debug)]
pub struct Map {
    /// Streams.
    pub streams: usize,
    /// Pictures.
    pub batch: usize,
    /// Rows.
    pub h: usize,
    /// Columns.
    pub w: usize,
    /// Channels.
    pub c: usize,
}

impl Map {
    /// Pixels of one picture.
    pub fn pixels(self) -> usize {
        self.h * self.w
    }

    /// Numbers of one picture.
    pub fn image(self) -> usize {
        self.pixels() * self.c
    }

    /// Numbers of all.
    pub fn len(self) -> usize {
        self.streams * self.batch * self.image()
    }

    /// Pixels of all streams and pictures.
    pub fn all_pixels(self) -> usize {
        self.streams * self.batch * self.pixels()
    }

    /// Keys of one picture.
    pub fn keys(self, sr: usize) -> usize {
        (self.h / sr) * (self.w / sr)
    }

    /// The same map with one stream.
    pub fn single(self) -> Self {
        Self { streams: 1, ..self }
    }
}

/// Calls `f(image, first row, rows of out)` for blocks of `rows` rows of `len` numbers of every image of `image` rows.
pub fn blocks(
    out: &mut [f32],
    image: usize,
    rows: usize,
    len: usize,
    f: impl Fn(usize, usize, &mut [f32]) + Sync,
) {
    out.par_chunks_mut(image * len).enumerate().for_each(|(i, out)| {
        out.par_chunks_mut(rows * len).enumerate().for_each(|(b, out)| f(i, b * rows, out));
    });
}

/// How patches are taken from a map.
#[derive(Clone, Copy, Debug)]
pub struct Patches {
    /// Side of a patch.
    pub kernel: usize,
    /// Distance between patches.
    pub stride: usize,
    /// Zeros around the map.
    pub padding: usize,
    /// Patches in a row of the output.
    pub across: usize,
}

impl Patches {
    /// Copies the patches `first ..` of the picture x `(h, w, c)` to rows of `out`, `row` apart.
    fn gather(self, x: &[f32], (h, w, c): (usize, usize, usize), first: usize, row: usize, out: &mut [f32]) {
        let Self { kernel, stride, padding, across } = self;
        for (i, patch) in out.chunks_mut(row).enumerate() {
            let (oy, ox) = ((first + i) / across, (first + i) % across);
            let left = padding.saturating_sub(ox * stride).min(kernel);
            let right = (w + padding).saturating_sub(ox * stride).min(kernel).max(left);
            for (ky, line) in patch[..kernel * kernel * c].chunks_exact_mut(kernel * c).enumerate() {
                let iy = (oy * stride + ky).wrapping_sub(padding);
                if iy >= h || left == right {
                    line.fill(0.0);
                    continue;
                }
                let from = (iy * w + ox * stride + left - padding) * c;
                line[..left * c].fill(0.0);
                line[left * c..right * c].copy_from_slice(&x[from..from + (right - left) * c]);
                line[right * c..].fill(0.0);
            }
        }
    }
}

/// Scratch memory of [`embed`].
pub fn embed_scratch(weight: &Packed) -> usize {
    scratch_len(&[ROWS * stride(weight.k())])
}

/// Patch embedding and its norm: x, pictures of `from`, -> `to`.
pub fn embed(
    context: &Context,
    (x, from): (&[f32], Map),
    patches: Patches,
    (weight, norm): (&[Packed], &[Norm]),
    (out, to): (&mut [f32], Map),
) {
    blocks(out, to.pixels(), rows_of(to), to.c, |image, first, out| {
        let (s, rows) = (image / to.batch, out.len() / to.c);
        let (k, row) = (weight[s].k(), stride(weight[s].k()));
        context.scratch([rows * row], |[a]| {
            let x = &x[image * from.image()..][..from.image()];
            patches.gather(x, (from.h, from.w, from.c), first, row, a);
            let grid = (Grid::rows(row), Grid::rows(to.c));
            debug_assert!(k <= row);
            context.product(rows, (a, grid.0), weight[s].view(), (&mut *out, grid.1), Finish::default());
            norm[s].in_place(out);
        });
    });
}

/// Scratch memory of [`sum_linear`].
pub fn sum_scratch(map: Map) -> usize {
    scratch_len(&[ROWS * map.c])
}

/// (a + b)·W + bias, for one stream each.
pub fn sum_linear(context: &Context, [a, b]: [&[f32]; 2], map: Map, weight: &Packed, out: &mut [f32]) {
    let (c, outputs) = (map.c, weight.n());
    blocks(out, map.pixels(), rows_of(map), outputs, |image, first, out| {
        let (rows, at) = (out.len() / outputs, (image * map.pixels() + first) * c);
        context.scratch([rows * c], |[sum]| {
            sum.copy_from_slice(&a[at..at + rows * c]);
            vector::add(sum, &b[at..at + rows * c]);
            let grids = (Grid::rows(c), Grid::rows(outputs));
            context.product(rows, (sum, grids.0), weight.view(), (out, grids.1), Finish::default());
        });
    });
}

/// out = norm(x)·W + b for rows x.
fn linear(context: &Context, x: &[f32], norm: Option<&Norm>, weight: &Packed, out: &mut [f32], grid: Grid) {
    let c = weight.k();
    let rows = x.len() / c;
    match norm {
        None => context.product(rows, (x, Grid::rows(c)), weight.view(), (out, grid), Finish::default()),
        Some(norm) => context.scratch([rows * stride(c)], |[a]| {
            norm.rows(x, a, stride(c));
            context.product(rows, (a, Grid::rows(stride(c))), weight.view(), (out, grid), Finish::default());
        }),
    }
}

/// Keys of one task of [`keys`]: more read the weights less often, as long as their patches stay in the cache.
fn keys_of_task(patch: usize) -> usize {
    if patch < 2048 { 48 } else { 24 }
}

/// The numbers that the packed keys and values of one head take.
pub fn head_len(keys: usize, d: usize) -> usize {
    keys.div_ceil(PANEL) * d * PANEL + d.div_ceil(PANEL) * keys * PANEL
}

/// Scratch memory of [`keys`].
pub fn keys_scratch(map: Map, attention: &Attention) -> usize {
    let patch = attention.sr * attention.sr * map.c;
    let keys = keys_of_task(patch);
    scratch_len(&[keys * stride(patch), keys * map.c, keys * stride(map.c)])
}

/// Keys and values of x, `rows` `(S, B, keys, 2C)`, and packed for products by head.
pub fn keys(
    context: &Context,
    x: &[f32],
    map: Map,
    norm: Option<&[Norm]>,
    attention: &Attention,
    (kv, packed): (&mut [f32], &mut [f32]),
) {
    let (c, sr, n) = (map.c, attention.sr, map.keys(attention.sr));
    let across = map.w / sr;
    let (patch, row) = (sr * sr * c, stride(sr * sr * c));
    blocks(kv, n, keys_of_task(patch), 2 * c, |image, first, out| {
        let (s, rows) = (image / map.batch, out.len() / (2 * c));
        let x = &x[image * map.image()..][..map.image()];
        let weight = &attention.kv[s];
        let Some((conv, reduced_norm)) = &attention.reduction else {
            let x = &x[first * c..][..rows * c];
            return linear(context, x, norm.map(|n| &n[s]), weight, out, Grid::rows(2 * c));
        };
        context.scratch([rows * row, rows * c, rows * stride(c)], |[a, reduced, normed]| {
            for (i, a) in a.chunks_exact_mut(row).enumerate() {
                let (y, column) = ((first + i) / across, (first + i) % across);
                for (ky, a) in a[..patch].chunks_exact_mut(sr * c).enumerate() {
                    let x = &x[((y * sr + ky) * map.w + column * sr) * c..][..sr * c];
                    match norm {
                        Some(norm) => norm[s].rows(x, a, c),
                        None => a.copy_from_slice(x),
                    }
                }
            }
            let grid = (Grid::rows(row), Grid::rows(c));
            context.product(rows, (a, grid.0), conv[s].view(), (&mut *reduced, grid.1), Finish::default());
            reduced_norm[s].rows(reduced, normed, stride(c));
            let grid = (Grid::rows(stride(c)), Grid::rows(2 * c));
            context.product(rows, (normed, grid.0), weight.view(), (out, grid.1), Finish::default());
        });
    });
    let d = c / attention.heads;
    let kv = &*kv;
    packed.par_chunks_exact_mut(head_len(n, d)).enumerate().for_each(|(i, packed)| {
        let (image, head) = (i / attention.heads, i % attention.heads);
        pack_head(&kv[image * n * 2 * c..][..n * 2 * c], c, head * d, d, packed);
    });
}

/// Packs the keys of one head as a right factor (d, keys) and its values as one of (keys, d).
fn pack_head(kv: &[f32], c: usize, at: usize, d: usize, packed: &mut [f32]) {
    let n = kv.len() / (2 * c);
    let (keys, values) = packed.split_at_mut(n.div_ceil(PANEL) * d * PANEL);
    for (panel, kv) in keys.chunks_exact_mut(d * PANEL).zip(kv.chunks(PANEL * 2 * c)) {
        if kv.len() < PANEL * 2 * c {
            panel.fill(0.0);
        }
        for (j, row) in kv.chunks_exact(2 * c).enumerate() {
            for (line, &v) in panel.chunks_exact_mut(PANEL).zip(&row[at..at + d]) {
                line[j] = v;
            }
        }
    }
    for (p, panel) in values.chunks_exact_mut(n * PANEL).enumerate() {
        let columns = PANEL.min(d - p * PANEL);
        for (line, row) in panel.chunks_exact_mut(PANEL).zip(kv.chunks_exact(2 * c)) {
            line[..columns].copy_from_slice(&row[c + at + p * PANEL..][..columns]);
            line[columns..].fill(0.0);
        }
    }
}

/// The queries of an attention, and what follows the heads' sum.
#[derive(Clone, Copy)]
pub enum Queries<'a> {
    /// out += sum·W + b, with queries of `norm(out)`.
    InPlace(&'a [Norm], &'a [Packed]),
    /// out = (sum + x)·W + b, with queries of x.
    Project(&'a [f32], &'a [Packed]),
    /// out = sum + x, with queries of x.
    Sum(&'a [f32]),
}

/// Scratch memory of [`attend`].
pub fn attend_scratch(map: Map, keys: usize) -> usize {
    let rows = ROWS * stride(map.c);
    scratch_len(&[rows, rows, QUERIES * keys.next_multiple_of(PANEL), QUERIES])
}

/// softmax(q·kᵀ)·v by head, with scores in units of ln 2, with keys and values as [`keys`] packs them, and what is done
/// with the sum; q is `weight` times the rows that `queries` names.
pub fn attend(
    context: &Context,
    map: Map,
    (queries, weight): (Queries, &[Packed]),
    (packed, n, heads): (&[f32], usize, usize),
    out: &mut [f32],
) {
    let c = map.c;
    let d = c / heads;
    let outputs = out.len() / map.all_pixels();
    let (each, keys_len, row) = (head_len(n, d), n.div_ceil(PANEL) * d * PANEL, stride(c));
    let columns = n.next_multiple_of(PANEL);
    blocks(out, map.pixels(), rows_of(map), outputs, |image, first, out| {
        let (s, rows) = (image / map.batch, out.len() / outputs);
        let place = (image * map.pixels() + first) * c;
        let lengths = [rows * row, rows * row, QUERIES * columns, QUERIES];
        context.scratch(lengths, |[sum, q, scores, sums]| {
            // Normalised rows lie where the sum will.
            let (x, grid) = match queries {
                Queries::InPlace(norm, _) => {
                    norm[s].rows(out, sum, row);
                    (&*sum, Grid::rows(row))
                }
                Queries::Project(x, _) | Queries::Sum(x) => (&x[place..][..rows * c], Grid::rows(c)),
            };
            context.product(rows, (x, grid), weight[s].view(), (&mut *q, Grid::rows(row)), Finish::default());
            for head in 0..heads {
                let (k, v) = packed[(image * heads + head) * each..][..each].split_at(keys_len);
                // As many scores as fill vectors: those beyond the last key are products with zeros, and are not read.
                let (k, v) = (Right::new(d, n.next_multiple_of(16), k), Right::new(n, d, v));
                for (q, sum) in q.chunks(QUERIES * row).zip(sum.chunks_mut(QUERIES * row)) {
                    let rows = q.len() / row;
                    let (q, sum) = (&q[head * d..], &mut sum[head * d..]);
                    let scores = &mut scores[..rows * columns];
                    let grid = Grid::rows(columns);
                    context.product(rows, (q, Grid::rows(row)), k, (&mut *scores, grid), Finish::default());
                    vector::powers(scores, columns, n, &mut sums[..rows]);
                    context.product(rows, (scores, grid), v, (&mut *sum, Grid::rows(row)), Finish::default());
                    for (sum, total) in sum.chunks_mut(row).zip(&*sums) {
                        let factor = 1.0 / total;
                        sum[..d].iter_mut().for_each(|v| *v *= factor);
                    }
                }
            }
            if let Queries::Project(x, _) | Queries::Sum(x) = queries {
                for (sum, x) in sum.chunks_mut(row).zip(x[place..][..rows * c].chunks_exact(c)) {
                    vector::add(&mut sum[..c], x);
                }
            }
            match queries {
                Queries::InPlace(_, w) | Queries::Project(_, w) => {
                    let finish = Finish { add: matches!(queries, Queries::InPlace(..)), relu: false };
                    let (sum, out) = ((&*sum, Grid::rows(row)), (out, Grid::rows(outputs)));
                    context.product(rows, sum, w[s].view(), out, finish);
                }
                Queries::Sum(_) => {
                    for (out, sum) in out.chunks_exact_mut(c).zip(sum.chunks(row)) {
                        out.copy_from_slice(&sum[..c]);
                    }
                }
            }
        });
    });
}

/// Rows of a picture that one task of the Mix-FFN takes: a band.
pub fn band(map: Map) -> usize {
    ROWS.div_ceil(map.w).min(map.h)
}

/// Numbers in the hidden map of the Mix-FFN.
pub fn hidden_len(map: Map, hidden: usize) -> usize {
    map.all_pixels() * hidden.next_multiple_of(PANEL)
}

/// The first half of the Mix-FFN: norm and fc1. The hidden map is by band, and in a band by panel of 32 channels.
pub fn expand(context: &Context, (x, map): (&[f32], Map), block: &Block, hidden: &mut [f32]) {
    let c = map.c;
    let width = block.fc1[0].n().next_multiple_of(PANEL);
    blocks(hidden, map.pixels(), band(map) * map.w, width, |image, first, out| {
        let (s, rows) = (image / map.batch, out.len() / width);
        let x = &x[(image * map.pixels() + first) * c..][..rows * c];
        context.scratch([rows * stride(c)], |[a]| {
            block.norm2[s].rows(x, a, stride(c));
            let grid = (Grid::rows(stride(c)), Grid::panels(rows));
            context.product(rows, (a, grid.0), block.fc1[s].view(), (out, grid.1), Finish::default());
        });
    });
}

/// Panels of the hidden map that [`contract`] has in the cache, for a product with as many rows of fc2's weight.
const PART: usize = 10;

/// Scratch memory of [`expand`] and of [`contract`].
pub fn mix_scratch(map: Map, hidden: usize) -> usize {
    let rows = band(map) * map.w;
    let part = hidden.next_multiple_of(PANEL).min(PART * PANEL);
    scratch_len(&[rows * stride(map.c)]).max(scratch_len(&[rows * part]))
}

/// The second half of the Mix-FFN: x += fc2(GELU(depthwise(hidden))).
pub fn contract(context: &Context, (hidden, map): (&[f32], Map), block: &Block, x: &mut [f32]) {
    let c = map.c;
    let (band, width) = (band(map), block.fc1[0].n().next_multiple_of(PANEL));
    blocks(x, map.pixels(), band * map.w, c, |image, first, out| {
        let (s, rows) = (image / map.batch, out.len() / c);
        let hidden = &hidden[image * map.pixels() * width..][..map.pixels() * width];
        let (bands, fc2) = (Bands { hidden, map, band, width }, block.fc2[s].view());
        context.scratch([rows * width.min(PART * PANEL)], |[a]| {
            for part in (0..width / PANEL).step_by(PART) {
                let panels = PART.min(width / PANEL - part);
                let row = panels * PANEL;
                for p in 0..panels {
                    let a = &mut a[p * PANEL..rows * row];
                    bands.depthwise_gelu(&block.depthwise[s], part + p, first / map.w, a, row);
                }
                let (start, end) = (part * PANEL, fc2.k.min((part + panels) * PANEL));
                let weight = fc2.rows(start, end - start);
                let grid = (Grid::rows(row), Grid::rows(c));
                context.product(rows, (a, grid.0), weight, (out, grid.1), Finish { add: true, relu: false });
            }
        });
    });
}

/// The hidden map of one picture.
struct Bands<'a> {
    hidden: &'a [f32],
    map: Map,
    band: usize,
    width: usize,
}

impl Bands<'_> {
    /// Row y of panel p: w·32 numbers.
    fn row(&self, p: usize, y: usize) -> &[f32] {
        let (first, w) = (y / self.band * self.band, self.map.w);
        let rows = self.band.min(self.map.h - first);
        let at = first * w * self.width + (p * rows + y - first) * w * PANEL;
        &self.hidden[at..at + w * PANEL]
    }

    /// Panel p of the rows from `first` on; pixels of `out` are `stride` apart.
    fn depthwise_gelu(&self, weight: &Depthwise, p: usize, first: usize, out: &mut [f32], stride: usize) {
        let (w, h) = (self.map.w, self.map.h);
        let weight = &weight.panels[p * 10 * PANEL..][..10 * PANEL];
        for (i, out) in out.chunks_mut(w * stride).enumerate() {
            let y = first + i;
            let rows = [
                (y > 0).then(|| self.row(p, y - 1)),
                Some(self.row(p, y)),
                (y + 1 < h).then(|| self.row(p, y + 1)),
            ];
            if (p + 1) * PANEL < self.width {
                // While this panel is worked on, the next one comes to the cache: the rows that it reads first and new ones.
                if i == 0 {
                    if y > 0 {
                        prefetch(self.row(p + 1, y - 1));
                    }
                    prefetch(self.row(p + 1, y));
                }
                if y + 1 < h {
                    prefetch(self.row(p + 1, y + 1));
                }
            }
            simd(
                #[inline(always)]
                || depthwise_row(rows, weight, w, out, stride),
            );
        }
    }
}

/// One row of one panel: the convolution, then GELU.
#[inline(always)]
fn depthwise_row(rows: [Option<&[f32]>; 3], weight: &[f32], w: usize, out: &mut [f32], stride: usize) {
    for half in [0, 16] {
        depthwise_border(rows, weight, (0, w), half, &mut out[half..]);
        let mut x = 1;
        while x + PIXELS < w {
            depthwise_pixels::<PIXELS>(rows, weight, x, half, &mut out[x * stride + half..], stride);
            x += PIXELS;
        }
        while x + 1 < w {
            depthwise_pixels::<1>(rows, weight, x, half, &mut out[x * stride + half..], stride);
            x += 1;
        }
        if w > 1 {
            depthwise_border(rows, weight, (w - 1, w), half, &mut out[(w - 1) * stride + half..]);
        }
    }
}

/// Pixels whose sums are in registers at once.
const PIXELS: usize = 4;

/// P neighbouring pixels away from the border, 16 channels of them.
#[inline(always)]
fn depthwise_pixels<const P: usize>(
    rows: [Option<&[f32]>; 3],
    weight: &[f32],
    x: usize,
    half: usize,
    out: &mut [f32],
    stride: usize,
) {
    let mut sums = [load(weight, 9 * PANEL + half); P];
    for ky in 0..3 {
        let Some(row) = rows[ky] else { continue };
        let row = &row[(x - 1) * PANEL..(x + P + 1) * PANEL];
        for kx in 0..3 {
            let tap = load(weight, (ky * 3 + kx) * PANEL + half);
            for p in 0..P {
                sums[p] = multiply_add(load(row, (p + kx) * PANEL + half), tap, sums[p]);
            }
        }
    }
    for p in 0..P {
        vector::gelu(&mut sums[p]);
        store(out, p * stride, sums[p]);
    }
}

/// One pixel at the border.
#[inline(always)]
fn depthwise_border(
    rows: [Option<&[f32]>; 3],
    weight: &[f32],
    (x, w): (usize, usize),
    half: usize,
    out: &mut [f32],
) {
    let mut sum = load(weight, 9 * PANEL + half);
    for ky in 0..3 {
        let Some(row) = rows[ky] else { continue };
        for kx in 0..3 {
            if (1..=w).contains(&(x + kx)) {
                let tap = load(weight, (ky * 3 + kx) * PANEL + half);
                sum = multiply_add(load(row, (x + kx - 1) * PANEL + half), tap, sum);
            }
        }
    }
    vector::gelu(&mut sum);
    store(out, 0, sum);
}

/// Norm of every row, in place.
pub fn normalize(norm: &[Norm], map: Map, x: &mut [f32]) {
    blocks(x, map.pixels(), ROWS, map.c, |image, _, x| norm[image / map.batch].in_place(x));
}
