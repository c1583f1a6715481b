//! Launches of `kernels/fuse.cu`: the end of the fusion head; see [`crate::infer`].

use super::{Call, driver_of};
use crate::{DType, Error, Result, Tensor};

/// Threads of a block.
const THREADS: usize = 128;
/// Channels of a thread where addresses allow it.
const GROUP: usize = 4;
/// Rows of a strip: the longer, the fewer rows of the maps are read twice; a strip's start costs as much as a few rows.
const SHORTEST: usize = 8;
const LONGEST: usize = 32;
/// Multiprocessors of a large device.
const MULTIPROCESSORS: usize = 132;

/// Numbers of [`forward`]'s weights for `o` channels.
pub fn weights_len(o: usize) -> usize {
    (9 * 6 + 1 + 3) * o + 3
}

/// Rows of a strip, where a strip of all pictures takes `blocks` blocks, of which a device runs `at_once`: as many
/// strips as fit into the least number of rounds, so that the last round is nearly a full one.
fn strip_of(height: usize, blocks: usize, at_once: usize) -> usize {
    let rounds = (height.div_ceil(LONGEST) * blocks).div_ceil(at_once);
    height.div_ceil(rounds * at_once / blocks).max(SHORTEST)
}

/// pictures `(2, B, H, W, 3)`, bytes or f32, and maps `(1, B, h, w, 9·O)` -> `fused` `(B, H, W, 3)` U8, and `image`, the
/// same in (0, 1). weights, f32: the convolution of the pictures `(9, 6, O)`, its bias, the last layer `(3, O)`, its bias.
///
/// # Errors
/// When there are too many channels, or the device reports an error.
pub fn forward(
    pictures: &Tensor,
    maps: [&Tensor; 4],
    weights: &Tensor,
    fused: &mut Tensor,
    image: Option<&mut Tensor>,
) -> Result<()> {
    let [batch, height, width] = [1, 2, 3].map(|axis| pictures.dim(axis));
    let (o, dtype) = (maps[0].shape().last() / 9, maps[0].dtype());
    let kind = if pictures.dtype() == DType::U8 { "bytes" } else { "floats" };
    let mut call = Call::on(&format!("fuse_{kind}_{dtype}"), driver_of(pictures)?, dtype);
    call = call.input_of(pictures, pictures.dtype());
    for map in maps {
        call = call.input(map);
    }
    // Only the maps are read by groups.
    let vector =
        maps.iter().all(|map| map.address().is_some_and(|(_, at)| at % 16 == 0)) && o.is_multiple_of(GROUP);
    let groups = if vector { o / GROUP } else { o };
    if groups > THREADS {
        let why = format!("the kernel takes at most {THREADS} channels, or {} by {GROUP}", THREADS * GROUP);
        return Err(Error::shape("fused picture", why, &[maps[0].shape()]));
    }
    call = call.input_of(weights, DType::F32).output_of(fused, DType::U8).maybe_output_of(image, DType::F32);
    for map in maps {
        call = call.int(map.dim(2)).int(map.dim(3));
    }
    // A thread brings one pixel of a row of one picture, and there is one more column on either side.
    let columns = (THREADS / groups).min(THREADS / 2 - 2);
    // By the registers of the kernels.
    let at_once = MULTIPROCESSORS * if dtype == DType::F32 { 2 } else { 3 };
    let strip = strip_of(height, width.div_ceil(columns) * batch, at_once);
    let call = call.int(height).int(width).int(o).int(strip).int(usize::from(vector));
    let pixels = batch * height * width;
    // The convolution of the pictures and the last layer; for each map and tap two blended rows, each of two columns.
    let call = call.operations(pixels * o * (2 * (54 + 3) + 4 * 9 * 6));
    let floats = weights_len(o).next_multiple_of(4) + 3 * THREADS + 24 * (columns + 2);
    let shared = 4 * (floats + (columns * (o + 4)).next_multiple_of(4)) + 4 * 16 * (strip + 2 + columns + 2);
    // SAFETY: blocks of `columns` columns cover a row, guarded; strips of rows; images. Positions in the maps are
    // clamped, and pixels outside of the pictures are not read. The shared memory holds the weights, 3 floats for each
    // thread, 24 for each column and one more on either side, o + 4 for each column, and 16 bytes for each map and each
    // row of a strip and column of a block with one more on either side.
    unsafe { call.launch([width.div_ceil(columns), height.div_ceil(strip), batch], THREADS, shared) }
}
