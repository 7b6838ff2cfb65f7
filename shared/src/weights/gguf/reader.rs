//! The header and the open file.

use std::{collections::HashMap, ops::Range};

use super::{
    ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAGIC, MAX_DIMS, align_up,
    cursor::{Cursor, Step, Stop},
    dtype_from_ggml,
    metadata::{Metadata, MetadataValue, ValueType},
};
use crate::{
    error::{Context, Error, Result},
    weights::{ByteSource, RawTensor, TensorInfo, TensorSource},
};

const FIRST_READ: u64 = 1 << 20;
/// The largest vocabularies known make headers of some 20 MiB.
const MAX_HEADER: u64 = 256 << 20;
/// Larger alignments are refused: files use 32, and memory pages are smaller than this.
const MAX_ALIGNMENT: u32 = 1 << 16;

/// Everything before the tensors' data.
#[derive(Debug, Clone)]
pub struct GgufHeader {
    /// 2 or 3.
    pub version: u32,
    /// Metadata in the file's order.
    pub metadata: Metadata,
    /// Tensors in the file's order, under the file's names.
    pub tensors: Vec<TensorInfo>,
    /// Where each tensor's bytes begin in the file, in the order of `tensors`.
    pub offsets: Vec<u64>,
    /// Where the data begins.
    pub data_start: u64,
}

/// What a prefix of a file gave.
#[derive(Debug)]
pub enum Parsed {
    /// The whole header.
    Header(Box<GgufHeader>),
    /// The prefix ends within the header; at least this many bytes are needed, perhaps more.
    NeedBytes(u64),
}

impl GgufHeader {
    /// Parses and checks the header of a file of `file_len` bytes that begins with `prefix`.
    ///
    /// # Errors
    /// [`Error::Malformed`] if the bytes are no valid GGUF, tensors overlap or lie outside the file;
    /// [`Error::Unsupported`] for other versions, big-endian files and tensor types that [`crate::weights::Dtype`]
    /// lacks.
    pub fn parse(prefix: &[u8], file_len: u64) -> Result<Parsed> {
        match header(&mut Cursor::new(prefix, file_len), file_len) {
            Ok(header) => Ok(Parsed::Header(Box::new(header))),
            Err(Stop::More(bytes)) => Ok(Parsed::NeedBytes(bytes)),
            Err(Stop::Bad(error)) => Err(error),
        }
    }
}

fn header(cursor: &mut Cursor, file_len: u64) -> Step<GgufHeader> {
    let magic: [u8; 4] = cursor.array()?;
    if magic != MAGIC {
        return Err(malformed(format!("expected magic `GGUF` but found `{}`", magic.escape_ascii())));
    }
    let version = cursor.u32()?;
    match version {
        2 | 3 => {}
        v if v.swap_bytes() <= 3 => {
            return Err(unsupported("expected a little-endian GGUF but found a big-endian one".into()));
        }
        v => {
            return Err(unsupported(format!(
                "expected GGUF version 2 or 3 but found {v}\nconvert the model with a current llama.cpp"
            )));
        }
    }
    let tensor_count = cursor.u64()?;
    let entry_count = cursor.u64()?;
    // A tensor: name length and one byte, dimension count, type, offset. An entry: key length and one byte, type, value.
    cursor.justify("tensors", tensor_count, 8 + 1 + 4 + 4 + 8)?;
    cursor.justify("metadata entries", entry_count, 8 + 1 + 4 + 1)?;

    let mut metadata = Metadata::new();
    for _ in 0..entry_count {
        let key = cursor.name()?;
        let value = ValueType::from_number(cursor.u32()?)
            .map_err(Stop::from)
            .and_then(|value_type| MetadataValue::read(cursor, value_type))
            .map_err(|stop| within(stop, format!("metadata `{key}`")))?;
        metadata.insert(key, value)?;
    }
    let alignment = match metadata.find::<u32>(ALIGNMENT_KEY)? {
        None => DEFAULT_ALIGNMENT,
        Some(a) if a.is_power_of_two() && a <= MAX_ALIGNMENT => u64::from(a),
        Some(a) => {
            return Err(malformed(format!(
                "expected `{ALIGNMENT_KEY}` to be a power of two up to {MAX_ALIGNMENT} but found {a}"
            )));
        }
    };

    let (mut tensors, mut offsets) = (Vec::new(), Vec::new());
    for _ in 0..tensor_count {
        let name = cursor.name()?;
        let (info, offset) =
            tensor(cursor, &name, alignment).map_err(|stop| within(stop, format!("tensor `{name}`")))?;
        tensors.push(info);
        offsets.push(offset);
    }

    let data_start = align_up(cursor.position(), alignment)
        .ok_or_else(|| malformed("expected a header that fits 64 bits".into()))?;
    place(&tensors, &mut offsets, data_start, file_len)?;
    Ok(GgufHeader { version, metadata, tensors, offsets, data_start })
}

/// One tensor info and its offset within the data.
fn tensor(cursor: &mut Cursor, name: &str, alignment: u64) -> Step<(TensorInfo, u64)> {
    let dims = cursor.u32()? as usize;
    if dims > MAX_DIMS {
        return Err(malformed(format!("expected at most {MAX_DIMS} dimensions but found {dims}")));
    }
    let mut shape = Vec::with_capacity(dims);
    for _ in 0..dims {
        let dim = cursor.u64()?;
        shape.push(usize::try_from(dim).map_err(|_| malformed(format!("expected a dimension but found {dim}")))?);
    }
    shape.reverse(); // the file has the innermost first
    let dtype = dtype_from_ggml(cursor.u32()?)?;
    let offset = cursor.u64()?;
    if !offset.is_multiple_of(alignment) {
        return Err(malformed(format!("expected an offset that {alignment} divides but found {offset}")));
    }
    Ok((TensorInfo { name: name.to_string(), shape, dtype }, offset))
}

/// Turns offsets within the data into offsets within the file, and checks that tensors are unique, whole, inside the
/// file and apart.
fn place(tensors: &[TensorInfo], offsets: &mut [u64], data_start: u64, file_len: u64) -> Result<()> {
    let mut seen = HashMap::new();
    let mut spans = Vec::with_capacity(tensors.len());
    for (info, offset) in tensors.iter().zip(offsets) {
        if seen.insert(info.name.as_str(), ()).is_some() {
            return Err(Error::Malformed(format!(
                "expected tensor names to be unique but found `{}` twice",
                info.name
            )));
        }
        let bytes = info.bytes()?;
        let start = data_start.checked_add(*offset);
        match start.and_then(|start| Some((start, start.checked_add(bytes)?))) {
            Some((start, end)) if end <= file_len => {
                *offset = start;
                spans.push((start, end, info.name.as_str()));
            }
            _ => {
                return Err(Error::Malformed(format!(
                    "expected tensor `{}` ({bytes} bytes at data offset {offset}) inside the file but found its end \
                     at {file_len}\nthe file is damaged or cut short",
                    info.name
                )));
            }
        }
    }
    spans.sort_unstable();
    for pair in spans.windows(2) {
        let ((_, end, before), (start, _, after)) = (pair[0], pair[1]);
        if start < end {
            return Err(Error::Malformed(format!(
                "expected tensors apart but found `{after}` at {start}, within `{before}` that ends at {end}"
            )));
        }
    }
    Ok(())
}

fn malformed(message: String) -> Stop {
    Stop::Bad(Error::Malformed(message))
}

fn unsupported(message: String) -> Stop {
    Stop::Bad(Error::Unsupported(message))
}

fn within(stop: Stop, context: String) -> Stop {
    match stop {
        Stop::Bad(source) => Stop::Bad(Error::At { context, source: Box::new(source) }),
        more => more,
    }
}

/// An open GGUF: its header, and tensors on demand.
#[derive(Debug)]
pub struct GgufFile<S> {
    source: S,
    header: GgufHeader,
    index: HashMap<String, usize>,
}

impl<S: ByteSource> GgufFile<S> {
    /// Reads as much of the file's beginning as its header needs.
    ///
    /// # Errors
    /// Those of [`GgufHeader::parse`] and of the source.
    pub async fn open(source: S) -> Result<Self> {
        let len = source.len();
        let mut prefix = Vec::new();
        let mut want = FIRST_READ;
        loop {
            let have = prefix.len() as u64;
            let more = want.min(len).saturating_sub(have);
            let more = usize::try_from(more)
                .map_err(|_| Error::Malformed(format!("expected a header but found {more} bytes")))?;
            let read = source.read(have, more).await?;
            if read.len() != more {
                // Otherwise a source that gives nothing would be asked for ever.
                return Err(Error::Io(format!("expected {more} bytes at offset {have} but found {}", read.len())));
            }
            prefix.extend(read);
            match GgufHeader::parse(&prefix, len)? {
                Parsed::Header(header) => {
                    let index = header.tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
                    return Ok(GgufFile { source, header: *header, index });
                }
                Parsed::NeedBytes(bytes) if bytes <= MAX_HEADER => {
                    want = want.saturating_mul(4).clamp(bytes, MAX_HEADER)
                }
                Parsed::NeedBytes(bytes) => {
                    return Err(Error::Malformed(format!(
                        "expected a header of at most {MAX_HEADER} bytes but found {bytes} or more"
                    )));
                }
            }
        }
    }

    /// Metadata, in the file's order.
    pub fn metadata(&self) -> &Metadata {
        &self.header.metadata
    }

    /// The whole header.
    pub fn header(&self) -> &GgufHeader {
        &self.header
    }
}

impl<S: ByteSource> TensorSource for GgufFile<S> {
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
