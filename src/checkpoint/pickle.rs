//! A machine for the part of Python's pickle language that tensors need.
//!
//! Pickle is a program that can name any Python function and call it. This machine knows the names in [`Global`] and
//! nothing else, and "calls" them by making plain data; every other name or instruction ends the reading.
//!
//! Values live in one arena and refer to each other by index. So a file can nest or tie values as it likes: freeing
//! them is flat, copying one is copying an index, and no container holds more than the instructions that filled it.

use std::collections::HashMap;
use std::io::{ErrorKind, Read};

use super::element::Element;
use super::shown;

/// That of a whole b5 with its optimizer has 0.85 MB. A value takes about 60 bytes here and one byte there.
pub(super) const MAX_PICKLE: u64 = 4 << 20;
/// PyTorch's own limit is 64; weights have 4.
const MAX_RANK: usize = 8;

#[derive(Clone, Copy, Debug)]
pub(super) enum Value {
    /// Something that is skipped: a float, bytes, a device.
    Opaque,
    None,
    Bool(bool),
    Int(i128),
    Text(usize),
    /// A tuple or a list.
    Seq(usize),
    Dict(usize),
    Storage(usize),
    Tensor(usize),
    Global(Global),
}

/// The Python names that are known.
#[derive(Clone, Copy, Debug)]
pub(super) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Size,
    Device,
    Storage(Element),
}

impl Global {
    fn find(module: &str, name: &str) -> Option<Self> {
        let other = |name, size| Self::Storage(Element::Other(name, size));
        Some(match (module, name) {
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Self::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Self::RebuildParameter,
            ("torch", "Size") => Self::Size,
            ("torch", "device") => Self::Device,
            ("torch", "HalfStorage") => Self::Storage(Element::F16),
            ("torch", "BFloat16Storage") => Self::Storage(Element::Bf16),
            ("torch", "FloatStorage") => Self::Storage(Element::F32),
            ("torch", "DoubleStorage") => Self::Storage(Element::F64),
            ("torch", "LongStorage") => other("int64", 8),
            ("torch", "IntStorage") => other("int32", 4),
            ("torch", "ShortStorage") => other("int16", 2),
            ("torch", "CharStorage") => other("int8", 1),
            ("torch", "ByteStorage") => other("uint8", 1),
            ("torch", "BoolStorage") => other("bool", 1),
            ("torch", "ComplexFloatStorage") => other("complex64", 8),
            ("torch", "ComplexDoubleStorage") => other("complex128", 16),
            _ => return None,
        })
    }
}

/// A named piece of memory that tensors look into.
#[derive(Debug)]
pub(super) struct Storage {
    pub(super) element: Element,
    /// An index of [`Pickle::texts`].
    key: usize,
    pub(super) count: u64,
}

/// A view of a storage, in elements.
#[derive(Debug)]
pub(super) struct Tensor {
    /// An index of [`Pickle::storages`].
    pub(super) storage: usize,
    pub(super) offset: u64,
    pub(super) shape: Vec<u64>,
    pub(super) strides: Vec<u64>,
}

/// What a pickle made.
#[derive(Debug, Default)]
pub(super) struct Pickle {
    texts: Vec<String>,
    seqs: Vec<Vec<Value>>,
    dicts: Vec<Vec<(Value, Value)>>,
    pub(super) storages: Vec<Storage>,
    tensors: Vec<Tensor>,
    /// Values copied from one container into another, which no instruction paid for.
    copied: u64,
}

impl Pickle {
    pub(super) fn text(&self, value: Value) -> Option<&str> {
        let Value::Text(i) = value else { return None };
        self.texts.get(i).map(String::as_str)
    }

    pub(super) fn seq(&self, value: Value) -> Option<&[Value]> {
        let Value::Seq(i) = value else { return None };
        self.seqs.get(i).map(Vec::as_slice)
    }

    pub(super) fn dict(&self, value: Value) -> Option<&[(Value, Value)]> {
        let Value::Dict(i) = value else { return None };
        self.dicts.get(i).map(Vec::as_slice)
    }

    pub(super) fn tensor(&self, value: Value) -> Option<&Tensor> {
        let Value::Tensor(i) = value else { return None };
        self.tensors.get(i)
    }

    pub(super) fn key(&self, storage: &Storage) -> &str {
        self.texts.get(storage.key).map_or("", String::as_str)
    }

    /// The entry of a dictionary; the last one, where a key repeats.
    pub(super) fn get(&self, dict: Value, key: &str) -> Option<Value> {
        self.dict(dict)?.iter().rev().find(|(k, _)| self.text(*k) == Some(key)).map(|&(_, v)| v)
    }

    fn seq_from(&mut self, values: Vec<Value>) -> Value {
        self.seqs.push(values);
        Value::Seq(self.seqs.len() - 1)
    }

    fn dict_from(&mut self, entries: Vec<(Value, Value)>) -> Value {
        self.dicts.push(entries);
        Value::Dict(self.dicts.len() - 1)
    }
}

/// Reads one pickle. Returns what it made, its result, and how many bytes it had, of which it reads at most `limit`.
pub(super) fn read(from: impl Read, limit: u64) -> Result<(Pickle, Value, u64), String> {
    let limit = limit.min(MAX_PICKLE);
    let mut machine = Machine {
        from,
        limit,
        used: 0,
        made: Pickle::default(),
        stack: vec![],
        marks: vec![],
        memo: HashMap::new(),
    };
    let value = machine.run().map_err(|what| format!("{what} (byte {} of its pickle)", machine.used))?;
    Ok((machine.made, value, machine.used))
}

struct Machine<R> {
    from: R,
    limit: u64,
    used: u64,
    made: Pickle,
    stack: Vec<Value>,
    /// Lengths of the stack at each MARK.
    marks: Vec<usize>,
    memo: HashMap<u64, Value>,
}

const SAVE_AGAIN: &str =
    "load it in PyTorch if you trust it, and save only the weights: torch.save(model.state_dict(), FILE)";

fn malformed(what: &str) -> String {
    format!("has a malformed pickle ({what}): it is damaged")
}

impl<R: Read> Machine<R> {
    fn run(&mut self) -> Result<Value, String> {
        loop {
            let [opcode] = self.bytes()?;
            match opcode {
                // PROTO
                0x80 => {
                    let [version] = self.bytes()?;
                    if !(2..=5).contains(&version) {
                        return Err(format!(
                            "has a pickle of protocol {version}: 2 to 5 are known; {SAVE_AGAIN}"
                        ));
                    }
                }
                // FRAME: a hint for buffering
                0x95 => drop(self.bytes::<8>()?),
                // STOP
                b'.' => return self.pop(),
                b'(' => self.marks.push(self.stack.len()),
                b'N' => self.stack.push(Value::None),
                0x88 => self.stack.push(Value::Bool(true)),
                0x89 => self.stack.push(Value::Bool(false)),
                // BININT, BININT1, BININT2
                b'J' => {
                    let n = i32::from_le_bytes(self.bytes()?);
                    self.stack.push(Value::Int(n.into()));
                }
                b'K' => {
                    let [n] = self.bytes()?;
                    self.stack.push(Value::Int(n.into()));
                }
                b'M' => {
                    let n = u16::from_le_bytes(self.bytes()?);
                    self.stack.push(Value::Int(n.into()));
                }
                // LONG1, LONG4
                0x8a => {
                    let [n] = self.bytes()?;
                    self.long(n.into())?;
                }
                0x8b => {
                    let n = u32::from_le_bytes(self.bytes()?);
                    self.long(n.into())?;
                }
                // BINFLOAT
                b'G' => {
                    self.bytes::<8>()?;
                    self.stack.push(Value::Opaque);
                }
                // SHORT_BINSTRING, SHORT_BINUNICODE; BINSTRING, BINUNICODE; BINUNICODE8
                b'U' | 0x8c => {
                    let [n] = self.bytes()?;
                    self.string(n.into())?;
                }
                b'T' | b'X' => {
                    let n = u32::from_le_bytes(self.bytes()?);
                    self.string(n.into())?;
                }
                0x8d => {
                    let n = u64::from_le_bytes(self.bytes()?);
                    self.string(n)?;
                }
                // SHORT_BINBYTES, BINBYTES
                b'C' => {
                    let [n] = self.bytes()?;
                    self.block(n.into())?;
                    self.stack.push(Value::Opaque);
                }
                b'B' => {
                    let n = u32::from_le_bytes(self.bytes()?);
                    self.block(n.into())?;
                    self.stack.push(Value::Opaque);
                }
                // EMPTY_TUPLE and EMPTY_LIST, TUPLE1 to TUPLE3, TUPLE
                b')' | b']' => self.tuple(0)?,
                0x85..=0x87 => self.tuple(usize::from(opcode - 0x84))?,
                b't' => {
                    let values = self.pop_mark()?;
                    let value = self.made.seq_from(values);
                    self.stack.push(value);
                }
                b'}' => {
                    let value = self.made.dict_from(Vec::new());
                    self.stack.push(value);
                }
                // APPEND, APPENDS
                b'a' => {
                    let value = self.pop()?;
                    self.append(vec![value])?;
                }
                b'e' => {
                    let values = self.pop_mark()?;
                    self.append(values)?;
                }
                // SETITEM, SETITEMS
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.set(&[key, value])?;
                }
                b'u' => {
                    let values = self.pop_mark()?;
                    self.set(&values)?;
                }
                // BINGET, LONG_BINGET; BINPUT, LONG_BINPUT, MEMOIZE
                b'h' => {
                    let [i] = self.bytes()?;
                    self.recall(i.into())?;
                }
                b'j' => {
                    let i = u32::from_le_bytes(self.bytes()?);
                    self.recall(i.into())?;
                }
                b'q' => {
                    let [i] = self.bytes()?;
                    self.remember(i.into())?;
                }
                b'r' => {
                    let i = u32::from_le_bytes(self.bytes()?);
                    self.remember(i.into())?;
                }
                0x94 => self.remember(self.memo.len() as u64)?,
                // GLOBAL, STACK_GLOBAL
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.global(&module, &name)?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    let owned = |v| self.made.text(v).map(str::to_owned);
                    let (Some(module), Some(name)) = (owned(module), owned(name)) else {
                        return Err(malformed("a name that is not text"));
                    };
                    self.global(&module, &name)?;
                }
                // BINPERSID
                b'Q' => {
                    let id = self.pop()?;
                    let value = self.storage(id)?;
                    self.stack.push(value);
                }
                b'R' => {
                    let (arguments, function) = (self.pop()?, self.pop()?);
                    let value = self.reduce(function, arguments)?;
                    self.stack.push(value);
                }
                // BUILD: PyTorch hangs `_metadata` on its state dict, which is not needed
                b'b' => {
                    self.pop()?;
                    if !matches!(self.stack.last(), Some(Value::Dict(_))) {
                        return Err(format!(
                            "would set the state of a Python object, which is refused: {SAVE_AGAIN}"
                        ));
                    }
                }
                _ => {
                    return Err(format!(
                        "uses pickle opcode {opcode:#04x} (\"{}\"), which tensors do not need and which may run \
                         code: it is not supported; {SAVE_AGAIN}",
                        opcode.escape_ascii()
                    ));
                }
            }
        }
    }

    fn take(&mut self, n: u64) -> Result<(), String> {
        if n > self.limit - self.used {
            return Err(format!(
                "has a pickle that ends early or exceeds {MAX_PICKLE} bytes: it is truncated or damaged"
            ));
        }
        self.used += n;
        Ok(())
    }

    fn fill(&mut self, to: &mut [u8]) -> Result<(), String> {
        self.from.read_exact(to).map_err(|e| match e.kind() {
            ErrorKind::UnexpectedEof => malformed("it ends early"),
            _ => format!("cannot be read: {e}"),
        })
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], String> {
        self.take(N as u64)?;
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn block(&mut self, n: u64) -> Result<Vec<u8>, String> {
        self.take(n)?;
        let mut bytes = vec![0; n as usize];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn line(&mut self) -> Result<String, String> {
        let mut line = Vec::new();
        loop {
            match self.bytes()? {
                [b'\n'] => return String::from_utf8(line).map_err(|_| malformed("a name that is not UTF-8")),
                _ if line.len() == 200 => return Err(malformed("a name of more than 200 bytes")),
                [byte] => line.push(byte),
            }
        }
    }

    fn string(&mut self, n: u64) -> Result<(), String> {
        let text = String::from_utf8(self.block(n)?).map_err(|_| malformed("text that is not UTF-8"))?;
        self.made.texts.push(text);
        self.stack.push(Value::Text(self.made.texts.len() - 1));
        Ok(())
    }

    fn long(&mut self, n: u64) -> Result<(), String> {
        let bytes = self.block(n)?;
        // Little-endian two's complement. Nothing that tensors need is longer than 16 bytes.
        let value = if bytes.len() > 16 {
            Value::Opaque
        } else {
            let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
            let mut wide = [if negative { 0xff } else { 0 }; 16];
            wide.iter_mut().zip(&bytes).for_each(|(to, from)| *to = *from);
            Value::Int(i128::from_le_bytes(wide))
        };
        self.stack.push(value);
        Ok(())
    }

    fn pop(&mut self) -> Result<Value, String> {
        // What lies under a mark belongs to the container that the mark opened.
        if self.marks.last().is_some_and(|&mark| self.stack.len() <= mark) {
            return Err(malformed("a value is missing after a mark"));
        }
        self.stack.pop().ok_or_else(|| malformed("the stack is empty"))
    }

    fn pop_mark(&mut self) -> Result<Vec<Value>, String> {
        match self.marks.pop() {
            Some(mark) if mark <= self.stack.len() => Ok(self.stack.split_off(mark)),
            _ => Err(malformed("a mark is missing")),
        }
    }

    fn tuple(&mut self, n: usize) -> Result<(), String> {
        let mut values = Vec::with_capacity(n);
        for _ in 0..n {
            values.push(self.pop()?);
        }
        values.reverse();
        let value = self.made.seq_from(values);
        self.stack.push(value);
        Ok(())
    }

    fn append(&mut self, mut values: Vec<Value>) -> Result<(), String> {
        let list = match self.stack.last() {
            Some(&Value::Seq(i)) => self.made.seqs.get_mut(i),
            _ => None,
        };
        list.ok_or_else(|| malformed("appending to what is not a list"))?.append(&mut values);
        Ok(())
    }

    fn set(&mut self, values: &[Value]) -> Result<(), String> {
        let dict = match self.stack.last() {
            Some(&Value::Dict(i)) => self.made.dicts.get_mut(i),
            _ => None,
        };
        let dict = dict.ok_or_else(|| malformed("setting items of what is not a dictionary"))?;
        let (pairs, []) = values.as_chunks::<2>() else { return Err(malformed("a key without a value")) };
        dict.extend(pairs.iter().map(|&[key, value]| (key, value)));
        Ok(())
    }

    fn recall(&mut self, i: u64) -> Result<(), String> {
        let value = *self.memo.get(&i).ok_or_else(|| malformed("a reference to nothing"))?;
        self.stack.push(value);
        Ok(())
    }

    fn remember(&mut self, i: u64) -> Result<(), String> {
        let value = *self.stack.last().ok_or_else(|| malformed("the stack is empty"))?;
        self.memo.insert(i, value);
        Ok(())
    }

    fn global(&mut self, module: &str, name: &str) -> Result<(), String> {
        let global = Global::find(module, name).ok_or_else(|| {
            format!(
                "would run code: it names {}.{}, which is not one of the few names that tensors need; {SAVE_AGAIN}",
                shown(module),
                shown(name)
            )
        })?;
        self.stack.push(Value::Global(global));
        Ok(())
    }

    /// `("storage", type, key, device, count)`, and in the old container a sixth part that says of which storage this
    /// is a part.
    fn storage(&mut self, id: Value) -> Result<Value, String> {
        let (kind, element, key, count) = match self.made.seq(id) {
            Some(
                &[kind, Value::Global(Global::Storage(element)), Value::Text(key), _, Value::Int(count)]
                | &[
                    kind,
                    Value::Global(Global::Storage(element)),
                    Value::Text(key),
                    _,
                    Value::Int(count),
                    Value::None,
                ],
            ) => (kind, element, key, count),
            Some([_, _, _, _, _, Value::Seq(_)]) => {
                return Err(format!(
                    "has storages that are views, as PyTorch before 0.4 wrote: {SAVE_AGAIN}"
                ));
            }
            _ => return Err(malformed("a persistent id that is not a storage")),
        };
        if self.made.text(kind) != Some("storage") {
            return Err(malformed("a persistent id that is not a storage"));
        }
        let count =
            u64::try_from(count).map_err(|_| format!("has a storage of {count} elements: it is damaged"))?;
        self.made.storages.push(Storage { element, key, count });
        Ok(Value::Storage(self.made.storages.len() - 1))
    }

    fn reduce(&mut self, function: Value, arguments: Value) -> Result<Value, String> {
        let Value::Global(function) = function else {
            return Err(malformed("calling what is not a function"));
        };
        let arguments =
            self.made.seq(arguments).ok_or_else(|| malformed("arguments that are not a tuple"))?;
        match (function, arguments) {
            (Global::OrderedDict, []) => Ok(self.made.dict_from(Vec::new())),
            // Python 2 gives the items as a list of pairs.
            (Global::OrderedDict, &[items]) => {
                let items = self.made.seq(items).ok_or_else(|| malformed("items that are not a list"))?;
                // Else a file could have one long list copied again and again.
                let copied = self.made.copied + items.len() as u64;
                if copied > self.used {
                    return Err(malformed("it copies more than it holds"));
                }
                let pair = |&item: &Value| match self.made.seq(item) {
                    Some(&[key, value]) => Ok((key, value)),
                    _ => Err(malformed("an item that is not a pair")),
                };
                let entries = items.iter().map(pair).collect::<Result<_, _>>()?;
                self.made.copied = copied;
                Ok(self.made.dict_from(entries))
            }
            (Global::RebuildTensor, &[Value::Storage(storage), Value::Int(offset), shape, strides, ..]) => {
                let sizes = |value| -> Result<Vec<u64>, String> {
                    let values =
                        self.made.seq(value).ok_or_else(|| malformed("a shape that is not a tuple"))?;
                    if values.len() > MAX_RANK {
                        return Err(format!(
                            "has a tensor of {} dimensions: at most {MAX_RANK} are supported",
                            values.len()
                        ));
                    }
                    let size = |v: &Value| match v {
                        Value::Int(n) => u64::try_from(*n).ok(),
                        _ => None,
                    };
                    values
                        .iter()
                        .map(|v| size(v).ok_or_else(|| malformed("a negative or huge size or stride")))
                        .collect()
                };
                let (shape, strides) = (sizes(shape)?, sizes(strides)?);
                if shape.len() != strides.len() {
                    return Err(malformed("a tensor with more sizes than strides, or fewer"));
                }
                let offset = u64::try_from(offset).map_err(|_| malformed("a negative or huge offset"))?;
                self.made.tensors.push(Tensor { storage, offset, shape, strides });
                Ok(Value::Tensor(self.made.tensors.len() - 1))
            }
            (Global::RebuildParameter, &[tensor @ Value::Tensor(_), ..]) => Ok(tensor),
            (Global::Size, &[sizes @ Value::Seq(_)]) => Ok(sizes),
            (Global::Device, _) => Ok(Value::Opaque),
            (function, _) => Err(malformed(&format!("{function:?} with arguments it does not take"))),
        }
    }
}
