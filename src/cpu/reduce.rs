//! Sums over rows, in an order that does not depend on the number of threads.

use rayon::prelude::*;

use super::simd;

/// Rows that one partial sum covers.
const ROWS: usize = 256;

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
    let mut total = vec![0.0f64; width];
    for sums in &partial {
        for (t, &s) in total.iter_mut().zip(sums) {
            *t += f64::from(s);
        }
    }
    total.into_iter().map(|t| t as f32).collect()
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
