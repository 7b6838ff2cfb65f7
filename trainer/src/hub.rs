//! Models by their names on the Hugging Face Hub (<https://huggingface.co/docs/hub>): `owner/name` in place of a folder.
//!
//! What lies on disk is always taken as it is, without a look at the network. What is in the Hub's cache is not asked
//! for again either, so that a machine that was filled once goes on without a connection.

use std::path::{Path, PathBuf};

use hf_hub::{
    Cache, Repo,
    api::sync::{ApiBuilder, ApiError, ApiRepo},
};
use rscapret::{Context, Error, Result, clip::OPEN_CLIP_CONFIG, weights::safetensors::ShardIndex};

use crate::{
    bridge,
    clip::OPENAI_MERGES,
    files::{
        hugging_face::{INDEX, SINGLE, TORCH},
        read_whole,
    },
};

/// Where models come from when nothing else is set.
const ENDPOINT: &str = "https://huggingface.co";
/// Tries of a download that breaks off; each goes on where the last one ended.
const RETRIES: usize = 3;
/// Most bytes of a shard index.
const MAX_INDEX: u64 = 64 << 20;

/// What a name stands for, which decides the files that are fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A Llama: `config.json`, `tokenizer.json` and weights.
    Llm,
    /// A CLIP of Hugging Face (with `preprocessor_config.json`) or of OpenCLIP.
    Clip,
}

/// The Hub, or a mirror of it, and its cache on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hub {
    /// Folder of the cache, in the layout that all of Hugging Face's programs share.
    pub cache: PathBuf,
    /// Address.
    pub endpoint: String,
    /// Of the account that may read gated models.
    pub token: Option<String>,
    /// Whether only the cache may be looked at.
    pub offline: bool,
}

impl Hub {
    /// As Hugging Face's programs do: HF_HUB_CACHE or HF_HOME or ~/.cache/huggingface, HF_ENDPOINT, HF_TOKEN or the token that
    /// `hf auth login` left, HF_HUB_OFFLINE.
    ///
    /// # Errors
    /// [`Error::Config`] where there is no home folder and none of the variables names one.
    pub fn from_env() -> Result<Self> {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let text = |name: &str| set(name).and_then(|value| value.into_string().ok());
        let home = set("HF_HOME").map(PathBuf::from).or_else(|| Some(std::env::home_dir()?.join(".cache/huggingface")));
        let cache = set("HF_HUB_CACHE").map(PathBuf::from).or_else(|| Some(home.clone()?.join("hub")));
        let cache = cache.ok_or_else(|| {
            Error::Config("expected a home folder for the Hub's cache but found none\nname one with HF_HOME".into())
        })?;
        let stored = home.and_then(|home| std::fs::read_to_string(home.join("token")).ok());
        let token = text("HF_TOKEN").or(stored).map(|token| token.trim().to_string());
        Ok(Hub {
            cache,
            endpoint: text("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.into()),
            token: token.filter(|token| !token.is_empty()),
            offline: text("HF_HUB_OFFLINE").is_some_and(|value| !["0", "false"].contains(&value.as_str())),
        })
    }

    /// The local path of a model. Of `owner/name` that is a folder of the cache, filled if need be; of `owner/name/file`,
    /// a file of weights there (OpenCLIP's repositories may hold several). Whatever exists on disk stays as it is.
    ///
    /// # Errors
    /// With the name: no such model, no right to read it, no connection, or a repository without the files.
    pub fn resolve(&self, path: &Path, kind: Kind) -> Result<PathBuf> {
        match name(path) {
            Some((repo, file)) => self.fetch(repo, file, kind).at(path.display()),
            None => Ok(path.to_path_buf()),
        }
    }

    fn fetch(&self, repo: &str, file: Option<&str>, kind: Kind) -> Result<PathBuf> {
        let cache = Cache::new(self.cache.clone());
        let cached = cache.model(repo.to_string());
        let there = |name: &str| cached.get(name);
        let anchors = match file {
            Some(file) => vec![file],
            None => vec!["config.json", OPEN_CLIP_CONFIG],
        };
        for folder in anchors.iter().filter_map(|name| there(name)?.parent().map(Path::to_path_buf)) {
            if complete(&folder, file, kind) {
                return Ok(file.map_or(folder.clone(), |file| folder.join(file)));
            }
        }
        if self.offline {
            return Err(Error::Io(format!(
                "expected the model in {} but found none, and HF_HUB_OFFLINE is set\n{ELSEWHERE}",
                self.cache.display()
            )));
        }
        let api = ApiBuilder::from_cache(cache)
            .with_endpoint(self.endpoint.clone())
            .with_token(self.token.clone())
            .with_retries(RETRIES)
            .build();
        let remote = api.map_err(|e| self.error(repo, &e))?.repo(Repo::model(repo.to_string()));
        let siblings = remote.info().map_err(|e| self.error(repo, &e))?.siblings;
        let names: Vec<&str> = siblings.iter().map(|sibling| sibling.rfilename.as_str()).collect();
        let get = |name: &str| self.get(&remote, repo, name);
        let mut last = PathBuf::new();
        for name in wanted(kind, file, &names)? {
            last = get(name)?;
            if name == INDEX {
                let index = ShardIndex::parse(&read_whole(&last, MAX_INDEX)?).at(name)?;
                index.shards.iter().try_for_each(|shard| get(shard).map(drop))?;
            }
        }
        match file {
            Some(_) => Ok(last),
            None => Ok(last.parent().map(Path::to_path_buf).unwrap_or_default()),
        }
    }

    fn get(&self, remote: &ApiRepo, repo: &str, name: &str) -> Result<PathBuf> {
        remote.get(name).map_err(|e| self.error(repo, &e)).at(name)
    }

    fn error(&self, repo: &str, error: &ApiError) -> Error {
        let status = match error {
            ApiError::RequestError(error) => match **error {
                ureq::Error::StatusCode(status) => Some(status),
                _ => None,
            },
            _ => None,
        };
        let (endpoint, cache) = (&self.endpoint, self.cache.display());
        Error::Io(match status {
            Some(401 | 403) => format!(
                "expected the right to read the model but found status {}\n\
                 accept its terms at {endpoint}/{repo}, then set HF_TOKEN or run `hf auth login`",
                status.unwrap_or_default()
            ),
            Some(404) => format!("expected a folder, or a model on {endpoint}, but found neither\ncheck the spelling"),
            _ => format!("expected {endpoint} to answer but found: {error}\nthe cache is {cache}; {ELSEWHERE}"),
        })
    }
}

/// What helps without a connection.
const ELSEWHERE: &str =
    "download the model where there is a connection, and name its folder here or copy the cache (HF_HOME)";

/// A language model's path with the Hub of the environment; see [`Hub::resolve`].
///
/// # Errors
/// As [`Hub::from_env`] and [`Hub::resolve`].
pub fn llm(path: &Path) -> Result<PathBuf> {
    resolve(path, Kind::Llm)
}

/// A CLIP's, likewise.
///
/// # Errors
/// Likewise.
pub fn clip(path: &Path) -> Result<PathBuf> {
    resolve(path, Kind::Clip)
}

/// The configuration of a training run with local paths in place of names. What is written into the run's folder keeps the
/// names.
///
/// # Errors
/// As [`llm`] and [`clip`].
pub fn local(config: &bridge::Config) -> Result<bridge::Config> {
    Ok(bridge::Config { llm: llm(&config.llm)?, clip: clip(&config.clip)?, ..config.clone() })
}

fn resolve(path: &Path, kind: Kind) -> Result<PathBuf> {
    // A machine without a home folder needs none for what is on its disk.
    if name(path).is_none() { Ok(path.to_path_buf()) } else { Hub::from_env()?.resolve(path, kind) }
}

/// `owner/name` and perhaps a file, if the path can be one on the Hub: nothing of that name is on disk, and not even its
/// first folder.
fn name(path: &Path) -> Option<(&str, Option<&str>)> {
    let text = path.to_str()?;
    let parts: Vec<&str> = text.split('/').collect();
    let part = |text: &str| {
        let first = text.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
        let all = text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
        first && all && !text.contains("..") && !text.contains("--") && text.len() <= 96
    };
    let known = (2..=3).contains(&parts.len()) && parts.iter().all(|text| part(text));
    if !known || path.exists() || Path::new(parts[0]).exists() {
        return None;
    }
    let repo = &text[..parts[0].len() + 1 + parts[1].len()];
    Some((repo, parts.get(2).copied()))
}

/// The files to fetch of those that a repository has, weights last: a folder that has weights has the rest, too.
fn wanted<'f>(kind: Kind, file: Option<&'f str>, names: &[&'f str]) -> Result<Vec<&'f str>> {
    let has = |name: &str| names.contains(&name);
    let missing = |what: &str| Err(Error::Io(format!("expected {what} in the repository but found {}", few(names))));
    if let Some(file) = file {
        let beside = [OPEN_CLIP_CONFIG, "tokenizer.json", "vocab.json", "merges.txt", OPENAI_MERGES];
        let mut wanted: Vec<&str> = beside.into_iter().filter(|name| has(name)).collect();
        wanted.push(file);
        return if has(file) { Ok(wanted) } else { missing(file) };
    }
    let weights = [SINGLE, INDEX, TORCH].into_iter().find(|name| has(name));
    let tokenizer = match kind {
        Kind::Llm => ["tokenizer.json"].as_slice(),
        Kind::Clip => [["tokenizer.json"].as_slice(), &["vocab.json", "merges.txt"], &[OPENAI_MERGES]]
            .into_iter()
            .find(|files| files.iter().all(|name| has(name)))
            .unwrap_or_default(),
    };
    let hugging_face = match kind {
        Kind::Llm => ["config.json"].as_slice(),
        Kind::Clip => &["config.json", "preprocessor_config.json"],
    };
    let mut wanted = Vec::new();
    if let Some(weights) = weights.filter(|_| hugging_face.iter().all(|name| has(name))) {
        wanted.extend(hugging_face);
        wanted.extend(tokenizer);
        wanted.push(weights);
    } else if kind == Kind::Clip && has(OPEN_CLIP_CONFIG) {
        let Some(weights) = crate::files::clip::NAMES.into_iter().find(|name| has(name)) else {
            return missing("OpenCLIP's weights");
        };
        wanted.push(OPEN_CLIP_CONFIG);
        wanted.extend(tokenizer);
        wanted.push(weights);
    } else {
        return missing(match kind {
            Kind::Llm => "config.json and model.safetensors",
            Kind::Clip => "config.json, preprocessor_config.json and model.safetensors, or those of OpenCLIP,",
        });
    }
    match wanted.iter().find(|name| !has(name)) {
        Some(name) => missing(name),
        None => Ok(wanted),
    }
}

fn few(names: &[&str]) -> String {
    let shown: Vec<String> = names.iter().take(8).map(|name| name.escape_debug().to_string()).collect();
    let more = if names.len() > shown.len() { ", …" } else { "" };
    format!("{}{more}", if shown.is_empty() { "nothing".to_string() } else { shown.join(", ") })
}

/// Whether a folder of the cache has all that would be fetched.
fn complete(folder: &Path, file: Option<&str>, kind: Kind) -> bool {
    let Ok(entries) = std::fs::read_dir(folder) else { return false };
    // Links to nowhere are left out: the cache keeps contents apart from names.
    let names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| folder.join(name).exists())
        .collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let Ok(wanted) = wanted(kind, file, &names) else { return false };
    let shards = || {
        let index = read_whole(&folder.join(INDEX), MAX_INDEX).and_then(|bytes| ShardIndex::parse(&bytes));
        index.is_ok_and(|index| index.shards.iter().all(|shard| folder.join(shard).exists()))
    };
    !wanted.contains(&INDEX) || shards()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_a_name() {
        let of = |text: &'static str| name(Path::new(text));
        assert_eq!(of("openai/clip-vit-large-patch14"), Some(("openai/clip-vit-large-patch14", None)));
        assert_eq!(of("no-owner/a/RemoteCLIP-ViT-L-14.pt"), Some(("no-owner/a", Some("RemoteCLIP-ViT-L-14.pt"))));
        // The tests run in the package's folder: `src` is there, so this is a path with a mistake in it.
        for path in
            ["src/nothing", "model", "/a/b", "./a/b", "../a", "a/../b", "a//b", "a/b/c/d", "a b/c", "a/.b", "~/a"]
        {
            assert_eq!(of(path), None, "{path}");
        }
    }

    #[test]
    fn files_are_chosen_by_kind_and_layout() {
        let llama = ["README.md", "config.json", "tokenizer.json", "pytorch_model.bin", SINGLE, INDEX];
        assert_eq!(wanted(Kind::Llm, None, &llama).unwrap(), ["config.json", "tokenizer.json", SINGLE]);
        let clip = ["config.json", "preprocessor_config.json", "vocab.json", "merges.txt", INDEX];
        assert_eq!(wanted(Kind::Clip, None, &clip).unwrap(), clip);
        let old = ["pytorch_model.bin", "config.json", "preprocessor_config.json", "tokenizer.json"];
        assert_eq!(wanted(Kind::Clip, None, &old).unwrap().last(), Some(&TORCH));
        let open = [OPEN_CLIP_CONFIG, "open_clip_pytorch_model.bin", "open_clip_model.safetensors", "tokenizer.json"];
        assert_eq!(
            wanted(Kind::Clip, None, &open).unwrap(),
            [OPEN_CLIP_CONFIG, "tokenizer.json", "open_clip_model.safetensors"]
        );
        assert_eq!(wanted(Kind::Clip, Some("b.pt"), &["a.pt", "b.pt"]).unwrap(), ["b.pt"]);
        for (kind, names) in [(Kind::Llm, &clip[..]), (Kind::Llm, &["config.json", SINGLE]), (Kind::Clip, &open[1..])] {
            assert!(wanted(kind, None, names).unwrap_err().to_string().contains("in the repository but found "));
        }
    }
}
