//! RS-CapRet's own training (arXiv 2402.06475): the linear maps, [RET] and the logit scale, all else frozen.
//! L = lambda_c L_c + lambda_r (L_t2i + L_i2t).

mod data;
mod query;
#[cfg(test)]
mod tests;
mod validation;

use std::path::{Path, PathBuf};

use candle_core::Tensor;
use rand::Rng;
use rscapret::{
    Backend, Candle, Context, Error, Result,
    caption::{
        Captioner,
        sequence::{captioning_input, retrieval_hidden, text_ids},
    },
    llama::{Llama, load_llama_checkpoint},
    projection::{Projections, ProjectionsConfig},
    tokenizer::Tokenizer,
    weights::safetensors::SafetensorsFile,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use self::data::{Caption, Pair};
use crate::{
    dataset::DatasetConfig,
    features::{Features, Tower},
    files::FileSource,
    loss::{SameString, cross_entropy, info_nce},
    optim::{Gradients, Optim, OptimConfig, Schedule},
    run_dir::RunDir,
    stage::{Loop, TrainingConfig, Workers, draw, gradients, step_rng, sum},
    vars::{NewVars, Vars, normal, values},
};

/// `train`'s TOML.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Length, batch and rhythm.
    pub training: TrainingConfig,
    /// Frozen language model, a Hugging Face folder.
    pub llm: PathBuf,
    /// Frozen image encoder, a Hugging Face CLIP folder.
    pub clip: PathBuf,
    /// What `rscapret features` wrote of `clip`; absent, the tower runs over all images at every start.
    pub features: Option<PathBuf>,
    /// Visual tokens k of an image.
    pub visual_tokens: usize,
    /// Joint space J.
    pub joint_size: usize,
    /// Weight of the caption's cross-entropy.
    pub lambda_c: f64,
    /// Weight of each direction's InfoNCE.
    pub lambda_r: f64,
    /// How equal captions in one batch count.
    pub same_string: SameString,
    /// Noise on features, as a share of their standard deviation.
    pub feature_noise: f32,
    /// Longest caption, tokens; longer ones are cut.
    pub max_length: usize,
    /// Share of the captions that retrieval sees as someone would type them: lower case, no full stop, perhaps a part.
    #[serde(default)]
    pub query_share: f64,
    /// Optimiser.
    pub optim: OptimConfig,
    /// Rates over time.
    #[serde(default)]
    pub schedule: Schedule,
    /// Where pairs come from; the first one's `val` split validates.
    pub data: Vec<Source>,
}

/// One dataset, and how many views of each image are encoded.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Flips and quarter turns of each image, 1 to 8.
    pub views: usize,
    /// The dataset.
    pub dataset: DatasetConfig,
}

/// Opens a Hugging Face Llama folder.
///
/// # Errors
/// A missing file, or one that is no such model's.
pub fn open_llm(backend: &Candle, folder: &Path) -> Result<(Llama<Candle>, Tokenizer)> {
    let read = |name: &str| {
        let path = folder.join(name);
        std::fs::read(&path).map_err(|e| Error::Io(e.to_string())).at(path.display())
    };
    let file = pollster::block_on(SafetensorsFile::open(FileSource::open(folder.join("model.safetensors"))?))?;
    let (config, tokenizer) = (read("config.json")?, read("tokenizer.json")?);
    pollster::block_on(load_llama_checkpoint(backend, &config, &file, &tokenizer)).at(folder.display())
}

/// Trains to the end and writes `projections.safetensors`, those that validated best, into the run's folder.
///
/// # Errors
/// Unusable data, models or configuration; see [`Loop::train`].
pub fn run(config: &Config, run: &RunDir) -> Result<()> {
    let backend = Candle::cpu();
    let (llama, tokenizer) = open_llm(&backend, &config.llm)?;
    let tower = Tower::open(&backend, &config.clip)?;
    let sizes = ProjectionsConfig {
        feature_size: tower.feature_size(),
        hidden_size: llama.config().hidden_size,
        joint_size: config.joint_size,
        visual_tokens: config.visual_tokens,
    };
    let workers = Workers::new(config.training.workers)?;
    let features = Features::open(&tower, &config.clip, config.features.as_deref())?;
    let (train, val) = data::read(config, &tokenizer, &features, &workers)?;
    let new = NewVars::new(&backend, config.training.seed, 1);
    let projections = pollster::block_on(Projections::load(&new, sizes))?;
    let vars = new.into_vars();
    let mut optim = Optim::new(&config.optim, &vars);
    eprintln!("{} parameters", sizes.parameters());
    let (vision, preprocess) = tower.into_parts();
    let model = Captioner::new(backend, llama, tokenizer, vision, preprocess, projections, "")?;
    let norm = mean_norm(&model)?;
    let training = Loop { run, vars: &vars, config: &config.training, schedule: config.schedule };
    training.train(
        &mut optim,
        |step| {
            rescale(&vars, norm)?;
            train_step(config, &train, &model, &vars, &workers, step)
        },
        || {
            rescale(&vars, norm)?;
            validation::validate(&model, &val, &workers)
        },
    )?;
    let mut bytes = Vec::new();
    rscapret::weights::safetensors::write_safetensors(&crate::vars::to_raw(&vars)?, &Default::default(), &mut bytes)?;
    run.write("projections.safetensors", &bytes)
}

/// Mean L2 norm of the embedding rows.
fn mean_norm(model: &Captioner<Candle>) -> Result<f32> {
    let ids: Vec<u32> = (0..model.llama().config().vocab_size as u32).collect();
    let rows = model.llama().embed(model.backend(), &ids)?;
    Ok(rows.sqr()?.sum(1)?.sqrt()?.mean_all()?.to_scalar::<f32>()?)
}

/// Brings [RET]'s row to the norm of its neighbours, as FROMAGe does after each step.
fn rescale(vars: &Vars, norm: f32) -> Result<()> {
    if let Some(ret) = vars.get("ret_embedding") {
        let own = ret.sqr()?.sum_all()?.sqrt()?.to_scalar::<f32>()?;
        ret.set(&(ret.as_detached_tensor() * f64::from(norm / own.max(1e-12)))?)?;
    }
    Ok(())
}

struct Share {
    image: Tensor,
    text: Tensor,
    caption: Tensor,
}

fn train_step(
    config: &Config,
    train: &[(f64, Vec<Pair>)],
    model: &Captioner<Candle>,
    vars: &Vars,
    workers: &Workers,
    step: u64,
) -> Result<(Gradients, serde_json::Value)> {
    let mut rng = step_rng(config.training.seed, step, 0);
    let chosen = draw(&mut rng, train, config.training.batch, |pair| &pair.captions);
    let shares: Vec<Vec<(&Pair, &Caption)>> =
        (0..workers.count()).map(|w| chosen.iter().skip(w).step_by(workers.count()).copied().collect()).collect();
    let equal: Vec<usize> = shares.iter().flatten().map(|(_, caption)| caption.string).collect();
    let sizes: Vec<usize> = shares.iter().map(Vec::len).collect();
    let tokens: usize = shares.iter().flatten().map(|(_, caption)| caption.labels()).sum();
    let projections = model.projections();
    let c = projections.config().feature_size;

    let shares = workers.run(shares, |w, share| {
        let mut rng = step_rng(config.training.seed, step, 1 + w as u64);
        let mut features = Vec::with_capacity(share.len() * c);
        for (pair, _) in &share {
            let view = rng.random_range(0..pair.features.len() / c);
            let view = &pair.features[view * c..(view + 1) * c];
            let mean = view.iter().sum::<f32>() / c as f32;
            let deviation = (view.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / c as f32).sqrt();
            features.extend(view.iter().map(|v| v + normal(&mut rng) * deviation * config.feature_noise));
        }
        let features = model.backend().upload(&features, &[share.len(), c])?;
        let captions: Vec<&Caption> = share.iter().map(|(_, caption)| *caption).collect();
        let mut queries = Vec::with_capacity(captions.len());
        for caption in &captions {
            queries.push(if rng.random::<f64>() < config.query_share {
                text_ids(model.tokenizer(), &query::as_typed(&caption.text, &mut rng))?
            } else {
                caption.ids.clone()
            });
        }
        Ok(Share {
            image: projections.image_embedding(model.backend(), &features)?,
            text: text_embedding(model, &queries)?,
            caption: caption_loss(model, &features, &captions, tokens)?,
        })
    })?;
    let join = |pick: fn(&Share) -> &Tensor| Tensor::cat(&shares.iter().map(pick).collect::<Vec<_>>(), 0);
    let scale = values(projections.logit_scale())?[0];
    let contrast = info_nce(&join(|s| &s.image)?, &join(|s| &s.text)?, scale, &equal, config.same_string)?;
    // `info_nce` gives the mean of the two directions; the method's loss is their sum.
    let lambda_r = 2.0 * config.lambda_r;
    let starts: Vec<usize> = sizes.iter().scan(0, |at, n| Some(std::mem::replace(at, *at + n))).collect();
    let parts = workers.run(shares, |w, share| {
        let rows = |g: &Tensor| g.narrow(0, starts[w], sizes[w]);
        let carried = ((&share.image * rows(&contrast.image)?)?.sum_all()?
            + (&share.text * rows(&contrast.text)?)?.sum_all()?)?;
        let total = ((carried * lambda_r)? + (&share.caption * config.lambda_c)?)?;
        Ok((gradients(vars, &total.backward()?)?, f64::from(share.caption.to_scalar::<f32>()?)))
    })?;
    let caption: f64 = parts.iter().map(|(_, loss)| loss).sum();
    let mut total = sum(parts.into_iter().map(|(g, _)| g).collect());
    total.insert("logit_scale".into(), vec![contrast.logit_scale * lambda_r as f32]);
    let line = json!({
        "loss": config.lambda_c * caption + lambda_r * contrast.loss, "caption": caption,
        "contrast": contrast.loss, "batch_accuracy": contrast.accuracy,
    });
    Ok((total, line))
}

/// Embeddings (B, J) of B texts' ids.
fn text_embedding(model: &Captioner<Candle>, ids: &[Vec<u32>]) -> Result<Tensor> {
    let (backend, projections) = (model.backend(), model.projections());
    let hidden = retrieval_hidden(backend, model.llama(), projections.ret_embedding(), ids)?;
    projections.text_embedding(backend, &hidden)
}

/// A share's part of the caption loss, whose sum over all shares is the mean over `tokens` labels.
fn caption_loss(model: &Captioner<Candle>, features: &Tensor, captions: &[&Caption], tokens: usize) -> Result<Tensor> {
    let (backend, llama) = (model.backend(), model.llama());
    let ids: Vec<Vec<u32>> = captions.iter().map(|caption| caption.ids.clone()).collect();
    // [k visual tokens][BOS text]: the hidden state at BOS gives the first label, the one at the last token the end.
    let x = captioning_input(backend, llama, &model.projections().visual_tokens(backend, features)?, &ids)?;
    let hidden = llama.forward(backend, &x, None)?;
    let (length, k) = (hidden.dim(1)?, model.projections().config().visual_tokens);
    let (mut rows, mut labels) = (Vec::new(), Vec::new());
    for (b, caption) in captions.iter().enumerate() {
        for t in 0..caption.labels() {
            rows.push((b * length + k + t) as u32);
            labels.push(caption.ids.get(t + 1).copied().or(model.tokenizer().eos()));
        }
    }
    let hidden = hidden.reshape((ids.len() * length, llama.config().hidden_size))?;
    let logits = llama.logits(backend, &backend.index_rows(&hidden, &rows)?)?;
    cross_entropy(&logits, &labels, 0.0, tokens)
}
