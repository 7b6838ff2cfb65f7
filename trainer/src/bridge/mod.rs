//! RS-CapRet's own training (arXiv 2402.06475): the linear maps, [RET] and the logit scale, all else frozen.
//! L = lambda_c L_c + lambda_r (L_t2i + L_i2t), and by choice lambda_ret L_ret.

mod config;
mod data;
mod llm;
mod query;
mod step;
#[cfg(test)]
mod tests;
mod validation;

pub use config::{CaptionedFrom, Config, LlmWeights, Source};
pub use data::Pair;
pub use llm::{gguf, open_llm};
pub use step::train_step;
pub(crate) use step::{query_ids, text_embedding};

use candle_core::DType;
use rscapret::{
    Candle, Error, Result,
    caption::Captioner,
    projection::{Projections, ProjectionsConfig},
    weights::safetensors::write_safetensors,
};

use crate::{
    features::{Features, Tower},
    optim::Optim,
    parallel::{self, Alone, Group},
    provenance,
    run_dir::RunDir,
    stage::{Loop, Validation, Workers, fills_shares},
    vars::{FixedVars, NewVars, Vars, to_raw},
};

/// Ids that are embedded at a time where the whole vocabulary is looked at.
const ROWS: usize = 1024;

/// Trains to the end and writes `projections.safetensors`, those that validated best, into the run's folder.
///
/// # Errors
/// Unusable data, models or configuration; see [`Loop::train`].
pub fn run(config: &Config, run: &RunDir, backend: &Candle) -> Result<()> {
    run_in(config, run, backend, &Alone)
}

/// As [`run`], with the other processes of a group, which all call it.
///
/// # Errors
/// Likewise; a process that failed or is gone.
pub fn run_in(config: &Config, run: &RunDir, backend: &Candle, group: &dyn Group) -> Result<()> {
    config.check()?;
    let datasets = run.datasets(config.data.iter().map(|source| &source.dataset))?;
    let backend = backend.computing_in(config.training.compute);
    let (llama, tokenizer) = open_llm(&config.llm_backend(&backend), &config.llm)?;
    let tower = Tower::open(&backend, &config.clip)?.giving(config.feature()?)?;
    let sizes = ProjectionsConfig {
        feature_size: tower.feature_size(),
        hidden_size: llama.config().hidden_size,
        joint_size: config.joint_size,
        visual_tokens: config.visual_tokens,
        ret_output: config.lambda_ret > 0.0,
    };
    let group = parallel::on(group, backend.device())?;
    let workers = Workers::in_group(config.training.workers, backend.device(), &*group)?;
    let features = Features::open(&tower, &config.clip, config.features.as_deref())?;
    let (train, val) = data::read(config, &datasets, &tokenizer, &features, &workers)?;
    fills_shares(&train, config.data.iter().map(|source| source.dataset.name.as_str()), config.training.batch)?;
    let new = NewVars::new(&backend, config.training.seed, 1);
    let projections = pollster::block_on(Projections::load(&new, sizes))?.with_conventions(config.conventions()?);
    let vars = new.into_vars();
    let mut optim = Optim::new(&config.optim, &vars)?;
    if group.rank() == 0 {
        eprintln!("{} parameters", sizes.parameters());
    }
    let (vision, preprocess) = tower.into_parts();
    let models = Models::new(Captioner::new(backend, llama, tokenizer, vision, preprocess, projections, "")?, &vars)?;
    let pairs = || train.iter().flat_map(|(_, pairs)| pairs);
    fits_context(&models.trained, pairs(), 1 + usize::from(config.concatenate > 0.0))?;
    fits_context(&models.trained, &val, 1)?;
    let norm = if config.rescale_ret { Some(mean_norm(&models.fixed)?) } else { None };
    let training = Loop { run, vars: &vars, config: &config.training, schedule: config.schedule, workers: &workers };
    training.train(
        &mut optim,
        |step| {
            rescale(&vars, norm)?;
            train_step(config, &train, &models, &vars, &workers, step)
        },
        || {
            rescale(&vars, norm)?;
            if group.rank() > 0 {
                return Ok(Validation::default());
            }
            validation::validate(&models.fixed, &val, &workers)
        },
    )?;
    let mut metadata = models.trained.projections().conventions().to_metadata();
    if let Some(origin) = provenance::of_run(&run.file(""))? {
        metadata.extend(provenance::to_metadata(&origin)?);
    }
    let mut bytes = Vec::new();
    write_safetensors(&to_raw(&vars)?, &metadata, &mut bytes)?;
    run.write("projections.safetensors", &bytes)
}

/// What is trained, twice over the same weights.
pub struct Models {
    /// With the variables: what it computes is a graph to go back through.
    pub trained: Captioner<Candle>,
    /// With the variables' values, whatever they become: it keeps no graph.
    pub fixed: Captioner<Candle>,
}

impl Models {
    /// Of maps that were loaded as `vars`.
    ///
    /// # Errors
    /// What the device answers.
    pub fn new(trained: Captioner<Candle>, vars: &Vars) -> Result<Self> {
        let maps = trained.projections();
        let fixed = pollster::block_on(Projections::load(&FixedVars::new(trained.backend(), vars), maps.config()))?;
        let fixed = trained.with_projections(fixed.with_conventions(maps.conventions().clone()))?;
        Ok(Models { trained, fixed })
    }
}

/// Whether the context has room for the longest of the captions, and as many `at_once`, with their images.
fn fits_context<'a>(
    model: &Captioner<Candle>,
    pairs: impl IntoIterator<Item = &'a Pair>,
    at_once: usize,
) -> Result<()> {
    let captions = pairs.into_iter().flat_map(|pair| &pair.captions);
    let Some(longest) = captions.map(|caption| caption.tokens.len()).max() else { return Ok(()) };
    let needed = at_once * (model.projections().tokens_of_image() + model.caption_start().len() + longest);
    let context = model.llama().config().max_position_embeddings;
    if needed > context {
        return Err(Error::Config(format!(
            "expected a language model with a context of at least {needed} tokens, {at_once} times a caption of {longest} with \
             its image and prompt, but found {context}\nlower `max_length`, `visual_tokens` or `patch_grid`, or set `concatenate` to 0"
        )));
    }
    Ok(())
}

/// Mean L2 norm of the embedding rows.
fn mean_norm(model: &Captioner<Candle>) -> Result<f32> {
    let ids: Vec<u32> = (0..model.llama().config().vocab_size as u32).collect();
    let mut total = 0.0;
    for some in ids.chunks(ROWS) {
        let rows = model.llama().embed(model.backend(), some)?;
        total += f64::from(rows.to_dtype(DType::F32)?.sqr()?.sum(1)?.sqrt()?.sum_all()?.to_scalar::<f32>()?);
    }
    Ok((total / ids.len() as f64) as f32)
}

/// Brings [RET]'s row to the norm of its neighbours, where one is given, as FROMAGe does after each step.
fn rescale(vars: &Vars, norm: Option<f32>) -> Result<()> {
    if let (Some(norm), Some(ret)) = (norm, vars.get("ret_embedding")) {
        let own = ret.sqr()?.sum_all()?.sqrt()?.to_scalar::<f32>()?;
        ret.set(&(ret.as_detached_tensor() * f64::from(norm / own.max(1e-12)))?)?;
    }
    Ok(())
}
