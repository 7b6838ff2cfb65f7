//! One step of training: a batch's losses and gradients.

use candle_core::Tensor;
use rand::Rng;
use rscapret::{
    Backend, Candle, Result,
    caption::{
        Captioner,
        sequence::{Part, interleaved_input, retrieval_hidden, retrieval_input, rows_of, text_ids},
    },
};
use serde_json::{Value, json};

use super::{
    Config,
    data::{Caption, Pair},
    query,
};
use crate::{
    loss::{cross_entropy, info_nce},
    optim::Gradients,
    parallel::Embedded,
    stage::{Workers, draw, gradients, step_rng},
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
    model: &Captioner<Candle>,
    vars: &Vars,
    workers: &Workers,
    step: u64,
) -> Result<(Gradients, Value)> {
    let mut rng = step_rng(config.training.seed, step, 0);
    let drawn = draw(&mut rng, train, config.training.batch, |pair| &pair.captions);
    batch_gradients(config, &sequences(&drawn, config.concatenate, &mut rng), model, vars, workers, step)
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

/// What one worker has computed of its share, to go back through.
struct Share {
    image: Tensor,
    text: Tensor,
    caption: Tensor,
    ret: Option<Tensor>,
}

impl Share {
    /// What all workers need of it: embeddings, and the losses of captions and [RET].
    fn embedded(&self) -> Result<Embedded> {
        let ret = self.ret.as_ref().map(Tensor::to_scalar::<f32>).transpose()?;
        Embedded::new(&self.image, &self.text, vec![self.caption.to_scalar()?, ret.unwrap_or_default()])
    }
}

/// Gradients of a batch, of which each sequence is captioned as one, and what to log of it.
///
/// # Errors
/// What the models answer.
pub fn batch_gradients(
    config: &Config,
    batch: &[Vec<Example<'_>>],
    model: &Captioner<Candle>,
    vars: &Vars,
    workers: &Workers,
    step: u64,
) -> Result<(Gradients, Value)> {
    let shares = workers.deal(batch);
    let equal: Vec<usize> = shares.iter().flatten().flatten().map(|(_, caption)| caption.string).collect();
    let tokens: usize = shares.iter().flatten().flatten().map(|(_, caption)| caption.labels()).sum();
    let (examples, c, first) = (equal.len(), model.projections().config().feature_size, workers.first());

    // Where there are fewer sequences than workers, the last of these have nothing to do.
    let own = workers.own(shares).into_iter().filter(|share| !share.is_empty()).collect();
    let shares = workers.run(own, |w, share| {
        let mut rng = step_rng(config.training.seed, step, (1 + first + w) as u64);
        let lengths: Vec<usize> = share.iter().map(Vec::len).collect();
        let share = share.concat();
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
                caption.retrieval_ids(model.tokenizer())
            });
        }
        let (text, ret) = text_and_ret(model, &queries, examples)?;
        let image = model.projections().image_embedding(model.backend(), &features)?;
        Ok(Share {
            image,
            text,
            caption: caption_loss(model, &features, &captions, &lengths, tokens, config.label_smoothing)?,
            ret,
        })
    })?;
    let own = shares.iter().map(Share::embedded).collect::<Result<_>>()?;
    let all = Embedded::gather(workers.group(), own)?;
    let embedded = Embedded::tensors(&all, examples, model.backend().device())?;
    let embedded: Vec<_> = embedded.iter().map(|(image, text)| (image, text)).collect();
    let scale = values(model.projections().logit_scale())?[0];
    let contrast = info_nce(&embedded, scale, &equal, config.same_string)?;
    // `info_nce` gives the mean of the two directions; the method's loss is their sum.
    let lambda_r = 2.0 * config.lambda_r;
    let parts = workers.run(shares, |w, share| {
        let carried = contrast.carried(first + w, &share.image, &share.text)?;
        let mut total = ((carried * lambda_r)? + (&share.caption * config.lambda_c)?)?;
        if let Some(loss) = &share.ret {
            total = (total + (loss * config.lambda_ret)?)?;
        }
        gradients(vars, &total.backward()?)
    })?;
    let sum_of = |loss: usize| all.iter().map(|part| f64::from(part.losses[loss])).sum::<f64>();
    let (caption, ret) = (sum_of(0), sum_of(1));
    let mut total = workers.group().all_reduce_sum(parts)?;
    total.insert("logit_scale".into(), vec![contrast.logit_scale * lambda_r as f32]);
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

/// A share's part of the caption loss, whose sum over all shares is the mean over `tokens` labels. Features (N, C) and
/// captions belong together; `lengths` of them, one after the other, stand in one sequence. `smoothing` as [`cross_entropy`]
/// has it.
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
    let (backend, llama) = (model.backend(), model.llama());
    let ids: Vec<Vec<u32>> = captions.iter().map(|caption| [model.caption_start(), &caption.tokens].concat()).collect();
    let mut next = 0;
    let sequences: Vec<Vec<Part<'_>>> = lengths
        .iter()
        .map(|length| {
            next += length;
            (next - length..next).flat_map(|i| [Part::Picture(i), Part::Ids(&ids[i])]).collect()
        })
        .collect();
    let input = interleaved_input(backend, llama, &model.projections().visual_tokens(backend, features)?, &sequences)?;
    let hidden = llama.forward(backend, &input.x, None)?;
    // The hidden state before the caption gives the first label, the one at its last token the end of text.
    let texts = input.starts.iter().flat_map(|starts| starts.iter().skip(1).step_by(2));
    let (mut rows, mut labels) = (Vec::with_capacity(tokens), Vec::with_capacity(tokens));
    for (caption, start) in captions.iter().zip(texts) {
        let before = start + model.caption_start().len() - 1;
        for t in 0..caption.labels() {
            rows.push((before + t) as u32);
            labels.push(caption.tokens.get(t).copied().or(model.tokenizer().eos()));
        }
    }
    let logits = llama.logits(backend, &rows_of(backend, &hidden, &rows)?)?;
    cross_entropy(&logits, &labels, smoothing, tokens)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

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
