//! A small Llama from caption text: next-token cross-entropy on random batches.

use std::path::PathBuf;

use rand::Rng;
use rscapret::{
    Backend, Candle, Context, Error, Result,
    backend::RopeLayout,
    llama::{Llama, LlamaConfig, RopeScaling},
    weights::safetensors::write_safetensors,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    dataset::{DatasetConfig, Split},
    files::unreadable,
    loss::cross_entropy,
    optim::{Gradients, Optim, OptimConfig, Schedule},
    run_dir::RunDir,
    stage::{Loop, TrainingConfig, Validation, Workers, gradients, step_rng, sum},
    vars::{NewVars, Vars, to_raw},
    vocabulary::open_or_train,
};

/// `pretrain-lm`'s TOML.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Length, batch and rhythm.
    pub training: TrainingConfig,
    /// `tokenizer.json`; trained on the captions if it is not there.
    pub tokenizer: PathBuf,
    /// Longest caption with its ends, tokens; longer ones are cut.
    pub max_length: usize,
    /// The model.
    pub model: ModelConfig,
    /// Optimiser.
    pub optim: OptimConfig,
    /// Rates over time.
    #[serde(default)]
    pub schedule: Schedule,
    /// Where captions come from; the first one's `val` split validates.
    pub data: Vec<DatasetConfig>,
}

/// Shape of the model; keys and values have as many heads as queries, the head is tied to the embeddings.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Vocabulary V.
    pub vocab_size: usize,
    /// Width D.
    pub hidden_size: usize,
    /// Width F of the MLPs.
    pub intermediate_size: usize,
    /// Layers L.
    pub num_hidden_layers: usize,
    /// Heads H.
    pub num_attention_heads: usize,
    /// Longest context, tokens.
    pub max_position_embeddings: usize,
}

impl ModelConfig {
    fn llama(&self) -> LlamaConfig {
        LlamaConfig {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            num_key_value_heads: self.num_attention_heads,
            head_dim: self.hidden_size / self.num_attention_heads.max(1),
            vocab_size: self.vocab_size,
            max_position_embeddings: self.max_position_embeddings,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            rope_scaling: RopeScaling::None,
            rope_layout: RopeLayout::Half,
            tie_word_embeddings: true,
        }
    }
}

/// Captions of one dataset as ids, with the share of a batch that they get.
struct Texts {
    weight: f64,
    captions: Vec<Vec<u32>>,
}

/// Trains to the end and writes a Hugging Face Llama folder, `model/`, into the run's.
///
/// # Errors
/// Unusable data or configuration; see [`Loop::train`].
pub fn run(config: &Config, run: &RunDir, backend: &Candle) -> Result<()> {
    let datasets = run.datasets(&config.data)?;
    let strings = |split: Split, at: usize| -> Vec<String> {
        datasets[at].split(split).flat_map(|item| item.captions.iter().cloned()).collect()
    };
    let all: Vec<String> = (0..datasets.len()).flat_map(|at| strings(Split::Train, at)).collect();
    let tokenizer = open_or_train(&config.tokenizer, config.model.vocab_size, &all)?;
    let ends = || Error::Config("tokenizer: expected begin and end of text but found none".into());
    let (bos, eos) = (tokenizer.bos().ok_or_else(ends)?, tokenizer.eos().ok_or_else(ends)?);
    let ids = |texts: Vec<String>| -> Result<Vec<Vec<u32>>> {
        texts
            .iter()
            .map(|text| {
                let mut ids = vec![bos];
                ids.extend(tokenizer.encode(text, false)?);
                ids.push(eos);
                // A cut caption does not teach where captions end.
                ids.truncate(config.max_length);
                Ok(ids)
            })
            .collect()
    };
    let mut train = Vec::new();
    for (at, dataset) in config.data.iter().enumerate() {
        train.push(Texts { weight: dataset.weight, captions: ids(strings(Split::Train, at))? });
    }
    let val = ids(strings(Split::Val, 0))?;
    eprintln!("{} captions, {} to validate", train.iter().map(|t| t.captions.len()).sum::<usize>(), val.len());

    let backend = backend.computing_in(config.training.compute);
    let new = NewVars::new(&backend, config.training.seed, config.model.num_hidden_layers);
    let model = pollster::block_on(Llama::load(&new, &config.model.llama()))?;
    let vars = new.into_vars();
    let mut optim = Optim::new(&config.optim, &vars)?;
    let workers = Workers::new(config.training.workers, backend.device())?;
    let training = Loop { run, vars: &vars, config: &config.training, schedule: config.schedule, workers: &workers };
    training.train(
        &mut optim,
        |step| {
            let mut rng = step_rng(config.training.seed, step, 0);
            let whole: f64 = train.iter().map(|t| t.weight).sum();
            let batch: Vec<&[u32]> = (0..config.training.batch)
                .map(|_| {
                    let mut at = rng.random::<f64>() * whole;
                    let mut from = &train[0];
                    for texts in &train {
                        from = texts;
                        at -= texts.weight;
                        if at < 0.0 {
                            break;
                        }
                    }
                    from.captions[rng.random_range(0..from.captions.len())].as_slice()
                })
                .collect();
            let (gradients, loss) = step_gradients(&backend, &model, &vars, &workers, &batch)?;
            Ok((gradients, json!({ "loss": loss })))
        },
        || {
            let mut total = 0.0;
            let mut tokens = 0;
            for batch in val.chunks(64) {
                let batch: Vec<&[u32]> = batch.iter().map(Vec::as_slice).collect();
                let count: usize = batch.iter().map(|ids| ids.len() - 1).sum();
                let loss = loss_of(&backend, &model, &batch, count)?.to_scalar::<f32>()?;
                total += f64::from(loss) * count as f64;
                tokens += count;
            }
            let loss = total / tokens.max(1) as f64;
            Ok(Validation {
                line: json!({ "loss": loss }),
                score: (tokens > 0).then_some(-loss),
                ..Validation::default()
            })
        },
    )?;

    let mut bytes = Vec::new();
    write_safetensors(&to_raw(&vars)?, &Default::default(), &mut bytes)?;
    run.write("model/model.safetensors", &bytes)?;
    let mut json = config.model.llama().to_json()?;
    json["bos_token_id"] = bos.into();
    json["eos_token_id"] = eos.into();
    run.write("model/config.json", json.to_string().as_bytes())?;
    let tokenizer = std::fs::read(&config.tokenizer).map_err(unreadable);
    run.write("model/tokenizer.json", &tokenizer.at(config.tokenizer.display())?)
}

/// Cross-entropy of the next token over sequences (their sum divided by `count`).
fn loss_of(backend: &Candle, model: &Llama<Candle>, batch: &[&[u32]], count: usize) -> Result<candle_core::Tensor> {
    let longest = batch.iter().map(|ids| ids.len() - 1).max().unwrap_or_default();
    let (mut inputs, mut labels) = (Vec::new(), Vec::new());
    for ids in batch {
        let end = ids.len() - 1;
        inputs.extend((0..longest).map(|t| if t < end { ids[t] } else { 0 }));
        labels.extend((0..longest).map(|t| (t < end).then(|| ids[t + 1])));
    }
    let d = model.config().hidden_size;
    let x = backend.reshape(&model.embed(backend, &inputs)?, &[batch.len(), longest, d])?;
    let hidden = model.forward(backend, &x, None)?;
    // Padding is left out before the head, which is most of a small model's work.
    let hidden = backend.reshape(&hidden, &[batch.len() * longest, d])?;
    let rows: Vec<u32> = (0..labels.len() as u32).filter(|&i| labels[i as usize].is_some()).collect();
    let labels: Vec<Option<u32>> = labels.into_iter().filter(Option::is_some).collect();
    let logits = model.logits(backend, &backend.index_rows(&hidden, &rows)?)?;
    cross_entropy(&logits, &labels, 0.0, count)
}

fn step_gradients(
    backend: &Candle,
    model: &Llama<Candle>,
    vars: &Vars,
    workers: &Workers,
    batch: &[&[u32]],
) -> Result<(Gradients, f64)> {
    let count: usize = batch.iter().map(|ids| ids.len() - 1).sum();
    let parts = workers.run(workers.deal(batch), |_, share| {
        let loss = loss_of(backend, model, &share, count)?;
        Ok((gradients(vars, &loss.backward()?)?, f64::from(loss.to_scalar::<f32>()?)))
    })?;
    let loss = parts.iter().map(|(_, loss)| loss).sum();
    Ok((sum(parts.into_iter().map(|(gradients, _)| gradients))?, loss))
}
