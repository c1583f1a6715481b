//! Data sets on disk.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::pairs::{picture_stem, pictures_in, same_size};
use super::{ClassSet, IGNORED, Labels, Limits, Pair, Picture, read_labels, read_pair};
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

/// How a data set is laid out on disk. A layout is a way to list files, [`Dataset::open`], and a way to read them,
/// [`Dataset::sample`]; the rest does not depend on it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Layout {
    /// Folders for visible, infrared and label pictures, and `train.txt`, `val.txt`, `test.txt` of names.
    Flat,
}

/// A labelled pair.
#[derive(Clone, PartialEq, Debug)]
pub struct Sample {
    /// Its name in the data set.
    pub name: String,
    /// The visible picture.
    pub visible: Picture,
    /// The infrared picture, of the same size.
    pub infrared: Picture,
    /// The labels, of the same size, each below the number of classes or [`IGNORED`].
    pub labels: Labels,
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

#[derive(Clone, Debug)]
struct Item {
    pair: Pair,
    labels: PathBuf,
}

const VISIBLE: [&str; 3] = ["Visible", "RGB", "vi"];
const INFRARED: [&str; 4] = ["Infrared", "THE", "thermal", "ir"];
const LABELS: [&str; 2] = ["Label", "Labels"];

impl Dataset {
    /// Lists the split `split` of the data set in the folder `root`: its folders (`Visible`, `RGB` or `vi`;
    /// `Infrared`, `THE`, `thermal` or `ir`; `Label` or `Labels`; in any case) and its list `SPLIT.txt` of names,
    /// one on a line. A file `classes.toml` in `root` gives the classes, as [`ClassSet::from_toml`] reads it.
    ///
    /// # Errors
    /// When a folder, the list or a listed file is missing or ambiguous, or the list is empty.
    pub fn open(root: &Path, split: Split) -> Result<Self> {
        let layout = Layout::Flat;
        let items = match layout {
            Layout::Flat => flat_items(root, split)?,
        };
        let classes = root.join("classes.toml");
        let classes = if classes.exists() { Some(ClassSet::from_toml(&classes)?) } else { None };
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
        self.items.iter().map(|i| i.pair.name.as_str())
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
        let (visible, infrared) = read_pair(&item.pair, self.limits)?;
        let labels = read_labels(&item.labels, self.limits)?;
        let sizes = ((labels.width, labels.height), (visible.width, visible.height));
        same_size(&item.labels, sizes.0, &item.pair.visible, sizes.1)?;
        check_labels(&item.labels, &labels, classes.len())?;
        Ok(Sample { name: item.pair.name.clone(), visible, infrared, labels })
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

fn flat_items(root: &Path, split: Split) -> Result<Vec<Item>> {
    let folders = [VISIBLE.as_slice(), &INFRARED, &LABELS];
    let [visible, infrared, labels] = folders.map(|names| find_folder(root, names));
    let (visible, infrared, labels) = (visible?, infrared?, labels?);
    let list = root.join(format!("{split}.txt"));
    let names = read_list(root, &list)?;
    let files = [
        (&visible, pictures_in(&visible)?),
        (&infrared, pictures_in(&infrared)?),
        (&labels, pictures_in(&labels)?),
    ];
    let mut items = Vec::with_capacity(names.len());
    for name in &names {
        let [visible, infrared, labels] = files.each_ref().map(|(folder, files)| {
            find_file(files, name).ok_or_else(|| {
                let missing = names.iter().filter(|n| find_file(files, n).is_none()).count();
                let what = format!(
                    "{name:?} has no picture in {} ({missing} of {} names have none there): add it, or take the name \
                     off the list",
                    folder.display(),
                    names.len()
                );
                Error::file(&list, what)
            })
        });
        let ((name, visible), (_, infrared), (_, labels)) = (visible?, infrared?, labels?);
        items.push(Item { pair: Pair { name, visible, infrared }, labels });
    }
    Ok(items)
}

/// The file of a listed name, which may carry an extension; and the name without it.
fn find_file(files: &BTreeMap<String, PathBuf>, listed: &str) -> Option<(String, PathBuf)> {
    let get = |name: &str| files.get_key_value(name).map(|(n, p)| (n.clone(), p.clone()));
    get(listed).or_else(|| get(picture_stem(listed)?))
}

/// The names of a list; blank lines are skipped.
fn read_list(root: &Path, list: &Path) -> Result<Vec<String>> {
    if !list.exists() {
        let is_list = |p: &PathBuf| p.extension().is_some_and(|e| e == "txt");
        let what = format!(
            "the list is missing: give it a line for each sample, its file name without extension; {}",
            found(root, entries(root)?.into_iter().filter(is_list))
        );
        return Err(Error::file(list, what));
    }
    let text = fs::read_to_string(list).map_err(Error::io(list, "read"))?;
    // Windows editors put a byte order mark at the start.
    let lines = text.trim_start_matches('\u{feff}').lines().map(str::trim);
    let names: Vec<String> = lines.filter(|l| !l.is_empty()).map(String::from).collect();
    if names.is_empty() {
        let what = "the list holds no name: give it a line for each sample, its file name without extension";
        return Err(Error::file(list, what));
    }
    Ok(names)
}

/// The folder in `root` with one of these names in any case.
fn find_folder(root: &Path, names: &[&str]) -> Result<PathBuf> {
    let folders: Vec<_> = entries(root)?.into_iter().filter(|p| p.is_dir()).collect();
    let wanted = |p: &&PathBuf| file_name(p).is_some_and(|n| names.iter().any(|w| n.eq_ignore_ascii_case(w)));
    let matching: Vec<_> = folders.iter().filter(wanted).collect();
    match matching[..] {
        [folder] => Ok(folder.clone()),
        [] => {
            let what = format!("no folder {} (in any case); {}", names.join(" or "), found(root, folders));
            Err(Error::file(root, what))
        }
        [a, b, ..] => {
            let what = format!("{} means the same: keep one of the two folders", b.display());
            Err(Error::file(a, what))
        }
    }
}

/// What a folder holds, sorted.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let read = || fs::read_dir(folder)?.map(|e| Ok(e?.path())).collect::<std::io::Result<Vec<_>>>();
    let mut paths = read().map_err(Error::io(folder, "read the folder"))?;
    paths.sort();
    Ok(paths)
}

fn file_name(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}

/// "found A, B, C", of at most eight.
fn found(root: &Path, paths: impl IntoIterator<Item = PathBuf>) -> String {
    let names: Vec<_> = paths.into_iter().filter_map(|p| file_name(&p).map(String::from)).collect();
    match names.len() {
        0 => format!("found none in {}", root.display()),
        n if n > 8 => format!("found {} and {} more", names[..8].join(", "), n - 8),
        _ => format!("found {}", names.join(", ")),
    }
}
