//! Variants of one training configuration, trained and scored one after the other: a research question as a file.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use rscapret::{
    Candle, Context, Error, Result,
    caption::{Captioner, DecodeOptions},
    projection::Projections,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use toml::{Table, Value};

use crate::{
    bridge,
    clip::Clip,
    dataset::{Split, read_datasets},
    eval::java::Jars,
    evaluate::{self, Begun, Row, Task, clip_name},
    features::{Tower, file_hashes},
    files::FileSource,
    hub, progress,
    report::bars,
    run_dir::{RunDir, commit, no_config, read_config, write_whole},
};

/// `sweep`'s TOML. Paths are taken from the working folder.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Configuration of `rscapret train` that the variants change.
    pub base: PathBuf,
    /// Datasets that every variant is scored on.
    pub eval: PathBuf,
    /// Split of them; choices are made on `val`.
    #[serde(default = "val")]
    pub split: Split,
    /// Beams of the captions.
    #[serde(default = "greedy")]
    pub beam: usize,
    /// Folder `pycocoevalcap` with the programs of METEOR and SPICE.
    #[serde(default)]
    pub jars: Option<PathBuf>,
    /// Whether the retrieval of each variant's CLIP by its own two towers is scored as well.
    #[serde(default)]
    pub clip_baseline: bool,
    /// At least one.
    pub variant: Vec<Variant>,
}

fn val() -> Split {
    Split::Val
}

fn greedy() -> usize {
    1
}

/// One variant.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// What the table and its folder call it.
    pub name: String,
    /// Keys of the base that are other here; tables inside are changed key by key, lists as a whole.
    #[serde(default)]
    pub set: Table,
}

/// Trains and scores every variant in a folder of its own below `folder`, and writes results.json, results.md and
/// results.svg. Variants that were finished before are only scored again; what their models said of an image is kept until all
/// are scored, so a sweep that was stopped asks none of them twice.
///
/// # Errors
/// Unusable configurations, before anything is trained; what training and scoring answer.
pub fn run(config: &Config, folder: &Path, backend: &Candle) -> Result<Vec<Row>> {
    let variants = variants(config)?;
    let datasets = read_datasets(&config.eval)?;
    let tasks: Vec<Task> = datasets.iter().map(|data| Task::open(data, config.split)).collect::<Result<_>>()?;
    let options = DecodeOptions { beams: config.beam, ..DecodeOptions::default() };
    options.check()?;
    let jars = config.jars.as_deref().map(Jars::open).transpose()?;
    let (mut rows, mut compared, mut begun) = (Vec::new(), BTreeSet::new(), Vec::new());
    for (name, training) in &variants {
        let run = folder.join(name);
        train(training, &run, backend).at(name)?;
        let model = trained(&hub::local(training)?, &run, backend).at(name)?;
        let mut answers = Begun::open(&run, &what(config, &run, &tasks)?, true).at(name)?;
        let clip = (config.clip_baseline && compared.insert(&training.clip))
            .then(|| Clip::open(backend, &hub::clip(&training.clip)?))
            .transpose()?;
        for task in &tasks {
            let bar = progress::bar(task.len(), name.clone());
            let options = std::slice::from_ref(&options);
            for result in evaluate::bundle(&model, name, task, options, jars.as_ref(), Some(&mut answers), &bar)? {
                result.not_run.iter().for_each(|why| bar.suspend(|| eprintln!("not run: {why}")));
                rows.push(result.row);
            }
            if let Some(clip) = &clip {
                rows.push(evaluate::clip(clip, &clip_name(&training.clip), task, &bar)?);
            }
            bar.finish_and_clear();
        }
        // After each variant, for the next one may take days.
        write(&rows, folder)?;
        begun.push(answers);
    }
    begun.into_iter().try_for_each(Begun::end)?;
    Ok(rows)
}

/// What the answers of a variant's model are to: the maps in its folder, the images, the way of decoding.
fn what(config: &Config, run: &Path, tasks: &[Task]) -> Result<serde_json::Value> {
    let maps = file_hashes(&[&run.join("projections.safetensors")])?;
    let datasets: Vec<_> = tasks.iter().map(|task| (task.name(), task.len())).collect();
    Ok(json!({ "projections": maps, "split": config.split, "datasets": datasets, "beams": [config.beam] }))
}

fn write(rows: &[Row], folder: &Path) -> Result<()> {
    let results = serde_json::to_string_pretty(&json!({ "commit": commit(), "rows": rows }));
    write_whole(&folder.join("results.json"), results.map_err(|e| Error::Io(e.to_string()))?.as_bytes())?;
    write_whole(&folder.join("results.md"), evaluate::markdown(rows).as_bytes())?;
    let label = |row: &Row| format!("{}, {}", row.model, row.dataset);
    let recall: Vec<(String, f64)> = rows.iter().map(|row| (label(row), row.own_image.mean_recall)).collect();
    let cider = rows.iter().filter_map(|row| Some((label(row), row.scores?.cider)));
    let groups = [("CIDEr", cider.collect()), ("mean recall, own-image", recall)];
    write_whole(&folder.join("results.svg"), bars(&groups).as_bytes())
}

/// Every variant's configuration, checked.
fn variants(config: &Config) -> Result<Vec<(String, bridge::Config)>> {
    if config.variant.is_empty() {
        return Err(Error::Config("expected at least one [[variant]] but found none".to_string()));
    }
    let base: Table = read_config(&config.base)?;
    let mut names = BTreeSet::new();
    let one = |variant: &Variant| {
        let name = variant.name.clone();
        let usual = |c: char| c.is_alphanumeric() || "-_=.+ ".contains(c);
        if name.trim().is_empty() || name.starts_with('.') || !name.chars().all(usual) || !names.insert(name.clone()) {
            return Err(Error::Config(format!(
                "expected variants of different names of letters, digits and - _ = . + but found `{name}`"
            )));
        }
        let mut merged = base.clone();
        merge(&mut merged, &variant.set);
        let merged = Value::Table(merged).try_into();
        let merged = merged.map_err(|error| no_config(&error));
        let merged = merged.and_then(|merged: bridge::Config| merged.check().map(|()| merged));
        Ok((name.clone(), merged.at(format!("variant `{name}`"))?))
    };
    config.variant.iter().map(one).collect()
}

fn merge(base: &mut Table, changes: &Table) {
    for (key, change) in changes {
        match (base.get_mut(key), change) {
            (Some(Value::Table(inside)), Value::Table(change)) => merge(inside, change),
            _ => drop(base.insert(key.clone(), change.clone())),
        }
    }
}

/// Trains, goes on with, or leaves alone what is finished.
fn train(config: &bridge::Config, run: &Path, backend: &Candle) -> Result<()> {
    let begun = RunDir::is_begun(run);
    if begun {
        let text = |config: &bridge::Config| toml::to_string(config).map_err(|e| Error::Config(e.to_string()));
        if text(&read_config(&run.join("config.toml"))?)? != text(config)? {
            return Err(Error::Config(
                "expected a run of this variant but found one of another configuration\nname another folder"
                    .to_string(),
            ))
            .at(run.display());
        }
        if run.join("projections.safetensors").exists() {
            return Ok(());
        }
    }
    let folder = RunDir::open(run, config, begun)?;
    bridge::run(&hub::local(config)?, &folder, backend)
}

/// The models of a finished run, as they were trained: nothing is quantised.
fn trained(config: &bridge::Config, run: &Path, backend: &Candle) -> Result<Captioner<Candle>> {
    let backend = backend.computing_in(config.training.compute);
    let (llama, tokenizer) = bridge::open_llm(&config.llm_backend(&backend), &config.llm)?;
    let (vision, preprocess) = Tower::open(&backend, &config.clip)?.into_parts();
    let (features, hidden) = (vision.config().hidden_size, llama.config().hidden_size);
    let path = run.join("projections.safetensors");
    let maps = Projections::open(&backend, FileSource::open(&path)?, features, hidden, &[]);
    let maps = pollster::block_on(maps).at(path.display())?;
    Captioner::new(backend, llama, tokenizer, vision, preprocess, maps, "")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_papers_questions_are_whole_configurations() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mut found = Vec::new();
        for entry in fs::read_dir(root.join("trainer/configs")).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if name.starts_with("sweep-") {
                let mut config: Config = read_config(&path).unwrap();
                config.base = root.join(config.base);
                let variants = variants(&config).unwrap_or_else(|error| panic!("{name}: {error}"));
                let text = |(_, config): &(String, bridge::Config)| toml::to_string(config).unwrap();
                assert!(variants.windows(2).all(|two| text(&two[0]) != text(&two[1])), "{name}");
                assert!(!read_datasets(&root.join(&config.eval)).unwrap().is_empty(), "{name}");
                found.push(name);
            }
        }
        found.sort();
        let expected = ["clip", "data", "demo-data", "demo-visual-tokens", "image-feature", "llm", "visual-tokens"]
            .map(|name| format!("sweep-{name}.toml"));
        assert_eq!(found, expected);
    }

    #[test]
    fn tables_are_changed_key_by_key() {
        let table = |text: &str| toml::from_str::<Table>(text).unwrap();
        let mut base = table("a = 1\nb = [1, 2]\n[optim]\nlr = 1.0\nclip = 2.0");
        merge(&mut base, &table("b = [3]\nnew = true\n[optim]\nlr = 0.5"));
        assert_eq!(base, table("a = 1\nb = [3]\nnew = true\n[optim]\nlr = 0.5\nclip = 2.0"));
    }
}
