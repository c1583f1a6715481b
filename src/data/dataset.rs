//! Data sets on disk.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use sha2::{Digest, Sha256};

use super::layout::{Item, Layout, Pictures};
use super::pairs::{read_stored_pair, same_size};
use super::picture::read_four_channels;
use super::{ClassSet, IGNORED, Labels, Limits, Pair, Stored, read_labels};
use crate::{Error, Result};

/// A part of a data set.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Split {
    /// What is trained on.
    Train,
    /// What chooses among checkpoints.
    Val,
    /// What is reported.
    Test,
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Train => "train",
            Self::Val => "val",
            Self::Test => "test",
        })
    }
}

impl FromStr for Split {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "train" => Ok(Self::Train),
            "val" => Ok(Self::Val),
            "test" => Ok(Self::Test),
            _ => Err(Error::Config(format!("no split {text:?}: there are train, val and test"))),
        }
    }
}

/// A labelled pair, its pictures as their files store them.
#[derive(Clone, PartialEq, Debug)]
pub struct Sample {
    /// Its name in the data set.
    pub name: String,
    /// The visible picture.
    pub visible: Stored,
    /// The infrared picture, of the same size.
    pub infrared: Stored,
    /// The labels, of the same size, each below the number of classes or [`IGNORED`].
    pub labels: Labels,
}

impl Sample {
    /// Memory of both pictures and the labels.
    pub fn bytes(&self) -> usize {
        self.visible.bytes() + self.infrared.bytes() + self.labels.ids.len()
    }
}

/// The files of one split of a data set. Pictures are read when asked for.
#[derive(Clone, Debug)]
pub struct Dataset {
    layout: Layout,
    split: Split,
    items: Vec<Item>,
    classes: Option<ClassSet>,
    limits: Limits,
}

impl Dataset {
    /// Lists the split `split` of the data set in the folder `root`, in whichever [`Layout`] it has. A file
    /// `classes.toml` in `root` gives the classes, as [`ClassSet::from_toml`] reads it; without it they are those of
    /// the data set that is published in this layout.
    ///
    /// # Errors
    /// When the layout is not known, a folder, the list or a listed file is missing or ambiguous, or the list is empty.
    pub fn open(root: &Path, split: Split) -> Result<Self> {
        Self::open_as(Layout::detect(root)?, root, split)
    }

    /// As [`Dataset::open`], in this layout.
    ///
    /// # Errors
    /// As [`Dataset::open`].
    pub fn open_as(layout: Layout, root: &Path, split: Split) -> Result<Self> {
        let items = layout.items(root, split)?;
        let classes = root.join("classes.toml");
        let classes = if classes.exists() { Some(ClassSet::from_toml(&classes)?) } else { layout.classes() };
        Ok(Self { layout, split, items, classes, limits: Limits::default() })
    }

    /// The same data set with these classes, whatever its folder says.
    pub fn with_classes(self, classes: ClassSet) -> Self {
        Self { classes: Some(classes), ..self }
    }

    /// The same data set with another limit on the size of pictures.
    pub fn with_limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// The layout that was found.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The split that this is.
    pub fn split(&self) -> Split {
        self.split
    }

    /// The classes, if the data set's folder or [`Dataset::with_classes`] named them.
    pub fn classes(&self) -> Option<&ClassSet> {
        self.classes.as_ref()
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there is no sample; never so after [`Dataset::open`].
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// The names of the samples, in the order of the list.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.items.iter().map(|i| i.name.as_str())
    }

    /// The number of samples, and a hash of their names in their order and of the classes: "784 pairs (3f0c…)".
    pub fn fingerprint(&self) -> String {
        let classes = self.classes.iter().flat_map(|classes| &classes.names);
        let lines = self.names().map(str::to_owned).chain([String::new()]).chain(classes.cloned());
        let digest = Sha256::digest(lines.map(|line| line + "\n").collect::<String>());
        let hash: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        format!("{} pairs ({hash})", self.len())
    }

    /// Reads and checks sample `index`.
    ///
    /// # Errors
    /// When there is no such sample, a file cannot be read, the three sizes differ, the classes are not known, or a
    /// label is neither below their number nor [`IGNORED`].
    pub fn sample(&self, index: usize) -> Result<Sample> {
        let Some(item) = self.items.get(index) else {
            let text = format!("no sample {index}: the {} split has {}", self.split, self.len());
            return Err(Error::Config(text));
        };
        let Some(classes) = &self.classes else {
            let text =
                "the classes are not known: choose a preset, or list them in the data set's classes.toml";
            return Err(Error::Config(text.into()));
        };
        let (visible, infrared) = match &item.pictures {
            Pictures::Two(pair) => read_stored_pair(pair, self.limits)?,
            Pictures::FourChannels(path) => read_four_channels(path, self.limits)?,
        };
        let labels = read_labels(&item.labels, self.limits)?;
        let sizes = ((labels.width, labels.height), (visible.width, visible.height));
        let picture = match &item.pictures {
            Pictures::Two(Pair { visible, .. }) | Pictures::FourChannels(visible) => visible,
        };
        same_size(&item.labels, sizes.0, picture, sizes.1)?;
        check_labels(&item.labels, &labels, classes.len())?;
        Ok(Sample { name: item.name.clone(), visible, infrared, labels })
    }
}

fn check_labels(path: &Path, labels: &Labels, classes: usize) -> Result<()> {
    let wrong = |&id: &u8| id != IGNORED && usize::from(id) >= classes;
    let Some(at) = labels.ids.iter().position(wrong) else { return Ok(()) };
    let what = format!(
        "label {} at x {}, y {}, but there are {classes} classes (ids 0 to {}, and {IGNORED} for ignored): relabel \
         it, or choose the preset or classes.toml that the labels were made for",
        labels.ids[at],
        at % labels.width,
        at / labels.width,
        classes - 1
    );
    Err(Error::file(path, what))
}
