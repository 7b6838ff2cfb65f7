//! The datasets that a TOML names, whichever command the TOML is for.

use std::{collections::BTreeSet, path::Path};

use rscapret::{Context, Error, Result};
use toml::Value;

use super::DatasetConfig;
use crate::run_dir::{no_config, read_config};

/// Reads the datasets of a TOML: one dataset by itself, a list of `[[dataset]]` tables, or a stage's configuration with
/// its `[[data]]`.
///
/// # Errors
/// With the path: no readable TOML, an unknown key in a dataset's table, no dataset, or two of one name.
pub fn read_datasets(path: &Path) -> Result<Vec<DatasetConfig>> {
    datasets(read_config(path)?).at(path.display())
}

fn datasets(mut root: toml::Table) -> Result<Vec<DatasetConfig>> {
    let listed = if root.contains_key("annotations") {
        vec![dataset(Value::Table(root))?]
    } else if let Some(list) = root.remove("dataset") {
        if let Some(key) = root.keys().next() {
            return Err(Error::Config(format!("expected only [[dataset]] tables but found `{key}`")));
        }
        tables(list, "dataset")?.into_iter().map(dataset).collect::<Result<_>>()?
    } else if let Some(list) = root.remove("data") {
        let inner = |mut table: Value| match table.as_table_mut().and_then(|table| table.remove("dataset")) {
            Some(inside) => dataset(inside),
            None => dataset(table),
        };
        tables(list, "data")?.into_iter().map(inner).collect::<Result<_>>()?
    } else {
        Vec::new()
    };
    if listed.is_empty() {
        return Err(Error::Config(
            "expected a dataset (`name`, `annotations`, ...), [[dataset]] tables or a stage's [[data]] but found none"
                .to_string(),
        ));
    }
    let mut names = BTreeSet::new();
    match listed.iter().find(|config| !names.insert(config.name.as_str())) {
        Some(twice) => {
            Err(Error::Config(format!("expected datasets of different names but found `{}` twice", twice.name)))
        }
        None => Ok(listed),
    }
}

fn tables(value: Value, key: &str) -> Result<Vec<Value>> {
    match value {
        Value::Array(list) => Ok(list),
        other => Err(Error::Config(format!("expected [[{key}]] tables but found a {}", other.type_str()))),
    }
}

fn dataset(value: Value) -> Result<DatasetConfig> {
    value.try_into().map_err(|error| no_config(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Result<Vec<String>> {
        Ok(datasets(toml::from_str(text).unwrap())?.into_iter().map(|config| config.name).collect())
    }

    #[test]
    fn three_kinds_of_files() {
        let (a, b) = ("name = 'a'\nannotations = 'a.json'\n", "name = 'b'\nannotations = 'b.json'\n");
        assert_eq!(names(a).unwrap(), ["a"]);
        assert_eq!(names(&format!("[[dataset]]\n{a}[[dataset]]\n{b}")).unwrap(), ["a", "b"]);
        assert_eq!(names(&format!("seed = 1\n[[data]]\nviews = 4\n[data.dataset]\n{a}")).unwrap(), ["a"]);
        assert_eq!(names(&format!("seed = 1\n[[data]]\n{b}")).unwrap(), ["b"]);
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for (text, words) in [
            ("seed = 1", "expected a dataset"),
            ("data = 1", "expected [[data]] tables but found a integer"),
            (
                "seed = 1\n[[dataset]]\nname = 'a'\nannotations = 'a'",
                "expected only [[dataset]] tables but found `seed`",
            ),
            ("name = 'a'\nannotations = 'a'\nimagse = 'b'", "unknown field `imagse`"),
            (
                "[[dataset]]\nname = 'a'\nannotations = 'a'\n[[dataset]]\nname = 'a'\nannotations = 'b'",
                "different names but found `a` twice",
            ),
        ] {
            let error = names(text).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
