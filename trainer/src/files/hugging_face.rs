//! Weights of a Hugging Face folder: one safetensors file, or shards with their index.

use std::path::Path;

use pollster::block_on;
use rscapret::{
    Context, Error, Result,
    weights::{
        RawTensor, TensorInfo, TensorSource,
        safetensors::{SafetensorsFile, ShardIndex, ShardedSafetensors},
    },
};

use super::{FileSource, read_whole};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Most bytes of a JSON file of the folder; the largest, tokenizers, have some 30 million.
pub(super) const MAX_JSON: u64 = 256 << 20;

/// The weights of a folder.
#[derive(Debug)]
pub enum HuggingFaceWeights {
    /// `model.safetensors`.
    Single(SafetensorsFile<FileSource>),
    /// The files that `model.safetensors.index.json` names.
    Sharded(ShardedSafetensors<FileSource>),
}

impl HuggingFaceWeights {
    /// Whether a folder has weights under Hugging Face's names of files.
    pub fn are_in(folder: &Path) -> bool {
        folder.join(SINGLE).exists() || folder.join(INDEX).exists()
    }

    /// Opens what the folder has.
    ///
    /// # Errors
    /// With the path: neither of the two there, or one that its reader refuses.
    pub fn open(folder: &Path) -> Result<Self> {
        let single = folder.join(SINGLE);
        if single.exists() {
            let file = block_on(SafetensorsFile::open(FileSource::open(&single)?)).at(single.display())?;
            return Ok(HuggingFaceWeights::Single(file));
        }
        let index = folder.join(INDEX);
        if !index.exists() {
            return Err(Error::Io(format!(
                "expected {SINGLE} or {INDEX} but found neither\nweights in other formats must be converted to safetensors"
            )))
            .at(folder.display());
        }
        let listed = ShardIndex::parse(&read_whole(&index, MAX_JSON)?).at(index.display())?;
        let open = async |name: &str| FileSource::open(folder.join(name));
        Ok(HuggingFaceWeights::Sharded(block_on(ShardedSafetensors::open(&listed, open)).at(index.display())?))
    }
}

impl TensorSource for HuggingFaceWeights {
    fn tensors(&self) -> &[TensorInfo] {
        match self {
            HuggingFaceWeights::Single(file) => file.tensors(),
            HuggingFaceWeights::Sharded(shards) => shards.tensors(),
        }
    }

    async fn fetch(&self, name: &str) -> Result<RawTensor> {
        match self {
            HuggingFaceWeights::Single(file) => file.fetch(name).await,
            HuggingFaceWeights::Sharded(shards) => shards.fetch(name).await,
        }
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        match self {
            HuggingFaceWeights::Single(file) => file.info(name),
            HuggingFaceWeights::Sharded(shards) => shards.info(name),
        }
    }
}

/// A JSON file of the folder, as bytes.
///
/// # Errors
/// [`Error::Io`] with the path.
pub fn read_json(folder: &Path, name: &str) -> Result<Vec<u8>> {
    read_whole(&folder.join(name), MAX_JSON)
}
