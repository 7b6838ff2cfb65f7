//! `rscapret eval`.

use std::path::PathBuf;

use indicatif::ProgressBar;
use rscapret::{
    Backend, Candle, Context, Error, Result,
    caption::{Captioner, DecodeOptions},
    clip::preprocess::decode,
};
use serde_json::{Value, json};

use crate::{
    dataset::{DatasetConfig, Item, Split, load},
    eval::{
        Scored,
        recall::{self, Protocol, recall},
        score,
    },
    files::open_bundle,
    run_dir::{read_config, write_whole},
};

/// Score a bundle on a dataset: captions against references, and retrieval both ways
///
/// The dataset is a TOML file with the same keys as a `[data.dataset]` table of a training configuration. Captions are
/// scored as pycocoevalcap does; retrieval under two protocols: own-image, where only the image's own captions count,
/// and same-string, where equal texts do.
#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "Example:\n  rscapret eval --bundle models/demo --data trainer/configs/eval-ucm.toml --split test --json"
)]
pub struct Args {
    /// Bundle
    #[arg(long, default_value = "models/demo")]
    pub bundle: PathBuf,
    /// Dataset, TOML
    #[arg(long)]
    pub data: PathBuf,
    /// Split
    #[arg(long, default_value = "test")]
    pub split: String,
    /// Beams; 1 decodes greedily
    #[arg(long, default_value_t = 1)]
    pub beam: usize,
    /// JSON on standard output
    #[arg(long)]
    pub json: bool,
    /// Write the captions as a COCO results file
    #[arg(long)]
    pub captions: Option<PathBuf>,
}

/// # Errors
/// An unusable bundle or dataset; an image that cannot be read, since a subset must not be scored.
pub fn run(args: &Args) -> Result<()> {
    pollster::block_on(eval(args))
}

async fn eval(args: &Args) -> Result<()> {
    let config: DatasetConfig = read_config(&args.data)?;
    let split = Split::ALL
        .into_iter()
        .find(|split| split.name() == args.split)
        .ok_or_else(|| Error::Config(format!("expected a split of train, val or test but found `{}`", args.split)))?;
    let (dataset, _) = load(&config)?;
    let items: Vec<&Item> = dataset.split(split).collect();
    if items.is_empty() {
        return Err(Error::Config(format!("expected images in split {} but found none", split.name())));
    }
    let bundle = open_bundle(&args.bundle)?;
    let backend = Candle::cpu();
    let captioner =
        Captioner::load(backend.clone(), &bundle.manifest, &bundle.id, bundle.llm, bundle.vision, bundle.projections)
            .await
            .at(args.bundle.display())?;
    let options = DecodeOptions { beams: args.beam, ..DecodeOptions::default() };

    let bar = ProgressBar::new(items.len() as u64);
    let (mut scored, mut results, mut images, mut texts) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for item in &items {
        let path = dataset.image_path(item).ok_or_else(|| Error::Config("expected `images` but found none".into()))?;
        let bytes = std::fs::read(&path).map_err(|e| Error::Io(e.to_string())).at(path.display())?;
        let features = captioner.features(&[decode(&bytes).at(path.display())?])?;
        let hypothesis = captioner.caption(&features, &options).await?;
        images.extend(captioner.image_embedding(&features).await?);
        for caption in &item.captions {
            texts.extend(captioner.text_embedding(caption).await?);
        }
        results.push(json!({ "image_id": item.id, "caption": hypothesis }));
        scored.push(Scored { id: item.id.clone(), hypothesis, references: item.captions.clone() });
        bar.inc(1);
    }
    bar.finish_and_clear();

    let joint = captioner.projections().config().joint_size;
    let captions: Vec<recall::Caption> = items
        .iter()
        .enumerate()
        .flat_map(|(image, item)| item.captions.iter().map(move |text| recall::Caption { text, image }))
        .collect();
    let images = backend.upload(&images, &[items.len(), joint])?;
    let texts = backend.upload(&texts, &[captions.len(), joint])?;
    let similarity = backend.read(&images.matmul(&texts.t()?)?).await?;
    let own = recall(&similarity, items.len(), &captions, Protocol::OwnImage)?;
    let same = recall(&similarity, items.len(), &captions, Protocol::SameString)?;
    let scores = score(&scored)?.corpus;
    if let Some(path) = &args.captions {
        write_whole(path, Value::from(results).to_string().as_bytes())?;
    }
    let to_json = |e: serde_json::Error| Error::Io(e.to_string());
    let mut report = serde_json::to_value(scores).map_err(to_json)?;
    if let (Some(report), Value::Object(recall)) = (report.as_object_mut(), serde_json::to_value(own).map_err(to_json)?)
    {
        report.extend(recall);
        report.insert("same_string".into(), serde_json::to_value(same).map_err(to_json)?);
        report.insert("images".into(), items.len().into());
        report.insert("bundle".into(), captioner.bundle_id().into());
    }
    if args.json {
        println!("{report}");
        return Ok(());
    }
    println!("{} {}: {} images, {} captions", dataset.name, split.name(), items.len(), captions.len());
    for (name, value) in scores.named() {
        println!("  {name:<12} {}", value.map_or("not run".to_string(), |v| format!("{v:.4}")));
    }
    for (name, r) in [("own-image", own), ("same-string", same)] {
        println!(
            "  {name:<12} i2t R@1/5/10 {:.1} {:.1} {:.1}   t2i R@1/5/10 {:.1} {:.1} {:.1}   mean {:.1}",
            r.i2t_1, r.i2t_5, r.i2t_10, r.t2i_1, r.t2i_5, r.t2i_10, r.mean_recall
        );
    }
    Ok(())
}
