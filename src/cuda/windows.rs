//! The order of windows, `kernels/windows.cuh`.

use super::Call;
use crate::Shape;

/// Pixels by windows of side × side, as a convolution with this kernel and stride meets them: then their rows are its
/// patches already.
#[derive(Clone, Copy, Debug)]
pub struct Windows {
    /// Columns of the map.
    width: usize,
    /// Rows and columns of a window; 1 is the order of the map itself.
    side: usize,
}

impl Windows {
    /// The map itself, row by row.
    pub const NONE: Self = Self { width: 1, side: 1 };

    /// Windows of this side on maps `(S, B, H, W, C)`; `None` where they do not cover them.
    pub fn of(map: Shape, side: usize) -> Option<Self> {
        let covered = map[2].is_multiple_of(side) && map[3].is_multiple_of(side);
        covered.then_some(Self { width: map[3], side })
    }

    /// The arguments `width` and `side` of a kernel.
    pub(super) fn arguments<'a>(&self, call: Call<'a>) -> Call<'a> {
        call.int(self.width).int(self.side)
    }
}
