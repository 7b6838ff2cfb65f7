//! A CLIP on disk, whoever wrote it, as the parts of a Hugging Face folder.

use std::path::{Path, PathBuf};

use pollster::block_on;
use rscapret::{
    Context, Error, Result,
    clip::{OPEN_CLIP_CONFIG, OpenClip, open_clip_folder},
    weights::{RawTensor, TensorInfo, TensorSource, safetensors::SafetensorsFile},
};

use super::{
    FileSource,
    hugging_face::{HuggingFaceWeights, MAX_JSON, read_json},
    read_whole,
    torch::TorchFile,
};

/// OpenCLIP's own names of its weights in a folder, in the order in which it looks for them.
pub const NAMES: [&str; 4] = [
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
];
/// How PyTorch's checkpoints end.
const TORCH: [&str; 4] = ["pt", "pth", "bin", "ckpt"];

/// A CLIP of Hugging Face or OpenCLIP.
pub struct ClipFiles {
    /// `config.json`, or the same made of OpenCLIP's.
    pub config_json: Vec<u8>,
    /// `preprocessor_config.json`, likewise.
    pub preprocessor_json: Vec<u8>,
    /// Tensors by Hugging Face's names.
    pub weights: ClipWeights,
    /// Where the tokenizer lies.
    pub folder: PathBuf,
}

/// Weights of a CLIP by Hugging Face's names.
#[derive(Debug)]
pub enum ClipWeights {
    /// A Hugging Face folder's.
    HuggingFace(HuggingFaceWeights),
    /// OpenCLIP's safetensors.
    Safetensors(OpenClip<SafetensorsFile<FileSource>>),
    /// OpenCLIP's, as PyTorch saves them.
    Torch(OpenClip<TorchFile>),
}

impl ClipFiles {
    /// Opens a Hugging Face folder, a folder of OpenCLIP's (`open_clip_config.json` and weights), or one file of weights in
    /// OpenCLIP's names, safetensors or `.pt`, beside which `open_clip_config.json` may lie.
    ///
    /// # Errors
    /// With the path: nothing of the kind there; what the files' readers refuse.
    pub fn open(path: &Path) -> Result<Self> {
        let Some((file, config)) = open_clip_files(path)? else {
            return Ok(ClipFiles {
                config_json: read_json(path, "config.json")?,
                preprocessor_json: read_json(path, "preprocessor_config.json")?,
                weights: HuggingFaceWeights::open(path).map(ClipWeights::HuggingFace)?,
                folder: path.to_path_buf(),
            });
        };
        let json = config.map(|path| read_whole(&path, MAX_JSON)).transpose()?;
        let weights = if has_extension(&file, &TORCH) {
            ClipWeights::Torch(renamed(TorchFile::open(&file)?).at(file.display())?)
        } else {
            let source = block_on(SafetensorsFile::open(FileSource::open(&file)?)).at(file.display())?;
            ClipWeights::Safetensors(renamed(source).at(file.display())?)
        };
        let (config_json, preprocessor_json) = open_clip_folder(&weights, json.as_deref()).at(file.display())?;
        Ok(ClipFiles { config_json, preprocessor_json, weights, folder: parent(&file) })
    }
}

fn renamed<S: TensorSource>(source: S) -> Result<OpenClip<S>> {
    if !OpenClip::is(&source) {
        return Err(Error::Unsupported(
            "expected a CLIP in OpenCLIP's names but found no `visual.conv1.weight`\n\
             a Hugging Face CLIP is opened by its folder"
                .into(),
        ));
    }
    OpenClip::new(source)
}

/// Weights of OpenCLIP and its configuration, if that lies beside them; `None` for a folder of Hugging Face.
///
/// # Errors
/// With the path: neither a folder nor a file.
pub fn open_clip_files(path: &Path) -> Result<Option<(PathBuf, Option<PathBuf>)>> {
    let with_config = |file: PathBuf| {
        let config = parent(&file).join(OPEN_CLIP_CONFIG);
        Some((file, config.exists().then_some(config)))
    };
    if path.is_file() {
        return Ok(with_config(path.to_path_buf()));
    }
    if !path.is_dir() {
        return Err(Error::Io(
            "expected a CLIP but found nothing\n\
             name a Hugging Face folder, a folder with open_clip_config.json, or a file of weights in OpenCLIP's names"
                .into(),
        ))
        .at(path.display());
    }
    // Repositories often hold the same weights in both layouts.
    if HuggingFaceWeights::are_in(path) && path.join("config.json").exists() {
        return Ok(None);
    }
    if let Some(file) = NAMES.iter().map(|name| path.join(name)).find(|file| file.exists()) {
        return Ok(with_config(file));
    }
    if !path.join(OPEN_CLIP_CONFIG).exists() {
        return Ok(None);
    }
    // Under whatever name, if there is only one.
    let unreadable = |e: std::io::Error| Error::Io(format!("expected a readable folder but found: {e}"));
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(unreadable).at(path.display())? {
        let file = entry.map_err(unreadable).at(path.display())?.path();
        if has_extension(&file, &TORCH) || has_extension(&file, &["safetensors"]) {
            files.push(file);
        }
    }
    match files.len() {
        1 => Ok(files.pop().and_then(with_config)),
        found => Err(Error::Io(format!(
            "expected one file of weights beside {OPEN_CLIP_CONFIG} but found {found}\nname the file itself"
        )))
        .at(path.display()),
    }
}

fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    extensions.iter().any(|known| extension.eq_ignore_ascii_case(known))
}

fn parent(file: &Path) -> PathBuf {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

/// The source, whichever it is.
macro_rules! each {
    ($weights:expr, $source:ident => $body:expr) => {
        match $weights {
            ClipWeights::HuggingFace($source) => $body,
            ClipWeights::Safetensors($source) => $body,
            ClipWeights::Torch($source) => $body,
        }
    };
}

impl TensorSource for ClipWeights {
    fn tensors(&self) -> &[TensorInfo] {
        each!(self, source => source.tensors())
    }

    async fn fetch(&self, name: &str) -> Result<RawTensor> {
        each!(self, source => source.fetch(name).await)
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        each!(self, source => source.info(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let touch = |name: &str| std::fs::write(at(name), "{}").unwrap();
        let found = || open_clip_files(folder.path()).unwrap();
        assert!(open_clip_files(&at("nothing")).unwrap_err().to_string().contains("but found nothing"));
        assert_eq!(found(), None);
        touch("weights.pt");
        assert_eq!(open_clip_files(&at("weights.pt")).unwrap(), Some((at("weights.pt"), None)));
        assert_eq!(found(), None);
        touch(OPEN_CLIP_CONFIG);
        let config = Some(at(OPEN_CLIP_CONFIG));
        assert_eq!(found(), Some((at("weights.pt"), config.clone())));
        touch("other.safetensors");
        assert!(open_clip_files(folder.path()).unwrap_err().to_string().contains("but found 2\nname the file itself"));
        touch(NAMES[1]);
        assert_eq!(found(), Some((at(NAMES[1]), config)));
        touch("model.safetensors");
        touch("config.json");
        assert_eq!(found(), None);
    }
}
