//! Writes GGUF version 3.

use std::{borrow::Cow, collections::HashSet, io::Write};

use super::{
    ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAGIC, MAX_DIMS, align_up, ggml_from_dtype,
    metadata::{Metadata, MetadataArray, MetadataValue, ValueType},
};
use crate::{
    error::{Error, Result},
    weights::{RawTensor, TensorInfo},
};

/// llama.cpp keeps tensor names in 64 bytes, the terminating zero among them.
const MAX_TENSOR_NAME: usize = 63;

/// Collects metadata and tensors and writes them in the order of their arrival: the same calls, the same bytes.
#[derive(Debug, Default)]
pub struct GgufWriter {
    metadata: Metadata,
    /// Bytes of those that are here already.
    tensors: Vec<(TensorInfo, Option<Vec<u8>>)>,
    names: HashSet<String>,
}

impl GgufWriter {
    /// An empty file.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a metadata entry, for example `("llama.block_count", 4u32)`.
    ///
    /// # Errors
    /// [`Error::Malformed`] if the key is there already; [`Error::Config`] for `general.alignment` (this writer aligns
    /// to 32, the default, and an entry could only contradict it).
    pub fn metadata(&mut self, key: impl Into<String>, value: impl Into<MetadataValue>) -> Result<&mut Self> {
        let key = key.into();
        if key.is_empty() || key.len() > usize::from(u16::MAX) || key == ALIGNMENT_KEY {
            return Err(Error::Config(format!(
                "expected a metadata key of 1 to 65535 bytes other than `{ALIGNMENT_KEY}` but found `{key}`"
            )));
        }
        self.metadata.insert(key, value)?;
        Ok(self)
    }

    /// Adds a tensor.
    ///
    /// # Errors
    /// [`Error::Config`] if the name is taken or too long for llama.cpp, or the bytes are not those of shape and type.
    pub fn tensor(&mut self, name: impl Into<String>, tensor: RawTensor) -> Result<&mut Self> {
        let RawTensor { shape, dtype, bytes } = tensor;
        self.add(TensorInfo { name: name.into(), shape, dtype }, Some(bytes))
    }

    /// Adds a tensor whose bytes come when the file is written: [`GgufWriter::write_with`].
    ///
    /// # Errors
    /// As [`GgufWriter::tensor`].
    pub fn declare(&mut self, info: TensorInfo) -> Result<&mut Self> {
        self.add(info, None)
    }

    fn add(&mut self, info: TensorInfo, bytes: Option<Vec<u8>>) -> Result<&mut Self> {
        let name = &info.name;
        if name.is_empty() || name.len() > MAX_TENSOR_NAME {
            return Err(Error::Config(format!(
                "expected a tensor name of 1 to {MAX_TENSOR_NAME} bytes but found `{name}` ({})",
                name.len()
            )));
        }
        let expected = info.dtype.bytes_of(&info.shape).filter(|_| info.shape.len() <= MAX_DIMS);
        let found = bytes.as_ref().map_or(expected, |bytes| Some(bytes.len() as u64));
        if expected.is_none() || found != expected {
            return Err(Error::Config(format!(
                "expected `{name}` to have the bytes of {} {:?} but found {}",
                info.dtype,
                info.shape,
                found.unwrap_or_default()
            )));
        }
        if !self.names.insert(name.clone()) {
            return Err(Error::Config(format!("expected tensor names to be unique but found `{name}` twice")));
        }
        self.tensors.push((info, bytes));
        Ok(self)
    }

    /// Writes the file.
    ///
    /// # Errors
    /// [`Error::Io`] if `out` fails; [`Error::Config`] if the bytes of a tensor are still to come.
    pub fn write(&self, out: &mut impl Write) -> Result<()> {
        self.write_with(out, |info| Err(Error::Config(format!("expected the bytes of `{}` but found none", info.name))))
    }

    /// Writes the file; `bytes_of` gives those of each declared tensor, in the order of their declaration, so that a file
    /// may be larger than memory.
    ///
    /// # Errors
    /// As [`GgufWriter::write`]; what `bytes_of` answers, and another number of bytes than declared.
    pub fn write_with(
        &self,
        out: &mut impl Write,
        mut bytes_of: impl FnMut(&TensorInfo) -> Result<Vec<u8>>,
    ) -> Result<()> {
        let io = |e: std::io::Error| Error::Io(e.to_string());
        let header = self.header()?;
        out.write_all(&header).map_err(io)?;
        pad(out, header.len() as u64)?;
        for (info, bytes) in &self.tensors {
            let bytes = match bytes {
                Some(bytes) => Cow::Borrowed(bytes),
                None => Cow::Owned(bytes_of(info)?),
            };
            let (expected, found) = (info.bytes()?, bytes.len() as u64);
            if found != expected {
                return Err(Error::Config(format!("`{}`: expected {expected} bytes but found {found}", info.name)));
            }
            out.write_all(&bytes).map_err(io)?;
            pad(out, found)?;
        }
        Ok(())
    }

    /// The file's bytes.
    ///
    /// # Errors
    /// None in practice.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        self.write(&mut out)?;
        Ok(out)
    }

    fn header(&self) -> Result<Vec<u8>> {
        let mut out = MAGIC.to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in self.metadata.iter() {
            put_string(&mut out, key);
            out.extend(value.value_type().number().to_le_bytes());
            put_value(&mut out, value);
        }
        let mut offset = 0u64;
        for (info, _) in &self.tensors {
            put_string(&mut out, &info.name);
            out.extend((info.shape.len() as u32).to_le_bytes());
            for &dim in info.shape.iter().rev() {
                out.extend((dim as u64).to_le_bytes());
            }
            out.extend(ggml_from_dtype(info.dtype).to_le_bytes());
            out.extend(offset.to_le_bytes());
            offset = offset
                .checked_add(info.bytes()?)
                .and_then(|end| align_up(end, DEFAULT_ALIGNMENT))
                .ok_or_else(|| Error::Config("expected tensors that fit 64 bits".into()))?;
        }
        Ok(out)
    }
}

/// Zeros up to the alignment after `len` bytes.
fn pad(out: &mut impl Write, len: u64) -> Result<()> {
    let gap = (DEFAULT_ALIGNMENT - len % DEFAULT_ALIGNMENT) % DEFAULT_ALIGNMENT;
    out.write_all(&[0; DEFAULT_ALIGNMENT as usize][..gap as usize]).map_err(|e| Error::Io(e.to_string()))
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &MetadataValue) {
    match value {
        MetadataValue::U8(v) => out.push(*v),
        MetadataValue::I8(v) => out.extend(v.to_le_bytes()),
        MetadataValue::U16(v) => out.extend(v.to_le_bytes()),
        MetadataValue::I16(v) => out.extend(v.to_le_bytes()),
        MetadataValue::U32(v) => out.extend(v.to_le_bytes()),
        MetadataValue::I32(v) => out.extend(v.to_le_bytes()),
        MetadataValue::F32(v) => out.extend(v.to_le_bytes()),
        MetadataValue::Bool(v) => out.push(u8::from(*v)),
        MetadataValue::String(v) => put_string(out, v),
        MetadataValue::U64(v) => out.extend(v.to_le_bytes()),
        MetadataValue::I64(v) => out.extend(v.to_le_bytes()),
        MetadataValue::F64(v) => out.extend(v.to_le_bytes()),
        MetadataValue::Array(a) => put_array(out, a),
    }
}

fn put_array(out: &mut Vec<u8>, array: &MetadataArray) {
    out.extend(ValueType::number(array.element_type()).to_le_bytes());
    out.extend((array.len() as u64).to_le_bytes());
    match array {
        MetadataArray::Array(inner) => inner.iter().for_each(|a| put_array(out, a)),
        MetadataArray::String(strings) => strings.iter().for_each(|s| put_string(out, s)),
        numbers => (0..numbers.len()).filter_map(|i| numbers.get(i)).for_each(|v| put_value(out, &v)),
    }
}
