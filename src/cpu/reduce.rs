//! Sums over rows, in an order that does not depend on the number of threads.

use rayon::prelude::*;

use super::simd;

/// Rows that one partial sum covers.
pub const ROWS: usize = 256;

/// Interleaved running sums of [`sum`].
const LANES: usize = 16;

/// Adds up `row(i, sums)` for `i` in `0..rows`: `row` adds what row `i` contributes to the `width` running sums.
///
/// Blocks of 256 rows are summed in f32 and the blocks in f64, so the error does not grow with the number of rows.
pub fn sum_rows(rows: usize, width: usize, row: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
    let partial: Vec<Vec<f32>> = (0..rows.div_ceil(ROWS))
        .into_par_iter()
        .map(|block| {
            let mut sums = vec![0.0; width];
            simd(
                #[inline(always)]
                || {
                    for i in block * ROWS..rows.min((block + 1) * ROWS) {
                        row(i, &mut sums);
                    }
                },
            );
            sums
        })
        .collect();
    combine(&partial, width)
}

/// Adds up the partial sums of blocks of [`ROWS`] rows, `width` each, in order and in f64.
pub fn combine(partial: &[Vec<f32>], width: usize) -> Vec<f32> {
    let mut total = vec![0.0f64; width];
    for sums in partial {
        for (t, &s) in total.iter_mut().zip(sums) {
            *t += f64::from(s);
        }
    }
    total.into_iter().map(|t| t as f32).collect()
}

/// `Σᵢ f(x₀[i], x₁[i], …)` over slices as long as the first: along the channels of one pixel.
///
/// In 16 interleaved sums, because a single one would forbid vector instructions.
#[inline(always)]
pub fn sum<const N: usize>(x: [&[f32]; N], f: impl Fn([f32; N]) -> f32) -> f32 {
    let len = x[0].len();
    let mut lanes = [0.0f32; LANES];
    let mut start = 0;
    while start + LANES <= len {
        let mut block = [[0.0f32; LANES]; N];
        for (block, x) in block.iter_mut().zip(&x) {
            block.copy_from_slice(&x[start..start + LANES]);
        }
        for (lane, sum) in lanes.iter_mut().enumerate() {
            let mut values = [0.0f32; N];
            for (value, block) in values.iter_mut().zip(&block) {
                *value = block[lane];
            }
            *sum += f(values);
        }
        start += LANES;
    }
    for i in start..len {
        let mut values = [0.0f32; N];
        for (value, x) in values.iter_mut().zip(&x) {
            *value = x[i];
        }
        lanes[i - start] += f(values);
    }
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
    }
    lanes[0]
}

/// The sum of each column of the row-major matrix `x` with `width` columns.
pub fn sum_columns(x: &[f32], width: usize) -> Vec<f32> {
    let rows = x.len().checked_div(width).unwrap_or(0);
    sum_rows(
        rows,
        width,
        #[inline(always)]
        |i, sums| {
            for (s, &v) in sums.iter_mut().zip(&x[i * width..(i + 1) * width]) {
                *s += v;
            }
        },
    )
}

/// Adds up what `block(i, sums)` writes for `i` in `0..blocks`, in the order of `i`; `sums` starts at zero.
///
/// For sums over tiles that their caller divides: the division, and so the result, does not depend on threads.
pub fn sum_blocks(blocks: usize, width: usize, block: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
    /// Partial sums alive at once; a fixed number, so that the order of the additions is fixed too.
    const AT_ONCE: usize = 8;
    let mut total = vec![0.0f32; width];
    for first in (0..blocks).step_by(AT_ONCE) {
        let partial: Vec<Vec<f32>> = (first..blocks.min(first + AT_ONCE))
            .into_par_iter()
            .map(|i| {
                let mut sums = vec![0.0; width];
                block(i, &mut sums);
                sums
            })
            .collect();
        for sums in &partial {
            super::elementwise::add_assign(&mut total, sums);
        }
    }
    total
}

/// The largest of `x`, negative infinity when there is none. NaN is passed over.
#[inline(always)]
pub fn max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let (chunks, tail) = x.as_chunks::<16>();
    for chunk in chunks {
        for (m, &v) in lanes.iter_mut().zip(chunk) {
            *m = if v > *m { v } else { *m };
        }
    }
    lanes.into_iter().chain(tail.iter().copied()).fold(f32::NEG_INFINITY, |m, v| if v > m { v } else { m })
}

/// Σ a·b.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    let ((a, a_tail), (b, b_tail)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    for (a, b) in a.iter().zip(b) {
        for ((s, &a), &b) in lanes.iter_mut().zip(a).zip(b) {
            *s = a.mul_add(b, *s);
        }
    }
    lanes.iter().sum::<f32>() + a_tail.iter().zip(b_tail).map(|(&a, &b)| a * b).sum::<f32>()
}
