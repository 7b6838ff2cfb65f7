//! CLIP's contrastive training goes on with image and caption pairs of one's own (Radford et al., 2021): both towers, the
//! maps and the temperature. The negatives are the whole batch's, however few pairs a pass takes (GradCache; Gao et al.,
//! 2021): embeddings first, without a graph, the loss by their values, then each part again with its rows of the gradient.

mod config;

pub use config::{Config, Source};

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
};

use candle_core::Tensor;
use rayon::{ThreadPool, prelude::*};
use rscapret::{
    Backend, Candle, Context, Error, Result,
    clip::{
        ClipConfig,
        preprocess::{Picture, PreprocessConfig, decode, preprocess},
    },
    weights::{TensorSource, safetensors::write_safetensors},
};
use serde_json::json;

use crate::{
    ahead::{cores, step_ahead},
    clip::{ClipModel, ClipTokens, OPENAI_MERGES, pad, read_preprocess},
    dataset::{Item, Split},
    eval::recall::{Protocol, captions_of, recall},
    files::{clip::ClipFiles, hugging_face::read_json},
    images::{read_square, views},
    loss::{Contrast, SameString, info_nce},
    optim::{Gradients, Optim},
    parallel::{self, Alone, Embedded, Group},
    run_dir::RunDir,
    stage::{Loop, Places, Validation, Workers, draw, fills_shares, gradients, insert_number, pool, step_rng, sum},
    vars::{StoredVars, Vars, to_raw, values},
};

/// Largest logit scale: CLIP's own limit, similarities times 100.
const MAX_SCALE: f32 = 100.0;
/// What may belong to the tokenizer of a CLIP, and what the trained folder gets unchanged.
const COMPANIONS: [&str; 6] =
    ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt", OPENAI_MERGES];

/// An image with its captions.
struct Pair {
    image: PathBuf,
    texts: Vec<String>,
    /// Ids, and which distinct string it is.
    captions: Vec<(Vec<u32>, usize)>,
}

/// What goes through the towers at once.
pub struct Part {
    /// (B, 3, side, side), normalised.
    pub pixels: Tensor,
    /// B texts of one length.
    pub ids: Vec<Vec<u32>>,
}

/// Gradients of the whole batch's contrastive loss, from parts of it, which were dealt out to all workers: `shares` are those
/// of the workers here. One who has a single part keeps its graph, and nothing is computed twice.
///
/// # Errors
/// What the device answers.
pub fn contrast_gradients(
    model: &ClipModel,
    vars: &Vars,
    workers: &Workers,
    shares: &[Vec<Part>],
    equal: &[usize],
    rule: SameString,
) -> Result<(Gradients, Contrast)> {
    let embed = |part: &Part| -> Result<(Tensor, Tensor)> {
        Ok((model.image_embedding(&part.pixels)?, model.text_embedding(&part.ids)?))
    };
    let embedded = workers.run(shares.iter().collect(), |_, share| {
        let again = share.len() > 1;
        let keep =
            |(image, text): (Tensor, Tensor)| if again { (image.detach(), text.detach()) } else { (image, text) };
        share.iter().map(|part| embed(part).map(keep)).collect::<Result<Vec<_>>>()
    })?;
    let scale = values(model.logit_scale())?.first().copied().unwrap_or_default();
    let own = embedded.iter().flatten().map(|(image, text)| Embedded::new(image, text));
    let all = by_turns(Embedded::gather(workers.group(), own.collect::<Result<_>>()?)?, workers.count());
    let all = Embedded::tensors(&all, equal.len(), model.logit_scale().device())?;
    let contrast = info_nce(&all.iter().map(|(image, text)| (image, text)).collect::<Vec<_>>(), scale, equal, rule)?;

    let (first, count) = (workers.first(), workers.count());
    let found = workers.run(shares.iter().zip(embedded).collect(), |w, (share, embedded)| {
        let again = share.len() > 1;
        // Added up at once: the gradients of all parts together would be many times the model.
        let mut total = Gradients::new();
        for (turn, (part, embedded)) in share.iter().zip(embedded).enumerate() {
            let (image, text) = if again { embed(part)? } else { embedded };
            let carried = contrast.carried(first + w + turn * count, &image, &text)?;
            total = sum([total, gradients(vars, &carried.backward()?)?])?;
        }
        Ok(total)
    })?;
    let mut total = parallel::reduce(workers.group(), vars, found)?;
    insert_number(&mut total, vars, "logit_scale", contrast.logit_scale)?;
    Ok((total, contrast))
}

/// Items that were dealt out by turns and come back worker by worker, in their old order.
fn by_turns<T>(items: Vec<T>, workers: usize) -> Vec<T> {
    let count = items.len();
    let places = (0..workers).flat_map(|w| (w..count).step_by(workers));
    let mut placed: Vec<(usize, T)> = places.zip(items).collect();
    placed.sort_by_key(|(place, _)| *place);
    placed.into_iter().map(|(_, item)| item).collect()
}

/// Trains to the end and writes a Hugging Face CLIP folder, `model/`, of the weights that validated best.
///
/// # Errors
/// Unusable data, model or configuration; see [`Loop::train`].
pub fn run(config: &Config, run: &RunDir, backend: &Candle) -> Result<()> {
    run_in(config, run, backend, &Alone)
}

/// As [`run`], with the other processes of a group, which all call it.
///
/// # Errors
/// Likewise; a process that failed or is gone.
pub fn run_in(config: &Config, run: &RunDir, backend: &Candle, group: &dyn Group) -> Result<()> {
    let backend = backend.computing_in(config.training.compute);
    let files = ClipFiles::open(&config.clip)?;
    let clip = ClipConfig::from_json(&files.config_json).at(config.clip.display())?;
    let preprocess = read_preprocess(&files.preprocessor_json, &clip).at(config.clip.display())?;
    let tokens = ClipTokens::open(&files.folder)?;
    let stored = StoredVars::new(&backend, &files.weights);
    let model = ClipModel::load(&stored, &clip).at(config.clip.display())?;
    let vars = stored.into_vars();
    let (train, val) = read_data(config, run, &tokens, clip.text_config.max_position_embeddings)?;
    fills_shares(&train, config.data.iter().map(|source| source.dataset.name.as_str()), config.training.batch)?;
    let group = parallel::on(group, backend.device())?;
    let workers = Workers::in_group(config.training.workers, backend.device(), &*group)?;
    let mut optim = Optim::new(&config.optim, &vars)?;
    let parameters: usize = vars.values().map(|var| var.elem_count()).sum();
    if group.rank() == 0 {
        eprintln!("{parameters} parameters, {} validation images", val.len());
    }
    let data = Data { train, val, side: clip.vision_config.image_size, preprocess, backend };
    let training = Loop { run, vars: &vars, config: &config.training, schedule: config.schedule, workers: &workers };
    let (places, reading) = (workers.places(), pool(cores())?);
    step_ahead(
        config.training.steps,
        |step| read_batch(config, &data, places, &reading, step),
        |batch| {
            training.train(
                &mut optim,
                |step| {
                    limit_scale(&vars)?;
                    train_step(config, &data, &model, &vars, &workers, batch(step)?)
                },
                || {
                    limit_scale(&vars)?;
                    if group.rank() > 0 {
                        return Ok(Validation::default());
                    }
                    validate(config, &data, &model, &workers)
                },
            )
        },
    )?;
    write_folder(&files, &vars, run)
}

/// What the steps see.
struct Data {
    /// Pairs by source, with the source's share.
    train: Vec<(f64, Vec<Pair>)>,
    val: Vec<Pair>,
    /// Side of the tower's pictures.
    side: usize,
    preprocess: PreprocessConfig,
    backend: Candle,
}

fn limit_scale(vars: &Vars) -> Result<()> {
    if let Some(scale) = vars.get("logit_scale") {
        scale.set(&scale.as_detached_tensor().clamp(f32::MIN, MAX_SCALE.ln())?)?;
    }
    Ok(())
}

/// A pair, and the one of its captions that was drawn.
type Example<'a> = (&'a Pair, &'a (Vec<u32>, usize));

/// What a step sees of a batch, in the host's memory.
struct Batch {
    /// Of the workers here, the parts of each.
    shares: Vec<Vec<HostPart>>,
    /// Of the whole batch, which distinct string each caption is.
    equal: Vec<usize>,
}

/// As [`Part`], not yet on the device: (B, 3, side, side), and texts.
struct HostPart {
    pixels: Vec<f32>,
    ids: Vec<Vec<u32>>,
}

/// Draws a step's batch and reads its pictures, on all threads of the pool.
fn read_batch(config: &Config, data: &Data, places: Places, pool: &ThreadPool, step: u64) -> Result<Batch> {
    let mut rng = step_rng(config.training.seed, step, 0);
    let chosen = draw(&mut rng, &data.train, config.training.batch, |pair| &pair.captions);
    let part = |(at, share): (usize, &[Example<'_>])| -> Result<HostPart> {
        // A part's views do not depend on the number of workers.
        let mut rng = step_rng(config.training.seed, step, 1 + at as u64);
        let pixels = match &config.augment {
            Some(augment) => {
                // A little larger than the tower's picture, for crops lose none of its detail then.
                let read = |(pair, _): &(&Pair, _)| read_square(&pair.image, data.side * 8 / 7);
                let pictures: Vec<Picture> = share.par_iter().map(read).collect::<Result<_>>()?;
                views(&pictures.iter().collect::<Vec<_>>(), &data.preprocess, augment, &mut rng)
            }
            None => plain(share.iter().map(|(pair, _)| *pair), &data.preprocess)?,
        };
        Ok(HostPart { pixels, ids: pad(share.iter().map(|(_, caption)| caption.0.clone()).collect()) })
    };
    let parts: Vec<_> = chosen.chunks(config.micro_batch.max(1)).enumerate().collect();
    let shares = places.own(places.deal(&parts));
    let read = |share: Vec<_>| share.into_par_iter().map(part).collect::<Result<Vec<_>>>();
    let shares = pool.install(|| shares.into_par_iter().map(read).collect::<Result<Vec<_>>>())?;
    Ok(Batch { shares, equal: chosen.iter().map(|(_, caption)| caption.1).collect() })
}

fn train_step(
    config: &Config,
    data: &Data,
    model: &ClipModel,
    vars: &Vars,
    workers: &Workers,
    Batch { shares, equal }: Batch,
) -> Result<(Gradients, serde_json::Value)> {
    let upload = |HostPart { pixels, ids }: HostPart| {
        Ok(Part { pixels: data.backend.upload(&pixels, &[ids.len(), 3, data.side, data.side])?, ids })
    };
    let shares = workers.run(shares, |_, share| share.into_iter().map(upload).collect::<Result<Vec<Part>>>())?;
    let (gradients, contrast) = contrast_gradients(model, vars, workers, &shares, &equal, config.same_string)?;
    let scale = values(model.logit_scale())?.first().copied().unwrap_or_default();
    let line = json!({
        "loss": contrast.loss, "batch_accuracy": contrast.accuracy, "temperature": (-f64::from(scale)).exp(),
        "pairs": equal.len(),
    });
    Ok((gradients, line))
}

/// Pictures as CLIP's own preprocessing gives them, one after the other; read on all of a worker's threads.
fn plain<'a>(pairs: impl Iterator<Item = &'a Pair>, config: &PreprocessConfig) -> Result<Vec<f32>> {
    let one = |path: &Path| {
        let bytes = std::fs::read(path).map_err(|e| Error::Io(e.to_string()));
        bytes.and_then(|bytes| preprocess(&decode(&bytes)?, config)).at(path.display())
    };
    let pairs: Vec<&Pair> = pairs.collect();
    Ok(pairs.par_iter().map(|pair| one(&pair.image)).collect::<Result<Vec<_>>>()?.concat())
}

/// Own-image mean recall, which the best weights are chosen by.
fn validate(config: &Config, data: &Data, model: &ClipModel, workers: &Workers) -> Result<Validation> {
    if data.val.is_empty() {
        return Ok(Validation::default());
    }
    let mut embedded = Vec::new();
    for round in data.val.chunks(config.micro_batch.max(1) * workers.count()) {
        let shares: Vec<&[Pair]> = round.chunks(config.micro_batch.max(1)).collect();
        embedded.extend(workers.run(shares, |_, pairs| {
            let pixels = plain(pairs.iter(), &data.preprocess)?;
            let pixels = data.backend.upload(&pixels, &[pairs.len(), 3, data.side, data.side])?;
            let ids = pairs.iter().flat_map(|pair| pair.captions.iter().map(|(ids, _)| ids.clone()));
            Ok((model.image_embedding(&pixels)?.detach(), model.text_embedding(&pad(ids.collect()))?.detach()))
        })?);
    }
    let images: Vec<&Tensor> = embedded.iter().map(|(image, _)| image).collect();
    let texts: Vec<&Tensor> = embedded.iter().map(|(_, text)| text).collect();
    let similarity = values(&Tensor::cat(&images, 0)?.matmul(&Tensor::cat(&texts, 0)?.t()?)?)?;
    let captions = captions_of(&data.val, |pair| &pair.texts);
    let scores = recall(&similarity, data.val.len(), &captions, Protocol::OwnImage)?;
    let line = json!({ "mean_recall": scores.mean_recall, "i2t_R@1": scores.i2t_1, "t2i_R@1": scores.t2i_1 });
    Ok(Validation { line, score: Some(scores.mean_recall), ..Validation::default() })
}

type Splits = (Vec<(f64, Vec<Pair>)>, Vec<Pair>);

fn read_data(config: &Config, run: &RunDir, tokens: &ClipTokens, most: usize) -> Result<Splits> {
    let datasets = run.datasets(config.data.iter().map(|source| &source.dataset))?;
    let (mut train, mut val, mut strings) = (Vec::new(), Vec::new(), HashMap::new());
    for (i, (source, dataset)) in config.data.iter().zip(&datasets).enumerate() {
        let mut read = |split: Split| -> Result<Vec<Pair>> {
            let pair = |item: &Item| {
                let image = dataset.image_path(item)?;
                let mut captions = Vec::new();
                for text in &item.captions {
                    let next = strings.len();
                    captions.push((tokens.ids(text, most)?, *strings.entry(text.clone()).or_insert(next)));
                }
                Ok(Pair { image, texts: item.captions.clone(), captions })
            };
            dataset.split(split).map(pair).collect()
        };
        train.push((source.dataset.weight, read(Split::Train)?));
        if i == 0 {
            val = read(Split::Val)?;
        }
    }
    Ok((train, val))
}

/// The folder as transformers reads it: shapes as they were, and the tokenizer's files as they were.
fn write_folder(files: &ClipFiles, vars: &Vars, run: &RunDir) -> Result<()> {
    let mut tensors = to_raw(vars)?;
    for (name, raw) in &mut tensors {
        if let Some(info) = files.weights.info(name) {
            raw.shape = info.shape.clone();
        }
    }
    let mut bytes = Vec::new();
    // Transformers asks which framework's names these are.
    write_safetensors(&tensors, &BTreeMap::from([("format".to_string(), "pt".to_string())]), &mut bytes)?;
    run.write("model/model.safetensors", &bytes)?;
    run.write("model/config.json", &files.config_json)?;
    run.write("model/preprocessor_config.json", &files.preprocessor_json)?;
    for name in COMPANIONS.into_iter().filter(|name| files.folder.join(name).exists()) {
        run.write(&format!("model/{name}"), &read_json(&files.folder, name)?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use candle_core::DType;
    use rscapret::backend::candle::Compute;

    use super::*;
    use crate::{
        cli::device::of_tests,
        golden::{adamw, assert_close, open, tensor},
    };

    /// Gradients of the golden pairs by the golden weights, in parts of two.
    fn gradients_in(compute: Compute) -> (Gradients, f64) {
        let golden = open("training/clip.safetensors");
        let json = |key: &str| golden.metadata(key).unwrap();
        let (ids, strings): (Vec<Vec<u32>>, Vec<usize>) =
            (serde_json::from_str(json("ids")).unwrap(), serde_json::from_str(json("strings")).unwrap());
        let backend = of_tests().unwrap().computing_in(compute);
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/training/clip");
        let clip = ClipConfig::from_json(&read_json(&folder, "config.json").unwrap()).unwrap();
        let pixels = backend.upload(&tensor(&golden, "pixels"), &[6, 3, 16, 16]).unwrap();
        let weights = open("training/clip/model.safetensors");
        let stored = StoredVars::new(&backend, &weights);
        let model = ClipModel::load(&stored, &clip).unwrap();
        let (vars, workers) = (stored.into_vars(), Workers::new(1, backend.device()).unwrap());
        let part = |at: usize| Part { pixels: pixels.narrow(0, at, 2).unwrap(), ids: ids[at..at + 2].to_vec() };
        let parts = [vec![part(0), part(2), part(4)]];
        let (gradients, contrast) =
            contrast_gradients(&model, &vars, &workers, &parts, &strings, SameString::Masked).unwrap();
        assert!(gradients.values().all(|gradient| gradient.dtype() == DType::F32));
        assert!(vars.values().all(|var| var.dtype() == DType::F32));
        (gradients, contrast.loss)
    }

    /// All weights are trained: they are f32, and cast where they are used.
    #[test]
    fn a_step_in_bf16_is_near_that_in_f32() {
        let ((wide, loss), (narrow, narrow_loss)) = (gradients_in(Compute::F32), gradients_in(Compute::Bf16));
        assert!((loss - narrow_loss).abs() <= 2e-2 * loss && loss != narrow_loss, "{loss} {narrow_loss}");
        assert_eq!(wide.keys().collect::<Vec<_>>(), narrow.keys().collect::<Vec<_>>());
        for (name, expected) in wide.iter().filter(|(name, _)| !name.ends_with("k_proj.bias")) {
            assert_close(name, &values(&narrow[name]).unwrap(), &values(expected).unwrap(), 0.1);
        }
    }

    /// Against tests/golden/make_training.py, with the batch at once and in parts.
    #[test]
    fn losses_gradients_and_steps_are_pytorchs() {
        let golden = open("training/clip.safetensors");
        let json = |key: &str| -> serde_json::Value { serde_json::from_str(golden.metadata(key).unwrap()).unwrap() };
        let ids: Vec<Vec<u32>> = serde_json::from_value(json("ids")).unwrap();
        let strings: Vec<usize> = serde_json::from_value(json("strings")).unwrap();
        let (settings, history) = (json("settings"), json("history"));
        let config = adamw(&settings);
        let backend = of_tests().unwrap();
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/training/clip");
        let clip = ClipConfig::from_json(&read_json(&folder, "config.json").unwrap()).unwrap();
        let pixels = backend.upload(&tensor(&golden, "pixels"), &[6, 3, 16, 16]).unwrap();
        for (micro_batch, workers) in [(6, 1), (2, 1), (3, 2), (4, 3)] {
            let weights = open("training/clip/model.safetensors");
            let stored = StoredVars::new(&backend, &weights);
            let model = ClipModel::load(&stored, &clip).unwrap();
            let vars = stored.into_vars();
            let mut optim = Optim::new(&config, &vars).unwrap();
            let workers = Workers::new(workers, backend.device()).unwrap();
            let images = values(&model.image_embedding(&pixels).unwrap()).unwrap();
            assert_close("image_embeds", &images, &tensor(&golden, "image_embeds"), 1e-4);
            let texts = values(&model.text_embedding(&ids).unwrap()).unwrap();
            assert_close("text_embeds", &texts, &tensor(&golden, "text_embeds"), 1e-4);
            for step in 0..5 {
                let part = |at: usize| {
                    let ids = ids[at..(at + micro_batch).min(6)].to_vec();
                    Part { pixels: pixels.narrow(0, at, ids.len()).unwrap(), ids }
                };
                let starts: Vec<usize> = (0..6).step_by(micro_batch).collect();
                let deal = |starts: Vec<usize>| starts.into_iter().map(part).collect();
                let parts: Vec<Vec<Part>> = workers.deal(&starts).into_iter().map(deal).collect();
                let rule = SameString::Masked;
                let (gradients, contrast) =
                    contrast_gradients(&model, &vars, &workers, &parts, &strings, rule).unwrap();
                let expected = history[step]["loss"].as_f64().unwrap();
                assert!((contrast.loss - expected).abs() <= 1e-4 * expected, "{step}: {} {expected}", contrast.loss);
                if step == 0 {
                    assert_eq!(gradients.keys().collect::<Vec<_>>(), vars.keys().collect::<Vec<_>>());
                    for (name, gradient) in &gradients {
                        // Keys' biases have no gradient but what rounding leaves of it.
                        if !name.ends_with("k_proj.bias") {
                            assert_close(
                                name,
                                &values(gradient).unwrap(),
                                &tensor(&golden, &format!("gradient.{name}")),
                                1e-4,
                            );
                        }
                    }
                }
                optim.step(&vars, &gradients, 1.0).unwrap();
            }
            for (name, var) in &vars {
                assert_close(name, &values(var).unwrap(), &tensor(&golden, &format!("after.{name}")), 1e-4);
            }
        }
    }
}
