//! The lengths of a tensor's axes.

use std::fmt;
use std::ops::Deref;

/// The largest number of axes: a convolution's weight has stream, output, row, column and input axes.
pub const MAX_RANK: usize = 5;

/// Up to [`MAX_RANK`] lengths, outermost first. Dereferences to a slice.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    dims: [usize; MAX_RANK],
    rank: usize,
}

impl Shape {
    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Number of elements: the product of all lengths.
    pub fn len(&self) -> usize {
        self.iter().product()
    }

    /// Whether a length is zero.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The same shape with axis `axis` of length `length`.
    pub fn with_dim(mut self, axis: usize, length: usize) -> Self {
        assert!(axis < self.rank, "axis {axis} of a shape with {} axes", self.rank);
        self.dims[axis] = length;
        self
    }

    /// The same shape with its last axis, usually the channels, of length `length`.
    pub fn with_last(self, length: usize) -> Self {
        self.with_dim(self.rank - 1, length)
    }

    /// The length of the last axis, 1 for a shape without axes.
    pub fn last(&self) -> usize {
        self.dims[..self.rank].last().copied().unwrap_or(1)
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(lengths: [usize; N]) -> Self {
        const { assert!(N <= MAX_RANK) };
        let mut dims = [1; MAX_RANK];
        dims[..N].copy_from_slice(&lengths);
        Self { dims, rank: N }
    }
}

impl TryFrom<&[usize]> for Shape {
    type Error = crate::Error;

    /// Fails when there are more than [`MAX_RANK`] axes.
    fn try_from(lengths: &[usize]) -> crate::Result<Self> {
        if lengths.len() > MAX_RANK {
            return Err(crate::Error::Config(format!(
                "a tensor of {} axes: at most {MAX_RANK}",
                lengths.len()
            )));
        }
        let mut dims = [1; MAX_RANK];
        dims[..lengths.len()].copy_from_slice(lengths);
        Ok(Self { dims, rank: lengths.len() })
    }
}

impl Deref for Shape {
    type Target = [usize];

    fn deref(&self) -> &[usize] {
        &self.dims[..self.rank]
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({})", self.iter().map(usize::to_string).collect::<Vec<_>>().join(", "))
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
