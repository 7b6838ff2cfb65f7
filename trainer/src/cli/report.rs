//! `rscapret report`.

use std::{
    path::PathBuf,
    time::{Duration, UNIX_EPOCH},
};

use rscapret::{Context, Result};

use super::output::{self, counted};
use crate::{
    files::unreadable,
    report::{Metrics, Series, events, page, read_samples},
    run_dir::write_whole,
};

/// Show a run: its losses, rates, validation scores and sample captions, as one page
///
/// Writes report.html into the run's folder, a single file without scripts that needs nothing beside it, and the same
/// numbers as an event file for TensorBoard. Works while the run goes on, too.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "Examples:
  rscapret report runs/demo
  rscapret report runs/demo --out demo.html")]
pub struct Args {
    /// Folder of a run
    pub run: PathBuf,

    /// Where to write the page [default: report.html in the run's folder]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// # Errors
/// A folder without the metrics of a run; a page that cannot be written.
pub fn run(args: &Args) -> Result<()> {
    let file = |name: &str| args.run.join(name);
    let mut metrics = Metrics::read(&file("metrics.jsonl"))?;
    if metrics.get("learning_rate").is_some() {
        // The schedule's factor says the same in other numbers.
        metrics.series.retain(|series| series.name != "rate");
    }
    let config = std::fs::read_to_string(file("config.toml")).map_err(unreadable);
    let config = config.at(file("config.toml").display())?;
    let samples = read_samples(&file("samples.jsonl"))?;
    let run = std::fs::canonicalize(&args.run).unwrap_or_else(|_| args.run.clone());
    let name = run.file_name().map_or_else(|| run.display().to_string(), |name| name.to_string_lossy().into_owned());
    let out = args.out.clone().unwrap_or_else(|| file("report.html"));
    write_whole(&out, page(&name, &config, &metrics, &samples)?.as_bytes())?;

    // The run does not log times: they are counted from the time that the record of its data was written, which is once. A
    // configuration is written anew where a run goes on with another.
    let written = |name: &str| std::fs::metadata(file(name)).and_then(|meta| meta.modified());
    let begun = written("data.json").or_else(|_| written("config.toml")).unwrap_or(UNIX_EPOCH);
    let begun = begun.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64();
    let pace = metrics.get("seconds_per_step").map(elapsed).unwrap_or_default();
    let time =
        |step: u64| begun + pace.iter().take_while(|(at, _)| *at <= step).last().map_or(0.0, |(_, seconds)| *seconds);
    let bytes = events(&metrics.series, begun, time);
    // One file a run: TensorBoard would show two as one run told twice.
    write_whole(&file(&format!("events.out.tfevents.{begun:010.0}.rscapret")), &bytes)?;
    let (curves, samples) = (counted(metrics.series.len(), "curve"), counted(samples.len(), "sample"));
    output::text(&format!("{}: {curves}, {samples}", out.display()))
}

/// Seconds since the start at each logged step.
fn elapsed(series: &Series) -> Vec<(u64, f64)> {
    let mut all = Vec::with_capacity(series.points.len());
    let (mut before, mut seconds) = (0, 0.0);
    for &(step, pace) in &series.points {
        seconds += pace * (step - before) as f64;
        before = step;
        all.push((step, seconds));
    }
    all
}
