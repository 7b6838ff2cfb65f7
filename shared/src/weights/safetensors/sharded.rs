//! Checkpoints in several files, joined by `model.safetensors.index.json`.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
};

use serde::Deserialize;

use super::{SafetensorsFile, Skipped, Unique};
use crate::{
    error::{Context, Error, Result},
    weights::{ByteSource, RawTensor, TensorInfo, TensorSource, plain_file_name},
};

/// `model.safetensors.index.json`.
#[derive(Debug, Clone)]
pub struct ShardIndex {
    /// Shards' file names, sorted.
    pub shards: Vec<String>,
    /// Tensor -> its shard's place in `shards`.
    weight_map: HashMap<String, usize>,
}

/// Only the map: `metadata` holds the total size, which readers do not need.
#[derive(Deserialize)]
struct IndexFile {
    weight_map: Unique<String>,
}

impl ShardIndex {
    /// Parses the index.
    ///
    /// # Errors
    /// [`Error::Malformed`] if it is no such JSON or names files elsewhere than beside itself.
    pub fn parse(json: &[u8]) -> Result<Self> {
        let IndexFile { weight_map: Unique(map) } = serde_json::from_slice(json)
            .map_err(|e| Error::Malformed(format!("expected a safetensors index but found {e}")))?;
        let mut places: BTreeMap<&str, usize> = map.iter().map(|(_, shard)| (shard.as_str(), 0)).collect();
        for (i, (shard, place)) in places.iter_mut().enumerate() {
            plain_file_name(shard)?;
            *place = i;
        }
        let shards = places.keys().map(|s| s.to_string()).collect();
        let weight_map = map.iter().map(|(tensor, shard)| (tensor.clone(), places[shard.as_str()])).collect();
        Ok(ShardIndex { shards, weight_map })
    }
}

/// All shards of a checkpoint as one source.
#[derive(Debug)]
pub struct ShardedSafetensors<S> {
    shards: Vec<SafetensorsFile<S>>,
    tensors: Vec<TensorInfo>,
    /// Tensor -> (shard, place in `tensors`).
    index: HashMap<String, (usize, usize)>,
    skipped: Vec<Skipped>,
}

impl<S: ByteSource> ShardedSafetensors<S> {
    /// Opens every shard that the index names; `open` answers a shard's file name with its bytes.
    ///
    /// # Errors
    /// [`Error::Malformed`] if index and shards disagree on which tensor lies where; those of
    /// [`SafetensorsFile::open`], with the shard's name.
    pub async fn open(index: &ShardIndex, mut open: impl AsyncFnMut(&str) -> Result<S>) -> Result<Self> {
        let mut out = ShardedSafetensors { shards: vec![], tensors: vec![], index: HashMap::new(), skipped: vec![] };
        let mut listed = 0;
        for (place, name) in index.shards.iter().enumerate() {
            let file = SafetensorsFile::open(open(name).await.at(name)?).await.at(name)?;
            let header = file.header();
            let names = header.tensors.iter().map(|t| &t.name).chain(header.skipped.iter().map(|t| &t.name));
            for tensor in names {
                if index.weight_map.get(tensor) != Some(&place) {
                    return Err(Error::Malformed(format!(
                        "expected the index to place `{tensor}` here but found it elsewhere"
                    )))
                    .at(name);
                }
                listed += 1;
            }
            for info in &header.tensors {
                out.index.insert(info.name.clone(), (place, out.tensors.len()));
                out.tensors.push(info.clone());
            }
            out.skipped.extend(header.skipped.iter().cloned());
            out.shards.push(file);
        }
        if listed != index.weight_map.len() {
            let absent =
                |name: &&String| !out.index.contains_key(*name) && !out.skipped.iter().any(|s| s.name == **name);
            let missing = index.weight_map.keys().filter(absent).min();
            return Err(Error::MissingTensor(missing.cloned().unwrap_or_default()));
        }
        Ok(out)
    }

    /// Tensors that cannot be fetched.
    pub fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }
}

impl<S: ByteSource> TensorSource for ShardedSafetensors<S> {
    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    async fn fetch(&self, name: &str) -> Result<RawTensor> {
        let &(shard, _) = self.index.get(name).ok_or_else(|| Error::MissingTensor(name.to_string()))?;
        self.shards[shard].fetch(name).await
    }

    async fn fetch_rows(&self, name: &str, rows: Range<usize>) -> Result<RawTensor> {
        let &(shard, _) = self.index.get(name).ok_or_else(|| Error::MissingTensor(name.to_string()))?;
        self.shards[shard].fetch_rows(name, rows).await
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.index.get(name).map(|&(_, i)| &self.tensors[i])
    }
}
