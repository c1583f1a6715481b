//! Launches of `kernels/depthwise.cu`; see [`crate::cpu::depthwise`] for the equations.

use super::reduce::sum_partials;
use super::{Call, scratch_f32, scratch_like};
use crate::{DType, Result, Tensor};

/// Threads of a block along the channels, and the columns that it walks side by side: the kernel's constants.
const ACROSS: usize = 16;
const COLUMNS: usize = 8;
/// Channels of a thread where addresses allow it.
const GROUP: usize = 4;
/// The most rows of a strip.
const ROWS: usize = 16;
/// Blocks that fill a device.
const BLOCKS: usize = 512;

/// How a tensor `(S, B, H, W, C)` is divided.
#[derive(Clone, Copy)]
struct Plan {
    streams: usize,
    batch: usize,
    height: usize,
    width: usize,
    channels: usize,
    /// Rows of a strip, and strips of an image.
    rows: usize,
    strips: usize,
}

impl Plan {
    fn of(x: &Tensor) -> Self {
        let [streams, batch, height, width, channels] = [0, 1, 2, 3, 4].map(|axis| x.dim(axis));
        let rows = height.div_ceil(height.div_ceil(ROWS));
        Self { streams, batch, height, width, channels, rows, strips: height.div_ceil(rows) }
    }

    /// Strips of one stream: a column of a strip of rows each.
    fn items(self) -> usize {
        self.batch * self.strips * self.width
    }

    /// Tiles of channels.
    fn tiles(self, vector: bool) -> usize {
        self.channels.div_ceil(ACROSS * if vector { GROUP } else { 1 })
    }

    /// Starts the kernel whose tensors are the arguments so far, with `items` strips for each block. `partial` are the
    /// bytes of shared memory that it needs for each channel of a thread.
    ///
    /// # Safety
    /// The tensors are those of the kernel.
    unsafe fn launch(self, call: Call, vector: bool, items: usize, shared: usize) -> Result<()> {
        let call = call.int(self.batch).int(self.height).int(self.width).int(self.channels);
        let call = call.int(self.rows).int(self.strips).int(items).int(usize::from(vector));
        let grid = [self.items().div_ceil(items), self.tiles(vector), self.streams];
        // SAFETY: the blocks cover all strips of a stream, all channels and all streams; the ends are guarded.
        unsafe { call.launch(grid, ACROSS * COLUMNS, shared) }
    }
}

/// Whether 4 channels can be moved at once.
fn vector(call: &Call, plan: Plan) -> bool {
    call.is_aligned() && plan.channels.is_multiple_of(GROUP)
}

/// x `(S, B, H, W, C)`, weight `(S, 3, 3, C)`, bias `(S, C)` -> GELU(conv(x)), of the shape of x.
pub fn forward(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let plan = Plan::of(x);
    let mut y = scratch_like(x, x.shape())?;
    let call = Call::new("depthwise", x)?.input(x).input(weight).input(bias).output(&mut y);
    let call = call.operations((18 + 8) * x.len());
    let vector = vector(&call, plan);
    // SAFETY: x, weight, bias and y of the kernel, with the shapes that the plan has.
    unsafe { plan.launch(call, vector, COLUMNS, 0)? };
    Ok(y)
}

/// The gradients of x, and in f32 of weight and bias. The sum before GELU is computed again rather than saved.
pub fn backward(dy: Tensor, x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<[Tensor; 3]> {
    let plan = Plan::of(x);
    let (s, c) = (plan.streams, plan.channels);
    let mut dz = scratch_like(x, x.shape())?;
    let call =
        Call::new("depthwise_backward", x)?.input(&dy).input(x).input(weight).input(bias).output(&mut dz);
    let vector = vector(&call, plan);
    // Enough blocks, but each with a strip for every column it walks at least: partial sums cost memory.
    let blocks = (BLOCKS / (plan.tiles(vector) * s)).max(1);
    let items = plan.items().div_ceil(blocks).next_multiple_of(COLUMNS);
    let parts = plan.items().div_ceil(items);
    let mut partial_dw = scratch_f32(x, [s, parts, 9, c])?;
    let mut partial_db = scratch_f32(x, [s, parts, c])?;
    let call = call.output_of(&mut partial_dw, DType::F32).output_of(&mut partial_db, DType::F32);
    let call = call.operations((18 + 14 + 20) * x.len());
    let shared = 10 * ACROSS * COLUMNS * GROUP * 4;
    // SAFETY: the tensors of the kernel; a block of strips writes its own part of the partial sums; the shared memory
    // holds ten floats for each channel of each thread.
    unsafe { plan.launch(call, vector, items, shared)? };
    let (mut dw, mut db) = (scratch_f32(x, [s, 3, 3, c])?, scratch_f32(x, [s, c])?);
    sum_partials(&partial_dw, &mut dw, s, parts, 1.0)?;
    sum_partials(&partial_db, &mut db, s, parts, 1.0)?;
    drop(dy);
    let mut dx = scratch_like(x, x.shape())?;
    let call = Call::new("depthwise_turned", &dz)?.input(&dz).input(weight).output(&mut dx);
    let call = call.operations(18 * x.len());
    // SAFETY: dz, weight and dx of the kernel, with the shapes that the plan has. The tensors are new or were aligned
    // above.
    unsafe { plan.launch(call, vector, COLUMNS, 0)? };
    Ok([dx, dw, db])
}
