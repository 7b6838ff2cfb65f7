//! Weights in files: where tensors come from, as bytes in the type that the file stores.
//!
//! Readers assume an enemy: every length, offset and count is checked before anything is allocated.

pub mod gguf;
pub mod inspect;
pub mod quant;
pub mod safetensors;
#[cfg(test)]
pub(crate) mod testing;

use std::{fmt, ops::Range};

use crate::error::{Error, Result};

/// A readable file, wherever it lies: memory, disk, browser storage, a server that answers range requests.
///
/// The library knows no file system: the trainer and the page implement this.
pub trait ByteSource {
    /// Length in bytes.
    fn len(&self) -> u64;

    /// Whether there is nothing in it.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads exactly `len` bytes from `offset`; an error if the source ends before.
    fn read(&self, offset: u64, len: usize) -> impl Future<Output = Result<Vec<u8>>>;
}

impl ByteSource for &[u8] {
    fn len(&self) -> u64 {
        <[u8]>::len(self) as u64
    }

    async fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let from = usize::try_from(offset).ok();
        let to = from.and_then(|from| from.checked_add(len));
        match (from, to) {
            (Some(from), Some(to)) if to <= <[u8]>::len(self) => Ok(self[from..to].to_vec()),
            _ => Err(Error::Malformed(format!(
                "expected {len} bytes at offset {offset} but found the end at {}",
                <[u8]>::len(self)
            ))),
        }
    }
}

impl ByteSource for Vec<u8> {
    fn len(&self) -> u64 {
        Vec::len(self) as u64
    }

    async fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        self.as_slice().read(offset, len).await
    }
}

/// Element types of stored tensors. Quantised types are GGML's blocks along the innermost dimension.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, non_camel_case_types)] // the field's own names
pub enum Dtype {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
}

impl Dtype {
    /// Every type.
    pub const ALL: [Dtype; 13] = [
        Dtype::F32,
        Dtype::F16,
        Dtype::BF16,
        Dtype::Q4_0,
        Dtype::Q4_1,
        Dtype::Q5_0,
        Dtype::Q5_1,
        Dtype::Q8_0,
        Dtype::Q2_K,
        Dtype::Q3_K,
        Dtype::Q4_K,
        Dtype::Q5_K,
        Dtype::Q6_K,
    ];

    /// GGML's name, which for the float types is safetensors' too.
    pub const fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "F32",
            Dtype::F16 => "F16",
            Dtype::BF16 => "BF16",
            Dtype::Q4_0 => "Q4_0",
            Dtype::Q4_1 => "Q4_1",
            Dtype::Q5_0 => "Q5_0",
            Dtype::Q5_1 => "Q5_1",
            Dtype::Q8_0 => "Q8_0",
            Dtype::Q2_K => "Q2_K",
            Dtype::Q3_K => "Q3_K",
            Dtype::Q4_K => "Q4_K",
            Dtype::Q5_K => "Q5_K",
            Dtype::Q6_K => "Q6_K",
        }
    }

    /// Elements of one block (1 for the float types).
    pub const fn block_size(self) -> usize {
        match self {
            Dtype::F32 | Dtype::F16 | Dtype::BF16 => 1,
            Dtype::Q4_0 | Dtype::Q4_1 | Dtype::Q5_0 | Dtype::Q5_1 | Dtype::Q8_0 => 32,
            Dtype::Q2_K | Dtype::Q3_K | Dtype::Q4_K | Dtype::Q5_K | Dtype::Q6_K => 256,
        }
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::BF16 => 2,
            Dtype::Q4_0 => 18,
            Dtype::Q4_1 => 20,
            Dtype::Q5_0 => 22,
            Dtype::Q5_1 => 24,
            Dtype::Q8_0 => 34,
            Dtype::Q2_K => 84,
            Dtype::Q3_K => 110,
            Dtype::Q4_K => 144,
            Dtype::Q5_K => 176,
            Dtype::Q6_K => 210,
        }
    }

    /// Bytes of a tensor of this shape, or `None` where the innermost dimension is no whole number of blocks or the
    /// count overflows.
    pub fn bytes_of(self, shape: &[usize]) -> Option<u64> {
        let inner = shape.last().copied().unwrap_or(1);
        if inner % self.block_size() != 0 {
            return None;
        }
        let elements = shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d as u64))?;
        (elements / self.block_size() as u64).checked_mul(self.block_bytes() as u64)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a file says of one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name in the vocabulary of the source (for a GGUF through its name table: the checkpoint's name).
    pub name: String,
    /// Shape, row-major, outermost first.
    pub shape: Vec<usize>,
    /// Element type.
    pub dtype: Dtype,
}

impl TensorInfo {
    /// Bytes that the tensor takes.
    ///
    /// # Errors
    /// [`Error::Malformed`] if shape and type do not fit together.
    pub fn bytes(&self) -> Result<u64> {
        self.dtype.bytes_of(&self.shape).ok_or_else(|| {
            Error::Malformed(format!(
                "expected `{}` ({}) to have rows of whole blocks of {} but found shape {:?}",
                self.name,
                self.dtype,
                self.dtype.block_size(),
                self.shape
            ))
        })
    }

    /// Reads the tensor's bytes, which begin at `offset` of `source`.
    async fn fetch_from(&self, source: &impl ByteSource, offset: u64) -> Result<RawTensor> {
        let rows = 0..self.shape.first().copied().unwrap_or(1);
        let raw = self.fetch_rows_from(source, offset, rows).await?;
        Ok(RawTensor { shape: self.shape.clone(), ..raw })
    }

    /// Reads entries of the outermost dimension of the tensor, which begins at `offset` of `source`.
    async fn fetch_rows_from(&self, source: &impl ByteSource, offset: u64, rows: Range<usize>) -> Result<RawTensor> {
        let (start, len) = self.rows(&rows)?;
        let bytes = source.read(offset + start, len).await?;
        if bytes.len() != len {
            return Err(Error::Io(format!("expected {len} bytes at offset {offset} but found {}", bytes.len())));
        }
        Ok(self.part(rows, bytes))
    }

    /// Where entries of the outermost dimension begin, and how many bytes they are.
    fn rows(&self, rows: &Range<usize>) -> Result<(u64, usize)> {
        let bytes = self.bytes()?;
        let all = self.shape.first().copied().unwrap_or(1);
        if rows.start > rows.end || rows.end > all {
            return Err(Error::Backend(format!("`{}`: expected rows of {all} but found {rows:?}", self.name)));
        }
        let row = bytes / (all as u64).max(1);
        if row * all as u64 != bytes {
            return Err(Error::Malformed(format!("`{}`: expected rows of one length", self.name)));
        }
        let bytes = row * rows.len() as u64;
        let len = usize::try_from(bytes)
            .map_err(|_| Error::Unsupported(format!("expected a tensor that fits memory but found {bytes} bytes")))?;
        Ok((row * rows.start as u64, len))
    }

    fn part(&self, rows: Range<usize>, bytes: Vec<u8>) -> RawTensor {
        let mut shape = self.shape.clone();
        if let Some(outer) = shape.first_mut() {
            *outer = rows.len();
        }
        RawTensor { shape, dtype: self.dtype, bytes }
    }
}

/// Refuses names that are more than a file's name: folders, `..`, drive letters, hidden and empty ones.
pub(crate) fn plain_file_name(name: &str) -> Result<()> {
    let odd = |c: char| matches!(c, '/' | '\\' | ':') || c.is_control();
    if name.is_empty() || name.len() > 255 || name.starts_with('.') || name.contains(odd) {
        return Err(Error::Malformed(format!("expected a plain file name but found `{}`", name.escape_debug())));
    }
    Ok(())
}

/// One tensor as stored.
#[derive(Debug, Clone, PartialEq)]
pub struct RawTensor {
    /// Shape, row-major, outermost first.
    pub shape: Vec<usize>,
    /// Element type.
    pub dtype: Dtype,
    /// Little-endian bytes, exactly `dtype.bytes_of(shape)` of them.
    pub bytes: Vec<u8>,
}

/// A set of named tensors, fetched one by one.
pub trait TensorSource {
    /// All tensors, in the file's order.
    fn tensors(&self) -> &[TensorInfo];

    /// Fetches one tensor's bytes.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] if there is none of that name; whatever the source answers otherwise.
    fn fetch(&self, name: &str) -> impl Future<Output = Result<RawTensor>>;

    /// Fetches entries of a tensor's outermost dimension: what is larger than memory comes in pieces.
    ///
    /// # Errors
    /// As [`TensorSource::fetch`]; rows that the tensor does not have.
    fn fetch_rows(&self, name: &str, rows: Range<usize>) -> impl Future<Output = Result<RawTensor>> {
        async move {
            let info = self.info(name).ok_or_else(|| Error::MissingTensor(name.to_string()))?;
            let (start, len) = info.rows(&rows)?;
            let whole = self.fetch(name).await?;
            Ok(info.part(rows, whole.bytes[start as usize..][..len].to_vec()))
        }
    }

    /// What is known of one tensor.
    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors().iter().find(|t| t.name == name)
    }
}
