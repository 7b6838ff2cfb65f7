//! Weights of a Hugging Face folder: one safetensors file, shards with their index, or what `torch.save` wrote before.

use std::path::Path;

use pollster::block_on;
use rscapret::{
    Context, Error, Result,
    weights::{
        RawTensor, TensorInfo, TensorSource,
        safetensors::{SafetensorsFile, ShardIndex, ShardedSafetensors},
    },
};

use super::{FileSource, read_whole, torch::TorchFile};

/// One file of all weights.
pub const SINGLE: &str = "model.safetensors";
/// What names the files of a model in shards.
pub const INDEX: &str = "model.safetensors.index.json";
/// Older models' weights, as PyTorch saves them.
pub const TORCH: &str = "pytorch_model.bin";
/// Most bytes of a JSON file of the folder; the largest, tokenizers, have some 30 million.
pub(super) const MAX_JSON: u64 = 256 << 20;

/// The weights of a folder.
#[derive(Debug)]
pub enum HuggingFaceWeights {
    /// `model.safetensors`.
    Single(SafetensorsFile<FileSource>),
    /// The files that `model.safetensors.index.json` names.
    Sharded(ShardedSafetensors<FileSource>),
    /// `pytorch_model.bin`.
    Torch(TorchFile),
}

impl HuggingFaceWeights {
    /// Whether a folder has weights under Hugging Face's names of files.
    pub fn are_in(folder: &Path) -> bool {
        [SINGLE, INDEX, TORCH].iter().any(|name| folder.join(name).exists())
    }

    /// Opens what the folder has.
    ///
    /// # Errors
    /// With the path: none of the three there, or one that its reader refuses.
    pub fn open(folder: &Path) -> Result<Self> {
        let single = folder.join(SINGLE);
        if single.exists() {
            let file = block_on(SafetensorsFile::open(FileSource::open(&single)?)).at(single.display())?;
            return Ok(HuggingFaceWeights::Single(file));
        }
        let index = folder.join(INDEX);
        if !index.exists() {
            let torch = folder.join(TORCH);
            if torch.exists() {
                return TorchFile::open(&torch).map(HuggingFaceWeights::Torch);
            }
            return Err(Error::Io(format!(
                "expected {SINGLE}, {INDEX} or {TORCH} but found none\nweights in other formats must be converted to safetensors"
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
            HuggingFaceWeights::Torch(file) => file.tensors(),
        }
    }

    async fn fetch(&self, name: &str) -> Result<RawTensor> {
        match self {
            HuggingFaceWeights::Single(file) => file.fetch(name).await,
            HuggingFaceWeights::Sharded(shards) => shards.fetch(name).await,
            HuggingFaceWeights::Torch(file) => file.fetch(name).await,
        }
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        match self {
            HuggingFaceWeights::Single(file) => file.info(name),
            HuggingFaceWeights::Sharded(shards) => shards.info(name),
            HuggingFaceWeights::Torch(file) => file.info(name),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The same weights in both formats; a list of positions, which older models kept among them, is no weight.
    #[test]
    fn what_pytorch_saved_is_what_safetensors_hold() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/models");
        for model in ["clip-gelu", "llama-grouped-tied"] {
            let (from, old) = (golden.join(model), tempfile::tempdir().unwrap());
            std::fs::copy(from.join(TORCH), old.path().join(TORCH)).unwrap();
            assert!(HuggingFaceWeights::are_in(old.path()));
            let (new, old) = (HuggingFaceWeights::open(&from).unwrap(), HuggingFaceWeights::open(old.path()).unwrap());
            assert!(matches!((&new, &old), (HuggingFaceWeights::Single(_), HuggingFaceWeights::Torch(_))));
            // A tied head is written by PyTorch, too.
            let names = |of: &HuggingFaceWeights| {
                let all = of.tensors().iter().map(|info| info.name.clone());
                all.filter(|name| name != "lm_head.weight").collect::<std::collections::BTreeSet<_>>()
            };
            assert!(names(&new).len() > 10);
            assert_eq!(names(&new), names(&old), "{model}");
            for name in names(&new) {
                let (new, old) = (block_on(new.fetch(&name)).unwrap(), block_on(old.fetch(&name)).unwrap());
                assert_eq!((new.dtype, new.shape, new.bytes), (old.dtype, old.shape, old.bytes), "{model}: {name}");
            }
        }
    }
}
