//! PyTorch's checkpoints (`torch.save` since version 1.6): a ZIP archive of one pickle, which says what there is, and of a
//! stored entry for each tensor's bytes.
//!
//! The pickle is run by candle's machine, step by step ([`pickle`]), and what it built is read here: nothing of it is ever
//! called. Tensors are read where they lie in the file.

mod pickle;

use std::{collections::HashMap, io::BufReader, path::Path};

use candle_core::pickle::Object;
use rscapret::{
    Context, Error, Result,
    weights::{ByteSource, Dtype, RawTensor, TensorInfo, TensorSource},
};
use zip::{CompressionMethod, ZipArchive};

use super::{FileSource, unreadable};

/// Largest pickle, bytes: that of a checkpoint with the state of its optimiser has some hundred thousand.
const MAX_PICKLE: u64 = 8 << 20;
/// More dimensions than any framework has.
const MAX_DIMS: usize = 16;
/// Where training scripts put the weights among other things.
const STATE_DICT: &str = "state_dict";

/// A state dict on disk.
#[derive(Debug)]
pub struct TorchFile {
    source: FileSource,
    tensors: Vec<TensorInfo>,
    /// Where each tensor's bytes begin in the file.
    offsets: Vec<u64>,
    index: HashMap<String, usize>,
}

/// A stored entry of the archive: where its bytes begin, and how many they are.
#[derive(Clone, Copy)]
struct Entry {
    start: u64,
    len: u64,
}

impl TorchFile {
    /// Reads the archive's directory and the pickle. Of a training checkpoint, `state_dict` is taken. Tensors of integers
    /// are left out.
    ///
    /// # Errors
    /// With the path: [`Error::Malformed`] for a file that is damaged, [`Error::Unsupported`] for other kinds of
    /// checkpoints (TorchScript, PyTorch before 1.6) and tensors (f64, not contiguous).
    pub fn open(path: &Path) -> Result<Self> {
        Self::read(path).at(path.display())
    }

    fn read(path: &Path) -> Result<Self> {
        let source = FileSource::open(path)?;
        if !source.begins_with(b"PK")? {
            return Err(Error::Unsupported(
                "expected a ZIP archive, as PyTorch has written since 1.6, but found another kind of file\n\
                 load it in PyTorch and save its state dict anew, with torch.save or as safetensors"
                    .into(),
            ));
        }
        let entries = entries(path, source.len())?;
        let mut pickles = entries.iter().filter(|(name, _)| name.ends_with("/data.pkl"));
        let (Some((name, pickle)), None) = (pickles.next(), pickles.next()) else {
            return Err(Error::Malformed("expected one data.pkl in the archive but found none or several".into()));
        };
        let folder = name.trim_end_matches("data.pkl");
        if entries.contains_key(&format!("{folder}constants.pkl")) {
            return Err(Error::Unsupported(
                "expected a state dict but found a TorchScript module\n\
                 load it with torch.jit.load and save its state_dict() with torch.save"
                    .into(),
            ));
        }
        if let Some(order) = entries.get(&format!("{folder}byteorder"))
            && pollster::block_on(source.read(order.start, order.len.min(16) as usize))? != b"little"
        {
            return Err(Error::Unsupported("expected little-endian tensors but found others".into()));
        }
        if pickle.len > MAX_PICKLE {
            return Err(Error::Unsupported(format!(
                "expected a pickle of at most {MAX_PICKLE} bytes but found {}",
                pickle.len
            )));
        }
        let bytes = pollster::block_on(source.read(pickle.start, pickle.len as usize))?;
        let object = pickle::run(&bytes).at("data.pkl")?;
        let mut file = TorchFile { source, tensors: vec![], offsets: vec![], index: HashMap::new() };
        for (name, value) in state_dict(&object)? {
            let Object::Unicode(name) = name else { continue };
            let Some(stored) = Stored::of(value).at(name)? else { continue };
            let Some(dtype) = stored.dtype().at(name)? else { continue };
            let offset = stored.offset(dtype, &entries, folder).at(name)?;
            if file.index.insert(name.clone(), file.tensors.len()).is_some() {
                return Err(Error::Malformed(format!("expected `{name}` once but found it twice")));
            }
            file.tensors.push(TensorInfo { name: name.clone(), shape: stored.shape, dtype });
            file.offsets.push(offset);
        }
        if file.tensors.is_empty() {
            return Err(Error::Unsupported(
                "expected a state dict, names to tensors, but found no tensor\nsave model.state_dict() with torch.save"
                    .into(),
            ));
        }
        Ok(file)
    }
}

/// The archive's entries by name. PyTorch compresses nothing, so each lies in the file as it is.
fn entries(path: &Path, file_len: u64) -> Result<HashMap<String, Entry>> {
    let damaged = |e: &dyn std::fmt::Display| {
        Error::Malformed(format!("expected a whole ZIP archive but found: {e}\nthe file is damaged or cut short"))
    };
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(|e| damaged(&e))?;
    let mut entries = HashMap::new();
    for i in 0..archive.len() {
        let entry = archive.by_index_raw(i).map_err(|e| damaged(&e))?;
        let name = entry.name().map_err(|e| damaged(&e))?.into_owned();
        let (start, len) = (entry.data_start(), entry.size());
        if entry.compression() != CompressionMethod::Stored || entry.encrypted() || entry.compressed_size() != len {
            return Err(Error::Unsupported("expected entries that are not compressed but found another".into()))
                .at(name);
        }
        let start = start.filter(|start| start.checked_add(len).is_some_and(|end| end <= file_len));
        let start = start.ok_or_else(|| damaged(&format_args!("`{name}` beyond the end")))?;
        entries.insert(name, Entry { start, len });
    }
    Ok(entries)
}

/// The entries of the state dict, which is the object itself or stands in it.
fn state_dict(object: &Object) -> Result<&[(Object, Object)]> {
    let Object::Dict(entries) = object else {
        return Err(Error::Unsupported(
            "expected a dictionary but found another object\nsave model.state_dict() with torch.save, not the model"
                .into(),
        ));
    };
    let inner = entries.iter().find(|(key, _)| matches!(key, Object::Unicode(name) if name == STATE_DICT));
    match inner {
        Some((_, Object::Dict(inner))) => Ok(inner),
        _ => Ok(entries),
    }
}

/// What a pickle says of one tensor.
struct Stored<'a> {
    /// Such as `FloatStorage`.
    storage: &'a str,
    /// Name of the storage's entry.
    key: &'a str,
    /// Elements before the first.
    skip: u64,
    shape: Vec<usize>,
}

impl<'a> Stored<'a> {
    /// `None` for what is no tensor.
    fn of(value: &'a Object) -> Result<Option<Self>> {
        let Object::Reduce { callable, args } = value else { return Ok(None) };
        let (Object::Class { module_name, class_name }, Object::Tuple(args)) = (&**callable, &**args) else {
            return Ok(None);
        };
        let malformed = || Error::Malformed("expected the arguments of a tensor but found others".into());
        match (module_name.as_str(), class_name.as_str(), &args[..]) {
            ("torch._utils", "_rebuild_parameter", [inner, ..]) => Self::of(inner),
            // (storage, offset, size, stride, requires_grad, hooks)
            (
                "torch._utils",
                "_rebuild_tensor_v2",
                [Object::PersistentLoad(id), skip, Object::Tuple(size), Object::Tuple(stride), ..],
            ) => {
                // ("storage", type, key, device, elements)
                let Object::Tuple(id) = &**id else { return Err(malformed()) };
                let [_, Object::Class { class_name, .. }, Object::Unicode(key), ..] = &id[..] else {
                    return Err(malformed());
                };
                let numbers = |objects: &[Object]| objects.iter().map(number).collect::<Option<Vec<u64>>>();
                let (Some(skip), Some(size), Some(stride)) = (number(skip), numbers(size), numbers(stride)) else {
                    return Err(malformed());
                };
                let shape: Option<Vec<usize>> = size.iter().map(|&d| usize::try_from(d).ok()).collect();
                let shape = shape.filter(|shape| shape.len() == stride.len() && shape.len() <= MAX_DIMS);
                let shape = shape.ok_or_else(malformed)?;
                contiguous(&size, &stride)?;
                Ok(Some(Stored { storage: class_name, key, skip, shape }))
            }
            (
                module,
                "_rebuild_from_type_v2" | "_rebuild_tensor_v2" | "_rebuild_qtensor" | "_rebuild_sparse_tensor",
                _,
            ) if module.starts_with("torch.") => {
                Err(Error::Unsupported(format!("expected a plain tensor but found one of {module}.{class_name}")))
            }
            _ => Ok(None),
        }
    }

    /// `None` for integers.
    fn dtype(&self) -> Result<Option<Dtype>> {
        match self.storage {
            "FloatStorage" => Ok(Some(Dtype::F32)),
            "HalfStorage" => Ok(Some(Dtype::F16)),
            "BFloat16Storage" => Ok(Some(Dtype::BF16)),
            "LongStorage" | "IntStorage" | "ShortStorage" | "CharStorage" | "ByteStorage" | "BoolStorage" => Ok(None),
            other => Err(Error::Unsupported(format!(
                "expected f32, f16 or bf16 but found {}\nsave the checkpoint in one of these",
                other.escape_debug()
            ))),
        }
    }

    /// Where the bytes begin in the file, all of which lie in the storage's entry.
    fn offset(&self, dtype: Dtype, entries: &HashMap<String, Entry>, folder: &str) -> Result<u64> {
        let entry = entries.get(&format!("{folder}data/{}", self.key)).ok_or_else(|| {
            Error::Malformed(format!("expected the storage `{}` but found none", self.key.escape_debug()))
        })?;
        let wrong = || {
            Error::Malformed(format!(
                "expected {dtype} {:?} from element {} on but found a storage of {} bytes",
                self.shape, self.skip, entry.len
            ))
        };
        let skip = self.skip.checked_mul(dtype.block_bytes() as u64).ok_or_else(wrong)?;
        let end = dtype.bytes_of(&self.shape).and_then(|bytes| bytes.checked_add(skip)).ok_or_else(wrong)?;
        if end > entry.len {
            return Err(wrong());
        }
        // Within the entry, which is within the file.
        Ok(entry.start + skip)
    }
}

fn number(object: &Object) -> Option<u64> {
    match object {
        Object::Int(n) => u64::try_from(*n).ok(),
        Object::Long(n) => u64::try_from(*n).ok(),
        _ => None,
    }
}

/// Row-major without gaps; where there is one step or none, its stride does not matter.
fn contiguous(size: &[u64], stride: &[u64]) -> Result<()> {
    let mut expected = 1u64;
    for (&size, &stride) in size.iter().zip(stride).rev() {
        if size > 1 && stride != expected {
            return Err(Error::Unsupported(
                "expected a contiguous tensor but found a view\nsave it after .contiguous()".into(),
            ));
        }
        expected = expected.saturating_mul(size);
    }
    Ok(())
}

impl TensorSource for TorchFile {
    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    async fn fetch(&self, name: &str) -> Result<RawTensor> {
        let &at = self.index.get(name).ok_or_else(|| Error::MissingTensor(name.to_string()))?;
        let info = &self.tensors[at];
        let len = usize::try_from(info.bytes()?)
            .map_err(|_| Error::Unsupported("expected a tensor that fits memory but found a larger one".into()))?;
        let bytes = self.source.read(self.offsets[at], len).await.at(format_args!("tensor `{name}`"))?;
        Ok(RawTensor { shape: info.shape.clone(), dtype: info.dtype, bytes })
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.index.get(name).map(|&at| &self.tensors[at])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strides_are_row_major() {
        for (size, stride, fine) in [
            (&[2u64, 3][..], &[3u64, 1][..], true),
            (&[2, 3], &[1, 2], false),
            (&[1, 3], &[99, 1], true),
            (&[0, 3], &[3, 1], true),
            (&[], &[], true),
            (&[u64::MAX, u64::MAX, 2], &[1, 1, 1], false),
        ] {
            assert_eq!(contiguous(size, stride).is_ok(), fine, "{size:?} {stride:?}");
        }
    }

    #[test]
    fn files_of_other_kinds_say_what_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.pt");
        for (bytes, words) in [
            (&b"\x80\x02\x8a\nl\xfc"[..], "as PyTorch has written since 1.6"),
            (b"PK\x03\x04 and then nothing", "expected a whole ZIP archive"),
            (b"", "another kind of file"),
        ] {
            std::fs::write(&path, bytes).unwrap();
            let error = TorchFile::open(&path).unwrap_err().to_string();
            assert!(error.starts_with(&path.display().to_string()) && error.contains(words), "{error}");
        }
    }
}
