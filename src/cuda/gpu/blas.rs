//! Matrix products by cuBLASLt.
//!
//! cuBLASLt stores matrices by columns. A matrix stored by rows is its transpose stored by columns, so the product
//! c = a·b by rows is computed as c' = b'·a' by columns: the factors change places, nothing is moved.

use std::collections::HashMap;
use std::ffi::c_void;

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys::{
    self, cublasLtMatmulDescAttributes_t as Of, cublasLtMatmulPreferenceAttributes_t as Wish,
};

use crate::cuda::driver::{Matrix, Product};
use crate::{DType, Error, Result};

/// A handle of cuBLASLt, its workspace, and how each kind of product that was met is computed.
pub struct Blas {
    handle: sys::cublasLtHandle_t,
    workspace: u64,
    bytes: usize,
    tf32: bool,
    /// None: cuBLASLt has no algorithm for all of the products at once.
    plans: HashMap<Key, Option<Plan>>,
}

/// What an algorithm depends on.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    dtypes: [DType; 2],
    count: usize,
    shape: (usize, usize, usize),
    a: Layed,
    b: Layed,
    c: Layed,
    residual: Option<Layed>,
    a_transposed: bool,
    b_transposed: bool,
    bias_alignment: Option<u32>,
    relu: bool,
}

/// A matrix without its place.
#[derive(PartialEq, Eq, Hash)]
struct Layed {
    stride: usize,
    batch: usize,
    alignment: u32,
}

struct Plan {
    description: Description,
    a: Layout,
    b: Layout,
    c: Layout,
    d: Layout,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

impl Blas {
    /// Starts cuBLASLt for the current context; the workspace at `workspace` stays the caller's.
    pub fn new(workspace: u64, bytes: usize, tf32: bool) -> Result<Self> {
        let handle = result::create_handle().map_err(|CublasError(status)| {
            Error::cuda(
                "cuBLASLt",
                format!("{status:?}: is libcublasLt newer than the driver, or the memory full?"),
            )
        })?;
        Ok(Self { handle, workspace, bytes, tf32, plans: HashMap::new() })
    }

    /// Where its workspace is.
    pub fn workspace(&self) -> u64 {
        self.workspace
    }

    /// Queues the products of `product` on `stream`.
    ///
    /// # Safety
    /// The matrices belong to the caller; the context of the handle is current; `stream` is a stream of it, the same
    /// in every call, because the workspace is in use until a product is through.
    pub unsafe fn run(&mut self, product: &Product, stream: sys::cudaStream_t) -> Result<()> {
        let (m, n, k) = product.shape;
        if product.count == 0 || m == 0 || n == 0 {
            return Ok(());
        }
        let wrong_bias = product.bias.is_some() && product.c_dtype != product.dtype;
        if k == 0 || product.dtype == DType::U8 || wrong_bias {
            return Err(Error::cuda(product, "cannot be computed"));
        }
        let key = Key::new(product);
        if !self.plans.contains_key(&key) {
            let plan = match Plan::new(self, product) {
                Ok(plan) => Some(plan),
                Err(e) if product.count > 1 && refused(e) => None,
                Err(e) => return Err(failed(product, e)),
            };
            self.plans.insert(Key::new(product), plan);
        }
        if let Some(plan) = self.plans.get(&key).and_then(Option::as_ref) {
            // SAFETY: the caller vouches for the matrices; the plan was made for their layouts and alignments.
            match unsafe { plan.run(self, product, stream) } {
                Err(e) if product.count > 1 && refused(e) => self.plans.insert(key, None),
                done => return done.map_err(|e| failed(product, e)),
            };
        }
        // SAFETY: the caller vouches for all of the products, so for each.
        (0..product.count).try_for_each(|i| unsafe { self.run(&single(product, i), stream) })
    }
}

/// Whether cuBLASLt does not do this at all, of which nothing was queued.
fn refused(CublasError(status): CublasError) -> bool {
    use sys::cublasStatus_t::*;
    matches!(status, CUBLAS_STATUS_NOT_SUPPORTED | CUBLAS_STATUS_INVALID_VALUE)
}

impl Drop for Blas {
    fn drop(&mut self) {
        self.plans.clear();
        // SAFETY: the handle was made in `new` and is given back once. There is nobody to tell of an error.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

fn failed(product: &Product, CublasError(status): CublasError) -> Error {
    use sys::cublasStatus_t::*;
    let hint = match status {
        CUBLAS_STATUS_EXECUTION_FAILED | CUBLAS_STATUS_INTERNAL_ERROR => {
            ": perhaps met by work queued earlier: CUDA_LAUNCH_BLOCKING=1 shows by which"
        }
        CUBLAS_STATUS_NOT_SUPPORTED => ": cuBLASLt has no algorithm for it",
        _ => "",
    };
    Error::cuda(product, format!("{status:?}{hint}"))
}

/// Product number `i` alone.
fn single(product: &Product, i: usize) -> Product {
    let at = |matrix: Matrix, dtype: DType| Matrix {
        address: matrix.address + (i * matrix.batch * dtype.size()) as u64,
        ..matrix
    };
    Product {
        count: 1,
        a: at(product.a, product.dtype),
        b: at(product.b, product.dtype),
        c: at(product.c, product.c_dtype),
        bias: product.bias.map(|bias| bias + (i * product.shape.1 * product.dtype.size()) as u64),
        residual: product.residual.map(|residual| at(residual, product.c_dtype)),
        ..*product
    }
}

/// The largest power of two, up to 256, that divides the addresses of `count` arrays that are `step` numbers apart.
fn alignment(address: u64, step: usize, dtype: DType, count: usize) -> u32 {
    let step = if count > 1 { step * dtype.size() } else { 0 };
    1 << (address | step as u64).trailing_zeros().min(8)
}

/// The same of the bias.
fn bias_alignment(product: &Product) -> Option<u32> {
    product.bias.map(|bias| alignment(bias, product.shape.1, product.dtype, product.count))
}

impl Key {
    fn new(product: &Product) -> Self {
        let layed = |matrix: Matrix, dtype: DType| Layed {
            stride: matrix.stride,
            batch: if product.count > 1 { matrix.batch } else { 0 },
            alignment: alignment(matrix.address, matrix.batch, dtype, product.count),
        };
        Self {
            dtypes: [product.dtype, product.c_dtype],
            count: product.count,
            shape: product.shape,
            a: layed(product.a, product.dtype),
            b: layed(product.b, product.dtype),
            c: layed(product.c, product.c_dtype),
            residual: product.residual.map(|residual| layed(residual, product.c_dtype)),
            a_transposed: product.a_transposed,
            b_transposed: product.b_transposed,
            bias_alignment: bias_alignment(product),
            relu: product.relu,
        }
    }
}

impl Plan {
    /// Asks cuBLASLt how to compute products like this one.
    fn new(blas: &Blas, product: &Product) -> Result<Self, CublasError> {
        let (m, n, k) = product.shape;
        // As stored by columns: what has `rows` rows of `columns` numbers here has as many columns there.
        let layout = |rows: usize, columns: usize, matrix: Matrix, dtype: DType| {
            Layout::new(product.count, columns as u64, rows as u64, matrix, dtype)
        };
        let (a_rows, a_columns) = if product.a_transposed { (k, m) } else { (m, k) };
        let (b_rows, b_columns) = if product.b_transposed { (n, k) } else { (k, n) };
        // The factors change places: cuBLASLt's A is b.
        let plan = Self {
            description: Description::new(blas, product)?,
            a: layout(b_rows, b_columns, product.b, product.dtype)?,
            b: layout(a_rows, a_columns, product.a, product.dtype)?,
            c: layout(m, n, product.residual.unwrap_or(product.c), product.c_dtype)?,
            d: layout(m, n, product.c, product.c_dtype)?,
            algorithm: sys::cublasLtMatmulAlgo_t { data: [0; 8] },
        };
        let preference = Preference::new()?;
        preference.set(Wish::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, blas.bytes as u64)?;
        // Partial sums are added in f32 and in a fixed order.
        let sums = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        preference.set(Wish::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, sums)?;
        let c = product.residual.unwrap_or(product.c);
        // There is no word for the alignment of the bias, which is read in vectors like the rest.
        let bias = bias_alignment(product).unwrap_or(256);
        for (wish, matrix, dtype) in [
            (Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, product.b, product.dtype),
            (Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, product.a, product.dtype),
            (Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, c, product.c_dtype),
            (Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, product.c, product.c_dtype),
        ] {
            let own = alignment(matrix.address, matrix.batch, dtype, product.count);
            preference.set(wish, own.min(bias))?;
        }
        // SAFETY: all of the descriptions live until the end of this function.
        let best = unsafe {
            let Self { description, a, b, c, d, .. } = &plan;
            result::get_matmul_algo_heuristic(blas.handle, description.0, a.0, b.0, c.0, d.0, preference.0)?
        };
        Ok(Self { algorithm: best.algo, ..plan })
    }

    /// # Safety
    /// As for [`Blas::run`]; the plan was made for such a product.
    unsafe fn run(
        &self,
        blas: &Blas,
        product: &Product,
        stream: sys::cudaStream_t,
    ) -> Result<(), CublasError> {
        if let Some(bias) = product.bias {
            self.description.set(Of::CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias)?;
        }
        let (one, zero) = (1.0f32, 0.0f32);
        let beta = if product.residual.is_some() { &one } else { &zero };
        let place = |matrix: Matrix| matrix.address as *mut c_void;
        // SAFETY: the caller vouches for the matrices and the stream; the workspace is ours, and the stream's order
        // keeps products from using it at once.
        unsafe {
            result::matmul(
                blas.handle,
                self.description.0,
                (&raw const one).cast(),
                (&raw const *beta).cast(),
                place(product.b),
                self.a.0,
                place(product.a),
                self.b.0,
                place(product.residual.unwrap_or(product.c)),
                self.c.0,
                place(product.c),
                self.d.0,
                &self.algorithm,
                blas.workspace as *mut c_void,
                blas.bytes,
                stream,
            )
        }
    }
}

/// What is computed: transposes, type of the sums, bias, ReLU.
struct Description(sys::cublasLtMatmulDesc_t);

impl Description {
    fn new(blas: &Blas, product: &Product) -> Result<Self, CublasError> {
        let sums = if product.dtype == DType::F32 && blas.tf32 {
            sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32
        } else {
            sys::cublasComputeType_t::CUBLAS_COMPUTE_32F
        };
        let description = Self(result::create_matmul_desc(sums, sys::cudaDataType_t::CUDA_R_32F)?);
        // cuBLAS's numbers for "as it is" and "transposed".
        description.set(Of::CUBLASLT_MATMUL_DESC_TRANSA, u32::from(product.b_transposed))?;
        description.set(Of::CUBLASLT_MATMUL_DESC_TRANSB, u32::from(product.a_transposed))?;
        use sys::cublasLtEpilogue_t as Epilogue;
        let epilogue = match (product.bias, product.relu) {
            (None, false) => Epilogue::CUBLASLT_EPILOGUE_DEFAULT,
            (Some(_), false) => Epilogue::CUBLASLT_EPILOGUE_BIAS,
            (None, true) => Epilogue::CUBLASLT_EPILOGUE_RELU,
            (Some(_), true) => Epilogue::CUBLASLT_EPILOGUE_RELU_BIAS,
        };
        description.set(Of::CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue as u32)?;
        if let Some(bias) = product.bias {
            // A number for each row of c' by columns, which is a column of c.
            description.set(Of::CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias)?;
            if product.count > 1 {
                description.set(Of::CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE, product.shape.1 as i64)?;
            }
        }
        Ok(description)
    }

    fn set<T>(&self, attribute: Of, value: T) -> Result<(), CublasError> {
        // SAFETY: the description lives, and the value is read before the call returns.
        unsafe {
            result::set_matmul_desc_attribute(self.0, attribute, (&raw const value).cast(), size_of::<T>())
        }
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: made in `new`, given back once.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

/// Matrices of a shape, stored by columns.
struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    fn new(count: usize, rows: u64, columns: u64, matrix: Matrix, dtype: DType) -> Result<Self, CublasError> {
        use sys::cublasLtMatrixLayoutAttribute_t as Attribute;
        let dtype = match dtype {
            DType::F16 => sys::cudaDataType_t::CUDA_R_16F,
            DType::BF16 => sys::cudaDataType_t::CUDA_R_16BF,
            DType::F32 | DType::U8 => sys::cudaDataType_t::CUDA_R_32F,
        };
        // A single row by rows may claim any stride; by columns it has to cover the column.
        let stride = if columns == 1 { (matrix.stride as u64).max(rows) } else { matrix.stride as u64 };
        let layout = Self(result::create_matrix_layout(dtype, rows, columns, stride as i64)?);
        if count > 1 {
            layout.set(Attribute::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, count as i32)?;
            layout.set(Attribute::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, matrix.batch as i64)?;
        }
        Ok(layout)
    }

    fn set<T>(&self, attribute: sys::cublasLtMatrixLayoutAttribute_t, value: T) -> Result<(), CublasError> {
        // SAFETY: the layout lives, and the value is read before the call returns.
        unsafe {
            result::set_matrix_layout_attribute(self.0, attribute, (&raw const value).cast(), size_of::<T>())
        }
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: made in `new`, given back once.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

/// What an algorithm may use.
struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn new() -> Result<Self, CublasError> {
        result::create_matmul_pref().map(Self)
    }

    fn set<T>(&self, attribute: Wish, value: T) -> Result<(), CublasError> {
        // SAFETY: the preference lives, and the value is read before the call returns.
        unsafe {
            result::set_matmul_pref_attribute(self.0, attribute, (&raw const value).cast(), size_of::<T>())
        }
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: made in `new`, given back once.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}
