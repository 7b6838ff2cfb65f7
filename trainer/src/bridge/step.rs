//! One step of training: a batch's losses and gradients.

use candle_core::Tensor;
use rand::Rng;
use rscapret::{
    Backend, Candle, Result,
    caption::{
        Captioner,
        sequence::{retrieval_hidden, retrieval_input, rows_of, text_ids},
    },
};
use serde_json::{Value, json};

use super::{Config, Models, data::Pair, query};
use crate::{
    captioning::{Caption, Writer},
    loss::{cross_entropy, info_nce},
    optim::Gradients,
    parallel::{self, Embedded, gather_vectors},
    stage::{Workers, draw, gradients, insert_number, step_rng, sum},
    vars::{Vars, normal, values},
};

/// An image and the one of its captions that was drawn.
pub type Example<'a> = (&'a Pair, &'a Caption);

/// Gradients of a random batch, and what to log of it.
///
/// # Errors
/// What the models answer.
pub fn train_step(
    config: &Config,
    train: &[(f64, Vec<Pair>)],
    models: &Models,
    vars: &Vars,
    workers: &Workers,
    step: u64,
) -> Result<(Gradients, Value)> {
    let mut rng = step_rng(config.training.seed, step, 0);
    let drawn = draw(&mut rng, train, config.training.batch, |pair| &pair.captions);
    batch_gradients(config, &sequences(&drawn, config.concatenate, &mut rng), models, vars, workers, step)
}

/// The examples two by two, a `share` of these in one sequence, the others each in its own.
pub fn sequences<'a>(drawn: &[Example<'a>], share: f64, rng: &mut impl Rng) -> Vec<Vec<Example<'a>>> {
    let mut out = Vec::with_capacity(drawn.len());
    for two in drawn.chunks(2) {
        if two.len() == 2 && rng.random::<f64>() < share {
            out.push(two.to_vec());
        } else {
            out.extend(two.iter().map(|example| vec![*example]));
        }
    }
    out
}

/// Some examples, with what chance made of them.
struct Drawn<'a> {
    /// (N width).
    features: Vec<f32>,
    captions: Vec<&'a Caption>,
    /// How many of them, one after the other, stand in one sequence.
    lengths: Vec<usize>,
    /// What retrieval reads of each.
    queries: Vec<Vec<u32>>,
}

impl<'a> Drawn<'a> {
    /// A view and its noise for each picture, and the captions as someone types them, where the configuration says so.
    fn new(
        config: &Config,
        model: &Captioner<Candle>,
        sequences: &[Vec<Example<'a>>],
        rng: &mut impl Rng,
    ) -> Result<Self> {
        let (lengths, share) = (sequences.iter().map(Vec::len).collect(), sequences.concat());
        let (c, width) = (model.projections().config().feature_size, model.projections().feature_width());
        let mut features = Vec::with_capacity(share.len() * width);
        for (pair, _) in &share {
            let view = rng.random_range(0..pair.features.len() / width);
            let view = &pair.features[view * width..(view + 1) * width];
            features.extend(noised(view, c, config.feature_noise, rng));
        }
        let captions: Vec<&Caption> = share.iter().map(|(_, caption)| *caption).collect();
        let mut queries = Vec::with_capacity(captions.len());
        for caption in &captions {
            queries.push(if rng.random::<f64>() < config.query_share {
                let mut ids = text_ids(model.tokenizer(), &query::as_typed(&caption.text, rng))?;
                ids.truncate(config.max_length);
                ids
            } else {
                caption.retrieval_ids(model.tokenizer())
            });
        }
        Ok(Drawn { features, captions, lengths, queries })
    }

    /// The same in parts of at most `most` examples; a sequence is never cut.
    fn cut(mut self, most: usize) -> Vec<Self> {
        let (c, cuts) = (self.features.len() / self.captions.len().max(1), cuts(&self.lengths, most));
        let part = |(sequences, examples): (usize, usize)| Drawn {
            features: self.features.drain(..examples * c).collect(),
            captions: self.captions.drain(..examples).collect(),
            lengths: self.lengths.drain(..sequences).collect(),
            queries: self.queries.drain(..examples).collect(),
        };
        cuts.into_iter().map(part).collect()
    }

    fn upload(&self, backend: &Candle) -> Result<Tensor> {
        let examples = self.captions.len();
        backend.upload(&self.features, &[examples, self.features.len() / examples.max(1)])
    }

    /// Embeddings of images and texts, by weights that keep no graph.
    fn embed(&self, fixed: &Captioner<Candle>) -> Result<(Tensor, Tensor)> {
        let features = self.upload(fixed.backend())?;
        Ok((fixed.projections().image_embedding(fixed.backend(), &features)?, text_embedding(fixed, &self.queries)?))
    }

    /// Everything that is lost by, for a batch of `examples` and `tokens` labels.
    fn graph(&self, config: &Config, model: &Captioner<Candle>, examples: usize, tokens: usize) -> Result<Graph> {
        let features = self.upload(model.backend())?;
        let (text, ret) = text_and_ret(model, &self.queries, examples)?;
        let image = model.projections().image_embedding(model.backend(), &features)?;
        let caption = caption_loss(model, &features, &self.captions, &self.lengths, tokens, config.label_smoothing)?;
        Ok(Graph { image, text, caption, ret })
    }
}

/// Features in vectors of `c`, with noise of a `share` of each vector's own standard deviation: the class token, after its norm,
/// has another scale than patches have.
fn noised(features: &[f32], c: usize, share: f32, rng: &mut impl Rng) -> Vec<f32> {
    let mut out = Vec::with_capacity(features.len());
    for vector in features.chunks_exact(c) {
        let mean = vector.iter().sum::<f32>() / c as f32;
        let deviation = (vector.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / c as f32).sqrt();
        out.extend(vector.iter().map(|v| v + normal(rng) * deviation * share));
    }
    out
}

/// Sequences of these lengths in parts of at most `most` examples: how many sequences and examples each part has.
fn cuts(lengths: &[usize], most: usize) -> Vec<(usize, usize)> {
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for &length in lengths {
        match parts.last_mut() {
            Some((sequences, examples)) if *examples + length <= most => {
                *sequences += 1;
                *examples += length;
            }
            _ => parts.push((1, length)),
        }
    }
    parts
}

/// What was computed of a part, to go back through.
struct Graph {
    image: Tensor,
    text: Tensor,
    caption: Tensor,
    ret: Option<Tensor>,
}

/// Gradients of a batch, of which each sequence is captioned as one, and what to log of it. Where there are no more parts of
/// it than workers, each keeps its graph and nothing is computed twice.
///
/// # Errors
/// What the models answer.
pub fn batch_gradients(
    config: &Config,
    batch: &[Vec<Example<'_>>],
    models: &Models,
    vars: &Vars,
    workers: &Workers,
    step: u64,
) -> Result<(Gradients, Value)> {
    let model = &models.trained;
    let shares = workers.deal(batch);
    let equal: Vec<usize> = shares.iter().flatten().flatten().map(|(_, caption)| caption.string).collect();
    let tokens: usize = shares.iter().flatten().flatten().map(|(_, caption)| caption.labels()).sum();
    let (examples, first, most) = (equal.len(), workers.first(), config.micro_batch.unwrap_or(usize::MAX));
    // Parts of the processes before this one.
    let parts_of = |share: &Vec<Vec<Example<'_>>>| cuts(&share.iter().map(Vec::len).collect::<Vec<_>>(), most).len();
    let before: usize = shares.iter().take(first).map(parts_of).sum();
    // Where there are fewer sequences than workers, the last of these have nothing to do.
    let own = workers.own(shares).into_iter().filter(|share| !share.is_empty()).collect();
    let drawn = workers.run(own, |w, share: Vec<Vec<Example<'_>>>| {
        // The share's chance does not depend on how it is cut.
        Drawn::new(config, model, &share, &mut step_rng(config.training.seed, step, (1 + first + w) as u64))
    })?;
    let here = drawn.len().max(1);
    let parts: Vec<Drawn<'_>> = drawn.into_iter().flat_map(|share| share.cut(most)).collect();

    let again = parts.len() > here;
    let (mut graphs, mut embedded) = (Vec::new(), Vec::with_capacity(parts.len()));
    if again {
        for round in parts.chunks(here) {
            embedded.extend(workers.run(round.iter().collect(), |_, part: &Drawn<'_>| part.embed(&models.fixed))?);
        }
    } else {
        graphs =
            workers.run(parts.iter().collect(), |_, part: &Drawn<'_>| part.graph(config, model, examples, tokens))?;
        embedded.extend(graphs.iter().map(|graph: &Graph| (graph.image.clone(), graph.text.clone())));
    }
    let own = embedded.iter().map(|(image, text)| Embedded::new(image, text)).collect::<Result<_>>()?;
    // Each would keep its graph.
    drop(embedded);
    let all = Embedded::gather(workers.group(), own)?;
    let all = Embedded::tensors(&all, examples, model.backend().device())?;
    let all: Vec<_> = all.iter().map(|(image, text)| (image, text)).collect();
    let scale = values(model.projections().logit_scale())?[0];
    let contrast = info_nce(&all, scale, &equal, config.same_string)?;

    // `info_nce` gives the mean of the two directions; the method's loss is their sum.
    let lambda_r = 2.0 * config.lambda_r;
    let (mut found, mut losses) = (Vec::new(), Vec::new());
    let mut graphs = graphs.into_iter();
    let mut work = parts.iter().enumerate().map(|(at, part)| (before + at, part, graphs.next())).peekable();
    while work.peek().is_some() {
        let round: Vec<_> = work.by_ref().take(here).collect();
        let done = workers.run(round, |_, (at, part, graph)| {
            let graph = graph.map_or_else(|| part.graph(config, model, examples, tokens), Ok)?;
            let carried = contrast.carried(at, &graph.image, &graph.text)?;
            let mut total = ((carried * lambda_r)? + (&graph.caption * config.lambda_c)?)?;
            let mut ret = 0.0;
            if let Some(loss) = &graph.ret {
                total = (total + (loss * config.lambda_ret)?)?;
                ret = loss.to_scalar::<f32>()?;
            }
            Ok((gradients(vars, &total.backward()?)?, vec![graph.caption.to_scalar::<f32>()?, ret]))
        })?;
        for (gradients, part) in done {
            found.push(gradients);
            losses.push(part);
        }
        if again {
            // The gradients of all parts together would be many times the model.
            found = vec![sum(found)?];
        }
    }
    let mut total = parallel::reduce(workers.group(), vars, found)?;
    let losses = gather_vectors(workers.group(), losses)?;
    let sum_of = |loss: usize| losses.iter().map(|part| f64::from(part[loss])).sum::<f64>();
    let (caption, ret) = (sum_of(0), sum_of(1));
    insert_number(&mut total, vars, "logit_scale", contrast.logit_scale * lambda_r as f32)?;
    let loss = config.lambda_c * caption + lambda_r * contrast.loss + config.lambda_ret * ret;
    let mut line = json!({
        "loss": loss, "caption": caption, "contrast": contrast.loss, "batch_accuracy": contrast.accuracy,
    });
    if model.projections().config().ret_output {
        line["ret"] = json!(ret);
    }
    Ok((total, line))
}

/// Embeddings (B, J) of B texts' ids.
///
/// # Errors
/// What the models answer.
pub fn text_embedding(model: &Captioner<Candle>, ids: &[Vec<u32>]) -> Result<Tensor> {
    let (backend, projections) = (model.backend(), model.projections());
    projections.text_embedding(backend, &retrieval_hidden(backend, model.llama(), projections, ids)?)
}

/// Ids of a text as it is looked for, cut to the context: [RET] comes after it.
///
/// # Errors
/// As [`text_ids`].
pub fn query_ids(model: &Captioner<Candle>, text: &str) -> Result<Vec<u32>> {
    let mut ids = text_ids(model.tokenizer(), text)?;
    ids.truncate(model.llama().config().max_position_embeddings.saturating_sub(1));
    Ok(ids)
}

/// As [`text_embedding`]; and where [RET] has an output row, its cross-entropy after each text against the vocabulary and
/// itself, their sum divided by `count`.
fn text_and_ret(model: &Captioner<Candle>, ids: &[Vec<u32>], count: usize) -> Result<(Tensor, Option<Tensor>)> {
    let (backend, llama, projections) = (model.backend(), model.llama(), model.projections());
    if !projections.config().ret_output {
        return Ok((text_embedding(model, ids)?, None));
    }
    let input = retrieval_input(backend, llama, projections.ret_embedding(), ids)?;
    let last = llama.config().num_hidden_layers;
    let states = llama.hidden_states(
        backend,
        &input.x,
        None,
        &[projections.conventions().hidden_layer.unwrap_or(last), last],
    )?;
    let text = projections.text_embedding(backend, &rows_of(backend, &states[0], &input.rows)?)?;
    // A text of no tokens has nothing before [RET] to emit it after.
    let before: Vec<u32> =
        input.rows.iter().zip(ids).filter(|(_, ids)| !ids.is_empty()).map(|(row, _)| row - 1).collect();
    if before.is_empty() {
        return Ok((text, None));
    }
    let hidden = rows_of(backend, &states[1], &before)?;
    let Some(own) = projections.ret_logits(backend, &hidden)? else { return Ok((text, None)) };
    let logits = backend.concat(&[&llama.logits(backend, &hidden)?, &own], 1)?;
    let labels = vec![Some(llama.config().vocab_size as u32); before.len()];
    Ok((text, Some(cross_entropy(&logits, &labels, 0.0, count)?)))
}

/// [`Writer::loss`] of captions by their images' features (N, width).
///
/// # Errors
/// What the models answer.
pub fn caption_loss(
    model: &Captioner<Candle>,
    features: &Tensor,
    captions: &[&Caption],
    lengths: &[usize],
    tokens: usize,
    smoothing: f64,
) -> Result<Tensor> {
    let visual_tokens = model.projections().visual_tokens(model.backend(), features)?;
    let writer = Writer {
        backend: model.backend(),
        llama: model.llama(),
        tokenizer: model.tokenizer(),
        start: model.caption_start(),
    };
    writer.loss(&visual_tokens, captions, lengths, tokens, smoothing)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn each_vector_has_noise_of_its_own_scale() {
        let c = 400;
        let scales = [0.1f32, 30.0, 0.0];
        let features: Vec<f32> = scales.iter().flat_map(|s| (0..c).map(move |i| s * (i % 7) as f32 + 5.0)).collect();
        let found = noised(&features, c, 0.5, &mut step_rng(1, 0, 0));
        for ((scale, before), after) in scales.iter().zip(features.chunks(c)).zip(found.chunks(c)) {
            let size = (before.iter().zip(after).map(|(a, b)| (a - b).powi(2)).sum::<f32>() / c as f32).sqrt();
            // Of 0 to 6 the deviation is 2.
            assert!((size - scale).abs() <= 0.15 * scale, "{scale}: {size}");
        }
        assert_eq!(noised(&features, c, 0.0, &mut step_rng(1, 0, 0)), features);
    }

    #[test]
    fn a_share_of_the_examples_stands_two_by_two() {
        let caption = |string| Caption { text: String::new(), tokens: vec![3], whole: true, string };
        let pairs: Vec<Pair> =
            (0..401).map(|i| Pair { image: PathBuf::new(), features: vec![0.0], captions: vec![caption(i)] }).collect();
        let drawn: Vec<Example<'_>> = pairs.iter().map(|pair| (pair, &pair.captions[0])).collect();
        for (share, least, most) in [(0.0, 0, 0), (1.0, 200, 200), (0.5, 70, 130)] {
            let made = sequences(&drawn, share, &mut step_rng(1, 0, 0));
            // Every example once, in the order that they were drawn in.
            let order: Vec<usize> = made.iter().flatten().map(|(_, caption)| caption.string).collect();
            assert_eq!(order, (0..401).collect::<Vec<_>>());
            let joined = made.iter().filter(|sequence| sequence.len() == 2).count();
            assert!((least..=most).contains(&joined), "{share}: {joined}");
        }
    }
}
