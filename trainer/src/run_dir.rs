//! A run's folder: configuration, commit, metrics as JSON lines, checkpoints that are whole or absent.

mod config;

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use rscapret::{
    Context, Error, Result,
    weights::{RawTensor, TensorSource, quant, safetensors},
};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    dataset::{Dataset, DatasetConfig, Record, load_listed, same},
    files::{unreadable, unwritable, write_atomic},
    optim::Optim,
    parallel::Group,
    report::Sample,
    vars::{Vars, restore, to_raw, values},
};
pub(crate) use config::no_config;
pub use config::read_config;

/// The folder of one run.
pub struct RunDir {
    path: PathBuf,
    /// Whether this process reads it only.
    reads: bool,
}

const CONFIG: &str = "config.toml";
const CHECKPOINT: &str = "checkpoint.safetensors";
const BEST: &str = "best.safetensors";
const METRICS: &str = "metrics.jsonl";
const SAMPLES: &str = "samples.jsonl";
const DATA: &str = "data.json";

impl RunDir {
    /// Opens the folder for a configuration. A folder that holds a run is only continued (`resume`), never overwritten; one
    /// whose run ended before its first step, for want of a file perhaps, is begun anew.
    ///
    /// # Errors
    /// [`Error::Config`] if there is a run already, or (resuming) none, or one of another configuration.
    pub fn open<C: Serialize + DeserializeOwned>(path: &Path, config: &C, resume: bool) -> Result<Self> {
        let run = RunDir { path: path.to_path_buf(), reads: false };
        let (begun, saved) = (RunDir::is_begun(path), run.file(CONFIG));
        let refused = |message: &str| Err(Error::Config(message.into())).at(path.display());
        match (begun, resume) {
            (true, false) => {
                return refused(
                    "expected a new folder but found a run in it\npass --resume to continue it, or name another folder",
                );
            }
            (false, true) if !saved.exists() => {
                return refused("expected a run to continue but found none\nleave out --resume to begin one");
            }
            (true, true) => {
                let text = fs::read_to_string(&saved).map_err(unreadable).at(saved.display())?;
                if let Some(text) = config::continued(&text, config).at(saved.display())? {
                    run.write(CONFIG, text.as_bytes())?;
                }
            }
            (false, _) => {
                fs::create_dir_all(path).map_err(unwritable).at(path.display())?;
                // The record of data that nothing was learned from.
                if saved.exists() && run.file(DATA).exists() {
                    fs::remove_file(run.file(DATA)).map_err(unwritable).at(run.file(DATA).display())?;
                }
                run.write(CONFIG, config::record(config)?.as_bytes())?;
            }
        }
        Ok(run)
    }

    /// As [`RunDir::open`] in the first process of a group. The others read what is there, and what they write is left
    /// out: it would be the same.
    ///
    /// # Errors
    /// As [`RunDir::open`].
    pub fn shared<C: Serialize + DeserializeOwned>(
        group: &dyn Group,
        path: &Path,
        config: &C,
        resume: bool,
    ) -> Result<Self> {
        match group.rank() {
            0 => Self::open(path, config, resume),
            _ => Ok(RunDir { path: path.to_path_buf(), reads: true }),
        }
    }

    /// Whether a folder holds a run of which something was computed.
    pub fn is_begun(path: &Path) -> bool {
        [CHECKPOINT, BEST, METRICS, SAMPLES].iter().any(|name| path.join(name).exists())
    }

    /// Reads the run's datasets, refusals told, and sees that they are those that it was begun on: their names, counts and
    /// digests stand in `data.json`.
    ///
    /// # Errors
    /// As [`load_listed`]; [`Error::Config`] for data that have changed since.
    pub fn datasets<'a>(&self, configs: impl IntoIterator<Item = &'a DatasetConfig>) -> Result<Vec<Dataset>> {
        let datasets: Vec<Dataset> = configs.into_iter().map(load_listed).collect::<Result<_>>()?;
        let (now, path) = (datasets.iter().map(Record::of).collect::<Vec<_>>(), self.file(DATA));
        if path.exists() {
            let text = fs::read(&path).map_err(unreadable).at(path.display())?;
            let before: Vec<Record> = serde_json::from_slice(&text)
                .map_err(|e| Error::Malformed(format!("expected the record of the run's data but found: {e}")))
                .at(path.display())?;
            same(&before, &now).at(path.display())?;
        } else {
            let text = serde_json::to_vec_pretty(&now).map_err(|e| Error::Malformed(e.to_string()))?;
            self.write(DATA, &text)?;
        }
        Ok(datasets)
    }

    /// A file's path inside.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Writes a file so that it is whole or absent: beside, synced, renamed.
    ///
    /// # Errors
    /// A full disk, a folder that cannot be written.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        if self.reads { Ok(()) } else { write_whole(&self.file(name), bytes) }
    }

    /// Adds a line to `metrics.jsonl`.
    ///
    /// # Errors
    /// As [`RunDir::write`].
    pub fn log(&self, line: &serde_json::Value) -> Result<()> {
        self.append(METRICS, line)
    }

    /// Adds a line to `samples.jsonl`.
    ///
    /// # Errors
    /// As [`RunDir::write`].
    pub fn log_sample(&self, sample: &Sample) -> Result<()> {
        self.append(SAMPLES, &serde_json::to_value(sample).map_err(|e| Error::Io(e.to_string()))?)
    }

    /// Drops what was logged after `step` steps, and a line that a kill cut: those steps come again.
    ///
    /// # Errors
    /// As [`RunDir::write`].
    pub fn rewind(&self, step: u64) -> Result<()> {
        for name in [METRICS, SAMPLES] {
            let path = self.file(name);
            if !path.exists() {
                continue;
            }
            let text = fs::read(&path).map_err(unreadable).at(path.display())?;
            let text = String::from_utf8_lossy(&text);
            let stays = |line: &&str| {
                let line: Option<serde_json::Value> = serde_json::from_str(line).ok();
                line.and_then(|line| line["step"].as_u64()).is_some_and(|at| at <= step)
            };
            let kept: String = text.lines().filter(stays).flat_map(|line| [line, "\n"]).collect();
            if kept != text {
                self.write(name, kept.as_bytes())?;
            }
        }
        Ok(())
    }

    fn append(&self, name: &str, line: &serde_json::Value) -> Result<()> {
        if self.reads {
            return Ok(());
        }
        let path = self.file(name);
        let mut file =
            fs::OpenOptions::new().create(true).append(true).open(&path).map_err(unwritable).at(path.display())?;
        writeln!(file, "{line}").map_err(unwritable).at(path.display())
    }

    /// Saves variables and the optimiser after `step` steps.
    ///
    /// # Errors
    /// As [`RunDir::write`]; [`Error::Backend`] for variables that are no numbers. The checkpoint before then stays.
    pub fn save(&self, step: u64, vars: &Vars, optim: &Optim) -> Result<()> {
        for (name, var) in vars {
            if let Some(found) = values(var)?.iter().find(|value| !value.is_finite()) {
                return Err(Error::Backend(format!(
                    "`{name}`: expected weights to be numbers but found {found}\n\
                     lower the learning rate and go on from the last checkpoint with --resume"
                )));
            }
        }
        let mut tensors: BTreeMap<String, RawTensor> =
            to_raw(vars)?.into_iter().map(|(name, raw)| (format!("vars.{name}"), raw)).collect();
        tensors.extend(optim.to_raw()?.into_iter().map(|(name, raw)| (format!("optim.{name}"), raw)));
        let metadata = BTreeMap::from([("step".to_string(), step.to_string())]);
        let mut bytes = Vec::new();
        safetensors::write_safetensors(&tensors, &metadata, &mut bytes)?;
        self.write(CHECKPOINT, &bytes)
    }

    /// Takes up the checkpoint; the number of steps done, 0 where there is none.
    ///
    /// # Errors
    /// A checkpoint of another model.
    pub fn load(&self, vars: &Vars, optim: &mut Optim) -> Result<u64> {
        let path = self.file(CHECKPOINT);
        let Some(file) = self.open_tensors(CHECKPOINT)? else { return Ok(0) };
        restore(vars, &Prefixed { source: &file, prefix: "vars." }).at(path.display())?;
        optim
            .restore(|name| quant::dequantize(&pollster::block_on(file.fetch(&format!("optim.{name}")))?))
            .at(path.display())?;
        let step = file.metadata("step").and_then(|s| s.parse().ok());
        step.ok_or_else(|| Error::Malformed("expected the number of steps in the metadata but found none".into()))
            .at(path.display())
    }

    /// Saves the variables that validated best so far, after `step` steps.
    ///
    /// # Errors
    /// As [`RunDir::write`].
    pub fn save_best(&self, step: u64, score: f64, vars: &Vars) -> Result<()> {
        let metadata =
            BTreeMap::from([("step".to_string(), step.to_string()), ("score".to_string(), score.to_string())]);
        let mut bytes = Vec::new();
        safetensors::write_safetensors(&to_raw(vars)?, &metadata, &mut bytes)?;
        self.write(BEST, &bytes)
    }

    /// The best validation's step and score; `None` before the first.
    ///
    /// # Errors
    /// A file that does not tell them.
    pub fn best(&self) -> Result<Option<(u64, f64)>> {
        let Some(file) = self.open_tensors(BEST)? else { return Ok(None) };
        let found = || Some((file.metadata("step")?.parse().ok()?, file.metadata("score")?.parse().ok()?));
        found()
            .map(Some)
            .ok_or_else(|| Error::Malformed("expected a step and a score in the metadata but found none".into()))
            .at(self.file(BEST).display())
    }

    /// Sets the variables to those that validated best; leaves them where there was no validation.
    ///
    /// # Errors
    /// A file of another model.
    pub fn load_best(&self, vars: &Vars) -> Result<()> {
        match self.open_tensors(BEST)? {
            Some(file) => restore(vars, &file).at(self.file(BEST).display()),
            None => Ok(()),
        }
    }

    fn open_tensors(&self, name: &str) -> Result<Option<safetensors::SafetensorsFile<Vec<u8>>>> {
        let path = self.file(name);
        if !path.exists() {
            return Ok(None);
        }
        let bytes = fs::read(&path).map_err(unreadable).at(path.display())?;
        pollster::block_on(safetensors::SafetensorsFile::open(bytes)).at(path.display()).map(Some)
    }
}

/// A source seen below a prefix of its names.
pub(crate) struct Prefixed<'a, S> {
    pub(crate) source: &'a S,
    pub(crate) prefix: &'a str,
}

impl<S: TensorSource> TensorSource for Prefixed<'_, S> {
    fn tensors(&self) -> &[rscapret::weights::TensorInfo] {
        self.source.tensors()
    }

    async fn fetch(&self, name: &str) -> Result<RawTensor> {
        self.source.fetch(&format!("{}{name}", self.prefix)).await
    }
}

/// Writes a file so that it is whole or absent.
///
/// # Errors
/// A full disk, a folder that cannot be written.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(unwritable).at(path.display())?;
    }
    write_atomic(path, |file| file.write_all(bytes).map_err(unwritable))
}

/// The commit of the code that runs, as git tells it; `unknown` outside of a checkout.
pub fn commit() -> String {
    let output = std::process::Command::new("git").args(["rev-parse", "HEAD"]).output();
    match output {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().to_string(),
        _ => "unknown".to_string(),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor, Var};

    use super::*;

    #[test]
    fn what_will_come_again_is_dropped_from_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::open(folder.path(), &BTreeMap::from([("seed".to_string(), 1)]), false).unwrap();
        run.rewind(0).unwrap();
        for step in [10, 20, 30] {
            run.log(&serde_json::json!({ "step": step })).unwrap();
        }
        let mut file = fs::OpenOptions::new().append(true).open(run.file(METRICS)).unwrap();
        file.write_all(b"{\"step\": 4").unwrap();
        run.rewind(20).unwrap();
        assert_eq!(fs::read_to_string(run.file(METRICS)).unwrap(), "{\"step\":10}\n{\"step\":20}\n");
    }

    #[test]
    fn the_best_variables_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::open(folder.path(), &BTreeMap::from([("seed".to_string(), 1)]), false).unwrap();
        let vars = Vars::from([("w".to_string(), Var::new(&[1f32, 2.0], &Device::Cpu).unwrap())]);
        assert_eq!(run.best().unwrap(), None);
        run.load_best(&vars).unwrap();
        run.save_best(3, -0.25, &vars).unwrap();
        vars["w"].set(&Tensor::new(&[5f32, 6.0], &Device::Cpu).unwrap()).unwrap();
        assert_eq!(run.best().unwrap(), Some((3, -0.25)));
        run.load_best(&vars).unwrap();
        assert_eq!(values(&vars["w"]).unwrap(), [1.0, 2.0]);
    }
}
