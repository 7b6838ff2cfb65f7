//! Where weights come from: the configuration of the run that trained them, its data sets, and the commit of the trainer.

use std::{collections::BTreeMap, fs, path::Path};

use rscapret::{
    Context, Error, Result,
    bundle::{Bundle, FileEntry, MANIFEST, Origin},
};
use toml::{Table, Value};

use crate::files::read_manifest;

// Keys of the metadata of `projections.safetensors`.
const COMMIT: &str = "commit";
const CONFIG: &str = "config";
const DATA: &str = "data";

/// What begins the configuration that a run keeps in its folder.
const HEAD: &str = "# commit ";

/// The record of a run's folder; `None` for a folder that is no run's.
///
/// # Errors
/// With the path: a configuration that cannot be read.
pub fn of_run(folder: &Path) -> Result<Option<Origin>> {
    let path = folder.join("config.toml");
    if !path.is_file() {
        return Ok(None);
    }
    let text = fs::read_to_string(&path).map_err(|e| Error::Io(e.to_string())).at(path.display())?;
    let lines = text.strip_prefix(HEAD).and_then(|rest| rest.split_once('\n'));
    // Below the first line, others tell where the run went on.
    let configured =
        |config: &str| config.split_inclusive('\n').skip_while(|line| line.starts_with('#')).collect::<String>();
    Ok(lines.map(|(commit, config)| Origin {
        config: configured(config),
        data: data(config),
        commit: commit.trim().to_string(),
    }))
}

/// The record of the run that wrote a model, `<run>/model`; `None` for a model of another origin.
///
/// # Errors
/// As [`of_run`].
pub fn of_model(model: &Path) -> Result<Option<Origin>> {
    match model.parent() {
        Some(folder) if model.is_dir() => of_run(folder),
        _ => Ok(None),
    }
}

/// The bundle that a file is a part of: one whose manifest lies beside it and has its digest.
///
/// # Errors
/// With the path: a manifest that cannot be read.
pub fn bundle_of(file: &Path, entry: &FileEntry) -> Result<Option<Bundle>> {
    match file.parent() {
        Some(folder) if folder.join(MANIFEST).is_file() => {
            let manifest = read_manifest(folder)?.0;
            let listed = manifest.files.iter().any(|(_, listed)| listed.sha256 == entry.sha256);
            Ok(listed.then_some(manifest))
        }
        _ => Ok(None),
    }
}

/// Names of the data sets of a stage's configuration, whichever stage it is of.
fn data(config: &str) -> Vec<String> {
    let root: Table = config.parse().unwrap_or_default();
    let listed = root.get("data").and_then(Value::as_array).into_iter().flatten();
    let name = |entry: &Value| {
        let dataset = entry.get("dataset").unwrap_or(entry);
        Some(format!("{} (train)", dataset.get("name")?.as_str()?))
    };
    listed.filter_map(name).collect()
}

/// As metadata of a file of weights.
///
/// # Errors
/// Never: names are text.
pub fn to_metadata(origin: &Origin) -> Result<BTreeMap<String, String>> {
    let data = serde_json::to_string(&origin.data).map_err(|e| Error::Malformed(e.to_string()))?;
    let pairs = [(COMMIT, origin.commit.clone()), (CONFIG, origin.config.clone()), (DATA, data)];
    Ok(pairs.into_iter().map(|(key, value)| (key.to_string(), value)).collect())
}

/// Out of metadata, `get` giving the value of a key; `None` where they say nothing of it.
///
/// # Errors
/// [`Error::Malformed`] for data sets that are no list of names.
pub fn from_metadata<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Result<Option<Origin>> {
    let (Some(commit), Some(config)) = (get(COMMIT), get(CONFIG)) else { return Ok(None) };
    let data = serde_json::from_str(get(DATA).unwrap_or("[]"))
        .map_err(|e| Error::Malformed(format!("expected `{DATA}` to be a list of names but found {e}")))?;
    Ok(Some(Origin { config: config.to_string(), data, commit: commit.to_string() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_says_what_it_was_trained_on() {
        let folder = tempfile::tempdir().unwrap();
        let (run, model) = (folder.path(), folder.path().join("model"));
        fs::create_dir(&model).unwrap();
        assert_eq!(of_model(&model).unwrap(), None);
        let config = "a = 1\n[[data]]\nname = 'UCM'\n[[data]]\nviews = 2\ndataset = { name = 'RSICD' }\n";
        for (text, expected) in [
            (format!("# commit abc\n{config}"), Some(["UCM (train)", "RSICD (train)"].map(String::from))),
            (config.to_string(), None),
        ] {
            fs::write(run.join("config.toml"), text).unwrap();
            let found = of_model(&model).unwrap();
            assert_eq!(found.as_ref().map(|origin| &origin.data[..]), expected.as_ref().map(|data| &data[..]));
            assert!(found.is_none_or(|origin| origin.config == config && origin.commit == "abc"));
        }
    }

    #[test]
    fn survives_its_own_metadata() {
        let origin = Origin { config: "a = \"ü\"\n".into(), data: vec!["UCM (train)".into()], commit: "abc".into() };
        let metadata = to_metadata(&origin).unwrap();
        assert_eq!(from_metadata(|key| metadata.get(key).map(String::as_str)).unwrap(), Some(origin));
        assert_eq!(from_metadata(|_| None).unwrap(), None);
        let read = from_metadata(|key| Some(if key == DATA { "UCM" } else { "" }));
        assert!(read.unwrap_err().to_string().starts_with("expected `data` to be a list of names but found"));
    }
}
