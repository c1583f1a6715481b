//! Configuration files: TOML whose every key is known.

use std::path::Path;

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::{Error, Result};

/// Reads a configuration; what the text leaves out stays as it is in `base`. `path` is for messages.
///
/// The known keys are those that `base` serialises to. A field that is null or an empty map there takes any content.
///
/// # Errors
/// The text is not TOML, a value has the wrong type, or a key is unknown at any depth: one line with the file, the
/// line, the key and the nearest known one.
pub fn overlay<T: Serialize + DeserializeOwned>(base: &T, text: &str, path: &Path) -> Result<T> {
    let at = |offset: usize, what: String| {
        let line = 1 + text.bytes().take(offset).filter(|&b| b == b'\n').count();
        Error::file(path, format!("line {line}: {what}"))
    };
    let from_error = |e: toml::de::Error| {
        let what = e.message().lines().map(str::trim).collect::<Vec<_>>().join("; ");
        at(e.span().map_or(0, |span| span.start), what)
    };
    let table = DeTable::parse(text).map_err(from_error)?;
    let known = serde_json::to_value(base).map_err(|e| Error::Config(e.to_string()))?;
    if let Some((offset, key)) = unknown_key(table.get_ref(), &known, "") {
        let mut names = Vec::new();
        collect_keys(&known, "", &mut names);
        let remedy = match nearest(&key, &names) {
            Some(name) => format!("did you mean {name}?"),
            None => "no keys are known here".into(),
        };
        return Err(at(offset, format!("unknown key {}: {remedy}", key.escape_debug())));
    }
    // On its own first: its errors know their line.
    let _: T = toml::from_str(text).map_err(from_error)?;
    let whole = |e: &dyn std::fmt::Display| Error::file(path, e.to_string());
    let mut merged = toml::Table::try_from(base).map_err(|e| whole(&e))?;
    merge(&mut merged, toml::from_str(text).map_err(from_error)?);
    merged.try_into().map_err(|e| whole(&e))
}

/// Puts the values of `over` in the place of those of `base`, table by table.
fn merge(base: &mut toml::Table, over: toml::Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(toml::Value::Table(base)), toml::Value::Table(over)) => merge(base, over),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

fn join(prefix: &str, key: &str) -> String {
    if prefix.is_empty() { key.to_owned() } else { format!("{prefix}.{key}") }
}

/// The first key that is not known, with its place in the text. TOML's parser bounds the depth.
fn unknown_key(table: &DeTable<'_>, known: &Value, prefix: &str) -> Option<(usize, String)> {
    let known = known.as_object().filter(|object| !object.is_empty())?;
    let unknown = |(key, value): (&Spanned<_>, &Spanned<DeValue<'_>>)| {
        let name: &std::borrow::Cow<'_, str> = key.get_ref();
        let path = join(prefix, name);
        let Some(known) = known.get(name.as_ref()) else { return Some((key.span().start, path)) };
        match value.get_ref() {
            DeValue::Table(table) => unknown_key(table, known, &path),
            // Tables in an array are like the first of the default's.
            DeValue::Array(items) => {
                let known = known.as_array().and_then(|items| items.first())?;
                let tables = items.iter().filter_map(|item| item.get_ref().as_table());
                tables.filter_map(|table| unknown_key(table, known, &path)).min()
            }
            _ => None,
        }
    };
    // The parser's map is ordered by name; people read from the top.
    table.iter().filter_map(unknown).min()
}

fn collect_keys(known: &Value, prefix: &str, names: &mut Vec<String>) {
    for (key, value) in known.as_object().into_iter().flatten() {
        let path = join(prefix, key);
        let inner = value.as_array().and_then(|items| items.first()).unwrap_or(value);
        collect_keys(inner, &path, names);
        names.push(path);
    }
}

/// A key of the right name in the wrong table is as likely as a slip of the fingers.
fn nearest<'a>(key: &str, names: &'a [String]) -> Option<&'a String> {
    let last = |path: &str| path.rsplit('.').next().unwrap_or_default().to_owned();
    let table = |path: &str| path.rsplit_once('.').map(|(table, _)| table.to_owned());
    let likeness = |name: &String| {
        let same_table = if table(key) == table(name) { 0.1 } else { 0.0 };
        strsim::jaro_winkler(&last(key), &last(name)) + same_table
    };
    names.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(default)]
    struct Inner {
        warmup: usize,
        steps: Option<usize>,
    }

    impl Default for Inner {
        fn default() -> Self {
            Self { warmup: 10, steps: None }
        }
    }

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(default)]
    struct Outer {
        lr: f32,
        sizes: [usize; 2],
        schedule: Inner,
    }

    fn read(text: &str) -> Result<Outer, String> {
        overlay(&Outer::default(), text, Path::new("f.toml")).map_err(|e| e.to_string())
    }

    #[test]
    fn keeps_the_base_where_the_text_is_silent() {
        let base = Outer { lr: 2.0, sizes: [3, 4], schedule: Inner { warmup: 5, steps: Some(6) } };
        let outer = overlay(&base, "[schedule]\nwarmup = 9\n", Path::new("f.toml")).unwrap();
        assert_eq!(outer, Outer { schedule: Inner { warmup: 9, ..base.schedule }, ..base });
    }

    #[test]
    fn reads_what_is_known() {
        let outer = read("lr = 0.5\n[schedule]\nsteps = 7\n").unwrap();
        assert_eq!(outer, Outer { lr: 0.5, sizes: [0, 0], schedule: Inner { warmup: 10, steps: Some(7) } });
        assert_eq!(read("").unwrap(), Outer::default());
    }

    #[test]
    fn names_the_file_the_line_and_the_key() {
        let cases = [
            (
                "lr = 1\n[schedule]\nwarmpu = 3\n",
                "line 3: unknown key schedule.warmpu: did you mean schedule.warmup?",
            ),
            ("zz = 1\naa = 2\n", "line 1: unknown key zz: did you mean"),
            ("\nwarmup = 2", "line 2: unknown key warmup: did you mean schedule.warmup?"),
            ("schedule.lr = 2", "line 1: unknown key schedule.lr: did you mean lr?"),
            ("lr = 1\nsizes = \"x\"", "line 2: invalid type: string \"x\""),
            ("schedule = 3", "line 1: invalid type"),
            ("lr = 1\nlr = 2", "line 2: duplicate key"),
            ("lr = \n", "line 1: "),
            ("\"a\\nb\" = 1", "unknown key a\\nb"),
        ];
        for (text, message) in cases {
            let found = read(text).unwrap_err();
            assert!(found.starts_with("f.toml: line ") && found.contains(message), "{text:?}: {found}");
            assert_eq!(found.lines().count(), 1, "{found}");
        }
    }

    #[test]
    fn survives_depth() {
        for text in ["[".repeat(100_000), format!("lr = {}", "[".repeat(100_000)), "a.".repeat(100_000)] {
            assert!(read(&text).is_err());
        }
    }
}
