//! A stage's TOML: read, written into the run's folder, and compared with what a run was begun with.

use std::{collections::BTreeSet, path::Path};

use rscapret::{Context, Error, Result};
use serde::{Serialize, de::DeserializeOwned};
use toml::{Table, Value};

use super::commit;

/// What may be another when a run goes on: who shares the work, when it ends, when it looks at itself, and what an error may
/// have told to change: rates, and what bounds the memory. Everything else would make it a run of two configurations.
const FREE: [&str; 10] = [
    "features",
    "micro_batch",
    "training.compute",
    "training.workers",
    "training.steps",
    "training.patience",
    "training.validate_every",
    "training.checkpoint_seconds",
    "optim.lr",
    "optim.muon_lr",
];

/// Where data lie may change as well: that they are the same is seen by their record.
fn is_free(key: &str) -> bool {
    FREE.contains(&key) || key.ends_with(".annotations") || key.ends_with(".images")
}

/// Reads a stage's TOML, refusing unknown keys.
///
/// # Errors
/// An unreadable file, bad TOML, an unknown key; the path is named.
pub fn read_config<C: DeserializeOwned>(path: &Path) -> Result<C> {
    let read = || {
        let text = std::fs::read_to_string(path).map_err(|error| {
            Error::Io(format!(
                "expected a readable file but found: {error}\nname a TOML file, such as those in trainer/configs"
            ))
        })?;
        toml::from_str(&text).map_err(|error| no_config(&error))
    };
    read().at(path.display())
}

/// What is wrong with a TOML first, and where after it.
pub(crate) fn no_config(error: &toml::de::Error) -> Error {
    let (whole, message) = (error.to_string(), error.message());
    let place = whole.rfind(message).map_or("", |at| &whole[..at]);
    let place = place.trim_end().strip_prefix("TOML parse error ").unwrap_or_default();
    Error::Config(format!("expected a configuration but found: {}\n{place}", message.trim()).trim_end().to_string())
}

/// The text of a new run's `config.toml`.
pub(super) fn record(config: &impl Serialize) -> Result<String> {
    Ok(format!("# commit {}\n{}", commit(), text(config)?))
}

/// The text of the `config.toml` of a run that goes on, if it is another than `saved`: its first lines tell what was before.
///
/// # Errors
/// [`Error::Config`] with the names of the keys whose values are not those that the run was begun with.
pub(super) fn continued<C: Serialize + DeserializeOwned>(saved: &str, config: &C) -> Result<Option<String>> {
    // By way of the type: keys that were left out get their defaults.
    let before: C = toml::from_str(saved).map_err(|error| no_config(&error))?;
    let (before, now) = (table(&before)?, table(config)?);
    let mut keys = Vec::new();
    differences(&before, &now, "", &mut keys);
    let refused: Vec<String> = keys.iter().filter(|key| !is_free(key)).map(|key| format!("`{key}`")).collect();
    if !refused.is_empty() {
        return Err(Error::Config(format!(
            "expected the configuration that the run was begun with but found other values of {}\n\
             give them back their values, or begin a new run in another folder; only {} and the places of data may change",
            refused.join(", "),
            FREE.map(|key| format!("`{key}`")).join(", ")
        )));
    }
    let header: String = saved.lines().take_while(|line| line.starts_with('#')).flat_map(|line| [line, "\n"]).collect();
    let commit = commit();
    if keys.is_empty() && header.lines().last().is_some_and(|line| line.contains(&commit)) {
        return Ok(None);
    }
    let was = |key: &String| match value(&before, key) {
        Some(value) => format!(", before {key} = {value}"),
        None => format!(", before no {key}"),
    };
    let changes: String = keys.iter().map(was).collect();
    Ok(Some(format!("{header}# resumed at commit {commit}{changes}\n{}", text(config)?)))
}

fn text(config: &impl Serialize) -> Result<String> {
    toml::to_string_pretty(config)
        .map_err(|error| Error::Config(format!("expected a configuration that TOML can hold but found: {error}")))
}

/// As it is read again, where whole numbers and fractions are what their texts say.
fn table(config: &impl Serialize) -> Result<Table> {
    toml::from_str(&text(config)?).map_err(|error| no_config(&error))
}

/// A value by the dotted name of its key.
fn value<'a>(table: &'a Table, key: &str) -> Option<&'a Value> {
    match key.split_once('.') {
        Some((outer, inner)) => value(table.get(outer)?.as_table()?, inner),
        None => table.get(key),
    }
}

/// Dotted names of the keys whose values differ; elements of lists of one length are compared one by one.
fn differences(before: &Table, now: &Table, prefix: &str, out: &mut Vec<String>) {
    for key in before.keys().chain(now.keys()).collect::<BTreeSet<_>>() {
        let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match (before.get(key), now.get(key)) {
            (Some(Value::Table(before)), Some(Value::Table(now))) => differences(before, now, &name, out),
            (Some(Value::Array(before)), Some(Value::Array(now))) if before.len() == now.len() => {
                for (at, pair) in before.iter().zip(now).enumerate() {
                    match pair {
                        (Value::Table(before), Value::Table(now)) => {
                            differences(before, now, &format!("{name}[{at}]"), out);
                        }
                        (before, now) if before != now => out.push(format!("{name}[{at}]")),
                        _ => {}
                    }
                }
            }
            (before, now) if before != now => out.push(name),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Table {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn what_is_wrong_with_a_toml_stands_before_where() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.toml");
        std::fs::write(&path, "a = 1\nb = \n").unwrap();
        let error = read_config::<Table>(&path).unwrap_err().to_string();
        let (first, rest) = error.split_once('\n').unwrap();
        assert!(first.starts_with(&format!("{}: expected a configuration but found: ", path.display())), "{error}");
        assert!(rest.starts_with("at line 2, column 5\n  |\n2 | b = \n  |") && rest.ends_with('^'), "{error}");

        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Narrow {
            #[allow(dead_code)]
            a: u64,
        }
        for (text, expected) in [
            (
                "a = 1\nbad = 2\n",
                "found: unknown field `bad`, expected `a`\nat line 2, column 1\n  |\n2 | bad = 2\n  | ^^^",
            ),
            ("", "found: missing field `a`\nat line 1, column 1"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = read_config::<Narrow>(&path).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        // Without a text there is no place.
        let error = no_config(&Value::Table(parse("b = 1")).try_into::<Narrow>().unwrap_err()).to_string();
        assert_eq!(error, "expected a configuration but found: unknown field `b`, expected `a`");

        let error = read_config::<Table>(&folder.path().join("none")).unwrap_err().to_string();
        assert!(
            error.contains("none: expected a readable file but found: ") && error.contains("\nname a TOML"),
            "{error}"
        );
    }

    #[test]
    fn only_the_keys_that_differ_are_named() {
        let mut keys = Vec::new();
        let before = parse("a = 1\nb = [1, 2]\nsame = [{x = 1}]\ngone = 0\n[t]\nc = 1.0\n[[list]]\nd = 'x'\n");
        let now = parse("a = 2\nb = [1, 3]\nsame = [{x = 1}]\nnew = 0\n[t]\nc = 2.0\n[[list]]\nd = 'y'\n");
        differences(&before, &now, "", &mut keys);
        assert_eq!(keys, ["a", "b[1]", "gone", "list[0].d", "new", "t.c"]);
        keys.clear();
        differences(&before, &parse("a = 1\nb = [1, 2, 3]\nsame = []\ngone = 0\nt = 1\nlist = 2\n"), "", &mut keys);
        assert_eq!(keys, ["b", "list", "same", "t"]);
    }

    #[test]
    fn a_record_keeps_what_was_before() {
        let saved = record(&parse("llm = 'a'\n[training]\nsteps = 4\n")).unwrap();
        let config = parse(&saved);
        assert_eq!(continued(&saved, &config).unwrap(), None);

        let longer = parse("llm = 'a'\n[training]\nsteps = 8\npatience = 2\n");
        let second = continued(&saved, &longer).unwrap().unwrap();
        let header: Vec<&str> = second.lines().take_while(|line| line.starts_with('#')).collect();
        assert_eq!(header[0], format!("# commit {}", commit()));
        assert_eq!(
            header[1..],
            [format!("# resumed at commit {}, before no training.patience, before training.steps = 4", commit())]
        );
        assert_eq!(parse(&second), longer);
        assert_eq!(continued(&second, &longer).unwrap(), None);

        // What the error of a full GPU tells to change.
        let less = parse("llm = 'a'\nmicro_batch = 4\n[training]\nsteps = 4\ncompute = 'bf16'\n");
        assert!(continued(&saved, &less).unwrap().is_some());

        let other = parse("llm = 'b'\nk = 1\n[training]\nsteps = 8\n");
        let error = continued(&saved, &other).unwrap_err().to_string();
        assert!(error.contains("begun with but found other values of `k`, `llm`\ngive them back"), "{error}");
    }
}
