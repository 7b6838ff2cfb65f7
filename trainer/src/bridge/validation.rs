//! How good the bridge is on images that it has not seen: their captions, and finding them.

use candle_core::Tensor;
use rscapret::{
    Backend, Candle, Result,
    caption::{Captioner, DecodeOptions},
};
use serde_json::json;

use super::{
    data::Pair,
    query,
    step::{caption_loss, query_ids, text_embedding},
};
use crate::{
    captioning::Caption,
    dataset::ImageId,
    eval::{
        Scored,
        recall::{Protocol, captions_of, recall},
        score,
    },
    report::Sample,
    stage::{Validation, Workers},
    vars::values,
};

/// Images whose captions are kept, to be looked at.
const SAMPLES: usize = 6;

/// One worker's part.
struct Part {
    image: Tensor,
    text: Tensor,
    typed: Tensor,
    loss: f64,
    labels: usize,
    captions: Vec<String>,
}

/// Loss and CIDEr-D of greedy captions, own-image recall by the captions and by [`query::plain`] ones. The score is
/// 10 CIDEr-D + mean recall: both are near 30 on UCM when they are good.
///
/// # Errors
/// What the models answer.
pub fn validate(model: &Captioner<Candle>, val: &[Pair], workers: &Workers) -> Result<Validation> {
    if val.is_empty() {
        return Ok(Validation::default());
    }
    let parts = val.chunks(val.len().div_ceil(workers.count()).max(1)).collect();
    let parts = workers.run(parts, |_, pairs: &[Pair]| part(model, pairs))?;
    let join = |pick: fn(&Part) -> &Tensor| Tensor::cat(&parts.iter().map(pick).collect::<Vec<_>>(), 0);
    let (image, text, typed) = (join(|p| &p.image)?, join(|p| &p.text)?, join(|p| &p.typed)?);
    let (loss, labels) = parts.iter().fold((0.0, 0), |(l, n), p| (l + p.loss, n + p.labels));
    let captions = captions_of(val, |pair| &pair.captions);
    let mean_recall = |text: &Tensor| -> Result<f64> {
        let similarities = values(&image.matmul(&text.t()?)?)?;
        Ok(recall(&similarities, val.len(), &captions, Protocol::OwnImage)?.mean_recall)
    };
    let hypotheses = parts.iter().flat_map(|p| &p.captions);
    let scored: Vec<Scored> = val
        .iter()
        .zip(hypotheses)
        .enumerate()
        .map(|(i, (pair, hypothesis))| Scored {
            id: ImageId::Number(i as u64),
            hypothesis: hypothesis.clone(),
            references: pair.captions.iter().map(|c| c.text.clone()).collect(),
        })
        .collect();
    let scores = score(&scored)?.corpus;
    let (by_caption, by_query) = (mean_recall(&text)?, mean_recall(&typed)?);
    let cider = scores.cider;
    let line = json!({
        "caption": loss / labels.max(1) as f64, "CIDEr": cider, "Bleu_4": scores.bleu_4, "mean_recall": by_caption,
        "mean_recall_typed": by_query,
    });
    // From all over the split, which is often sorted by class.
    let shown = (0..val.len()).step_by(val.len().div_ceil(SAMPLES).max(1));
    let samples = shown.map(|i| Sample {
        step: 0,
        image: val[i].image.clone(),
        caption: scored[i].hypothesis.clone(),
        references: scored[i].references.clone(),
    });
    Ok(Validation { line, score: Some(10.0 * cider + by_caption), samples: samples.collect() })
}

fn part(model: &Captioner<Candle>, pairs: &[Pair]) -> Result<Part> {
    let (backend, width) = (model.backend(), model.projections().feature_width());
    let (mut image, mut text, mut typed) = (Vec::new(), Vec::new(), Vec::new());
    let (mut loss, mut labels, mut captions) = (0.0, 0, Vec::new());
    for pairs in pairs.chunks(16) {
        // The first view is the picture as it is.
        let features: Vec<f32> = pairs.iter().flat_map(|p| p.features[..width].iter().copied()).collect();
        let features = backend.upload(&features, &[pairs.len(), width])?;
        image.push(model.projections().image_embedding(backend, &features)?.detach());
        let all: Vec<&Caption> = pairs.iter().flat_map(|p| &p.captions).collect();
        let ids: Vec<Vec<u32>> = all.iter().map(|caption| caption.retrieval_ids(model.tokenizer())).collect();
        text.push(text_embedding(model, &ids)?.detach());
        let queries = all.iter().map(|caption| query_ids(model, &query::plain(&caption.text)));
        let queries: Vec<Vec<u32>> = queries.collect::<Result<_>>()?;
        typed.push(text_embedding(model, &queries)?.detach());
        // Each caption goes with its image's features.
        let rows: Vec<u32> =
            pairs.iter().enumerate().flat_map(|(i, p)| p.captions.iter().map(move |_| i as u32)).collect();
        let count: usize = all.iter().map(|caption| caption.labels()).sum();
        let own = backend.index_rows(&features, &rows)?;
        let mean = caption_loss(model, &own, &all, &vec![1; all.len()], count, 0.0)?;
        loss += f64::from(mean.to_scalar::<f32>()?) * count as f64;
        labels += count;
        for i in 0..pairs.len() {
            let features = backend.narrow(&features, 0, i, 1)?;
            captions.push(pollster::block_on(model.caption(&features, &DecodeOptions::default()))?);
        }
    }
    let join = |parts: &[Tensor]| Tensor::cat(parts, 0);
    Ok(Part { image: join(&image)?, text: join(&text)?, typed: join(&typed)?, loss, labels, captions })
}
