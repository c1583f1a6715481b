//! How data sets lie on disk: the layouts that they are published in, and a flat one for everything else.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use super::pairs::{picture_stem, pictures_in};
use super::{ClassSet, Pair, Split};
use crate::{Error, Result};

/// How a data set lies on disk.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, clap::ValueEnum)]
pub enum Layout {
    /// Folders for visible, infrared and label pictures, and `train.txt`, `val.txt`, `test.txt` of names.
    Flat,
    /// MFNet's: `images/NAME.png` of four channels, RGB and thermal, `labels/NAME.png`, and the three lists.
    Mfnet,
    /// FMB's: `Visible/`, `Infrared/` and `Label/` in each of `train/` and `test/`; no list.
    Fmb,
    /// PST900's: `rgb/`, `thermal/` and `labels/` in each of `train/` and `test/`; no list.
    Pst900,
}

/// The files of a labelled pair.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub name: String,
    pub pictures: Pictures,
    pub labels: PathBuf,
}

/// Where both pictures are.
#[derive(Clone, Debug)]
pub(super) enum Pictures {
    Two(Pair),
    /// RGB and thermal in one file.
    FourChannels(PathBuf),
}

const VISIBLE: &[&str] = &["Visible", "RGB", "vi"];
const INFRARED: &[&str] = &["Infrared", "THE", "thermal", "ir"];
const LABELS: &[&str] = &["Label", "Labels"];
const FLAT: [&[&str]; 3] = [VISIBLE, INFRARED, LABELS];
const MFNET: [&[&str]; 2] = [&["images"], &["labels"]];
const FMB: [&[&str]; 3] = [&["Visible"], &["Infrared"], &["Label"]];
const PST900: [&[&str]; 3] = [&["rgb"], &["thermal"], &["labels"]];

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(["flat layout", "MFNet's layout", "FMB's layout", "PST900's layout"][*self as usize])
    }
}

impl Layout {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Flat, Self::Mfnet, Self::Fmb, Self::Pst900];

    /// The layout whose folders are in `root`.
    ///
    /// # Errors
    /// When the folder cannot be read, or it has the folders of no layout or of several.
    pub fn detect(root: &Path) -> Result<Self> {
        let folders = folders(root)?;
        let has = |names: &&[&str]| folders.iter().any(|f| is_called(f, names));
        let split_into = |parts: [&[&str]; 3]| -> Result<bool> {
            for split in ["train", "test"] {
                let Some(folder) = folders.iter().find(|f| is_called(f, &[split])) else { continue };
                let inside = self::folders(folder)?;
                if parts.iter().all(|names| inside.iter().any(|f| is_called(f, names))) {
                    return Ok(true);
                }
            }
            Ok(false)
        };
        let mut found = Vec::new();
        for layout in Self::ALL {
            let fits = match layout {
                // One folder may be missing or have another name: reading it as a flat one tells which.
                Self::Flat => FLAT.iter().filter(|names| has(names)).count() >= 2,
                Self::Mfnet => MFNET.iter().all(has),
                Self::Fmb => split_into(FMB)?,
                Self::Pst900 => split_into(PST900)?,
            };
            found.extend(fits.then_some(layout));
        }
        match found[..] {
            [layout] => Ok(layout),
            [] => {
                let what = format!(
                    "no data set that is known: a flat one has folders {}, {} and {} (in any case) and lists of \
                     names, MFNet's images and labels, FMB's train/Visible, train/Infrared and train/Label, PST900's \
                     train/rgb, train/thermal and train/labels; {}",
                    VISIBLE.join(" or "),
                    INFRARED.join(" or "),
                    LABELS.join(" or "),
                    self::found(root, folders)
                );
                Err(Error::file(root, what))
            }
            _ => {
                let names: Vec<_> = found.iter().map(Self::to_string).collect();
                let what = format!("fits {}: say which with --layout", names.join(" and "));
                Err(Error::file(root, what))
            }
        }
    }

    /// The classes of the data set that is published like this, if there is just one.
    pub fn classes(self) -> Option<ClassSet> {
        match self {
            Self::Flat => None,
            Self::Mfnet => Some(ClassSet::mfnet()),
            Self::Fmb => Some(ClassSet::fmb()),
            Self::Pst900 => Some(ClassSet::pst900()),
        }
    }

    /// The split whose files stand for `split`: data sets that are published in two parts have no val split, and their
    /// test split is used for it.
    pub fn stands_for(self, split: Split) -> Split {
        match (self, split) {
            (Self::Fmb | Self::Pst900, Split::Val) => Split::Test,
            _ => split,
        }
    }

    /// The files of a split.
    pub(super) fn items(self, root: &Path, split: Split) -> Result<Vec<Item>> {
        match self {
            Self::Flat => {
                let list = root.join(format!("{split}.txt"));
                // A missing folder is told before a missing list.
                let folders = FLAT.map(|names| find_folder(root, names));
                let folders = into_results(folders)?;
                listed(&list, &read_list(root, &list)?, folders, two)
            }
            Self::Mfnet => {
                let list = root.join(format!("{split}.txt"));
                let folders = into_results(MFNET.map(|names| find_folder(root, names)))?;
                listed(&list, &read_list(root, &list)?, folders, |name, [images, labels]| Item {
                    name,
                    pictures: Pictures::FourChannels(images),
                    labels,
                })
            }
            Self::Fmb | Self::Pst900 => {
                let parts = if self == Self::Fmb { FMB } else { PST900 };
                let part = find_folder(root, &[if split == Split::Train { "train" } else { "test" }])?;
                let folders = into_results(parts.map(|names| find_folder(&part, names)))?;
                let names: Vec<String> = pictures_in(&folders[0])?.into_keys().collect();
                if names.is_empty() {
                    return Err(Error::file(&folders[0], "the folder holds no picture"));
                }
                listed(&part, &names, folders, two)
            }
        }
    }

    /// The layout and how many pairs each split has, in one line.
    pub fn describe(self, root: &Path) -> String {
        let count = |split: Split| match self.items(root, split) {
            _ if self.stands_for(split) != split => format!("no {split} split of its own"),
            Ok(items) => format!("{} {split}", items.len()),
            Err(_) => format!("no {split} split"),
        };
        let counts = [Split::Train, Split::Val, Split::Test].map(count);
        format!("{}: {self}, {}", root.display(), counts.join(", "))
    }
}

fn two(name: String, [visible, infrared, labels]: [PathBuf; 3]) -> Item {
    Item { pictures: Pictures::Two(Pair { name: name.clone(), visible, infrared }), name, labels }
}

fn into_results<const N: usize>(folders: [Result<PathBuf>; N]) -> Result<[PathBuf; N]> {
    let folders = folders.into_iter().collect::<Result<Vec<_>>>()?;
    Ok(std::array::from_fn(|i| folders[i].clone()))
}

/// The items of the names that `list` (a file, or the folder that they come from) gives: each has a picture in each of
/// `folders`.
fn listed<const N: usize>(
    list: &Path,
    names: &[String],
    folders: [PathBuf; N],
    item: impl Fn(String, [PathBuf; N]) -> Item,
) -> Result<Vec<Item>> {
    let files = folders.iter().map(|folder| pictures_in(folder)).collect::<Result<Vec<_>>>()?;
    let mut items = Vec::with_capacity(names.len());
    let mut seen = HashSet::new();
    for name in names {
        let mut paths = std::array::from_fn(|_| PathBuf::new());
        let mut plain = name.clone();
        for ((path, files), folder) in paths.iter_mut().zip(&files).zip(&folders) {
            let (stem, file) = find_file(files, name).ok_or_else(|| {
                let missing = names.iter().filter(|n| find_file(files, n).is_none()).count();
                let what = format!(
                    "{name:?} has no picture in {} ({missing} of {} names have none there): add it, or take the name \
                     off the list",
                    folder.display(),
                    names.len()
                );
                Error::file(list, what)
            })?;
            (*path, plain) = (file, stem);
        }
        if !seen.insert(plain.clone()) {
            return Err(Error::file(list, format!("{name:?} is there twice: keep one of the two lines")));
        }
        items.push(item(plain, paths));
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
    let folders = folders(root)?;
    let matching: Vec<_> = folders.iter().filter(|p| is_called(p, names)).collect();
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

fn is_called(path: &Path, names: &[&str]) -> bool {
    file_name(path).is_some_and(|n| names.iter().any(|w| n.eq_ignore_ascii_case(w)))
}

fn folders(root: &Path) -> Result<Vec<PathBuf>> {
    Ok(entries(root)?.into_iter().filter(|p| p.is_dir()).collect())
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
