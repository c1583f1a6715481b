//! Launches of `kernels/fuse.cu`: the end of the fusion head; see [`crate::infer`].

use super::{Call, driver_of};
use crate::{DType, Error, Result, Tensor};

/// Threads of a block.
const THREADS: usize = 128;
/// Channels of a thread where addresses allow it.
const GROUP: usize = 4;
/// Rows of a strip: the longer, the fewer rows of the maps are read twice.
const STRIP: usize = 32;
/// Threads that keep a device busy.
const MANY: usize = 1 << 16;

/// Numbers of [`forward`]'s weights for `o` channels.
pub fn weights_len(o: usize) -> usize {
    (9 * 6 + 1 + 3) * o + 3
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
    let strip = (width * groups * height * batch / MANY).clamp(1, STRIP);
    let call = call.int(height).int(width).int(o).int(strip).int(usize::from(vector));
    let pixels = batch * height * width;
    // The convolution of the pictures and the last layer; for each map and tap two blended rows, each of two columns.
    let call = call.operations(pixels * o * (2 * (54 + 3) + 4 * 9 * 6));
    let columns = THREADS / groups;
    let shared = 4 * (weights_len(o).next_multiple_of(4) + 3 * THREADS) + 4 * 16 * (strip + 2 + columns + 2);
    // SAFETY: blocks of `columns` columns cover a row, guarded; strips of rows; images. Positions in the maps are
    // clamped, and pixels outside of the pictures are not read. The shared memory holds the weights, 3 floats for each
    // thread, and 16 bytes for each map and each row of a strip and column of a block with one more on either side.
    unsafe { call.launch([width.div_ceil(columns), height.div_ceil(strip), batch], THREADS, shared) }
}
