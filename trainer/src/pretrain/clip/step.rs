//! One step of training: a batch's losses and gradients.

use candle_core::Tensor;
use rand::Rng;
use rayon::{ThreadPool, prelude::*};
use rscapret::{
    Backend, Candle, Result,
    clip::{
        Branch, Dropped,
        preprocess::{Picture, PreprocessConfig},
    },
};
use serde_json::json;

use super::{
    Config,
    captioning::Decoder,
    data::{Caption, Data, Pair},
    model::{SmallClip, pad},
};
use crate::{
    captioning,
    images::{kept_patches, views},
    loss::info_nce,
    optim::Gradients,
    stage::{Places, Workers, draw, gradients, insert_number, step_rng, sum},
    vars::{Vars, values},
};

/// One share of a batch on its way: its graph's ends.
struct Share {
    image: Tensor,
    text: Tensor,
    /// Image features (B, D).
    pooled: Tensor,
    /// Sources and classes.
    labels: Vec<(usize, Option<u32>)>,
    captions: Vec<captioning::Caption>,
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
type Example<'a> = (&'a Pair, &'a Caption);

/// What a step sees of a batch, in the host's memory.
pub(super) struct Batch {
    /// Of each worker.
    pub shares: Vec<HostShare>,
    /// Of the whole batch, share after share, which distinct string each caption is.
    pub equal: Vec<usize>,
}

/// As [`Share`], not yet on the device.
pub(super) struct HostShare {
    /// (B, 3, side, side).
    pub pixels: Vec<f32>,
    /// Patches that are shown, where some are not.
    pub kept: Option<Vec<u32>>,
    pub skipped: Vec<Vec<f32>>,
    pub ids: Vec<Vec<u32>>,
    pub labels: Vec<(usize, Option<u32>)>,
    /// To be written, where there is a decoder.
    pub captions: Vec<captioning::Caption>,
}

/// Draws a step's batch, a share of each source, mixed over the workers by turns, and makes its views, on all threads of the
/// pool.
pub(super) fn make_batch(
    config: &Config,
    data: &Data,
    places: Places,
    pool: &ThreadPool,
    eos: u32,
    step: u64,
) -> Batch {
    let mut rng = step_rng(config.training.seed, step, 0);
    let shares = places.deal(&draw(&mut rng, &data.train, config.training.batch, |pair| &pair.captions));
    let equal = shares.iter().flatten().map(|(_, caption)| caption.string).collect();
    let (patches, tower) = (config.vision.num_patches(), PreprocessConfig::clip(config.vision.image_size));
    let dropping = (step as f64) < config.drop_until * config.training.steps as f64;
    let keep = dropping.then_some(((patches as f64 * config.patch_keep) as usize).max(1));
    let make = |(w, share): (usize, &Vec<Example<'_>>)| {
        let mut rng = step_rng(config.training.seed, step, 1 + w as u64);
        let pictures: Vec<&Picture> = share.iter().map(|(pair, _)| &pair.picture).collect();
        let ids: Vec<&[u32]> = share.iter().map(|(_, caption)| caption.ids.as_slice()).collect();
        HostShare {
            pixels: views(&pictures, &tower, &config.augment, &mut rng),
            kept: keep.map(|keep| kept_patches(share.len(), patches, keep, &mut rng)),
            skipped: skipped(config.vision.num_hidden_layers, share.len(), config.depth_drop, &mut rng),
            ids: pad(&ids, eos),
            labels: share.iter().map(|(pair, _)| (pair.source, pair.class)).collect(),
            captions: share.iter().filter_map(|(_, caption)| caption.written.clone()).collect(),
        }
    };
    Batch { shares: pool.install(|| shares.par_iter().enumerate().map(make).collect()), equal }
}

/// Gradients of a batch, and what to log of it.
pub(super) fn train_step(
    config: &Config,
    model: &SmallClip,
    decoder: Option<&Decoder>,
    vars: &Vars,
    workers: &Workers,
    Batch { shares, equal }: Batch,
) -> Result<(Gradients, serde_json::Value)> {
    // Forward, each share in its own graph.
    let side = config.vision.image_size;
    let shares = workers.run(shares, |_, HostShare { pixels, kept, skipped, ids, labels, captions }| {
        let pixels = model.backend.upload(&pixels, &[ids.len(), 3, side, side])?;
        // (branches, B, 1, 1), at once.
        let factors = model.backend.upload(&skipped.concat(), &[skipped.len(), ids.len(), 1, 1])?;
        let branch = |at: usize, added: Tensor| Ok(added.broadcast_mul(&factors.get(at)?.to_dtype(added.dtype())?)?);
        let branch = (config.depth_drop > 0.0).then_some(&branch as &Branch<'_, Candle>);
        let (image, pooled) = model.image(&pixels, &Dropped { patches: kept.as_deref(), branch })?;
        Ok(Share { image, text: model.text(&ids)?, pooled, labels, captions })
    })?;

    // The loss of the whole batch, by the embeddings.
    let embedded: Vec<_> = shares.iter().map(|share| (&share.image, &share.text)).collect();
    let scale = values(&model.logit_scale)?[0];
    let contrast = info_nce(&embedded, scale, &equal, config.same_string)?;

    // Backward, each share with its rows of the gradients.
    let labelled = shares.iter().flat_map(|s| &s.labels).filter(|(_, class)| class.is_some()).count().max(1);
    let tokens: usize = shares.iter().flat_map(|s| &s.captions).map(captioning::Caption::labels).sum();
    let parts = workers.run(shares, |w, share| {
        let carried = contrast.carried(w, &share.image, &share.text)?;
        let class = model.class_loss(&share.pooled, &share.labels, config.label_smoothing, labelled)?;
        let mut total = (carried + (&class * config.class_weight)?)?;
        let mut caption_loss = 0.0;
        if let (Some(decoder), Some(mapped)) = (decoder, model.mapped(&share.pooled)?) {
            let loss = decoder.loss(&mapped, &share.captions.iter().collect::<Vec<_>>(), tokens)?;
            total = (total + (&loss * decoder.weight())?)?;
            caption_loss = loss.to_scalar::<f32>()?;
        }
        let losses = [class.to_scalar::<f32>()?, caption_loss].map(f64::from);
        Ok((gradients(vars, &total.backward()?)?, losses))
    })?;
    let [class_loss, caption_loss] = [0, 1].map(|which| parts.iter().map(|(_, losses)| losses[which]).sum::<f64>());
    let mut total = sum(parts.into_iter().map(|(gradients, _)| gradients))?;
    insert_number(&mut total, vars, "logit_scale", contrast.logit_scale)?;
    let mut loss = contrast.loss + config.class_weight * class_loss;
    loss += decoder.map_or(0.0, |decoder| decoder.weight() * caption_loss);
    let mut line = json!({
        "loss": loss, "contrast": contrast.loss, "class": class_loss, "batch_accuracy": contrast.accuracy,
        "temperature": (-f64::from(scale)).exp(), "pairs": equal.len(),
    });
    if decoder.is_some() {
        line["caption"] = caption_loss.into();
    }
    Ok((total, line))
}
