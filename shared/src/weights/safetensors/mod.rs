//! safetensors (<https://huggingface.co/docs/safetensors>), single files and shards.
//!
//! ```text
//! header length u64 | header: JSON, {"name": {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {}}
//! | data, tensors without gaps
//! ```
//!
//! Float tensors are fetched; others (`position_ids` and the like) are only listed.

mod header;
mod sharded;
mod writer;

pub use header::{SafetensorsHeader, Skipped};
pub use sharded::{ShardIndex, ShardedSafetensors};
pub use writer::write_safetensors;

use std::{
    collections::{HashMap, HashSet},
    fmt,
    marker::PhantomData,
    ops::Range,
};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor},
};

use super::{ByteSource, RawTensor, TensorInfo, TensorSource};
use crate::error::{Context, Error, Result};

/// An open file: its header, and tensors on demand.
#[derive(Debug)]
pub struct SafetensorsFile<S> {
    source: S,
    header: SafetensorsHeader,
    index: HashMap<String, usize>,
}

impl<S: ByteSource> SafetensorsFile<S> {
    /// Reads and checks the header.
    ///
    /// # Errors
    /// [`Error::Malformed`] if the file is no valid safetensors; [`Error::Unsupported`] for float types other than F32,
    /// F16 and BF16; whatever the source answers.
    pub async fn open(source: S) -> Result<Self> {
        let len = source.len();
        let prefix = source.read(0, len.min(8) as usize).await?;
        let json_len = header::json_len(&prefix, len)?;
        let json = source.read(8, json_len).await?;
        let header = SafetensorsHeader::parse(&json, len)?;
        let index = header.tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
        Ok(SafetensorsFile { source, header, index })
    }

    /// The whole header.
    pub fn header(&self) -> &SafetensorsHeader {
        &self.header
    }

    /// A value of `__metadata__`.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.header.metadata.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }
}

impl<S: ByteSource> TensorSource for SafetensorsFile<S> {
    fn tensors(&self) -> &[TensorInfo] {
        &self.header.tensors
    }

    async fn fetch(&self, name: &str) -> Result<RawTensor> {
        let &i = self.index.get(name).ok_or_else(|| Error::MissingTensor(name.to_string()))?;
        let info = &self.header.tensors[i];
        info.fetch_from(&self.source, self.header.offsets[i]).await.at(format_args!("tensor `{name}`"))
    }

    async fn fetch_rows(&self, name: &str, rows: Range<usize>) -> Result<RawTensor> {
        let &i = self.index.get(name).ok_or_else(|| Error::MissingTensor(name.to_string()))?;
        let info = &self.header.tensors[i];
        info.fetch_rows_from(&self.source, self.header.offsets[i], rows).await.at(format_args!("tensor `{name}`"))
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.index.get(name).map(|&i| &self.header.tensors[i])
    }
}

/// A JSON object in its order; a key that stands twice is an error, which JSON readers commonly let pass.
struct Unique<V>(Vec<(String, V)>);

/// A value whose kind may depend on its key.
trait Keyed<'de>: Sized {
    fn next<A: MapAccess<'de>>(key: &str, map: &mut A) -> std::result::Result<Self, A::Error>;
}

impl<'de> Keyed<'de> for String {
    fn next<A: MapAccess<'de>>(_: &str, map: &mut A) -> std::result::Result<Self, A::Error> {
        map.next_value()
    }
}

impl<'de, V: Keyed<'de>> Deserialize<'de> for Unique<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(Entries(PhantomData))
    }
}

struct Entries<V>(PhantomData<V>);

impl<'de, V: Keyed<'de>> Visitor<'de> for Entries<V> {
    type Value = Unique<V>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Unique<V>, A::Error> {
        let mut seen = HashSet::new();
        let mut out = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            if !seen.insert(key.clone()) {
                return Err(A::Error::custom(format_args!("`{key}` twice")));
            }
            let value = V::next(&key, &mut map)?;
            out.push((key, value));
        }
        Ok(Unique(out))
    }
}
