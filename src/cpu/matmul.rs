//! Matrix products with the `gemm` crate, divided among threads by shape alone.

use rayon::prelude::*;

/// A matrix within a slice: element (i, j) is at `i * row_stride + j * col_stride`.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    /// The elements, from element (0, 0) on.
    pub data: &'a [f32],
    /// Distance between rows.
    pub row_stride: usize,
    /// Distance between columns.
    pub col_stride: usize,
}

impl<'a> Matrix<'a> {
    /// A row-major matrix whose rows are `row_stride` apart.
    pub fn rows(data: &'a [f32], row_stride: usize) -> Self {
        Self { data, row_stride, col_stride: 1 }
    }

    /// The transpose.
    pub fn t(self) -> Self {
        Self { data: self.data, row_stride: self.col_stride, col_stride: self.row_stride }
    }

    fn offset(self, row: usize, col: usize) -> Self {
        Self { data: &self.data[row * self.row_stride + col * self.col_stride..], ..self }
    }

    fn assert_holds(&self, rows: usize, cols: usize) {
        let last = (rows - 1) * self.row_stride + (cols - 1) * self.col_stride;
        assert!(last < self.data.len(), "a matrix of {rows}x{cols} reaches past its slice");
    }
}

/// What becomes of the destination's content.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// It is overwritten.
    Assign,
    /// The product is added to it.
    Add,
}

/// c (m×n, rows `c_stride` apart) = scale·a·b, or c += scale·a·b; a is m×k, b is k×n. On the calling thread.
///
/// # Panics
/// When a matrix reaches past its slice.
#[allow(clippy::too_many_arguments)] // A matrix product has this many parts.
pub fn product(
    c: &mut [f32],
    c_stride: usize,
    (m, n, k): (usize, usize, usize),
    a: Matrix,
    b: Matrix,
    scale: f32,
    write: Write,
) {
    if m == 0 || n == 0 {
        return;
    }
    assert!(
        n <= c_stride && (m - 1) * c_stride + n <= c.len(),
        "a product of {m}x{n} reaches past its slice"
    );
    if k == 0 {
        if write == Write::Assign {
            c.chunks_mut(c_stride).take(m).for_each(|row| row[..n].fill(0.0));
        }
        return;
    }
    a.assert_holds(m, k);
    b.assert_holds(k, n);
    // SAFETY: the assertions above show that all elements of the three matrices lie within their slices, and `c`
    // is borrowed exclusively.
    unsafe { product_unchecked(c.as_mut_ptr(), c_stride, (m, n, k), a, b, scale, write) }
}

/// # Safety
/// The m×n matrix at `c` must be valid for writing and written by nobody else; `a` and `b` must hold their matrices.
unsafe fn product_unchecked(
    c: *mut f32,
    c_stride: usize,
    (m, n, k): (usize, usize, usize),
    a: Matrix,
    b: Matrix,
    scale: f32,
    write: Write,
) {
    let add = write == Write::Add;
    // SAFETY: the caller vouches for the three matrices.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c,
            1,
            c_stride as isize,
            add,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            if add { 1.0 } else { 0.0 },
            scale,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// One product of a batch: c = a·b with c row-major and dense.
pub struct Product<'a> {
    /// The result, m×n.
    pub c: &'a mut [f32],
    /// m×k.
    pub a: Matrix<'a>,
    /// k×n.
    pub b: Matrix<'a>,
}

/// A destination that several tasks write disjoint tiles of.
#[derive(Clone, Copy)]
struct Destination(*mut f32);
// SAFETY: `batch` gives every task a tile that no other task touches, and outlives them all.
unsafe impl Send for Destination {}
// SAFETY: as above.
unsafe impl Sync for Destination {}

/// Computes equally shaped products on all threads; `finish(product, column, row)` is called for each row of a tile
/// while it is in the cache, with the number of the product and the column that the row starts at.
pub fn batch(
    products: Vec<Product>,
    (m, n, k): (usize, usize, usize),
    write: Write,
    finish: impl Fn(usize, usize, usize, &mut [f32]) + Sync,
) {
    if m == 0 || n == 0 {
        return;
    }
    let (tile_m, tile_n) = tile(m, n);
    let (across, down) = (n.div_ceil(tile_n), m.div_ceil(tile_m));
    let products: Vec<_> = products
        .into_iter()
        .map(|p| {
            assert_eq!(p.c.len(), m * n, "a product's destination has another size");
            if k > 0 {
                p.a.assert_holds(m, k);
                p.b.assert_holds(k, n);
            }
            (Destination(p.c.as_mut_ptr()), p.a, p.b)
        })
        .collect();
    (0..products.len() * across * down).into_par_iter().for_each(|task| {
        let (which, tile) = (task / (across * down), task % (across * down));
        let (row, col) = (tile / across * tile_m, tile % across * tile_n);
        let (rows, cols) = (tile_m.min(m - row), tile_n.min(n - col));
        let (Destination(c), a, b) = products[which];
        // SAFETY: (row, col) lies within the m×n destination, which the assertion above has measured.
        let corner = unsafe { c.add(row * n + col) };
        if k > 0 {
            let (a, b) = (a.offset(row, 0), b.offset(0, col));
            // SAFETY: the tile lies within the destination and belongs to this task alone; a and b were measured.
            unsafe { product_unchecked(corner, n, (rows, cols, k), a, b, 1.0, write) };
        }
        for i in 0..rows {
            // SAFETY: row i of this task's own tile; the product above has returned.
            let out = unsafe { std::slice::from_raw_parts_mut(corner.add(i * n), cols) };
            if k == 0 && write == Write::Assign {
                out.fill(0.0);
            }
            finish(which, row + i, col, out);
        }
    });
}

/// Rows and columns of a tile of an m×n product: large enough that packing its operands costs little, and at least
/// a dozen tiles where the product is large.
fn tile(m: usize, n: usize) -> (usize, usize) {
    if m >= 1536 {
        (m.div_ceil(12).next_multiple_of(48).min(1536), n.min(1024))
    } else if m >= n {
        (m.div_ceil(6).next_multiple_of(48).max(96), n)
    } else {
        (m, n.div_ceil(6).next_multiple_of(48).max(96))
    }
}
