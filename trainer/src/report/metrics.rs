//! The numbers of `metrics.jsonl`, as series over steps.

use std::{collections::BTreeMap, path::Path};

use rscapret::{Context, Error, Result};
use serde_json::Value;

/// One number over the steps of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// `loss`, `validation/mean_recall`.
    pub name: String,
    /// (step, value), by step.
    pub points: Vec<(u64, f64)>,
}

/// All numbers of a run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metrics {
    /// In the order in which the file first names them.
    pub series: Vec<Series>,
}

impl Metrics {
    /// Reads the file. A run that was resumed tells some steps twice: the later telling counts. A last line that a kill cut
    /// short is left out.
    ///
    /// # Errors
    /// With the path and the line: what is no JSON object with a `step`.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            Error::Io(format!("expected the metrics of a run but found: {e}\nname the folder that --run named"))
        });
        Self::parse(&text.at(path.display())?).at(path.display())
    }

    fn parse(text: &str) -> Result<Self> {
        let mut names = Vec::new();
        let mut points: BTreeMap<String, BTreeMap<u64, f64>> = BTreeMap::new();
        let lines: Vec<&str> = text.lines().collect();
        for (at, line) in lines.iter().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let ends = at + 1 < lines.len() || text.ends_with('\n');
            let value: Value = match serde_json::from_str(line) {
                Ok(value) => value,
                Err(_) if !ends => break,
                Err(error) => {
                    return Err(Error::Malformed(format!(
                        "line {}: expected a JSON object but found: {error}",
                        at + 1
                    )));
                }
            };
            let Some(step) = value["step"].as_u64() else {
                return Err(Error::Malformed(format!("line {}: expected a `step` but found none", at + 1)));
            };
            numbers("", &value, &mut |name, number| {
                if !points.contains_key(name) {
                    names.push(name.to_string());
                }
                points.entry(name.to_string()).or_default().insert(step, number);
            });
        }
        let take = |name: String| points.remove(&name).map(|of| Series { name, points: of.into_iter().collect() });
        Ok(Metrics { series: names.into_iter().filter_map(take).collect() })
    }

    /// A series by its name.
    pub fn get(&self, name: &str) -> Option<&Series> {
        self.series.iter().find(|series| series.name == name)
    }
}

/// Numbers of an object and of those inside of it, but for the step itself.
fn numbers(prefix: &str, value: &Value, take: &mut impl FnMut(&str, f64)) {
    let Value::Object(fields) = value else { return };
    for (key, value) in fields {
        let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}/{key}") };
        match value {
            Value::Number(number) if name != "step" => number.as_f64().into_iter().for_each(|n| take(&name, n)),
            value => numbers(&name, value, take),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_and_killed_run() {
        let text = r#"{"loss": 3.0, "step": 10, "note": "text"}
{"step": 10, "validation": {"mean_recall": 5.5, "deep": {"x": 1}}}
{"loss": 2.0, "step": 20}

{"loss": 2.5, "step": 20}
{"loss": 1.0, "st"#;
        let metrics = Metrics::parse(text).unwrap();
        let names: Vec<&str> = metrics.series.iter().map(|series| series.name.as_str()).collect();
        assert_eq!(names, ["loss", "validation/mean_recall", "validation/deep/x"]);
        assert_eq!(metrics.get("loss").unwrap().points, [(10, 3.0), (20, 2.5)]);
        let cut = format!("{text}\n");
        assert!(Metrics::parse(&cut).unwrap_err().to_string().starts_with("line 6: "));
        assert!(Metrics::parse("{\"loss\": 1}\n").unwrap_err().to_string().contains("expected a `step`"));
    }
}
