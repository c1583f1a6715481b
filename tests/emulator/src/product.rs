//! Matrix products on the host, as the device's library does them: f32 sums, one rounding at the end.

use amdanet::cpu::matmul::{self, Write};
use amdanet::cuda::driver::{Matrix, Product};
use amdanet::{DType, Error, Result};
use half::{bf16, f16};

use crate::hooks::check_global;
use crate::memory::DeviceMemory;

/// Computes `product`; with `tf32` its f32 factors are rounded to 10 bits of mantissa.
///
/// # Safety
/// The matrices belong to the caller.
pub unsafe fn product(memory: &DeviceMemory, product: &Product, tf32: bool) -> Result<()> {
    let (m, n, k) = product.shape;
    let access = Accessor { memory, product };
    if product.c_dtype != product.dtype && (product.c_dtype != DType::F32 || product.bias.is_some()) {
        return Err(Error::cuda(product, "c and the bias have other types than they may"));
    }
    if product.dtype == DType::U8 {
        return Err(Error::cuda(product, "products are of f32, f16 or bf16"));
    }
    if product.c.stride < n || (product.count > 1 && product.c.batch < n) {
        return Err(Error::cuda(product, "rows of c overlap"));
    }
    let a_shape = if product.a_transposed { (k, m) } else { (m, k) };
    let b_shape = if product.b_transposed { (n, k) } else { (k, n) };
    // SAFETY: the caller vouches for the matrices, and each row is checked before it is touched.
    unsafe {
        let mut a = access.read("a", product.a, a_shape, product.dtype)?;
        let mut b = access.read("b", product.b, b_shape, product.dtype)?;
        let bias = product.bias.map(|address| Matrix { address, stride: n, batch: n });
        let bias = bias.map(|bias| access.read("bias", bias, (1, n), product.dtype)).transpose()?;
        let residual =
            product.residual.map(|residual| access.read("residual", residual, (m, n), product.c_dtype));
        let residual = residual.transpose()?;
        access.check("c", product.c, (m, n), product.c_dtype, true)?;
        if tf32 && product.dtype == DType::F32 {
            a.iter_mut().chain(&mut b).for_each(|x| *x = round_to_tf32(*x));
        }

        let mut c = vec![0.0; product.count * m * n];
        let products = c.chunks_mut((m * n).max(1)).enumerate().map(|(i, c)| {
            let oriented = |data, columns, transposed| {
                let matrix = matmul::Matrix::rows(data, columns);
                if transposed { matrix.t() } else { matrix }
            };
            matmul::Product {
                c,
                a: oriented(&a[i * m * k..(i + 1) * m * k], a_shape.1, product.a_transposed),
                b: oriented(&b[i * n * k..(i + 1) * n * k], b_shape.1, product.b_transposed),
            }
        });
        matmul::batch(products.collect(), (m, n, k), Write::Assign, |which, row, column, out| {
            if let Some(bias) = &bias {
                out.iter_mut().zip(&bias[which * n + column..]).for_each(|(c, bias)| *c += bias);
            }
            if let Some(residual) = &residual {
                out.iter_mut().zip(&residual[(which * m + row) * n + column..]).for_each(|(c, r)| *c += r);
            }
            if product.relu {
                out.iter_mut().for_each(|c| *c = if *c < 0.0 { 0.0 } else { *c });
            }
        });
        access.write(product.c, (m, n), &c);
    }
    Ok(())
}

struct Accessor<'a> {
    memory: &'a DeviceMemory,
    product: &'a Product,
}

impl Accessor<'_> {
    /// The address of each row.
    fn rows(&self, matrix: Matrix, rows: usize, dtype: DType) -> impl Iterator<Item = u64> {
        let size = dtype.size();
        let place = move |i: usize| i % rows * matrix.stride + i / rows * matrix.batch;
        (0..self.product.count * rows).map(move |i| matrix.address.wrapping_add((place(i) * size) as u64))
    }

    fn check(
        &self,
        name: &str,
        matrix: Matrix,
        (rows, columns): (usize, usize),
        dtype: DType,
        write: bool,
    ) -> Result<()> {
        let bytes = columns * dtype.size();
        if bytes == 0 {
            return Ok(());
        }
        for (i, row) in self.rows(matrix, rows, dtype).enumerate() {
            let error = |why| Error::cuda(self.product, format!("{name}, row {}: {why}", i % rows));
            if !self.memory.holds(row, bytes) {
                let place = self.memory.describe(row);
                return Err(error(format!("out of bounds: {bytes} bytes of global memory from {place}")));
            }
            check_global(self.memory, row as usize, bytes, write).map_err(error)?;
        }
        Ok(())
    }

    /// The numbers of a matrix, rows and products one after the other.
    unsafe fn read(
        &self,
        name: &str,
        matrix: Matrix,
        shape: (usize, usize),
        dtype: DType,
    ) -> Result<Vec<f32>> {
        self.check(name, matrix, shape, dtype, false)?;
        let mut numbers = Vec::with_capacity(self.product.count * shape.0 * shape.1);
        for row in self.rows(matrix, shape.0, dtype) {
            // SAFETY: the row lies within an allocation, whose numbers are at multiples of their size or unaligned.
            unsafe {
                match dtype {
                    DType::F32 => {
                        numbers.extend((0..shape.1).map(|i| (row as *const f32).add(i).read_unaligned()))
                    }
                    DType::F16 => numbers
                        .extend((0..shape.1).map(|i| (row as *const f16).add(i).read_unaligned().to_f32())),
                    _ => numbers
                        .extend((0..shape.1).map(|i| (row as *const bf16).add(i).read_unaligned().to_f32())),
                }
            }
        }
        Ok(numbers)
    }

    unsafe fn write(&self, matrix: Matrix, shape: (usize, usize), numbers: &[f32]) {
        if shape.1 == 0 {
            return;
        }
        let dtype = self.product.c_dtype;
        for (row, numbers) in self.rows(matrix, shape.0, dtype).zip(numbers.chunks(shape.1)) {
            for (i, x) in numbers.iter().enumerate() {
                // SAFETY: `check` has found the row within an allocation.
                unsafe {
                    match dtype {
                        DType::F32 => (row as *mut f32).add(i).write_unaligned(*x),
                        DType::F16 => (row as *mut f16).add(i).write_unaligned(f16::from_f32(*x)),
                        _ => (row as *mut bf16).add(i).write_unaligned(bf16::from_f32(*x)),
                    }
                }
            }
        }
    }
}

/// To 10 bits of mantissa, to the nearest, ties away from zero.
fn round_to_tf32(x: f32) -> f32 {
    if x.is_finite() { f32::from_bits((x.to_bits() + 0x1000) & !0x1FFF) } else { x }
}
