//! An interpreter of pickles that can build containers and describe tensors, and nothing else.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::file::{Listing, Stored};
use crate::format::Format;

/// Most values that it may build, and most that are looked at for tensors.
const VALUES_MAX: usize = 1 << 19;
/// Most bytes of a tensor's name, or a storage's.
pub const NAME_MAX: usize = 512;
/// Most tensors, and most dimensions of one.
const TENSORS_MAX: usize = 1 << 16;
const DIMENSIONS_MAX: usize = 8;
/// Keys that training scripts put around the weights, those of averaged weights first: they are what is meant where
/// there are both.
const AROUND: [&str; 14] = [
    "generator_ema",
    "ema",
    "model_ema",
    "ema_model",
    "state_dict_ema",
    "params_ema",
    "generator",
    "student",
    "module",
    "state_dict",
    "model",
    "model_state_dict",
    "params",
    "net",
];
/// Containers around a tensor, as in `{"module": {"blocks.0.weight": ...}}`.
const DEPTH_MAX: usize = 4;

/// A tensor as the pickle describes it.
#[derive(Debug, Clone)]
pub struct Described {
    format: Format,
    /// Of its storage.
    key: String,
    /// Numbers of the storage before it.
    offset: usize,
    shape: Vec<usize>,
}

impl Described {
    fn stored(&self, storage: &Range<usize>) -> Result<Stored, String> {
        let size = self.format.number_bytes();
        let numbers = self.shape.iter().try_fold(1usize, |n, &dim| n.checked_mul(dim));
        let bytes = |numbers: usize| numbers.checked_mul(size);
        let range = numbers.and_then(bytes).zip(bytes(self.offset)).and_then(|(length, offset)| {
            let start = storage.start.checked_add(offset)?;
            (start.checked_add(length)? <= storage.end).then_some((start, length))
        });
        let (start, length) = range.ok_or_else(|| {
            format!("shape {:?} at {} does not fit into its {} bytes", self.shape, self.offset, storage.len())
        })?;
        Ok(Stored { format: self.format, shape: self.shape.clone(), start, length })
    }
}

/// Tensors found in what a pickle built, and how many values were looked at.
#[derive(Default)]
struct Found {
    tensors: Vec<(String, Described)>,
    looked_at: usize,
}

/// Index of a value. Values stand in one list, so that however they are nested, dropping them is a loop.
pub type Id = usize;

/// What a program builds.
#[derive(Debug, Clone)]
pub enum Value {
    None,
    Integer(i64),
    /// A number or bytes that no tensor's description uses.
    Irrelevant,
    Text(String),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    Storage {
        format: Format,
        key: String,
    },
    Tensor(Box<Described>),
    Mark,
}

/// What of Python a pickle may name.
#[derive(Debug, Clone, Copy)]
pub enum Global {
    /// `torch.FloatStorage` and the like, and `torch.float32` and the like.
    Numbers(Format),
    /// `collections.OrderedDict`.
    OrderedDict,
    /// `torch._utils._rebuild_tensor`, `_v2`, and `_v3`, which names the dtype.
    RebuildTensor,
    /// `torch._utils._rebuild_parameter`.
    RebuildParameter,
    /// `torch.Size`.
    Size,
}

impl Global {
    fn named(module: &str, name: &str) -> Result<Self, String> {
        let numbers = |format| Ok(Global::Numbers(format));
        match (module, name) {
            ("collections", "OrderedDict") => Ok(Global::OrderedDict),
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2" | "_rebuild_tensor_v3") => {
                Ok(Global::RebuildTensor)
            }
            ("torch._utils", "_rebuild_parameter") => Ok(Global::RebuildParameter),
            ("torch", "Size") => Ok(Global::Size),
            ("torch", "DoubleStorage" | "float64") => numbers(Format::F64),
            ("torch", "FloatStorage" | "float32") => numbers(Format::F32),
            ("torch", "HalfStorage" | "float16") => numbers(Format::F16),
            ("torch", "BFloat16Storage" | "bfloat16") => numbers(Format::Bf16),
            ("torch", "float8_e4m3fn") => numbers(Format::F8E4m3),
            ("torch", "float8_e5m2") => numbers(Format::F8E5m2),
            ("torch", "CharStorage" | "int8") => numbers(Format::I8),
            ("torch", "ByteStorage" | "uint8") | ("torch.storage", "UntypedStorage") => numbers(Format::U8),
            ("torch", "LongStorage" | "int64") => numbers(Format::Other("i64")),
            ("torch", "IntStorage" | "int32") => numbers(Format::Other("i32")),
            ("torch", "BoolStorage" | "bool") => numbers(Format::Other("bool")),
            _ => Err(format!(
                "asks for {module}.{name}, which is refused: only tensors are read, no code is run; save it as safetensors"
            )),
        }
    }
}

/// The state of a program that runs.
pub struct Machine<'a> {
    program: &'a [u8],
    pub at: usize,
    stack: Vec<Id>,
    pub values: Vec<Value>,
    memo: BTreeMap<usize, Id>,
    /// Items of dictionaries that were made of lists, which stay.
    copied: usize,
}

impl<'a> Machine<'a> {
    pub fn new(program: &'a [u8]) -> Self {
        Machine { program, at: 0, stack: Vec::new(), values: Vec::new(), memo: BTreeMap::new(), copied: 0 }
    }

    /// The tensors under a value, where each storage's bytes lie somewhere.
    pub fn listing<'s>(&self, root: Id, storage: impl Fn(&str) -> Option<&'s Range<usize>>) -> Result<Listing, String> {
        let mut found = Found::default();
        let (root, notes) = self.unwrapped(root);
        self.collect(root, "", DEPTH_MAX, &mut found)?;
        let mut tensors = BTreeMap::new();
        for (name, tensor) in found.tensors {
            let storage = storage(&tensor.key)
                .ok_or_else(|| format!("{name}: its numbers, storage {}, are not there", tensor.key))?;
            let stored = tensor.stored(storage).map_err(|reason| format!("{name}: {reason}"))?;
            if tensors.insert(name.clone(), stored).is_some() {
                return Err(format!("{name}: there twice"));
            }
        }
        Ok(Listing { tensors, metadata: BTreeMap::new(), notes })
    }

    /// An item of a dictionary.
    pub fn item(&self, dict: Id, wanted: &str) -> Option<&Value> {
        let Value::Dict(items) = &self.values[dict] else { return None };
        let named = |key: Id| matches!(&self.values[key], Value::Text(text) if text == wanted);
        items.iter().find(|(key, _)| named(*key)).map(|(_, value)| &self.values[*value])
    }

    /// Bytes of a number of every storage.
    pub fn storage_sizes(&self) -> BTreeMap<&str, usize> {
        let storages = self.values.iter().filter_map(|value| match value {
            Value::Storage { format, key } => Some((key.as_str(), format.number_bytes())),
            _ => None,
        });
        storages.collect()
    }

    /// Runs to the end and gives the value that is left.
    pub fn run(&mut self) -> Result<Id, String> {
        loop {
            match self.byte()? {
                b'.' => return self.pop(),
                0x80 => match self.byte()? {
                    0..=5 => {}
                    protocol => return Err(format!("pickle protocol {protocol} is not known")),
                },
                0x95 => drop(self.take(8)?),
                b'(' => self.push(Value::Mark)?,
                b'0' => drop(self.pop()?),
                b'1' => drop(self.pop_to_mark()?),
                b'2' => {
                    let top = *self.stack.last().ok_or("the stack is empty")?;
                    self.stack.push(top);
                    self.check_size()?;
                }
                b'N' => self.push(Value::None)?,
                0x88 => self.push(Value::Integer(1))?,
                0x89 => self.push(Value::Integer(0))?,
                b'J' => {
                    let value = i32::from_le_bytes(self.array()?) as i64;
                    self.push(Value::Integer(value))?
                }
                b'K' => {
                    let value = self.byte()? as i64;
                    self.push(Value::Integer(value))?
                }
                b'M' => {
                    let value = u16::from_le_bytes(self.array()?) as i64;
                    self.push(Value::Integer(value))?
                }
                0x8a => {
                    let length = self.byte()? as usize;
                    let bytes = self.take(length)?;
                    let value = integer(bytes).map_or(Value::Irrelevant, Value::Integer);
                    self.push(value)?
                }
                b'G' => {
                    self.take(8)?;
                    self.push(Value::Irrelevant)?
                }
                b'X' => {
                    let length = u32::from_le_bytes(self.array()?) as usize;
                    self.text(length)?
                }
                0x8c | b'U' => {
                    let length = self.byte()? as usize;
                    self.text(length)?
                }
                0x8d => {
                    let length = u64::from_le_bytes(self.array()?);
                    self.text(usize::try_from(length).map_err(|e| e.to_string())?)?
                }
                b'C' => {
                    let length = self.byte()? as usize;
                    self.take(length)?;
                    self.push(Value::Irrelevant)?
                }
                b'B' => {
                    let length = u32::from_le_bytes(self.array()?) as usize;
                    self.take(length)?;
                    self.push(Value::Irrelevant)?
                }
                b'}' => self.push(Value::Dict(Vec::new()))?,
                b']' => self.push(Value::List(Vec::new()))?,
                b')' => self.push(Value::Tuple(Vec::new()))?,
                b't' => {
                    let items = self.pop_to_mark()?;
                    self.push(Value::Tuple(items))?
                }
                count @ 0x85..=0x87 => {
                    let from = self.stack.len().checked_sub(count as usize - 0x84).ok_or("the stack is empty")?;
                    let items = self.stack.split_off(from);
                    self.push(Value::Tuple(items))?
                }
                b'a' => {
                    let item = self.pop()?;
                    self.append(vec![item])?
                }
                b'e' => {
                    let items = self.pop_to_mark()?;
                    self.append(items)?
                }
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.set(vec![key, value])?
                }
                b'u' => {
                    let items = self.pop_to_mark()?;
                    self.set(items)?
                }
                b'q' => {
                    let index = self.byte()? as usize;
                    self.remember(index)?
                }
                b'r' => {
                    let index = u32::from_le_bytes(self.array()?) as usize;
                    self.remember(index)?
                }
                0x94 => self.remember(self.memo.len())?,
                b'h' => {
                    let index = self.byte()? as usize;
                    self.recall(index)?
                }
                b'j' => {
                    let index = u32::from_le_bytes(self.array()?) as usize;
                    self.recall(index)?
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    let global = Global::named(module, name)?;
                    self.push(Value::Global(global))?
                }
                0x93 => {
                    let (name, module) = (self.pop_text()?, self.pop_text()?);
                    let global = Global::named(&module, &name)?;
                    self.push(Value::Global(global))?
                }
                b'Q' => {
                    let id = self.pop()?;
                    let storage = self.storage(id)?;
                    self.push(storage)?
                }
                b'R' => {
                    let (arguments, callable) = (self.pop()?, self.pop()?);
                    self.call(callable, arguments)?
                }
                // State of an OrderedDict: attributes beside its items, which describe no tensor.
                b'b' => {
                    self.pop()?;
                    let target = *self.stack.last().ok_or("the stack is empty")?;
                    if !matches!(self.values[target], Value::Dict(_)) {
                        return Err("sets the state of something that is no dictionary: refused".to_string());
                    }
                }
                other => {
                    let at = self.at - 1;
                    return Err(format!(
                        "instruction {other:#04x} at {at} is refused: only tensors are read, no code is run"
                    ));
                }
            }
        }
    }

    fn call(&mut self, callable: Id, arguments: Id) -> Result<(), String> {
        let Value::Global(global) = self.values[callable] else {
            return Err("calls something that is no function: refused".to_string());
        };
        let Value::Tuple(arguments) = &self.values[arguments] else {
            return Err("calls with arguments that are no tuple: refused".to_string());
        };
        match global {
            Global::OrderedDict => {
                let items = arguments.first().map_or(Some(Vec::new()), |&list| self.items(list));
                let items = items.ok_or("an OrderedDict of something else than pairs: refused")?;
                self.copied += items.len();
                self.push(Value::Dict(items))
            }
            // `torch.Size` and a parameter are transparent: they are what they were made from.
            Global::Size | Global::RebuildParameter => {
                let first = *arguments.first().ok_or("torch.Size or a parameter of nothing")?;
                self.stack.push(first);
                self.check_size()
            }
            Global::RebuildTensor => {
                let tensor = self.tensor(arguments)?;
                self.push(Value::Tensor(Box::new(tensor)))
            }
            Global::Numbers(_) => Err("calls a dtype: refused".to_string()),
        }
    }

    /// The pairs that Python 2 makes an OrderedDict of.
    fn items(&self, list: Id) -> Option<Vec<(Id, Id)>> {
        let Value::List(pairs) = &self.values[list] else { return None };
        let pair = |&pair: &Id| match &self.values[pair] {
            Value::List(pair) | Value::Tuple(pair) => {
                pair.as_slice().try_into().ok().map(|[key, value]: [Id; 2]| (key, value))
            }
            _ => None,
        };
        pairs.iter().map(pair).collect()
    }

    /// From (storage, offset, shape, stride, requires grad, hooks, and perhaps a dtype).
    fn tensor(&self, arguments: &[Id]) -> Result<Described, String> {
        let wrong = || "a tensor that is described in an unknown way".to_string();
        let [storage, offset, shape, stride, ..] = arguments else { return Err(wrong()) };
        let Value::Storage { format, key } = &self.values[*storage] else { return Err(wrong()) };
        let Value::Integer(offset) = self.values[*offset] else { return Err(wrong()) };
        let (shape, stride) = (self.integers(*shape).ok_or_else(wrong)?, self.integers(*stride).ok_or_else(wrong)?);
        let mut format = *format;
        if let Some(Value::Global(Global::Numbers(named))) = arguments.get(6).map(|&id| &self.values[id]) {
            format = *named;
        }
        let mut contiguous = 1usize;
        for (&dim, &step) in shape.iter().zip(&stride).rev() {
            if dim != 1 && step != contiguous {
                return Err(format!(
                    "a tensor of shape {shape:?} with strides {stride:?} is not contiguous; save it again after .contiguous()"
                ));
            }
            contiguous = contiguous.checked_mul(dim).ok_or_else(wrong)?;
        }
        if shape.len() != stride.len() {
            return Err(wrong());
        }
        let offset = usize::try_from(offset).map_err(|_| wrong())?;
        Ok(Described { format, key: key.clone(), offset, shape })
    }

    fn integers(&self, id: Id) -> Option<Vec<usize>> {
        let Value::Tuple(items) = &self.values[id] else { return None };
        if items.len() > DIMENSIONS_MAX {
            return None;
        }
        let integer = |&id: &Id| match self.values[id] {
            Value::Integer(n) => usize::try_from(n).ok(),
            _ => None,
        };
        items.iter().map(integer).collect()
    }

    /// From ("storage", type, key, device, count), and in old files what it is a part of.
    fn storage(&self, id: Id) -> Result<Value, String> {
        let wrong = || "a persistent object that is no storage: refused".to_string();
        let Value::Tuple(items) = &self.values[id] else { return Err(wrong()) };
        if items.get(5).is_some_and(|&whole| !matches!(self.values[whole], Value::None)) {
            return Err("a storage that is a part of another; save it again with a newer PyTorch".to_string());
        }
        let [kind, format, key, ..] = items[..] else { return Err(wrong()) };
        match (&self.values[kind], &self.values[format], &self.values[key]) {
            (Value::Text(kind), Value::Global(Global::Numbers(format)), Value::Text(key))
                if kind == "storage" && key.len() <= NAME_MAX =>
            {
                Ok(Value::Storage { format: *format, key: key.clone() })
            }
            _ => Err(wrong()),
        }
    }

    /// The dictionary of tensors inside of those that training scripts put around it, and what stands beside it.
    fn unwrapped(&self, root: Id) -> (Id, Vec<String>) {
        let (mut root, mut notes) = (root, Vec::new());
        for _ in 0..DEPTH_MAX {
            let Value::Dict(items) = &self.values[root] else { break };
            if items.iter().any(|(_, value)| matches!(self.values[*value], Value::Tensor(_))) {
                break;
            }
            let inside = items.iter().filter_map(|&(key, value)| match (&self.values[key], &self.values[value]) {
                (Value::Text(key), Value::Dict(_)) if key.len() <= NAME_MAX => Some((key.as_str(), value)),
                _ => None,
            });
            let inside: BTreeMap<&str, Id> = inside.collect();
            let Some((key, value)) = AROUND.iter().find_map(|key| inside.get_key_value(key)) else { break };
            let is_set = |value: Id| match &self.values[value] {
                Value::Dict(items) => items.iter().any(|(_, value)| matches!(self.values[*value], Value::Tensor(_))),
                _ => false,
            };
            let others = inside.iter().filter(|(other, value)| *other != key && is_set(**value));
            let others: Vec<&str> = others.map(|(other, _)| *other).collect();
            if !others.is_empty() {
                notes.push(format!("it holds {} too; only the weights of {key} are read", others.join(", ")));
            }
            root = *value;
        }
        (root, notes)
    }

    /// The tensors under a value.
    fn collect(&self, id: Id, prefix: &str, depth: usize, found: &mut Found) -> Result<(), String> {
        found.looked_at += 1;
        if found.looked_at > VALUES_MAX || found.tensors.len() > TENSORS_MAX || prefix.len() > NAME_MAX {
            return Err(format!("more than {TENSORS_MAX} tensors, or names of more than {NAME_MAX} bytes"));
        }
        match &self.values[id] {
            Value::Tensor(tensor) => found.tensors.push((prefix.to_string(), (**tensor).clone())),
            Value::Dict(items) if depth > 0 => {
                for &(key, value) in items {
                    let Value::Text(key) = &self.values[key] else { continue };
                    let name = match prefix {
                        "" => key.clone(),
                        _ => format!("{prefix}.{key}"),
                    };
                    self.collect(value, &name, depth - 1, found)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn append(&mut self, items: Vec<Id>) -> Result<(), String> {
        let target = *self.stack.last().ok_or("the stack is empty")?;
        match &mut self.values[target] {
            Value::List(list) => list.extend(items),
            _ => return Err("appends to something that is no list: refused".to_string()),
        }
        Ok(())
    }

    fn set(&mut self, items: Vec<Id>) -> Result<(), String> {
        let target = *self.stack.last().ok_or("the stack is empty")?;
        match &mut self.values[target] {
            Value::Dict(dict) if items.len().is_multiple_of(2) => {
                dict.extend(items.as_chunks::<2>().0.iter().map(|&[key, value]| (key, value)));
            }
            _ => return Err("sets items of something that is no dictionary: refused".to_string()),
        }
        Ok(())
    }

    fn text(&mut self, length: usize) -> Result<(), String> {
        let text = std::str::from_utf8(self.take(length)?).map_err(|e| e.to_string())?.to_string();
        self.push(Value::Text(text))
    }

    fn remember(&mut self, index: usize) -> Result<(), String> {
        let top = *self.stack.last().ok_or("the stack is empty")?;
        self.memo.insert(index, top);
        self.check_size()
    }

    fn recall(&mut self, index: usize) -> Result<(), String> {
        let id = *self.memo.get(&index).ok_or_else(|| format!("recalls {index}, which was not remembered"))?;
        self.stack.push(id);
        self.check_size()
    }

    fn push(&mut self, value: Value) -> Result<(), String> {
        self.values.push(value);
        self.stack.push(self.values.len() - 1);
        self.check_size()
    }

    fn check_size(&self) -> Result<(), String> {
        if self.values.len().max(self.stack.len()).max(self.memo.len()).max(self.copied) > VALUES_MAX {
            return Err(format!("more than {VALUES_MAX} values"));
        }
        Ok(())
    }

    fn pop(&mut self) -> Result<Id, String> {
        self.stack.pop().ok_or_else(|| "the stack is empty".to_string())
    }

    fn pop_text(&mut self) -> Result<String, String> {
        let id = self.pop()?;
        match &self.values[id] {
            Value::Text(text) => Ok(text.clone()),
            _ => Err("names something by what is no text: refused".to_string()),
        }
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, String> {
        let mark = self.stack.iter().rposition(|&id| matches!(self.values[id], Value::Mark)).ok_or("no mark")?;
        let items = self.stack.split_off(mark + 1);
        self.stack.pop();
        Ok(items)
    }

    fn byte(&mut self) -> Result<u8, String> {
        Ok(self.array::<1>()?[0])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(length).filter(|&end| end <= self.program.len());
        let end = end.ok_or("it is cut short")?;
        let taken = &self.program[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let rest = &self.program[self.at..];
        let length = rest.iter().position(|&b| b == b'\n').ok_or("it is cut short")?;
        self.at += length + 1;
        std::str::from_utf8(&rest[..length]).map_err(|e| e.to_string())
    }
}

/// A little-endian integer of any length that fits.
fn integer(bytes: &[u8]) -> Option<i64> {
    if bytes.len() > 8 {
        return None;
    }
    let sign = bytes.last().is_some_and(|b| b & 0x80 != 0);
    let mut wide = [if sign { 0xff } else { 0 }; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    Some(i64::from_le_bytes(wide))
}
