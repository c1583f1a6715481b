//! What a checkpoint says of itself, as strings in the header of the safetensors file.

use std::collections::BTreeMap;

use super::shown;
use crate::model::ModelConfig;

/// What a checkpoint of the crate's own format says beside its tensors.
#[derive(Clone, PartialEq, Debug)]
pub struct Meta {
    /// All numbers of the network.
    pub model: ModelConfig,
    /// A name for each class, or empty where they are not known.
    pub class_names: Vec<String>,
    /// An RGB color for each class, or empty where they are not known.
    pub palette: Vec<[u8; 3]>,
    /// Anything else, by key; kept as it is.
    pub extra: BTreeMap<String, String>,
}

const FORMAT: &str = "amdanet";

/// What the header of a packed model has instead, and the version of its arrays.
const PACKED: (&str, &str) = ("amdanet-packed", "1");

impl Meta {
    /// The version of the format that this program writes, and the latest that it reads.
    pub const FORMAT_VERSION: u32 = 1;

    /// A network whose classes have neither names nor colors.
    pub fn new(model: ModelConfig) -> Self {
        Self { model, class_names: Vec::new(), palette: Vec::new(), extra: BTreeMap::new() }
    }

    fn check(&self) -> Result<(), String> {
        self.model.validate().map_err(|e| e.to_string())?;
        for (what, n) in [("class names", self.class_names.len()), ("palette colors", self.palette.len())] {
            if n != 0 && n != self.model.classes {
                return Err(format!(
                    "{n} {what} for {} classes: give one for each, or none",
                    self.model.classes
                ));
            }
        }
        Ok(())
    }

    /// The header's strings.
    pub(super) fn to_strings(&self) -> Result<BTreeMap<String, String>, String> {
        self.check()?;
        let json = |value: serde_json::Result<String>| value.map_err(|e| e.to_string());
        let encoder = self.model.encoder_name();
        let mut strings = self.extra.clone();
        for (key, value) in [
            ("format", FORMAT.into()),
            ("format_version", Self::FORMAT_VERSION.to_string()),
            ("arch", self.model.arch.to_string()),
            ("encoder", encoder.into()),
            ("classes", self.model.classes.to_string()),
            ("class_names", json(serde_json::to_string(&self.class_names))?),
            ("palette", json(serde_json::to_string(&self.palette))?),
            ("bn_eps", self.model.bn_eps.to_string()),
            ("model", json(serde_json::to_string(&self.model))?),
        ] {
            if strings.insert(key.into(), value).is_some() {
                return Err(format!(
                    "extra metadata must not be called {key:?}, which the format uses itself"
                ));
            }
        }
        Ok(strings)
    }

    /// The strings of a packed model.
    pub(super) fn to_packed_strings(&self) -> Result<BTreeMap<String, String>, String> {
        let mut strings = self.to_strings()?;
        strings.insert("format".into(), PACKED.0.into());
        strings.insert("packed_version".into(), PACKED.1.into());
        Ok(strings)
    }

    /// Whether these are strings of a packed model.
    pub(super) fn is_packed(strings: &BTreeMap<String, String>) -> bool {
        strings.get("format").is_some_and(|format| format == PACKED.0)
    }

    /// Undoes [`Meta::to_packed_strings`]; `None` for another header.
    pub(super) fn from_packed_strings(mut strings: BTreeMap<String, String>) -> Result<Option<Self>, String> {
        if !Self::is_packed(&strings) {
            return Ok(None);
        }
        match strings.remove("packed_version") {
            Some(version) if version == PACKED.1 => {}
            other => {
                let other = shown(&other.unwrap_or_default());
                return Err(format!(
                    "was packed by another version of this program (\"{other}\", this one packs \"{}\")",
                    PACKED.1
                ));
            }
        }
        strings.insert("format".into(), FORMAT.into());
        Self::from_strings(strings)
    }

    /// Undoes [`Meta::to_strings`]; `None` for a header that somebody else wrote.
    pub(super) fn from_strings(mut strings: BTreeMap<String, String>) -> Result<Option<Self>, String> {
        fn json<T: serde::de::DeserializeOwned>(key: &str, text: &str) -> Result<T, String> {
            serde_json::from_str(text).map_err(|e| {
                format!("its metadata has a bad {key:?}: {}; save it again", shown(&e.to_string()))
            })
        }
        if Self::is_packed(&strings) {
            return Err("is a packed model, which `run`, `stream`, `eval` and `bench model` take: give the checkpoint \
                        that it was made from"
                .into());
        }
        if strings.get("format").is_none_or(|f| f != FORMAT) {
            return Ok(None);
        }
        let mut take = |key: &str| {
            strings
                .remove(key)
                .ok_or_else(|| format!("its metadata lacks {key:?}: the file was altered; save it again"))
        };
        take("format")?;
        let version = take("format_version")?;
        match version.parse::<u32>() {
            Ok(1..=Self::FORMAT_VERSION) => {}
            _ => {
                return Err(format!(
                    "has format version \"{}\", and this program reads up to {}: update the program",
                    shown(&version),
                    Self::FORMAT_VERSION
                ));
            }
        }
        let mut meta = Self::new(json("model", &take("model")?)?);
        meta.class_names = json("class_names", &take("class_names")?)?;
        meta.palette = json("palette", &take("palette")?)?;
        meta.check().map_err(|e| format!("its metadata is not usable: {e}"))?;
        // The single keys are for people and other programs; a reader of either must see the same network.
        let written = meta.to_strings()?;
        for key in ["arch", "encoder", "classes", "bn_eps"] {
            let found = take(key)?;
            if written.get(key) != Some(&found) {
                return Err(format!(
                    "its metadata contradicts itself: {key:?} is {found:?} but \"model\" differs"
                ));
            }
        }
        meta.extra = strings;
        Ok(Some(meta))
    }
}
