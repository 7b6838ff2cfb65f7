//! How fast a model comes from its file to where it computes: read, and repacked for a GPU. The file was just written, so
//! the system still has it in its memory: the reader is measured, not the disk.

use std::{fs, io::BufWriter, path::PathBuf};

use pollster::block_on;
use rscapret::{
    Backend, Error, Result,
    bench::{Place, Row, chosen, greedy, large_config, random_gguf},
    llama::load_llama_gguf,
    weights::{Dtype, gguf::GgufFile},
};
use rscapret_trainer::files::FileSource;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{chromium, clock, on_disk};
use crate::browser::{Browser, Workbench};

const NAME: &str = "load/1.1B/Q4_0";
/// Of which the median is taken, after one that is not counted.
const REPETITIONS: usize = 3;

/// Names of the rows, in every place.
pub(super) fn names() -> impl Iterator<Item = String> {
    ["", "/webgpu"].into_iter().chain(chromium::SUFFIXES).map(|suffix| format!("{NAME}{suffix}"))
}

/// A Llama of TinyLlama's shape as a file, made-up weights in 4 bits.
pub(super) struct ModelFile {
    path: PathBuf,
    megabytes: f64,
    // Removes it at the end.
    _folder: TempDir,
}

impl ModelFile {
    /// Writes it if a row of it is asked for.
    ///
    /// # Errors
    /// A full disk.
    pub(super) fn if_wanted(asked: &[String]) -> Result<Option<ModelFile>> {
        if !names().any(|name| chosen(asked, &name)) {
            return Ok(None);
        }
        let folder = on_disk(tempfile::tempdir(), "temporary folder")?;
        let path = folder.path().join("1.1B.gguf");
        let mut out = BufWriter::new(on_disk(fs::File::create(&path), path.display())?);
        random_gguf(&large_config(), |_| Dtype::Q4_0, &mut out)?;
        on_disk(out.into_inner().map_err(std::io::IntoInnerError::into_error), path.display())?;
        let megabytes = on_disk(fs::metadata(&path), path.display())?.len() as f64 / 1e6;
        Ok(Some(ModelFile { path, megabytes, _folder: folder }))
    }

    /// Natively, on one backend.
    ///
    /// # Errors
    /// A model that cannot be loaded or answers what is not finite; what `emit` answers.
    pub(super) fn native<B: Backend>(
        &self,
        asked: &[String],
        place: &Place<B>,
        emit: &mut dyn FnMut(Row) -> Result<()>,
    ) -> Result<()> {
        let name = format!("{NAME}{}", place.suffix);
        if !chosen(asked, &name) {
            return Ok(());
        }
        let (backend, mut seconds) = (&place.backend, Vec::new());
        for _ in 0..=REPETITIONS {
            let start = clock();
            let file = block_on(GgufFile::open(FileSource::open(&self.path)?))?;
            let llama = block_on(load_llama_gguf(backend, file))?;
            // What is still on its way to a GPU is part of loading.
            block_on(backend.read(&backend.upload(&[0.0], &[1])?))?;
            seconds.push(clock() - start);
            if seconds.len() == 1 {
                block_on(greedy(backend, &llama, &[1], 1, || {}))?;
            }
        }
        seconds.remove(0);
        seconds.sort_by(f64::total_cmp);
        emit(self.row(name, seconds[seconds.len() / 2], &place.conditions))
    }

    /// In Chromium's wasm, on the processor and on the GPU.
    ///
    /// # Errors
    /// Likewise.
    pub(super) fn chromium(&self, asked: &[String], emit: &mut dyn FnMut(Row) -> Result<()>) -> Result<()> {
        for (gpu, suffix) in [false, true].into_iter().zip(chromium::SUFFIXES) {
            let name = format!("{NAME}{suffix}");
            if !chosen(asked, &name) {
                continue;
            }
            let folder = chromium::workbench_folder()?;
            let browser = if gpu { Browser::start_with_gpu() } else { Browser::start() };
            let workbench = Workbench::open_in(&folder, browser);
            workbench.browser().type_into("input", &self.path.display().to_string());
            workbench.order(&json!({ "decode": { "ids": [1], "steps": 1, "gpu": gpu, "timed": false } }));
            let answer = workbench.answer().map_err(Error::Backend)?.unwrap_or_default();
            let answer: Value = serde_json::from_str(&answer).map_err(|e| Error::Malformed(e.to_string()))?;
            let seconds = answer["load_seconds"].as_f64();
            let missing = || Error::Malformed(format!("expected the seconds of loading but found {answer}"));
            emit(self.row(name, seconds.ok_or_else(missing)?, chromium::conditions(gpu)))?;
        }
        Ok(())
    }

    fn row(&self, name: String, seconds: f64, conditions: &str) -> Row {
        let note = format!("a GGUF of {:.0} MB that the system has in memory; {conditions}", self.megabytes);
        Row { name, value: self.megabytes / seconds, unit: "MB/s".into(), note }
    }
}
