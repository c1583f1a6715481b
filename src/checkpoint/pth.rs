//! PyTorch's containers: the zip archive of version 1.6 and later, and what came before it.

use std::collections::HashMap;
use std::io::{BufReader, Read, Seek, SeekFrom};

use zip::{CompressionMethod, ZipArchive};

use super::element::{self, Element};
use super::pickle::{self, MAX_PICKLE, Pickle, Tensor, Value};
use super::{Array, Source, State, names, shown};

/// Where the bytes of a storage lie in the file: start and length.
type Places = HashMap<String, (u64, u64)>;

const LEGACY_MAGIC: i128 = 0x1950_a86a_20f9_469c_fc6c;
const LEGACY_VERSION: i128 = 1001;
/// Where training programs put the state dict, beside the optimizer and counters.
const UNDER: [&str; 3] = ["model", "state_dict", "model_state_dict"];

fn unreadable(e: std::io::Error) -> String {
    match e.kind() {
        std::io::ErrorKind::UnexpectedEof => "ends early: it is truncated".into(),
        _ => format!("cannot be read: {e}"),
    }
}

/// A zip archive: `ANY/data.pkl`, a file `ANY/data/KEY` for each storage, `ANY/byteorder`.
pub(super) fn read_zip(file: &mut dyn Source, len: u64) -> Result<State, String> {
    let bad = |e: zip::result::ZipError| {
        format!("is a damaged or truncated zip archive: {}", shown(&e.to_string()))
    };
    let mut archive = ZipArchive::new(BufReader::new(&mut *file)).map_err(bad)?;
    let mut entries = Places::new();
    for i in 0..archive.len() {
        let entry = archive.by_index_raw(i).map_err(bad)?;
        let name = entry.name().map_err(bad)?.into_owned();
        if entry.compression() != CompressionMethod::Stored || entry.encrypted() {
            return Err(format!(
                "has a compressed or encrypted entry {}, which PyTorch never writes: pack it anew without",
                shown(&name)
            ));
        }
        let (start, size) = (entry.data_start().unwrap_or(u64::MAX), entry.size());
        if start.checked_add(size).is_none_or(|end| end > len) {
            return Err(format!(
                "has an entry {} of {size} bytes that exceeds the file of {len}: it is truncated",
                shown(&name)
            ));
        }
        entries.insert(name, (start, size));
    }
    let mut pickles = entries.keys().filter(|name| *name == "data.pkl" || name.ends_with("/data.pkl"));
    let (Some(name), None) = (pickles.next(), pickles.next()) else {
        return Err("is a zip archive without exactly one data.pkl: it is not a PyTorch checkpoint".into());
    };
    let prefix = name.trim_end_matches("data.pkl").to_owned();
    drop(archive);
    let from = &mut *file;
    let mut bytes = |(start, size): (u64, u64), most: u64| -> Result<Vec<u8>, String> {
        let mut bytes = vec![0; size.min(most) as usize];
        from.seek(SeekFrom::Start(start)).map_err(unreadable)?;
        from.read_exact(&mut bytes).map_err(unreadable)?;
        Ok(bytes)
    };
    if let Some(&place) = entries.get(&format!("{prefix}byteorder")) {
        little_endian(bytes(place, 16)? == b"little")?;
    }
    let place = entries.get(name).copied().unwrap_or_default();
    let text = bytes(place, MAX_PICKLE)?;
    let (made, top, _) = pickle::read(text.as_slice(), text.len() as u64)?;
    let data = format!("{prefix}data/");
    let places =
        entries.into_iter().filter_map(|(k, v)| Some((k.strip_prefix(&data)?.to_owned(), v))).collect();
    load(file, len, &made, top, &places)
}

/// Five pickles (magic number, version, the writer's system, the object, the keys of the storages), then each
/// storage: the number of its elements, and the elements.
pub(super) fn read_legacy(file: &mut dyn Source, len: u64) -> Result<State, String> {
    let mut from = BufReader::new(&mut *file);
    let mut at = 0;
    let mut next = || -> Result<(Pickle, Value), String> {
        let (made, value, used) = pickle::read(&mut from, len - at)?;
        at += used;
        Ok((made, value))
    };
    let foreign =
        || "is a pickle, but not one that torch.save wrote: save it again with torch.save".to_owned();
    let (_, magic) = next().map_err(|e| format!("{e}; {}", foreign()))?;
    let (_, version) = next()?;
    if !matches!((magic, version), (Value::Int(LEGACY_MAGIC), Value::Int(LEGACY_VERSION))) {
        return Err(foreign());
    }
    let (system, value) = next()?;
    little_endian(matches!(system.get(value, "little_endian"), Some(Value::Bool(true))))?;
    let (made, top) = next()?;
    let (keys, list) = next()?;
    let mut elements = HashMap::new();
    for storage in &made.storages {
        let of = (storage.element, storage.count);
        if *elements.entry(made.key(storage)).or_insert(of) != of {
            return Err(format!(
                "gives storage {} two types or sizes: it is damaged",
                shown(made.key(storage))
            ));
        }
    }
    let mut places = Places::new();
    for &key in keys.seq(list).ok_or_else(foreign)? {
        let key = keys.text(key).ok_or_else(foreign)?;
        let &(element, count) = elements
            .get(key)
            .ok_or_else(|| format!("has a storage {} that no tensor uses: it is damaged", shown(key)))?;
        let mut declared = [0; 8];
        from.seek(SeekFrom::Start(at)).map_err(unreadable)?;
        from.read_exact(&mut declared).map_err(unreadable)?;
        let start = at + 8;
        let size = element.size().checked_mul(count).filter(|&size| size <= len.saturating_sub(start));
        let (Some(size), true) = (size, u64::from_le_bytes(declared) == count) else {
            return Err(format!(
                "has a storage {} of {count} elements that its data does not bear out: it is truncated or damaged",
                shown(key)
            ));
        };
        places.insert(key.to_owned(), (start, size));
        at = start + size;
    }
    load(file, len, &made, top, &places)
}

fn little_endian(is: bool) -> Result<(), String> {
    if is {
        return Ok(());
    }
    Err("was not written on a little-endian machine: load and save it on one".into())
}

/// The tensors of the state dict, which is the object itself or lies under one of [`UNDER`].
fn load(
    file: &mut dyn Source,
    len: u64,
    made: &Pickle,
    top: Value,
    places: &Places,
) -> Result<State, String> {
    let has_tensors =
        |&dict: &Value| made.dict(dict).is_some_and(|d| d.iter().any(|(_, v)| made.tensor(*v).is_some()));
    let inner = || UNDER.iter().filter_map(|key| made.get(top, key)).find(has_tensors);
    let Some(entries) = Some(top).filter(has_tensors).or_else(inner).and_then(|dict| made.dict(dict)) else {
        let keys = made.dict(top).unwrap_or_default().iter().filter_map(|(k, _)| made.text(*k));
        let keys: Vec<_> = keys.take(5).map(shown).collect();
        return Err(format!(
            "has no state dict at its top or under {UNDER:?}; its top has [{}]: save model.state_dict()",
            keys.join(", ")
        ));
    };
    // Tensors may share a storage, and a small file could so ask for a lot of memory. Honest weights have at least two
    // bytes for each element, so that this leaves room for those that are tied.
    let mut budget = len;
    let mut state = State::new();
    for &(name, value) in entries {
        let (Some(name), Some(tensor)) = (made.text(name), made.tensor(value)) else { continue };
        if names::is_counter(name) {
            continue;
        }
        let array = read_tensor(file, made, tensor, places, &mut budget)
            .map_err(|what| format!("tensor {}: {what}", shown(name)))?;
        state.insert(name.to_owned(), array);
    }
    Ok(state)
}

fn read_tensor(
    file: &mut dyn Source,
    made: &Pickle,
    tensor: &Tensor,
    places: &Places,
    budget: &mut u64,
) -> Result<Array, String> {
    let storage = made.storages.get(tensor.storage).ok_or("its storage is missing: the file is damaged")?;
    let (key, element) = (made.key(storage), storage.element);
    if let Element::Other(name, _) = element {
        return Err(format!("it holds {name}: weights must be float16, bfloat16, float32 or float64"));
    }
    let &(start, size) = places
        .get(key)
        .ok_or_else(|| format!("its storage {} is missing: the file is truncated or damaged", shown(key)))?;
    let available = size / element.size();
    if storage.count > available {
        return Err(format!(
            "its storage declares {} elements and has {available}: the file is truncated or damaged",
            storage.count
        ));
    }
    let (Tensor { shape, strides, offset, .. }, held) = (tensor, storage.count);
    let count = shape.iter().try_fold(1u64, |n, &size| n.checked_mul(size));
    // From the first element to past the last; none for an empty tensor.
    let reach = shape.iter().zip(strides).try_fold(1u64, |reach, (&size, &stride)| {
        reach.checked_add(size.saturating_sub(1).checked_mul(stride)?)
    });
    let fits = |count: &u64, reach: &u64| {
        *count == 0 || (*count <= held && offset.checked_add(*reach).is_some_and(|end| end <= held))
    };
    let (Some(count), Some(reach)) = (count, reach) else {
        return Err(format!("shape {shape:?} with strides {strides:?} overflows: the file is damaged"));
    };
    if !fits(&count, &reach) {
        return Err(format!(
            "shape {shape:?} with strides {strides:?} from element {offset} exceeds its storage of {held}: the file \
             is damaged"
        ));
    }
    let reach = if count == 0 { 0 } else { reach };
    *budget = budget.checked_sub(reach.max(count)).ok_or(
        "the tensors unpack to more elements than the file has bytes: it is not an honest checkpoint",
    )?;

    file.seek(SeekFrom::Start(start + if count == 0 { 0 } else { offset * element.size() }))
        .map_err(unreadable)?;
    let data = element::read(&mut *file, element, reach as usize).map_err(unreadable)?;
    let shape: Vec<usize> = shape.iter().map(|&n| n as usize).collect();
    let data = if count == 0 || is_row_major(&shape, strides) {
        data
    } else {
        gather(&data, &shape, strides, count)
    };
    Ok(Array { shape, data })
}

fn is_row_major(shape: &[usize], strides: &[u64]) -> bool {
    let mut expected = 1;
    shape.iter().zip(strides).rev().all(|(&size, &stride)| {
        let ok = size == 1 || stride == expected;
        expected *= size as u64;
        ok
    })
}

/// Elements in row-major order. Shape and strides have been checked against the length of `from`, but a dimension of
/// one element may have any stride.
fn gather(from: &[f32], shape: &[usize], strides: &[u64], count: u64) -> Vec<f32> {
    let steps: Vec<usize> =
        shape.iter().zip(strides).map(|(&n, &s)| if n == 1 { 0 } else { s as usize }).collect();
    let mut to = Vec::with_capacity(count as usize);
    let mut index = vec![0; shape.len()];
    let mut at = 0;
    while to.len() < count as usize {
        to.push(from[at]);
        for (i, (&size, &step)) in index.iter_mut().zip(shape.iter().zip(&steps)).rev() {
            *i += 1;
            at += step;
            if *i < size {
                break;
            }
            at -= size * step;
            *i = 0;
        }
    }
    to
}
