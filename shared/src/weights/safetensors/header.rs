//! The JSON header and its checks.

use serde::{Deserialize, de::MapAccess};

use super::{Keyed, Unique};
use crate::{
    error::{Error, Result},
    weights::{Dtype, TensorInfo},
};

/// The reference implementation's limit.
const MAX_HEADER: u64 = 100_000_000;
const METADATA_KEY: &str = "__metadata__";
/// More dimensions than any framework has.
const MAX_DIMS: usize = 16;

/// A safetensors header.
#[derive(Debug, Clone)]
pub struct SafetensorsHeader {
    /// `__metadata__`, in the file's order.
    pub metadata: Vec<(String, String)>,
    /// Float tensors, in the order of their data.
    pub tensors: Vec<TensorInfo>,
    /// Where each tensor's bytes begin in the file, in the order of `tensors`.
    pub offsets: Vec<u64>,
    /// Tensors of other kinds, which cannot be fetched.
    pub skipped: Vec<Skipped>,
}

/// A tensor of integers or bools.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Name in the file.
    pub name: String,
    /// safetensors' name of its type.
    pub dtype: String,
    /// Shape, outermost first.
    pub shape: Vec<usize>,
    /// Bytes.
    pub bytes: u64,
}

/// A value of the header's object; which of the two follows from its key.
enum Value {
    Tensor(Entry),
    Metadata(Unique<String>),
}

impl<'de> Keyed<'de> for Value {
    fn next<A: MapAccess<'de>>(key: &str, map: &mut A) -> std::result::Result<Self, A::Error> {
        match key {
            METADATA_KEY => map.next_value().map(Value::Metadata),
            _ => map.next_value().map(Value::Tensor),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// Length of the JSON, from the file's first eight bytes.
pub(super) fn json_len(prefix: &[u8], file_len: u64) -> Result<usize> {
    let Some(len) = prefix.first_chunk::<8>().map(|b| u64::from_le_bytes(*b)) else {
        return Err(Error::Malformed(format!("expected a header length of 8 bytes but found {file_len}")));
    };
    // 8 bytes were there, so no underflow.
    if len > MAX_HEADER.min(file_len - 8) || len < 2 {
        return Err(Error::Malformed(format!(
            "expected a header of 2 to {} bytes but found length {len}\nthe file is damaged, or no safetensors",
            MAX_HEADER.min(file_len - 8)
        )));
    }
    Ok(len as usize) // at most 100 MB
}

impl SafetensorsHeader {
    /// Parses and checks the JSON of a file of `file_len` bytes.
    ///
    /// # Errors
    /// [`Error::Malformed`] and [`Error::Unsupported`], as [`super::SafetensorsFile::open`].
    pub fn parse(json: &[u8], file_len: u64) -> Result<Self> {
        if json.first() != Some(&b'{') {
            return Err(Error::Malformed("expected a header that begins with `{`\nthe file is no safetensors".into()));
        }
        let Unique(values) = serde_json::from_slice::<Unique<Value>>(json)
            .map_err(|e| Error::Malformed(format!("expected a safetensors header but found {e}")))?;
        let data_start = 8 + json.len() as u64;
        let mut metadata = Vec::new();
        let mut entries = Vec::new();
        for (name, value) in values {
            match value {
                Value::Metadata(Unique(pairs)) => metadata = pairs,
                Value::Tensor(entry) => entries.push((name, entry)),
            }
        }
        // Tensors of no bytes may share an offset: the name settles the order.
        entries.sort_by(|(a, x), (b, y)| (x.data_offsets, a).cmp(&(y.data_offsets, b)));

        let mut header = SafetensorsHeader { metadata, tensors: vec![], offsets: vec![], skipped: vec![] };
        let mut end = 0;
        for (name, entry) in entries {
            if entry.data_offsets.0 != end {
                return Err(Error::Malformed(format!(
                    "expected `{name}` to begin at {end}, where the tensor before ends, but found {}",
                    entry.data_offsets.0
                )));
            }
            end = entry.data_offsets.1;
            header.add(name, entry, data_start)?;
        }
        if data_start.checked_add(end) != Some(file_len) {
            return Err(Error::Malformed(format!(
                "expected {} bytes of data but found {}\nthe file is damaged or cut short",
                end,
                file_len.saturating_sub(data_start)
            )));
        }
        Ok(header)
    }

    fn add(&mut self, name: String, entry: Entry, data_start: u64) -> Result<()> {
        let Entry { dtype, shape, data_offsets: (begin, end) } = entry;
        let wrong_shape = || Error::Malformed(format!("expected `{name}` to have a shape but found {shape:?}"));
        let sizes = shape.iter().map(|&d| usize::try_from(d)).collect::<std::result::Result<Vec<_>, _>>();
        let (Ok(sizes), true) = (sizes, shape.len() <= MAX_DIMS) else { return Err(wrong_shape()) };
        let (float, element_bytes) = element(&name, &dtype)?;
        let bytes = sizes.iter().try_fold(element_bytes, |n, &d| n.checked_mul(d as u64)).ok_or_else(wrong_shape)?;
        if begin.checked_add(bytes) != Some(end) {
            return Err(Error::Malformed(format!(
                "expected `{name}` ({dtype} {shape:?}) to have {bytes} bytes but found offsets {begin} to {end}"
            )));
        }
        match float {
            Some(dtype) => {
                let start = data_start.checked_add(begin).ok_or_else(wrong_shape)?;
                self.tensors.push(TensorInfo { name, shape: sizes, dtype });
                self.offsets.push(start);
            }
            None => self.skipped.push(Skipped { name, dtype, shape: sizes, bytes }),
        }
        Ok(())
    }
}

/// What a type's name stands for: ours if it is fetched, and its bytes.
fn element(name: &str, dtype: &str) -> Result<(Option<Dtype>, u64)> {
    Ok(match dtype {
        "F32" => (Some(Dtype::F32), 4),
        "F16" => (Some(Dtype::F16), 2),
        "BF16" => (Some(Dtype::BF16), 2),
        "BOOL" | "U8" | "I8" => (None, 1),
        "U16" | "I16" => (None, 2),
        "U32" | "I32" => (None, 4),
        "U64" | "I64" => (None, 8),
        other => {
            return Err(Error::Unsupported(format!(
                "expected `{name}` to be F32, F16 or BF16 but found {}\nsave the checkpoint in one of these",
                other.escape_debug()
            )));
        }
    })
}
