//! One error type; every message says what was wrong, where, and what to do about it.

use std::path::{Path, PathBuf};

use crate::tensor::Shape;

/// The result of everything that can fail in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong. `Display` gives one line that names the place, the value and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Shapes that an operation cannot combine.
    #[error("{op}: {why}; shapes {}", shapes.iter().map(Shape::to_string).collect::<Vec<_>>().join(" and "))]
    Shape {
        /// The operation.
        op: &'static str,
        /// What it asks for.
        why: String,
        /// The shapes it was given.
        shapes: Vec<Shape>,
    },
    /// An operation without a backward was given a value that needs a gradient.
    #[error("{op} has no backward, and its input needs a gradient: detach the input or stop recording")]
    NoBackward {
        /// The operation.
        op: &'static str,
    },
    /// The operating system refused something.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was attempted, as a verb: "read", "create the folder".
        action: &'static str,
        /// The system's own words.
        source: std::io::Error,
    },
    /// A file whose content is not what it should be.
    #[error("{}: {what}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, with the value, and the remedy.
        what: String,
    },
    /// A CUDA device refused something, or is not there.
    #[error("{what}: {why}")]
    Cuda {
        /// What was asked of it: a launch with its shape, an allocation with its size.
        what: String,
        /// CUDA's own text, or the remedy.
        why: String,
    },
    /// More memory than there is.
    #[error("{what} takes {:.1} MB, and {why}", *bytes as f64 / 1e6)]
    Memory {
        /// What needs it.
        what: String,
        /// How much it needs.
        bytes: usize,
        /// What there is.
        why: String,
    },
    /// A configuration or argument that cannot be used.
    #[error("{0}")]
    Config(String),
}

impl Error {
    /// A [`Error::Shape`].
    pub fn shape(op: &'static str, why: impl Into<String>, shapes: &[Shape]) -> Self {
        Self::Shape { op, why: why.into(), shapes: shapes.to_vec() }
    }

    /// A [`Error::Cuda`].
    pub fn cuda(what: impl std::fmt::Display, why: impl std::fmt::Display) -> Self {
        Self::Cuda { what: what.to_string(), why: why.to_string() }
    }

    /// Wraps a system error: `fs::read(path).map_err(Error::io(path, "read"))`.
    pub fn io(path: impl AsRef<Path>, action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { path: path.as_ref().to_path_buf(), action, source }
    }

    /// A [`Error::File`].
    pub fn file(path: impl AsRef<Path>, what: impl Into<String>) -> Self {
        Self::File { path: path.as_ref().to_path_buf(), what: what.into() }
    }
}
