//! A small CLIP from pairs: InfoNCE over a whole batch, a class loss beside it, half of the patches dropped at first.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use candle_core::{DType, Tensor};
use pollster::block_on;
use rand::Rng;
use rayon::{ThreadPool, prelude::*};
use rscapret::{
    Backend, Candle, Context, Error, Result,
    clip::{
        Branch, ClipConfig, ClipText, ClipTextConfig, ClipVision, ClipVisionConfig, Dropped,
        preprocess::{Picture, PreprocessConfig, normalize},
    },
    nn::{Linear, Weights},
    tokenizer::Tokenizer,
    weights::gguf::{self, GgufFile, HfNames},
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    ahead::{cores, step_ahead},
    dataset::{DatasetConfig, Item, Split},
    eval::recall::{Protocol, captions_of, recall},
    files::{FileSource, clip::ClipFiles, unreadable},
    images::{Augment, kept_patches, read_square, views},
    loss::{SameString, cross_entropy, info_nce},
    optim::{Gradients, Optim, OptimConfig, Schedule},
    run_dir::RunDir,
    stage::{
        Loop, Places, TrainingConfig, Validation, Workers, draw, fills_shares, gradients, insert_number, pool,
        step_rng, sum,
    },
    vars::{NewVars, Vars, restore, values},
    vocabulary::{EOS, open_or_train},
};

/// `pretrain-clip`'s TOML.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Length, batch and rhythm.
    pub training: TrainingConfig,
    /// `tokenizer.json`; trained on the captions if it is not there.
    pub tokenizer: PathBuf,
    /// What the vision tower begins as: a GGUF, as in a bundle, or a CLIP of the same shape; absent, random numbers.
    pub vision_from: Option<PathBuf>,
    /// Side of the images in memory, which views are cut from, pixels.
    pub cache_size: usize,
    /// Share of the steps, from the start, that see `patch_keep` of the patches.
    pub drop_until: f64,
    /// Share of the patches that they see.
    pub patch_keep: f64,
    /// How often an image skips a branch of the last layer (stochastic depth; Huang et al., 2016); in a straight line less
    /// often towards the first, which is never skipped.
    #[serde(default)]
    pub depth_drop: f64,
    /// Weight of the class loss.
    pub class_weight: f64,
    /// Of the class loss.
    pub label_smoothing: f64,
    /// How equal captions in one batch count.
    pub same_string: SameString,
    /// Vision tower; what is absent is CLIP's.
    pub vision: ClipVisionConfig,
    /// Text tower; what is absent is CLIP's.
    pub text: ClipTextConfig,
    /// Views.
    #[serde(default)]
    pub augment: Augment,
    /// Optimiser.
    pub optim: OptimConfig,
    /// Rates over time.
    #[serde(default)]
    pub schedule: Schedule,
    /// Where pairs come from.
    pub data: Vec<Source>,
}

/// One dataset with the rule that tells an image's class.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// How the class is known.
    pub classes: ClassRule,
    /// The dataset.
    pub dataset: DatasetConfig,
}

/// How an image's class is known from its file name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClassRule {
    /// `airport_12.jpg` is an airport (RSICD); names without a class have none.
    Prefix,
    /// `1.jpg` to `100.jpg` are the first class, and so on (UC Merced).
    Hundred,
    /// It is not known.
    None,
}

impl ClassRule {
    fn class(self, item: &Item) -> Option<String> {
        let stem = item.image.file_stem()?.to_str()?;
        match self {
            ClassRule::Prefix => stem.rsplit_once('_').map(|(class, _)| class.to_string()),
            ClassRule::Hundred => Some(format!("{:02}", stem.parse::<u32>().ok()?.checked_sub(1)? / 100)),
            ClassRule::None => None,
        }
    }
}

/// An image with its captions as ids.
struct Pair {
    picture: Picture,
    /// Ids, and which distinct string it is.
    captions: Vec<(Vec<u32>, usize)>,
    texts: Vec<String>,
    /// Which source it is from, which has classes of its own.
    source: usize,
    class: Option<u32>,
}

struct Data {
    /// Train pairs by source, with the source's share.
    train: Vec<(f64, Vec<Pair>)>,
    /// Validation pairs of the first source.
    val: Vec<Pair>,
    /// How many classes each source has.
    classes: Vec<usize>,
}

/// The towers with the maps into CLIP's own joint space, and a class head for each source, which only training uses: one
/// softmax over all of them would teach the tower to tell the sources apart.
pub struct SmallClip {
    backend: Candle,
    vision: ClipVision<Candle>,
    text: ClipText<Candle>,
    visual_projection: Linear<Candle>,
    text_projection: Linear<Candle>,
    class_heads: Vec<Linear<Candle>>,
    logit_scale: Tensor,
}

impl SmallClip {
    fn new(w: &NewVars, config: &ClipConfig, classes: &[usize]) -> Result<Self> {
        block_on(async {
            let (d, j) = (config.vision_config.hidden_size, config.projection_dim);
            let mut class_heads = Vec::with_capacity(classes.len());
            for (source, &classes) in classes.iter().enumerate() {
                class_heads.push(Linear::load(w, &format!("class_head.{source}"), classes.max(1), d).await?);
            }
            Ok(SmallClip {
                backend: w.backend().clone(),
                vision: ClipVision::load(w, &config.vision_config).await?,
                text: ClipText::load(w, &config.text_config).await?,
                visual_projection: Linear::load_unbiased(w, "visual_projection", j, d).await?,
                text_projection: Linear::load_unbiased(w, "text_projection", j, config.text_config.hidden_size).await?,
                class_heads,
                logit_scale: w.tensor("logit_scale", &[1]).await?,
            })
        })
    }

    /// Unit vectors (B, J) and features (B, D).
    fn image(&self, pixels: &Tensor, dropped: &Dropped<'_, Candle>) -> Result<(Tensor, Tensor)> {
        let pooled = self.vision.forward_dropped(&self.backend, pixels, dropped)?.pooled;
        let embedding = self.backend.l2_normalize(&self.visual_projection.forward(&self.backend, &pooled)?)?;
        Ok((embedding, pooled))
    }

    /// Class logits of a source's images by their features (B, D).
    fn classes(&self, source: usize, pooled: &Tensor) -> Result<Tensor> {
        self.class_heads[source].forward(&self.backend, pooled)
    }

    /// Cross-entropy of the images that have a class, each among its source's, divided by `count`.
    fn class_loss(
        &self,
        pooled: &Tensor,
        labels: &[(usize, Option<u32>)],
        smoothing: f64,
        count: usize,
    ) -> Result<Tensor> {
        let mut total = Tensor::zeros((), DType::F32, pooled.device())?;
        for source in 0..self.class_heads.len() {
            let of = |&(_, (at, _)): &(usize, &(usize, Option<u32>))| *at == source;
            let (rows, labels): (Vec<u32>, Vec<Option<u32>>) =
                labels.iter().enumerate().filter(of).map(|(row, (_, label))| (row as u32, *label)).unzip();
            if labels.iter().any(Option::is_some) {
                let pooled = self.backend.index_rows(pooled, &rows)?;
                total = (total + cross_entropy(&self.classes(source, &pooled)?, &labels, smoothing, count)?)?;
            }
        }
        Ok(total)
    }

    fn text(&self, ids: &[Vec<u32>]) -> Result<Tensor> {
        let features = self.text.forward(&self.backend, ids)?;
        self.backend.l2_normalize(&self.text_projection.forward(&self.backend, &features)?)
    }
}

/// Pads to the longest with end of text.
fn pad(ids: &[&[u32]], eos: u32) -> Vec<Vec<u32>> {
    let longest = ids.iter().map(|s| s.len()).max().unwrap_or_default();
    ids.iter().map(|s| s.iter().copied().chain(std::iter::repeat_n(eos, longest - s.len())).collect()).collect()
}

/// Trains to the end and writes a Hugging Face CLIP folder, `model/`, into the run's.
///
/// # Errors
/// Unusable data or configuration; see [`Loop::train`].
pub fn run(config: &Config, run: &RunDir, backend: &Candle) -> Result<()> {
    let clip = ClipConfig {
        vision_config: config.vision.clone(),
        text_config: config.text.clone(),
        projection_dim: config.vision.projection_dim,
    };
    let (data, eos) = read_data(config, run)?;
    fills_shares(&data.train, config.data.iter().map(|source| source.dataset.name.as_str()), config.training.batch)?;
    let backend = backend.computing_in(config.training.compute);
    let new = NewVars::new(&backend, config.training.seed, config.vision.num_hidden_layers);
    let model = SmallClip::new(&new, &clip, &data.classes)?;
    let vars = new.into_vars();
    if let Some(path) = &config.vision_from {
        begin_with(&vars, path).at(path.display())?;
    }
    let mut optim = Optim::new(&config.optim, &vars)?;
    let workers = Workers::new(config.training.workers, backend.device())?;
    let parameters: usize = vars.values().map(|v| v.elem_count()).sum();
    eprintln!("{parameters} parameters, {:?} classes, {} validation images", data.classes, data.val.len());
    let training = Loop { run, vars: &vars, config: &config.training, schedule: config.schedule, workers: &workers };
    let (places, making) = (workers.places(), pool(cores())?);
    step_ahead(
        config.training.steps,
        |step| make_batch(config, &data, places, &making, eos, step),
        |batch| {
            training.train(
                &mut optim,
                |step| train_step(config, &model, &vars, &workers, batch(step)),
                || validate(config, &data, &model, &workers, eos),
            )
        },
    )?;
    write_folder(config, &clip, &vars, run)
}

/// Sets the vision tower's variables to the weights of another, quantised or not.
fn begin_with(vars: &Vars, path: &Path) -> Result<()> {
    let tower = vars.iter().filter(|(name, _)| name.starts_with("vision_model."));
    let tower: Vars = tower.map(|(name, var)| (name.clone(), var.clone())).collect();
    if path.is_file() {
        let file = FileSource::open(path)?;
        if file.begins_with(&gguf::MAGIC)? {
            return restore(&tower, &HfNames::new(block_on(GgufFile::open(file))?)?);
        }
    }
    restore(&tower, &ClipFiles::open(path)?.weights)
}

/// One share of a batch on its way: its graph's ends.
struct Share {
    image: Tensor,
    text: Tensor,
    /// Image features (B, D).
    pooled: Tensor,
    /// Sources and classes.
    labels: Vec<(usize, Option<u32>)>,
}

/// Which images skip which branch: (layers * 2) vectors (B) of 0, or of 1 / (share that stay).
fn skipped(layers: usize, batch: usize, rate: f64, rng: &mut impl Rng) -> Vec<Vec<f32>> {
    (0..2 * layers)
        .map(|branch| {
            let rate = rate * (branch / 2) as f64 / (layers.max(2) - 1) as f64;
            let stay = (1.0 / (1.0 - rate)) as f32;
            (0..batch).map(|_| if rng.random_bool(rate) { 0.0 } else { stay }).collect()
        })
        .collect()
}

/// A pair, and the one of its captions that was drawn.
type Example<'a> = (&'a Pair, &'a (Vec<u32>, usize));

/// What a step sees of a batch, in the host's memory.
struct Batch {
    /// Of each worker.
    shares: Vec<HostShare>,
    /// Of the whole batch, share after share, which distinct string each caption is.
    equal: Vec<usize>,
}

/// As [`Share`], not yet on the device.
struct HostShare {
    /// (B, 3, side, side).
    pixels: Vec<f32>,
    /// Patches that are shown, where some are not.
    kept: Option<Vec<u32>>,
    skipped: Vec<Vec<f32>>,
    ids: Vec<Vec<u32>>,
    labels: Vec<(usize, Option<u32>)>,
}

/// Draws a step's batch, a share of each source, mixed over the workers by turns, and makes its views, on all threads of the
/// pool.
fn make_batch(config: &Config, data: &Data, places: Places, pool: &ThreadPool, eos: u32, step: u64) -> Batch {
    let mut rng = step_rng(config.training.seed, step, 0);
    let shares = places.deal(&draw(&mut rng, &data.train, config.training.batch, |pair| &pair.captions));
    let equal = shares.iter().flatten().map(|(_, caption)| caption.1).collect();
    let (patches, tower) = (config.vision.num_patches(), PreprocessConfig::clip(config.vision.image_size));
    let dropping = (step as f64) < config.drop_until * config.training.steps as f64;
    let keep = dropping.then_some(((patches as f64 * config.patch_keep) as usize).max(1));
    let make = |(w, share): (usize, &Vec<Example<'_>>)| {
        let mut rng = step_rng(config.training.seed, step, 1 + w as u64);
        let pictures: Vec<&Picture> = share.iter().map(|(pair, _)| &pair.picture).collect();
        let ids: Vec<&[u32]> = share.iter().map(|(_, caption)| caption.0.as_slice()).collect();
        HostShare {
            pixels: views(&pictures, &tower, &config.augment, &mut rng),
            kept: keep.map(|keep| kept_patches(share.len(), patches, keep, &mut rng)),
            skipped: skipped(config.vision.num_hidden_layers, share.len(), config.depth_drop, &mut rng),
            ids: pad(&ids, eos),
            labels: share.iter().map(|(pair, _)| (pair.source, pair.class)).collect(),
        }
    };
    Batch { shares: pool.install(|| shares.par_iter().enumerate().map(make).collect()), equal }
}

fn train_step(
    config: &Config,
    model: &SmallClip,
    vars: &Vars,
    workers: &Workers,
    Batch { shares, equal }: Batch,
) -> Result<(Gradients, serde_json::Value)> {
    // Forward, each share in its own graph.
    let side = config.vision.image_size;
    let shares = workers.run(shares, |_, HostShare { pixels, kept, skipped, ids, labels }| {
        let pixels = model.backend.upload(&pixels, &[ids.len(), 3, side, side])?;
        // (branches, B, 1, 1), at once.
        let factors = model.backend.upload(&skipped.concat(), &[skipped.len(), ids.len(), 1, 1])?;
        let branch = |at: usize, added: Tensor| Ok(added.broadcast_mul(&factors.get(at)?.to_dtype(added.dtype())?)?);
        let branch = (config.depth_drop > 0.0).then_some(&branch as &Branch<'_, Candle>);
        let (image, pooled) = model.image(&pixels, &Dropped { patches: kept.as_deref(), branch })?;
        Ok(Share { image, text: model.text(&ids)?, pooled, labels })
    })?;

    // The loss of the whole batch, by the embeddings.
    let embedded: Vec<_> = shares.iter().map(|share| (&share.image, &share.text)).collect();
    let scale = values(&model.logit_scale)?[0];
    let contrast = info_nce(&embedded, scale, &equal, config.same_string)?;

    // Backward, each share with its rows of the gradients.
    let labelled = shares.iter().flat_map(|s| &s.labels).filter(|(_, class)| class.is_some()).count().max(1);
    let parts = workers.run(shares, |w, share| {
        let carried = contrast.carried(w, &share.image, &share.text)?;
        let class = model.class_loss(&share.pooled, &share.labels, config.label_smoothing, labelled)?;
        let total = (carried + (&class * config.class_weight)?)?;
        let store = total.backward()?;
        Ok((gradients(vars, &store)?, f64::from(class.to_scalar::<f32>()?)))
    })?;
    let class_loss: f64 = parts.iter().map(|(_, loss)| loss).sum();
    let mut total = sum(parts.into_iter().map(|(gradients, _)| gradients))?;
    insert_number(&mut total, vars, "logit_scale", contrast.logit_scale)?;
    let loss = contrast.loss + config.class_weight * class_loss;
    let line = json!({
        "loss": loss, "contrast": contrast.loss, "class": class_loss, "batch_accuracy": contrast.accuracy,
        "temperature": (-f64::from(scale)).exp(), "pairs": equal.len(),
    });
    Ok((total, line))
}

fn validate(config: &Config, data: &Data, model: &SmallClip, workers: &Workers, eos: u32) -> Result<Validation> {
    if data.val.is_empty() {
        return Ok(Validation::default());
    }
    let side = config.vision.image_size;
    let preprocess = PreprocessConfig::clip(side);
    let parts = data.val.chunks(data.val.len().div_ceil(workers.count()).max(1)).collect::<Vec<_>>();
    let parts = workers.run(parts, |_, pairs| {
        let (mut images, mut texts, mut right) = (Vec::new(), Vec::new(), 0usize);
        for pairs in pairs.chunks(32) {
            let mut pixels = Vec::new();
            for pair in pairs {
                let picture = rscapret::clip::preprocess::resize_crop(&pair.picture, &preprocess)?;
                pixels.extend(normalize(&picture, &preprocess));
            }
            let pixels = model.backend.upload(&pixels, &[pairs.len(), 3, side, side])?;
            let (image, pooled) = model.image(&pixels, &Dropped::default())?;
            images.push(image.detach());
            let guess = model.classes(0, &pooled)?.argmax(1)?.to_vec1::<u32>()?;
            right += pairs.iter().zip(guess).filter(|(pair, guess)| pair.class == Some(*guess)).count();
            let ids: Vec<&[u32]> =
                pairs.iter().flat_map(|p| p.captions.iter().map(|(ids, _)| ids.as_slice())).collect();
            texts.push(model.text(&pad(&ids, eos))?.detach());
        }
        Ok((Tensor::cat(&images, 0)?, Tensor::cat(&texts, 0)?, right))
    })?;
    let image = Tensor::cat(&parts.iter().map(|p| &p.0).collect::<Vec<_>>(), 0)?;
    let text = Tensor::cat(&parts.iter().map(|p| &p.1).collect::<Vec<_>>(), 0)?;
    let right: usize = parts.iter().map(|p| p.2).sum();
    let captions = captions_of(&data.val, |pair| &pair.texts);
    let scores = recall(&values(&image.matmul(&text.t()?)?)?, data.val.len(), &captions, Protocol::OwnImage)?;
    let line = json!({
        "class_accuracy": 100.0 * right as f64 / data.val.len().max(1) as f64,
        "mean_recall": scores.mean_recall, "i2t_R@10": scores.i2t_10, "t2i_R@10": scores.t2i_10,
    });
    Ok(Validation { line, score: Some(scores.mean_recall), ..Validation::default() })
}

fn read_data(config: &Config, run: &RunDir) -> Result<(Data, u32)> {
    let datasets = run.datasets(config.data.iter().map(|source| &source.dataset))?;
    let loaded: Vec<_> = config.data.iter().zip(datasets).collect();
    let texts: Vec<String> = loaded
        .iter()
        .flat_map(|(_, dataset)| dataset.split(Split::Train).flat_map(|item| item.captions.iter().cloned()))
        .collect();
    let tokenizer = open_or_train(&config.tokenizer, config.text.vocab_size, &texts)?;
    let eos = tokenizer.eos().ok_or_else(|| Error::Config(format!("tokenizer: expected `{EOS}` but found none")))?;
    let mut strings = HashMap::new();
    let mut data = Data { train: Vec::new(), val: Vec::new(), classes: Vec::new() };
    for (i, (source, dataset)) in loaded.iter().enumerate() {
        let mut classes = HashMap::new();
        let mut read = |split: Split| -> Result<Vec<Pair>> {
            let items: Vec<&Item> = dataset.split(split).collect();
            let pictures = read_pictures(&items, dataset, if split == Split::Train { config.cache_size } else { 256 })?;
            let mut pairs = Vec::new();
            for (item, picture) in items.into_iter().zip(pictures) {
                let class = source.classes.class(item).map(|class| {
                    let next = classes.len() as u32;
                    *classes.entry(class).or_insert(next)
                });
                let mut captions = Vec::new();
                for text in &item.captions {
                    let next = strings.len();
                    let string = *strings.entry(text.clone()).or_insert(next);
                    captions.push((text_ids(&tokenizer, text, config.text.max_position_embeddings, eos)?, string));
                }
                pairs.push(Pair { picture, captions, texts: item.captions.clone(), source: i, class });
            }
            Ok(pairs)
        };
        data.train.push((source.dataset.weight, read(Split::Train)?));
        if i == 0 {
            data.val = read(Split::Val)?;
        }
        data.classes.push(classes.len());
    }
    Ok((data, eos))
}

fn read_pictures(items: &[&Item], dataset: &crate::dataset::Dataset, side: usize) -> Result<Vec<Picture>> {
    let read = |item: &&Item| -> Result<Picture> { read_square(&dataset.image_path(item)?, side) };
    pool(cores())?.install(|| items.par_iter().map(read).collect())
}

/// Ids of a caption with end of text, cut to `most`.
fn text_ids(tokenizer: &Tokenizer, text: &str, most: usize, eos: u32) -> Result<Vec<u32>> {
    let mut ids = tokenizer.encode(text, false)?;
    ids.truncate(most.saturating_sub(1));
    ids.push(eos);
    Ok(ids)
}

fn write_folder(config: &Config, clip: &ClipConfig, vars: &Vars, run: &RunDir) -> Result<()> {
    let folder = |name: &str| format!("model/{name}");
    let mut tensors = crate::vars::to_raw(vars)?;
    tensors.retain(|name, _| !name.starts_with("class_head."));
    // A matrix here, a convolution's kernel in the checkpoints of the field.
    if let Some(patches) = tensors.get_mut("vision_model.embeddings.patch_embedding.weight") {
        let side = config.vision.patch_size;
        patches.shape = vec![config.vision.hidden_size, 3, side, side];
    }
    if let Some(scale) = tensors.get_mut("logit_scale") {
        scale.shape = Vec::new();
    }
    let mut bytes = Vec::new();
    rscapret::weights::safetensors::write_safetensors(&tensors, &Default::default(), &mut bytes)?;
    run.write(&folder("model.safetensors"), &bytes)?;
    let mut json = serde_json::to_value(clip).map_err(|e| Error::Config(e.to_string()))?;
    json["model_type"] = "clip".into();
    json["architectures"] = json!(["CLIPModel"]);
    run.write(&folder("config.json"), json.to_string().as_bytes())?;
    let preprocess = serde_json::to_vec(&PreprocessConfig::clip(config.vision.image_size))
        .map_err(|e| Error::Config(e.to_string()))?;
    run.write(&folder("preprocessor_config.json"), &preprocess)?;
    let tokenizer = std::fs::read(&config.tokenizer).map_err(unreadable);
    run.write(&folder("tokenizer.json"), &tokenizer.at(config.tokenizer.display())?)
}
