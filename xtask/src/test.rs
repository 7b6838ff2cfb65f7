//! Every check, cheapest first.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::args::Args;
use crate::error::{Context, Error, Result};
use crate::shell::{command, display, in_ci, run as run_command};
use crate::{page, setup};

pub(crate) const HELP: &str = "\
Runs every check, cheapest first, and stops at the first that fails with the command that repeats it. Gets what it
needs and can get (see `cargo xtask setup --help`). A first run compiles everything: about 40 minutes on two cores.

Usage: cargo xtask test [options]

Options:
  --quick   for daily work: leaves out the page (clippy for wasm32, its build, the browser); refused where CI=true
";

// The same packages in every native step: cargo unifies features over them, and candle compiles once.
const NATIVE: &str = "--workspace --exclude rscapret-web";

pub(crate) fn run(mut args: Args) -> Result<()> {
    let quick = args.flag("--quick");
    args.finish()?;
    refuse_skipping(quick, in_ci())?;
    let mut report = Report::new(if quick { 4 } else { 10 });
    if !quick {
        report.step("set-up", "cargo xtask setup --tests", || {
            setup::components()?;
            setup::page_tools()?;
            setup::vulkan()?;
            setup::browser().map(drop)
        })?;
    }
    report.cargo("format", "cargo fmt --all --check")?;
    report.cargo("clippy", &format!("cargo clippy {NATIVE} --all-targets -- -D warnings"))?;
    if !quick {
        // Its manifest leaves it out of a plain `cargo test`, and so of `--all-targets`.
        report.cargo("clippy of the browser tests", &format!("cargo clippy {NATIVE} --test browser -- -D warnings"))?;
        report.cargo(
            "clippy of the page",
            "cargo clippy -p rscapret-web --features bench --target wasm32-unknown-unknown -- -D warnings",
        )?;
    }
    // Once more, and counted, among all tests below: here they tell of a broken wall before the long ones start.
    let walls = format!("cargo test {NATIVE} --test walls");
    report.step("walls", &walls, || run_command(&mut command(&walls)))?;
    report.cargo("tests", &format!("cargo test {NATIVE}"))?;
    if !quick {
        report.step("page", "cargo xtask page", page::build)?;
        report.step("workbench", "cargo xtask page --bench", page::build_bench)?;
        report.cargo("browser", &format!("cargo test {NATIVE} --test browser"))?;
    }
    if !quick {
        report.tally.all_run()?;
    }
    report.end();
    Ok(())
}

fn refuse_skipping(quick: bool, ci: bool) -> Result<()> {
    if quick && ci {
        return Err(Error::Usage("expected no `--quick` where CI=true: nothing is skipped there".to_string()));
    }
    Ok(())
}

/// Headings, times and counts of the steps.
struct Report {
    steps: usize,
    done: Vec<(String, Duration)>,
    /// Of all `test result:` lines.
    tally: Tally,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: usize,
    /// Names of tests that were passed over and have not passed since.
    ignored: BTreeSet<String>,
    /// Lines by which tests say that something is missing here.
    skipped: usize,
}

impl Report {
    fn new(steps: usize) -> Self {
        Report { steps, done: Vec::new(), tally: Tally::default() }
    }

    fn step(&mut self, name: &str, repeat: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
        println!("\n== {}/{} {name}: {repeat}", self.done.len() + 1, self.steps);
        let start = Instant::now();
        let result = work();
        let time = start.elapsed();
        match result {
            Ok(()) => {
                println!("== {name}: passed in {}", show(time));
                self.done.push((name.to_string(), time));
                Ok(())
            }
            Err(error) => Err(Error::Failed(format!(
                "step `{name}` failed after {}: {error}\nto repeat it: {repeat}",
                show(time)
            ))),
        }
    }

    fn cargo(&mut self, name: &str, line: &str) -> Result<()> {
        let mut tally = std::mem::take(&mut self.tally);
        let mut command = command(line);
        // As `rscapret` does for itself (`trainer/src/threads.rs`): small models compute several times as fast.
        if std::env::var_os("RAYON_NUM_THREADS").is_none() {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            command.env("RAYON_NUM_THREADS", cores.to_string());
        }
        let result = self.step(name, line, || forward(&mut command, |line| tally.add(line)));
        self.tally = tally;
        result
    }

    fn end(&self) {
        println!("\nAll {} steps passed.", self.done.len());
        for (name, time) in &self.done {
            println!("  {name:28} {:>9}", show(*time));
        }
        let total = self.done.iter().map(|(_, time)| *time).sum();
        println!("  {:28} {:>9}", "together", show(total));
        println!("{} tests passed.", self.tally.passed);
        if self.tally.skipped > 0 {
            println!(
                "{} times a test left something out: see SKIPPED above. With CI=true it fails.",
                self.tally.skipped
            );
        }
    }
}

impl Tally {
    /// Takes a line of libtest: `test NAME ... ok`, `test NAME ... ignored, REASON`, `test result: ok. 12 passed; ...`; or
    /// of a test: `SKIPPED: REASON`, which one thread alone writes behind the test's name.
    fn add(&mut self, line: &str) {
        if line.contains("SKIPPED: ") {
            self.skipped += 1;
        } else if let Some(counts) = line.strip_prefix("test result: ") {
            let words: Vec<&str> = counts.split_whitespace().collect();
            let passed =
                words.windows(2).find(|pair| pair[1] == "passed;").and_then(|pair| pair[0].parse::<usize>().ok());
            self.passed += passed.unwrap_or(0);
        } else if let Some((name, outcome)) = line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... ")) {
            if outcome.starts_with("ignored") {
                self.ignored.insert(name.to_string());
            } else if outcome == "ok" {
                self.ignored.remove(name);
            }
        }
    }

    /// An error if a test was never run.
    fn all_run(&self) -> Result<()> {
        if self.ignored.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = self.ignored.iter().map(String::as_str).collect();
        Err(Error::Failed(format!("expected every test to run but these were ignored: {}", names.join(", "))))
    }
}

/// Runs a command whose lines are printed as they come and shown to `see`.
fn forward(command: &mut Command, mut see: impl FnMut(&str)) -> Result<()> {
    let line = display(command);
    let mut child = command.stdout(Stdio::piped()).spawn().at(&line)?;
    if let Some(out) = child.stdout.take() {
        for text in BufReader::new(out).split(b'\n') {
            let text = text.at(&line)?;
            let text = String::from_utf8_lossy(&text);
            println!("{text}");
            // Whoever watches a pipe sees progress too.
            let _ = std::io::stdout().flush();
            see(&text);
        }
    }
    let status = child.wait().at(&line)?;
    if status.success() { Ok(()) } else { Err(Error::Failed(format!("{status}"))) }
}

fn show(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 60.0 {
        format!("{seconds:.1} s")
    } else {
        format!("{:.0} min {:02.0} s", (seconds / 60.0).floor(), (seconds % 60.0).floor())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_output_of_cargo_is_counted_and_an_ignored_test_must_pass_later() {
        let mut tally = Tally::default();
        for line in [
            "running 3 tests",
            "test clip::vision ... ok",
            "test the_page_makes_no_request ... ignored, needs the built page",
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.02s",
            "    12 passed; nothing",
            "SKIPPED: no real data",
            "test clip::text ... SKIPPED: no GPU",
        ] {
            tally.add(line);
        }
        assert_eq!((tally.passed, tally.skipped), (12, 2));
        assert!(tally.all_run().unwrap_err().to_string().contains("the_page_makes_no_request"));
        tally.add("test the_page_makes_no_request ... ok");
        tally.add("test result: ok. 30 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.02s");
        assert_eq!(tally.passed, 42);
        tally.all_run().unwrap();
    }

    #[test]
    fn a_failing_step_says_how_to_repeat_it_and_is_not_counted_as_done() {
        let mut report = Report::new(2);
        report.step("good", "true", || Ok(())).unwrap();
        let error = report.cargo("bad", "rustc --no-such-option").unwrap_err().to_string();
        assert!(error.contains("step `bad`") && error.ends_with("to repeat it: rustc --no-such-option"), "{error}");
        assert_eq!(report.done.len(), 1);
    }

    #[test]
    fn lines_are_passed_on() {
        let mut seen = Vec::new();
        forward(&mut command("rustc --version"), |line| seen.push(line.to_string())).unwrap();
        assert!(seen[0].starts_with("rustc "));
    }

    #[test]
    fn times_read_well() {
        assert_eq!(show(Duration::from_millis(1234)), "1.2 s");
        assert_eq!(show(Duration::from_secs(125)), "2 min 05 s");
    }

    #[test]
    fn quick_is_refused_in_ci_only() {
        assert_eq!(refuse_skipping(true, true).unwrap_err().code(), 2);
        assert!(refuse_skipping(true, false).is_ok() && refuse_skipping(false, true).is_ok());
    }
}
