//! Matrix products with a right factor that was packed beforehand; the one home of unsafe code of the engine.
//!
//! The right factor lies in panels of 32 columns, row after row, so that a tile of the result reads it front to back.
//! The left factor is read where it is: its numbers are broadcast one by one, so it needs no packing as long as its
//! rows do not share lines of the cache. A tile of 12 by 32 (AVX-512) or twice 6 by 16 (AVX2) stays in registers for
//! the whole sum; bias, residual and ReLU are applied before it is stored. The sum of an element is made in one
//! order, whatever the tile: the division of rows among tasks changes no bit.
#![allow(clippy::needless_range_loop)] // Tiles are indexed by row and vector.

use rayon::prelude::*;

use crate::Tensor;

/// Columns of a panel.
pub const PANEL: usize = 32;

/// Rows of a panel that are filled together.
const TURNED: usize = 16;

/// Rows of the tallest tile.
pub const TILE: usize = 12;

/// The vector instructions that a product uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Instructions {
    /// What the compiler makes of plain loops.
    Portable,
    /// AVX2 with fused multiply-add.
    Avx2,
    /// AVX-512.
    Avx512,
}

impl Instructions {
    const ALL: [Self; 3] = [Self::Portable, Self::Avx2, Self::Avx512];

    /// Whether this machine has them.
    #[cfg(target_arch = "x86_64")]
    pub fn is_available(self) -> bool {
        use std::arch::is_x86_feature_detected as has;
        match self {
            Self::Portable => true,
            Self::Avx2 => has!("avx2") && has!("fma"),
            Self::Avx512 => has!("avx512f"),
        }
    }

    /// Whether this machine has them.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn is_available(self) -> bool {
        self == Self::Portable
    }

    /// What this machine has, the best last.
    pub fn available() -> impl DoubleEndedIterator<Item = Self> {
        Self::ALL.into_iter().filter(|i| i.is_available())
    }

    /// The best that this machine has.
    pub fn best() -> Self {
        Self::available().next_back().unwrap_or(Self::Portable)
    }
}

/// Where the elements of a matrix lie in a slice: columns in blocks of `block`; element (i, j) is at
/// `j / block · next + i · row + j % block`. A row-major matrix has one block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Grid {
    /// Distance between rows.
    pub row: usize,
    /// Columns of a block.
    pub block: usize,
    /// Distance between blocks.
    pub next: usize,
}

impl Grid {
    /// Row-major, rows `row` apart.
    pub fn rows(row: usize) -> Self {
        Self { row, block: PANEL, next: PANEL }
    }

    /// In panels: each block of 32 columns of all `rows` rows is contiguous.
    pub fn panels(rows: usize) -> Self {
        Self { row: PANEL, block: PANEL, next: rows * PANEL }
    }

    /// The numbers that a matrix of m×n spans.
    pub fn span(self, m: usize, n: usize) -> usize {
        if m == 0 || n == 0 {
            return 0;
        }
        let last = (n - 1) / self.block;
        let rows = (m - 1).saturating_mul(self.row);
        last.saturating_mul(self.next).saturating_add(rows).saturating_add(n - last * self.block)
    }
}

/// A right factor k×n in panels of 32 columns, the last one filled with zeros, with an optional bias of n.
pub struct Packed {
    k: usize,
    n: usize,
    panels: Tensor,
    bias: Option<Tensor>,
}

impl Packed {
    /// From a weight (n, k), as layers have it; `bias` has n numbers.
    pub fn new(weight: &[f32], k: usize, n: usize, bias: Option<&[f32]>) -> Self {
        let count = n.div_ceil(PANEL);
        let mut panels = Tensor::scratch([count * k * PANEL]);
        panels.f32_mut().par_chunks_exact_mut(k * PANEL).enumerate().for_each(|(p, panel)| {
            if (p + 1) * PANEL > n {
                panel.fill(0.0);
            }
            // Lines of the panel are finished while they are in the cache.
            for (block, lines) in panel.chunks_mut(TURNED * PANEL).enumerate() {
                for (j, row) in weight.chunks_exact(k).skip(p * PANEL).take(PANEL).enumerate() {
                    for (line, &v) in lines.chunks_exact_mut(PANEL).zip(&row[block * TURNED..]) {
                        line[j] = v;
                    }
                }
            }
        });
        let bias = bias.map(|b| {
            let mut padded = Tensor::zeros([count * PANEL]);
            padded.f32_mut()[..n].copy_from_slice(&b[..n]);
            padded
        });
        Self { k, n, panels, bias }
    }

    /// From numbers that are packed already: ⌈n / 32⌉·k·32 of the panels, ⌈n / 32⌉·32 of the bias.
    pub fn from_parts(k: usize, n: usize, panels: Tensor, bias: Option<Tensor>) -> Self {
        Self { k, n, panels, bias }
    }

    /// The panels and the bias.
    pub fn parts(&self) -> (&Tensor, Option<&Tensor>) {
        (&self.panels, self.bias.as_ref())
    }

    /// Rows.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Columns.
    pub fn n(&self) -> usize {
        self.n
    }

    /// The factor without its storage.
    pub fn view(&self) -> Right<'_> {
        Right { bias: self.bias.as_ref().map(Tensor::f32), ..Right::new(self.k, self.n, self.panels.f32()) }
    }
}

/// A right factor that is packed as [`Packed`] describes.
#[derive(Clone, Copy)]
pub struct Right<'a> {
    /// Rows.
    pub k: usize,
    /// Columns.
    pub n: usize,
    /// The panels, of k·32 numbers each.
    pub panels: &'a [f32],
    /// Distance between panels.
    pub next: usize,
    /// ⌈n / 32⌉·32 numbers that are added to every row.
    pub bias: Option<&'a [f32]>,
}

impl<'a> Right<'a> {
    /// A factor k×n of panels one after the other: ⌈n / 32⌉·k·32 numbers.
    pub fn new(k: usize, n: usize, panels: &'a [f32]) -> Self {
        Self { k, n, panels, next: k * PANEL, bias: None }
    }

    /// Its rows from `first` on, `k` of them; the bias is with row 0.
    pub fn rows(self, first: usize, k: usize) -> Self {
        assert!(first + k <= self.k, "rows {first} to {} of {}", first + k, self.k);
        let bias = self.bias.filter(|_| first == 0);
        Self { k, panels: &self.panels[first * PANEL..], bias, ..self }
    }

    /// The number in row `i` and column `j`.
    pub fn number(&self, i: usize, j: usize) -> f32 {
        self.panels[j / PANEL * self.next + i * PANEL + j % PANEL]
    }
}

/// What happens to the sums before they are stored.
#[derive(Clone, Copy, Default)]
pub struct Finish {
    /// What is in the output already is added.
    pub add: bool,
    /// max(x, 0) at the very end.
    pub relu: bool,
}

/// out = finish(a·b + bias), with m rows of a in `a_grid` and of the output in `out_grid`; on the calling thread.
///
/// # Panics
/// When a matrix reaches past its slice, or the processor does not have the instructions.
pub fn product(
    instructions: Instructions,
    m: usize,
    (a, a_grid): (&[f32], Grid),
    b: Right,
    (out, out_grid): (&mut [f32], Grid),
    finish: Finish,
) {
    let (k, n) = (b.k, b.n);
    if m == 0 || n == 0 {
        return;
    }
    let panels = n.div_ceil(PANEL);
    assert!(instructions.is_available(), "this processor has no {instructions:?} instructions");
    assert!([a_grid, out_grid].iter().all(|g| g.next >= g.block), "blocks of columns overlap");
    assert!(a_grid.span(m, k) <= a.len(), "the left factor of {m}x{k} reaches past its slice");
    assert!(out_grid.span(m, n) <= out.len(), "the product of {m}x{n} reaches past its slice");
    assert!(out_grid.block == PANEL, "a product is written in blocks of {PANEL}");
    let spanned = (panels - 1).saturating_mul(b.next).saturating_add(k.saturating_mul(PANEL));
    assert!(b.panels.len() >= spanned, "the right factor of {k}x{n} reaches past its slice");
    assert!(b.bias.is_none_or(|b| b.len() >= panels * PANEL), "a bias is padded to panels");
    // Blocks one after the other are one: the loop over the sum then has no other around it.
    let a_grid = if a_grid.next == a_grid.block { Grid { block: k, ..a_grid } } else { a_grid };
    for p in 0..panels {
        let columns = PANEL.min(n - p * PANEL);
        let mut row = 0;
        while row < m {
            let rows = TILE.min(m - row);
            let at = p * out_grid.next + row * out_grid.row;
            let tile = Tile {
                rows,
                columns,
                k,
                // SAFETY: row < m, so the row begins within the slice that was measured above.
                a: unsafe { a.as_ptr().add(row * a_grid.row) },
                a_grid,
                // SAFETY: panel p is within the panels that were measured above.
                b: unsafe { b.panels.as_ptr().add(p * b.next) },
                // SAFETY: the bias has a number for each column of each panel.
                bias: b.bias.map_or(std::ptr::null(), |b| unsafe { b.as_ptr().add(p * PANEL) }),
                // SAFETY: `at` is the place of element (row, 32·p), within the span that was measured above.
                out: unsafe { out.as_mut_ptr().add(at) },
                out_row: out_grid.row,
                finish,
            };
            // SAFETY: all the elements that a tile of `rows` by `columns` reads and writes were shown to lie within
            // their slices, and the processor has the instructions.
            unsafe { tile.run(instructions) };
            row += rows;
        }
    }
}

/// One tile of a product: pointers to its first elements.
struct Tile {
    rows: usize,
    columns: usize,
    k: usize,
    a: *const f32,
    a_grid: Grid,
    b: *const f32,
    bias: *const f32,
    out: *mut f32,
    out_row: usize,
    finish: Finish,
}

impl Tile {
    /// # Safety
    /// The processor must have the instructions, and every element of the tile must be within its slice.
    #[inline]
    unsafe fn run(&self, instructions: Instructions) {
        /// Calls a function with a constant number of rows.
        macro_rules! by_rows {
            ($f:ident, $($rows:literal)*) => {
                match self.rows {
                    // SAFETY: the caller vouches for it.
                    $($rows => unsafe { self.$f::<$rows>() },)*
                    _ => unreachable!("a tile has at most {TILE} rows"),
                }
            };
        }
        match instructions {
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512 => by_rows!(avx512, 1 2 3 4 5 6 7 8 9 10 11 12),
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2 => by_rows!(avx2, 1 2 3 4 5 6 7 8 9 10 11 12),
            _ => by_rows!(portable, 1 2 3 4 5 6 7 8 9 10 11 12),
        }
    }

    /// # Safety
    /// As [`Tile::run`].
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f")]
    unsafe fn avx512<const ROWS: usize>(&self) {
        // SAFETY: the caller vouches for it.
        unsafe {
            if self.columns > 16 { self.avx512_wide::<ROWS, 2>() } else { self.avx512_wide::<ROWS, 1>() }
        }
    }

    /// # Safety
    /// As [`Tile::run`]; the tile must have more than 16·(VECTORS − 1) columns and at most 16·VECTORS.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f")]
    #[inline]
    unsafe fn avx512_wide<const ROWS: usize, const VECTORS: usize>(&self) {
        use std::arch::x86_64::*;
        // SAFETY: the loads of b are within its panel; those of a and the bias, and those of the output, are of
        // elements that the caller vouches for.
        unsafe {
            let mut sum = [[_mm512_setzero_ps(); VECTORS]; ROWS];
            let (mut b, row) = (self.b, self.a_grid.row);
            let mut block = self.a;
            let mut left = self.k;
            while left > 0 {
                let here = left.min(self.a_grid.block);
                let mut a = block;
                for _ in 0..here {
                    let mut bv = [_mm512_setzero_ps(); VECTORS];
                    for (v, x) in bv.iter_mut().enumerate() {
                        *x = _mm512_loadu_ps(b.add(16 * v));
                    }
                    for i in 0..ROWS {
                        let x = _mm512_set1_ps(*a.add(i * row));
                        for v in 0..VECTORS {
                            sum[i][v] = _mm512_fmadd_ps(x, bv[v], sum[i][v]);
                        }
                    }
                    a = a.add(1);
                    b = b.wrapping_add(PANEL);
                }
                block = block.wrapping_add(self.a_grid.next);
                left -= here;
            }
            let mut mask = [0u16; VECTORS];
            let mut bias = [_mm512_setzero_ps(); VECTORS];
            for v in 0..VECTORS {
                mask[v] = (0xFFFFu32 >> 16usize.saturating_sub(self.columns - 16 * v).min(16)) as u16;
                if !self.bias.is_null() {
                    bias[v] = _mm512_loadu_ps(self.bias.add(16 * v));
                }
            }
            for i in 0..ROWS {
                for v in 0..VECTORS {
                    let at = i * self.out_row + 16 * v;
                    let mut x = _mm512_add_ps(sum[i][v], bias[v]);
                    if self.finish.add {
                        x = _mm512_add_ps(x, _mm512_maskz_loadu_ps(mask[v], self.out.add(at)));
                    }
                    if self.finish.relu {
                        // In this order NaN passes through.
                        x = _mm512_max_ps(_mm512_setzero_ps(), x);
                    }
                    _mm512_mask_storeu_ps(self.out.add(at), mask[v], x);
                }
            }
        }
    }

    /// # Safety
    /// As [`Tile::run`].
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn avx2<const ROWS: usize>(&self) {
        // Two tiles of at most 6 rows, each in halves of 16 columns: 12 sums of eight numbers and three more registers.
        for first in (0..ROWS).step_by(6) {
            for half in (0..self.columns).step_by(16) {
                // SAFETY: a part of the tile that the caller vouches for.
                unsafe {
                    match ROWS - first {
                        1 => self.avx2_part::<1>(first, half),
                        2 => self.avx2_part::<2>(first, half),
                        3 => self.avx2_part::<3>(first, half),
                        4 => self.avx2_part::<4>(first, half),
                        5 => self.avx2_part::<5>(first, half),
                        _ => self.avx2_part::<6>(first, half),
                    }
                }
            }
        }
    }

    /// `ROWS` rows from `first` on, and at most 16 columns from `half` on.
    ///
    /// # Safety
    /// As [`Tile::run`]; there must be so many rows, and a column.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    unsafe fn avx2_part<const ROWS: usize>(&self, first: usize, half: usize) {
        use std::arch::x86_64::*;
        // SAFETY: the loads of b are within its panel; those of a and the bias, and those of the output, are of
        // elements that the caller vouches for.
        unsafe {
            let (mut b, row) = (self.b.add(half), self.a_grid.row);
            let mut block = self.a.add(first * row);
            let out = self.out.add(first * self.out_row + half);
            let mut sum = [[_mm256_setzero_ps(); 2]; ROWS];
            let mut left = self.k;
            while left > 0 {
                let here = left.min(self.a_grid.block);
                let mut a = block;
                for _ in 0..here {
                    let (b0, b1) = (_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(8)));
                    for (i, sum) in sum.iter_mut().enumerate() {
                        let x = _mm256_set1_ps(*a.add(i * row));
                        sum[0] = _mm256_fmadd_ps(x, b0, sum[0]);
                        sum[1] = _mm256_fmadd_ps(x, b1, sum[1]);
                    }
                    a = a.add(1);
                    b = b.wrapping_add(PANEL);
                }
                block = block.wrapping_add(self.a_grid.next);
                left -= here;
            }
            if self.columns - half < 16 {
                let mut lines = [[0.0f32; 16]; ROWS];
                for (line, sum) in lines.iter_mut().zip(sum) {
                    _mm256_storeu_ps(line.as_mut_ptr(), sum[0]);
                    _mm256_storeu_ps(line.as_mut_ptr().add(8), sum[1]);
                }
                return self.store(first, half, &lines);
            }
            let mut bias = [_mm256_setzero_ps(); 2];
            if !self.bias.is_null() {
                let at = self.bias.add(half);
                bias = [_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))];
            }
            for (i, sum) in sum.iter().enumerate() {
                for v in 0..2 {
                    let out = out.add(i * self.out_row + 8 * v);
                    let mut x = _mm256_add_ps(sum[v], bias[v]);
                    if self.finish.add {
                        x = _mm256_add_ps(x, _mm256_loadu_ps(out));
                    }
                    if self.finish.relu {
                        // In this order NaN passes through.
                        x = _mm256_max_ps(_mm256_setzero_ps(), x);
                    }
                    _mm256_storeu_ps(out, x);
                }
            }
        }
    }

    /// # Safety
    /// Every element of the tile must be within its slice.
    unsafe fn portable<const ROWS: usize>(&self) {
        for half in (0..self.columns).step_by(16) {
            let mut sum = [[0.0f32; 16]; ROWS];
            let mut block = self.a;
            for k in 0..self.k {
                let within = k % self.a_grid.block;
                if k > 0 && within == 0 {
                    block = block.wrapping_add(self.a_grid.next);
                }
                // SAFETY: row k of the panel, which is padded to 32 columns.
                let b = unsafe { &*self.b.add(k * PANEL + half).cast::<[f32; 16]>() };
                for (i, sum) in sum.iter_mut().enumerate() {
                    // SAFETY: element (i, k) of the left factor.
                    let x = unsafe { *block.add(i * self.a_grid.row + within) };
                    for (s, b) in sum.iter_mut().zip(b) {
                        *s += x * b;
                    }
                }
            }
            // SAFETY: a part of the tile that the caller vouches for.
            unsafe { self.store(0, half, &sum) };
        }
    }

    /// Finishes and stores the sums of the rows from `first` on and of at most 16 columns from `half` on.
    ///
    /// # Safety
    /// Every element of the tile must be within its slice.
    #[inline(always)]
    unsafe fn store<const ROWS: usize>(&self, first: usize, half: usize, sums: &[[f32; 16]; ROWS]) {
        for (i, sums) in sums.iter().enumerate() {
            for (j, &sum) in sums.iter().enumerate().take(self.columns - half) {
                let at = (first + i) * self.out_row + half + j;
                let mut x = sum;
                // SAFETY: an element of the tile, and a number of the bias.
                unsafe {
                    if !self.bias.is_null() {
                        x += *self.bias.add(half + j);
                    }
                    if self.finish.add {
                        x += *self.out.add(at);
                    }
                    if self.finish.relu && x < 0.0 {
                        x = 0.0;
                    }
                    *self.out.add(at) = x;
                }
            }
        }
    }
}

/// Asks for the lines of the cache that hold `x`, which will be read soon.
#[inline(always)]
pub fn prefetch(x: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    for line in x.chunks(16) {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: every x86-64 processor has the instruction, and it reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
    }
}
