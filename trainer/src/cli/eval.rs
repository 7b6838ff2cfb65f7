//! `rscapret eval`.

use std::path::PathBuf;

use pollster::block_on;
use rscapret::{
    Context, Error, Result,
    caption::{Captioner, DecodeOptions},
};
use serde_json::{Value, json};

use super::{DeviceArgs, output};
use crate::{
    clip::Clip,
    dataset::{Split, read_datasets},
    eval::java::{HOW, Jars},
    evaluate::{self, Begun, Row, Task, clip_names, markdown},
    files::open_bundle,
    hub, progress,
    run_dir::{commit, write_whole},
};

/// Score a bundle on datasets: captions against references, and retrieval both ways, in one table
///
/// Every dataset of the TOML gives a row. Captions are scored as pycocoevalcap does, METEOR and SPICE by its Java programs
/// (--jars). Retrieval is scored under two protocols: own-image, where only the image's own captions count, and
/// same-string, where equal texts do.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "Examples:
  rscapret eval --bundle models/demo --data trainer/configs/eval-ucm.toml --split test --json
  rscapret eval --data trainer/configs/eval-ucm.toml --beam 1 --beam 3 --jars pycocoevalcap --out scores
  rscapret eval --data trainer/configs/eval-ucm.toml --baseline clip --clip openai/clip-vit-large-patch14 --clip rs-clip-cap4

The TOML is one dataset, several under [[dataset]], or the configuration of a training stage; `rscapret data check`
explains its keys and looks at the datasets. --out writes scores.json, scores.md and for each dataset its captions as
<dataset>-captions.json (with several --beam, <dataset>-beam-<N>-captions.json of those above 1), a COCO results file that
`rscapret score` and pycocoevalcap read. Until then the folder holds what is done as begun.jsonl, and what stops the work,
Ctrl-C or an unreadable image, costs one image: --resume goes on.")]
pub struct Args {
    /// Bundle
    #[arg(long, default_value = "models/demo")]
    pub bundle: PathBuf,
    /// Datasets, TOML
    #[arg(long, value_name = "TOML")]
    pub data: PathBuf,
    /// Split
    #[arg(long, value_enum, default_value = "test")]
    pub split: Split,
    /// Beams; 1 decodes greedily. Given several times, or as a list with commas, each has its row
    #[arg(long, value_name = "N", value_parser = super::caption::beams, allow_negative_numbers = true)]
    #[arg(default_value = "1", value_delimiter = ',')]
    pub beam: Vec<usize>,
    /// Also retrieval by CLIP's own two towers, for comparison
    #[arg(long, value_enum, requires = "clip")]
    pub baseline: Option<Baseline>,
    /// CLIP for the baseline, zero-shot or fine-tuned: a Hugging Face folder, an OpenCLIP checkpoint or a name on the
    /// Hub; may be given several times
    #[arg(long, value_name = "CLIP", requires = "baseline")]
    pub clip: Vec<PathBuf>,
    /// Folder `pycocoevalcap` with the programs of METEOR and SPICE
    #[arg(long, value_name = "FOLDER")]
    pub jars: Option<PathBuf>,
    /// Write scores.json, scores.md and the captions into this folder
    #[arg(long, value_name = "FOLDER")]
    pub out: Option<PathBuf>,
    /// Write the captions of the one dataset, decoded in one way, as a COCO results file
    #[arg(long, value_name = "FILE")]
    pub captions: Option<PathBuf>,
    /// Go on with an evaluation into the folder of --out that was stopped: images that have their captions keep them
    #[arg(long, requires = "out")]
    pub resume: bool,
    /// JSON on standard output
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub device: DeviceArgs,
}

/// What a bundle is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Baseline {
    /// CLIP's own retrieval.
    Clip,
}

/// # Errors
/// An unusable bundle, baseline or dataset; an image that cannot be read, since a part must not be scored.
pub fn run(args: &Args) -> Result<()> {
    let backend = args.device.open()?;
    let options = ways(&args.beam)?;
    let configs = read_datasets(&args.data)?;
    if args.captions.is_some() && options.len() > 1 {
        return Err(Error::Config(format!(
            "--captions: expected one --beam but found {}\n--out writes the captions of each",
            options.len()
        )));
    }
    if args.captions.is_some() && configs.len() > 1 {
        return Err(Error::Config(format!(
            "--captions: expected one dataset but found {}\n--out writes the captions of each",
            configs.len()
        )));
    }
    let jars = args.jars.as_deref().map(Jars::open).transpose()?;
    let tasks: Vec<Task> = configs.iter().map(|config| Task::open(config, args.split)).collect::<Result<_>>()?;
    let named = clip_names(&args.clip).into_iter().zip(&args.clip);
    let clips = named.map(|(name, folder)| Ok((name, Clip::open(&backend, &hub::clip(folder)?)?)));
    let clips: Vec<(String, Clip)> = clips.collect::<Result<_>>()?;
    let opened = open_bundle(&args.bundle)?;
    let begun = |folder: &PathBuf| {
        let datasets: Vec<_> = tasks.iter().map(|task| (task.name(), task.len())).collect();
        let beams: Vec<_> = options.iter().map(|way| way.beams).collect();
        let what = json!({ "bundle": opened.id, "split": args.split, "datasets": datasets, "beams": beams });
        Begun::open(folder, &what, args.resume)
    };
    let mut begun = args.out.as_ref().map(begun).transpose()?;
    let (llm, vision, maps) = (opened.llm, opened.vision, opened.projections);
    let captioner = Captioner::load(backend, &opened.manifest, &opened.id, llm, vision, maps);
    let captioner = block_on(captioner).at(args.bundle.display())?;

    let images: usize = tasks.iter().map(Task::len).sum();
    let bar = progress::bar(images * (options.len() + clips.len()), "images");
    let (mut rows, mut captions, mut not_run) = (Vec::new(), Vec::new(), Vec::new());
    for task in &tasks {
        for result in
            evaluate::bundle(&captioner, &opened.manifest.name, task, &options, jars.as_ref(), begun.as_mut(), &bar)?
        {
            captions.push((captions_file(task.name(), &result.row, options.len()), result.captions));
            rows.push(result.row);
            not_run.extend(result.not_run.iter().map(ToString::to_string));
        }
        for (name, clip) in &clips {
            rows.push(evaluate::clip(clip, name, task, &bar)?);
        }
    }
    bar.finish_and_clear();
    not_run.sort();
    not_run.dedup();
    let table = markdown(&rows);
    let report = report(&rows, captioner.bundle_id(), &not_run);
    if let Some(path) = &args.captions {
        write_whole(path, captions[0].1.to_string().as_bytes())?;
    }
    if let Some(folder) = &args.out {
        write_whole(&folder.join("scores.json"), pretty(&report)?.as_bytes())?;
        write_whole(&folder.join("scores.md"), table.as_bytes())?;
        for (name, captions) in &captions {
            write_whole(&folder.join(name), captions.to_string().as_bytes())?;
        }
    }
    begun.map_or(Ok(()), Begun::end)?;
    not_run.iter().for_each(|why| eprintln!("not run: {why}"));
    if args.json {
        return output::text(&output::json_line(&report)?);
    }
    let how = if args.jars.is_none() { format!("\nnot run: {HOW}\n") } else { String::new() };
    output::text(&(table + &how))
}

/// The ways of decoding, each once, in the order that they were asked for.
fn ways(beams: &[usize]) -> Result<Vec<DecodeOptions>> {
    let mut ways: Vec<DecodeOptions> = Vec::new();
    for &beams in beams {
        let options = DecodeOptions { beams, ..DecodeOptions::default() };
        options.check()?;
        if ways.iter().all(|way| way.beams != beams) {
            ways.push(options);
        }
    }
    Ok(ways)
}

/// Where --out puts a row's captions.
fn captions_file(dataset: &str, row: &Row, ways: usize) -> String {
    let beam = row.beams.filter(|&beams| ways > 1 && beams > 1);
    let beam = beam.map(|beams| format!("-beam-{beams}")).unwrap_or_default();
    format!("{}{beam}-captions.json", file_name(dataset))
}

/// Everything, for scripts.
fn report(rows: &[Row], bundle: &str, not_run: &[String]) -> Value {
    json!({ "bundle": bundle, "commit": commit(), "rows": rows, "not_run": not_run })
}

fn pretty(value: &Value) -> Result<String> {
    serde_json::to_string_pretty(value).map_err(|error| Error::Io(error.to_string()))
}

/// A dataset's name as part of a file's.
fn file_name(name: &str) -> String {
    name.chars()
        .map(|c| if c.is_alphanumeric() || c == '-' || c == '_' { c.to_ascii_lowercase() } else { '-' })
        .collect()
}
