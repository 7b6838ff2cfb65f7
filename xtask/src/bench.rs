//! Speed and sizes. A benchmark and no test: nothing here fails because a machine is slow.

mod names;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::args::Args;
use crate::error::{Context, Error, Result};
use crate::shell::{command, display, which};
use crate::{page, setup};
use names::Choice;
pub use names::names;

pub(crate) const HELP: &str = "\
Measures and prints a table: image encoding, prefill, decoding and search on the processor and on a GPU, natively and in
the browser, training, sizes of the page's wasm. Builds what it needs in release. All of it takes half an hour and more.
Chromium is needed for what is measured in it, and for `compare`.

The rows of `compare` measure wllama and onnxruntime-web on the same model, once both are in target/compare; asked for by
name without them, they say how to put them there.

Usage: cargo xtask bench [options] [NAME...]

Only benchmarks whose name contains one of NAMEs are run (a whole name runs that one alone); without any, all.

Options:
  --list        tell the names and end
  --json FILE   write the rows as a JSON array, too (`-`: standard output, instead of the table)
  --no-build    measure the page that was built before
  --cuda        build with CUDA (needs nvcc): rows of an NVIDIA GPU run, training/llama-7b-step beside PyTorch
  --own-gpu     give Chromium this machine's own GPU, through Vulkan, and not SwiftShader
";

/// The program that does the measuring. It gets the names as arguments and prints one JSON object a line, like [`Row`].
const NATIVE: &str = "cargo run --quiet --release -p rscapret-tests --bin rscapret-bench --";
const WITH_CUDA: &str = "cargo run --quiet --release -p rscapret-tests --features cuda --bin rscapret-bench --";

pub(crate) fn run(mut args: Args) -> Result<()> {
    let json = args.value("--json")?;
    let (built, cuda, own_gpu) = (args.flag("--no-build"), args.flag("--cuda"), args.flag("--own-gpu"));
    if args.flag("--list") {
        args.finish()?;
        names().iter().for_each(|name| println!("{name}"));
        return Ok(());
    }
    // Before minutes of building.
    let choice = Choice::new(&args.positional()?)?;
    let browser = choice.in_browser().then(setup::browser).transpose()?;
    if !built && choice.of_page() {
        page::build()?;
    }
    if !built && choice.in_browser() {
        page::build_bench()?;
    }
    let mut rows = Vec::new();
    if choice.of_models() {
        let mut native = command(if cuda { WITH_CUDA } else { NATIVE });
        native.args(&choice.names);
        if own_gpu {
            native.env("RSCAPRET_OWN_GPU", "1");
        }
        if let Some(browser) = browser {
            native.env("CHROME", browser.chromium).env("CHROMEDRIVER", browser.driver);
        }
        rows.extend(measure(&mut native)?);
    }
    if choice.of_page() {
        page::check_built()?;
        rows.extend(sizes(&page::dist())?.into_iter().filter(|row| choice.takes(&row.name)));
    }
    if rows.is_empty() {
        return Err(Error::Failed(
            "expected a row at least but found none\nwhat was asked for needs a GPU".to_string(),
        ));
    }
    let text = format!("{:#}", Value::from_iter(rows.iter().map(Row::to_json)));
    match json.as_deref() {
        Some("-") => println!("{text}"),
        Some(file) => {
            std::fs::write(file, text + "\n").at(file)?;
            print!("{}", table(&rows));
        }
        None => print!("{}", table(&rows)),
    }
    Ok(())
}

/// One measurement.
#[derive(Debug, Clone, PartialEq)]
struct Row {
    name: String,
    value: f64,
    unit: String,
    note: String,
}

impl Row {
    fn parse(line: &str) -> Option<Row> {
        let value: Value = serde_json::from_str(line).ok()?;
        let text = |key: &str| value.get(key).and_then(Value::as_str).map(String::from);
        Some(Row {
            name: text("name")?,
            value: value.get("value")?.as_f64()?,
            unit: text("unit")?,
            note: text("note").unwrap_or_default(),
        })
    }

    fn to_json(&self) -> Value {
        json!({ "name": self.name, "value": self.value, "unit": self.unit, "note": self.note })
    }
}

/// Rows that a program prints; each goes to standard error as it comes, for these programs take minutes.
fn measure(command: &mut Command) -> Result<Vec<Row>> {
    let line = display(command);
    let mut child = command.stdout(Stdio::piped()).spawn().at(&line)?;
    let mut rows = Vec::new();
    if let Some(out) = child.stdout.take() {
        for text in BufReader::new(out).lines() {
            let text = text.at(&line)?;
            let row = Row::parse(&text).ok_or_else(|| {
                Error::Failed(format!("`{line}`: expected an object with name, value and unit but found `{text}`"))
            })?;
            eprintln!("{}: {} {}", row.name, number(row.value), row.unit);
            rows.push(row);
        }
    }
    let status = child.wait().at(&line)?;
    if status.success() { Ok(rows) } else { Err(Error::Failed(format!("`{line}` failed ({status})"))) }
}

/// Bytes of every wasm file of the page, as it is and as gzip sends it.
fn sizes(dist: &Path) -> Result<Vec<Row>> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(dist)
        .at(dist.display())?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "wasm"))
        .collect();
    files.sort();
    let mut rows = Vec::new();
    for path in files {
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // Trunk writes `app-0123abcd_bg.wasm`.
        let stem = file.split(['-', '_', '.']).next().unwrap_or_default();
        let bytes = std::fs::metadata(&path).at(&file)?.len();
        rows.push(size(format!("wasm/{stem}"), bytes, &file));
        if which("gzip").is_some() {
            let packed = command("gzip -9 -c").arg(&path).output().at("gzip")?.stdout.len() as u64;
            rows.push(size(format!("wasm/{stem}/gzip"), packed, &file));
        }
    }
    Ok(rows)
}

fn size(name: String, bytes: u64, file: &str) -> Row {
    Row { name, value: bytes as f64 / 1024.0, unit: "KiB".to_string(), note: file.to_string() }
}

/// Three significant digits at least, no noise after them.
fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_string(),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

fn table(rows: &[Row]) -> String {
    let cells: Vec<[String; 4]> = std::iter::once(["benchmark", "value", "unit", "note"].map(String::from))
        .chain(rows.iter().map(|r| [r.name.clone(), number(r.value), r.unit.clone(), r.note.clone()]))
        .collect();
    let width = |column: usize| cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let (name, value, unit) = (width(0), width(1), width(2));
    let line =
        |[a, b, c, d]: &[String; 4]| format!("{a:name$}  {b:>value$}  {c:unit$}  {d}").trim_end().to_string() + "\n";
    cells.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, value: f64) -> Row {
        Row { name: name.to_string(), value, unit: "ms".to_string(), note: String::new() }
    }

    #[test]
    fn a_row_survives_json_and_a_line_that_is_none_is_refused() {
        let original = Row { note: "demo, CPU".to_string(), ..row("encode", 12.5) };
        assert_eq!(Row::parse(&original.to_json().to_string()), Some(original));
        assert_eq!(Row::parse(r#"{"name":"a","value":1,"unit":"s"}"#).unwrap().note, "");
        for bad in ["", "encode 12", r#"{"name":"a","value":"1","unit":"s"}"#, r#"{"name":"a","value":1}"#] {
            assert_eq!(Row::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_table_is_aligned() {
        let rows = [row("encode", 12.345), row("decode/long name", 1234.5)];
        let expected = "benchmark         value  unit  note\n\
                        encode             12.3  ms\n\
                        decode/long name   1234  ms\n";
        assert_eq!(table(&rows), expected);
    }

    #[test]
    fn sizes_are_of_wasm_files_only() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("app-0a1b_bg.wasm"), vec![0; 2048]).unwrap();
        std::fs::write(dir.path().join("app.js"), "x").unwrap();
        let rows = sizes(dir.path()).unwrap();
        assert_eq!((rows[0].name.as_str(), rows[0].value, rows[0].unit.as_str()), ("wasm/app", 2.0, "KiB"));
        assert!(rows.iter().skip(1).all(|r| r.name == "wasm/app/gzip" && r.value < 1.0), "{rows:?}");
    }
}
