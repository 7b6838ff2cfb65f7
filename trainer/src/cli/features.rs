//! `rscapret features`.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use indicatif::ProgressBar;
use rscapret::{Context, Result};

use super::{
    DeviceArgs,
    output::{self, counted},
};
use crate::{
    bridge,
    dataset::{Dataset, Split, load_listed},
    features::{FeatureStore, Tower, file_hashes, tower_hash},
    hub,
    parallel::{self, GpusArgs, Group, first_then_others},
    progress,
    run_dir::read_config,
    stage::Workers,
};

/// Images of a process between looks at the clock; a GPU, which waits for the last of them, has more.
const CHUNK: usize = 64;
const CHUNK_ON_GPU: usize = 1024;
/// Time between saves: what a kill may lose.
const SAVE_EVERY: Duration = Duration::from_secs(120);

/// Run the frozen vision tower over all images of a training configuration once
///
/// Writes features.safetensors, which `rscapret train` reads in place of running the tower, when its configuration says
/// features = "features.safetensors". Features are kept under the hashes of the image's file and of the tower: called
/// again, only what is new is computed, and an interrupted call goes on where it was. Patches take a file of their own, and
/// 1 + patch_grid patch_grid times the room of class tokens. With --gpus N as many processes share the images.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "Example:
  rscapret features trainer/configs/demo.toml --out runs/demo-features.safetensors")]
pub struct Args {
    /// Configuration of `rscapret train`, TOML: its `clip`, `image_feature` with `patch_grid`, `training.workers`
    /// and `data` with their `views`
    pub config: PathBuf,

    /// The file to write, or to complete
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,

    /// In how many processes.
    #[command(flatten)]
    pub gpus: GpusArgs,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub device: DeviceArgs,
}

/// # Errors
/// An unusable configuration, tower or dataset, an image that cannot be read; what is done is saved.
pub fn run(args: &Args) -> Result<()> {
    parallel::run(args.gpus.gpus, |group| run_in(args, group))
}

fn run_in(args: &Args, group: &dyn Group) -> Result<()> {
    let backend = args.device.open_in(group)?;
    let config: bridge::Config = read_config(&args.config)?;
    let clip = first_then_others(group, || hub::clip(&config.clip))?;
    let config = bridge::Config { clip, ..config };
    let feature = config.feature()?;
    let hash = tower_hash(&config.clip)?;
    let backend = backend.computing_in(config.training.compute);
    let tower = Tower::open(&backend, &config.clip)?.giving(feature)?;
    let mut store = match args.out.exists() {
        true => Some(FeatureStore::open(&args.out)?).filter(|store| store.tower() == hash),
        false => None,
    }
    .unwrap_or_else(|| FeatureStore::new(&hash, feature, tower.width()));
    store.fits(feature).at(args.out.display())?;
    let wanted = wanted(&config)?;
    let images = wanted.len();
    // By the number of views, for the tower takes images of one number together.
    let mut missing: BTreeMap<usize, Vec<Image>> = BTreeMap::new();
    for (hash, (path, views)) in wanted {
        if store.get(&hash, views).is_none() {
            missing.entry(views).or_default().push((hash, path));
        }
    }
    let new: usize = missing.values().map(Vec::len).sum();
    let workers = Workers::in_group(config.training.workers, backend.device(), group)?;
    let chunk = group.world() * if backend.device().is_cpu() { CHUNK } else { CHUNK_ON_GPU };
    let missing = (&missing, chunk);
    // All have read by then what the first will write anew.
    group.barrier()?;
    if group.rank() > 0 {
        return compute(&tower, missing, &workers, &ProgressBar::hidden(), |_, _| Ok(()));
    }
    // The own pictures stand for those of all processes.
    let bar = progress::bar(new.div_ceil(group.world()), "images");
    let (begun, mut saved) = (Instant::now(), Instant::now());
    let computed = compute(&tower, missing, &workers, &bar, |images, features| {
        for ((hash, _), features) in images.iter().zip(features) {
            store.insert(hash.clone(), features)?;
        }
        if saved.elapsed() >= SAVE_EVERY {
            store.save(&args.out)?;
            saved = Instant::now();
        }
        Ok(())
    });
    bar.finish_and_clear();
    store.save(&args.out)?;
    computed?;
    let rate = new as f64 / begun.elapsed().as_secs_f64().max(1e-9);
    let speed = if new > 0 { format!(", {rate:.1} images/s") } else { String::new() };
    output::text(&format!("{}: {}, {new} of them new{speed}", args.out.display(), counted(images, "image")))
}

/// An image's hash, and where it lies.
type Image = (String, PathBuf);

/// Gives features to `keep`, some images at a time.
fn compute(
    tower: &Tower,
    (missing, chunk): (&BTreeMap<usize, Vec<Image>>, usize),
    workers: &Workers,
    bar: &ProgressBar,
    mut keep: impl FnMut(&[Image], Vec<Vec<f32>>) -> Result<()>,
) -> Result<()> {
    for (&views, images) in missing {
        for images in images.chunks(chunk) {
            let paths: Vec<&Path> = images.iter().map(|(_, path)| path.as_path()).collect();
            keep(images, tower.features_with(&paths, views, workers, bar)?)?;
        }
    }
    Ok(())
}

/// By hash, where the image lies and how many views of it training asks for: `views` in the training split, else one.
fn wanted(config: &bridge::Config) -> Result<BTreeMap<String, (PathBuf, usize)>> {
    let mut wanted: BTreeMap<String, (PathBuf, usize)> = BTreeMap::new();
    for source in &config.data {
        let dataset: Dataset = load_listed(&source.dataset)?;
        let mut paths = Vec::new();
        for item in &dataset.items {
            let path = dataset.image_path(item)?;
            paths.push((path, if item.split == Split::Train { source.views.clamp(1, 8) } else { 1 }));
        }
        let hashes = file_hashes(&paths.iter().map(|(path, _)| path.as_path()).collect::<Vec<_>>())?;
        for ((path, views), hash) in paths.into_iter().zip(hashes) {
            let most = &mut wanted.entry(hash).or_insert((path, views)).1;
            *most = views.max(*most);
        }
    }
    Ok(wanted)
}
