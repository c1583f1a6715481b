//! Class names and colours.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use serde::Deserialize;

use crate::{Error, Result};

/// The label of a pixel that neither trains nor counts.
pub const IGNORED: u8 = 255;

/// The classes of a data set: a name and a colour for each id.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClassSet {
    /// The name of each class, in order of their ids; no two are equal.
    pub names: Vec<String>,
    /// The RGB colour of each class.
    pub palette: Vec<[u8; 3]>,
}

const MFNET: [(&str, [u8; 3]); 9] = [
    ("unlabeled", [0, 0, 0]),
    ("car", [64, 0, 128]),
    ("person", [64, 64, 0]),
    ("bike", [0, 128, 192]),
    ("curve", [0, 0, 192]),
    ("car_stop", [128, 128, 0]),
    ("guardrail", [64, 64, 128]),
    ("color_cone", [192, 128, 128]),
    ("bump", [192, 64, 0]),
];

const FMB: [(&str, [u8; 3]); 15] = [
    ("background", [0, 0, 0]),
    ("Road", [179, 228, 228]),
    ("Sidewalk", [181, 57, 133]),
    ("Building", [67, 162, 177]),
    ("Lamp", [200, 178, 50]),
    ("Sign", [132, 45, 199]),
    ("Vegetation", [66, 172, 84]),
    ("Sky", [179, 73, 79]),
    ("Person", [76, 99, 166]),
    ("Car", [66, 121, 253]),
    ("Truck", [137, 165, 91]),
    ("Bus", [155, 97, 152]),
    ("Motorcycle", [105, 153, 140]),
    ("Bicycle", [222, 215, 158]),
    ("Pole", [135, 113, 90]),
];

/// The data set prescribes no colours; these keep apart in print and for most colour-blind readers.
const PST900: [(&str, [u8; 3]); 5] = [
    ("background", [0, 0, 0]),
    ("fire-extinguisher", [213, 94, 0]),
    ("backpack", [0, 158, 115]),
    ("hand-drill", [240, 228, 66]),
    ("survivor", [86, 180, 233]),
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClassFile {
    class: Vec<ClassEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClassEntry {
    name: String,
    color: Option<[u8; 3]>,
}

impl ClassSet {
    /// Classes with these names and colours.
    ///
    /// # Errors
    /// When there are none or more than 255 (label 255 means ignored), when two names are equal or one is empty, or
    /// when the number of colours differs from that of names.
    pub fn new(names: Vec<String>, palette: Vec<[u8; 3]>) -> Result<Self> {
        if names.is_empty() || names.len() > usize::from(IGNORED) {
            return Err(Error::Config(format!("{} classes: from 1 to 255 are possible", names.len())));
        }
        if names.len() != palette.len() {
            let text =
                format!("{} class names and {} colours: give each class one", names.len(), palette.len());
            return Err(Error::Config(text));
        }
        let mut seen = HashSet::new();
        match names.iter().find(|n| n.trim().is_empty() || !seen.insert(n.as_str())) {
            Some(name) => {
                Err(Error::Config(format!("class name {name:?} is empty or given twice: rename one")))
            }
            None => Ok(Self { names, palette }),
        }
    }

    /// `classes` classes called "class 0", "class 1", … in generated colours.
    ///
    /// # Errors
    /// When `classes` is 0 or above 255.
    pub fn unnamed(classes: usize) -> Result<Self> {
        let names = (0..classes).map(|i| format!("class {i}")).collect();
        Self::new(names, (0..classes).map(generated_color).collect())
    }

    /// The nine classes of MFNet.
    pub fn mfnet() -> Self {
        Self::constant(&MFNET)
    }

    /// The fifteen classes of FMB.
    pub fn fmb() -> Self {
        Self::constant(&FMB)
    }

    /// The five classes of PST900.
    pub fn pst900() -> Self {
        Self::constant(&PST900)
    }

    /// The classes of the preset `mfnet`, `fmb` or `pst900`.
    ///
    /// # Errors
    /// When there is no such preset.
    pub fn preset(name: &str) -> Result<Self> {
        match name {
            "mfnet" => Ok(Self::mfnet()),
            "fmb" => Ok(Self::fmb()),
            "pst900" => Ok(Self::pst900()),
            _ => Err(Error::Config(format!("no preset {name:?}: there are mfnet, fmb and pst900"))),
        }
    }

    /// Reads a file of `[[class]]` tables, each with a `name` and, if wanted, `color = [r, g, b]`.
    ///
    /// # Errors
    /// When the file cannot be read, is no such TOML, or holds classes that [`ClassSet::new`] refuses.
    pub fn from_toml(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).map_err(Error::io(path, "read"))?;
        let file: ClassFile = toml::from_str(&text).map_err(|e| {
            let before = e.span().and_then(|s| text.get(..s.start)).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            let why = e.message().split_whitespace().collect::<Vec<_>>().join(" ");
            let what = format!(
                "line {line}: {why}; each class is [[class]] with name = \"…\" and color = [r, g, b]"
            );
            Error::file(path, what)
        })?;
        let color = |(i, c): (usize, &ClassEntry)| c.color.unwrap_or_else(|| generated_color(i));
        let palette = file.class.iter().enumerate().map(color).collect();
        let names = file.class.into_iter().map(|c| c.name).collect();
        Self::new(names, palette).map_err(|e| Error::file(path, e.to_string()))
    }

    /// Number of classes.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there is no class.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    fn constant(classes: &[(&str, [u8; 3])]) -> Self {
        Self {
            names: classes.iter().map(|(name, _)| (*name).to_string()).collect(),
            palette: classes.iter().map(|(_, color)| *color).collect(),
        }
    }
}

/// The PASCAL VOC colour map: the bits of the id, three at a time, from the high bits of the channels down. Class 0
/// is black, and no two of 256 are equal.
fn generated_color(id: usize) -> [u8; 3] {
    let mut color = [0u8; 3];
    for level in 0..8 {
        for (channel, value) in color.iter_mut().enumerate() {
            *value |= ((id >> (3 * level + channel) & 1) as u8) << (7 - level);
        }
    }
    color
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_colors_are_those_of_pascal_voc() {
        let c = ClassSet::unnamed(255).unwrap();
        assert_eq!(c.palette[..4], [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]);
        assert_eq!((c.palette[8], c.palette[20]), ([64, 0, 0], [0, 64, 128]));
        assert_eq!(c.palette.iter().collect::<HashSet<_>>().len(), 255);
        assert!(ClassSet::unnamed(0).is_err() && ClassSet::unnamed(256).is_err());
    }

    #[test]
    fn presets_have_the_published_sizes() {
        let sizes = ["mfnet", "fmb", "pst900"].map(|p| ClassSet::preset(p).unwrap().len());
        assert_eq!(sizes, [9, 15, 5]);
        assert_eq!(
            ClassSet::preset("voc").unwrap_err().to_string(),
            "no preset \"voc\": there are mfnet, fmb and pst900"
        );
    }
}
