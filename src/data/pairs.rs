//! Matching visible with infrared files.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::picture::read_stored;
use super::{Limits, Picture, Stored};
use crate::{Error, Result};

const EXTENSIONS: [&str; 6] = ["png", "jpg", "jpeg", "bmp", "tif", "tiff"];

/// A visible and an infrared file of one scene.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pair {
    /// The visible file's name without extension.
    pub name: String,
    /// The visible file.
    pub visible: PathBuf,
    /// The infrared file.
    pub infrared: PathBuf,
}

/// What [`pairs`] found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Pairs {
    /// The pairs, sorted by name; never empty.
    pub pairs: Vec<Pair>,
    /// Visible files without an infrared file of the same name.
    pub unmatched_visible: Vec<PathBuf>,
    /// Infrared files without a visible file of the same name.
    pub unmatched_infrared: Vec<PathBuf>,
}

/// Two files are one pair; two folders are matched by file name without extension. Pictures directly in the folders
/// count, by their extension: png, jpg, jpeg, bmp, tif or tiff in any case.
///
/// # Errors
/// When a path cannot be read, one is a file and the other a folder, two files of one folder differ in their
/// extension alone, or nothing matches.
pub fn pairs(visible: &Path, infrared: &Path) -> Result<Pairs> {
    let is_folder =
        |path: &Path| Ok::<_, Error>(fs::metadata(path).map_err(Error::io(path, "read"))?.is_dir());
    match (is_folder(visible)?, is_folder(infrared)?) {
        (false, false) => {
            let name = visible.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let pair = Pair { name, visible: visible.into(), infrared: infrared.into() };
            Ok(Pairs { pairs: vec![pair], ..Pairs::default() })
        }
        (true, true) => {
            let mut infrared_files = pictures_in(infrared)?;
            let mut found = Pairs::default();
            for (name, visible) in pictures_in(visible)? {
                match infrared_files.remove(&name) {
                    Some(infrared) => found.pairs.push(Pair { name, visible, infrared }),
                    None => found.unmatched_visible.push(visible),
                }
            }
            found.unmatched_infrared = infrared_files.into_values().collect();
            if found.pairs.is_empty() {
                let text = format!(
                    "no pair: none of the {} pictures in {} has the name of one of the {} in {}; the two files of a \
                     pair differ in folder and extension alone",
                    found.unmatched_visible.len(),
                    visible.display(),
                    found.unmatched_infrared.len(),
                    infrared.display()
                );
                return Err(Error::Config(text));
            }
            Ok(found)
        }
        (visible_is_folder, _) => {
            let (folder, file) = if visible_is_folder { (visible, infrared) } else { (infrared, visible) };
            let text = format!(
                "{} is a folder and {} is a file: give two files or two folders",
                folder.display(),
                file.display()
            );
            Err(Error::Config(text))
        }
    }
}

/// Reads both pictures of a pair: (visible, infrared).
///
/// # Errors
/// As [`read_rgb`](super::read_rgb), and when the two sizes differ.
pub fn read_pair(pair: &Pair, limits: Limits) -> Result<(Picture, Picture)> {
    let (visible, infrared) = read_stored_pair(pair, limits)?;
    Ok((visible.picture(), infrared.picture()))
}

/// [`read_pair`], as the files store them.
pub(super) fn read_stored_pair(pair: &Pair, limits: Limits) -> Result<(Stored, Stored)> {
    let visible = read_stored(&pair.visible, limits)?;
    let infrared = read_stored(&pair.infrared, limits)?;
    let sizes = ((visible.width, visible.height), (infrared.width, infrared.height));
    same_size(&pair.visible, sizes.0, &pair.infrared, sizes.1)?;
    Ok((visible, infrared))
}

/// Fails, naming both, when two files differ in (width, height).
pub(super) fn same_size(a: &Path, size_a: (usize, usize), b: &Path, size_b: (usize, usize)) -> Result<()> {
    if size_a == size_b {
        return Ok(());
    }
    let what = format!(
        "{}×{} pixels, but {} has {}×{}: register or resize them to one size first",
        size_a.0,
        size_a.1,
        b.display(),
        size_b.0,
        size_b.1
    );
    Err(Error::file(a, what))
}

/// The pictures directly in a folder, by name without extension. Hidden files do not count.
pub(super) fn pictures_in(folder: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut found: BTreeMap<String, PathBuf> = BTreeMap::new();
    for entry in fs::read_dir(folder).map_err(Error::io(folder, "read the folder"))? {
        let path = entry.map_err(Error::io(folder, "read the folder"))?.path();
        let Some(name) = path.file_name().and_then(|n| picture_stem(&n.to_string_lossy()).map(String::from))
        else {
            continue;
        };
        if name.starts_with('.') || path.is_dir() {
            continue;
        }
        if let Some(other) = found.insert(name.clone(), path.clone()) {
            // The order of a folder's entries is arbitrary; the message is not.
            let (a, b) = if other < path { (other, path) } else { (path, other) };
            let what = format!("{} is also called {name:?}: keep one of the two in the folder", b.display());
            return Err(Error::file(a, what));
        }
    }
    Ok(found)
}

/// A file name without its extension, or `None` when the extension is not that of a picture.
pub(super) fn picture_stem(name: &str) -> Option<&str> {
    let (stem, extension) = name.rsplit_once('.')?;
    EXTENSIONS.iter().any(|e| extension.eq_ignore_ascii_case(e)).then_some(stem)
}
