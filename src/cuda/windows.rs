//! The order of windows, `kernels/windows.cuh`.

use super::Call;
use crate::Shape;

/// Pixels by windows of side × side, as a convolution with this kernel and stride meets them: then their rows are its
/// patches already.
#[derive(Clone, Copy, Debug)]
pub struct Windows {
    /// Columns of the map.
    width: usize,
    /// Rows and columns of a window.
    side: usize,
}

impl Windows {
    /// Windows of this side on maps `(S, B, H, W, C)`; `None` where they do not cover them.
    pub fn of(map: Shape, side: usize) -> Option<Self> {
        let covered = map[2].is_multiple_of(side) && map[3].is_multiple_of(side);
        covered.then_some(Self { width: map[3], side })
    }

    /// The arguments `width` and `side` of a kernel; without windows those of the order of the map itself.
    pub(super) fn arguments(windows: Option<Self>, call: Call) -> Call {
        let Self { width, side } = windows.unwrap_or(Self { width: 1, side: 1 });
        call.int(width).int(side)
    }
}
