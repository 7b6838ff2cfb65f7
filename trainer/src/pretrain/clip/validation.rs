//! How good the towers are on images that they have not seen.

use candle_core::Tensor;
use rscapret::{
    Backend, Result,
    clip::{
        Dropped,
        preprocess::{PreprocessConfig, normalize, resize_crop},
    },
};
use serde_json::json;

use super::{
    Config,
    captioning::Decoder,
    data::{Data, Pair},
    model::{SmallClip, pad},
};
use crate::{
    eval::recall::{Protocol, captions_of, recall},
    stage::{Validation, Workers},
    vars::values,
};

/// Classes that are told right, own-image recall, and the cross-entropy of captions where they are written.
pub(super) fn validate(
    config: &Config,
    data: &Data,
    model: &SmallClip,
    decoder: Option<&Decoder>,
    workers: &Workers,
    eos: u32,
) -> Result<Validation> {
    if data.val.is_empty() {
        return Ok(Validation::default());
    }
    let side = config.vision.image_size;
    let preprocess = PreprocessConfig::clip(side);
    let parts = data.val.chunks(data.val.len().div_ceil(workers.count()).max(1)).collect::<Vec<_>>();
    let parts = workers.run(parts, |_, pairs| {
        let (mut images, mut texts, mut right) = (Vec::new(), Vec::new(), 0usize);
        let (mut loss, mut labels) = (0.0, 0);
        for pairs in pairs.chunks(32) {
            let mut pixels = Vec::new();
            for pair in pairs {
                let picture = resize_crop(&pair.picture, &preprocess)?;
                pixels.extend(normalize(&picture, &preprocess));
            }
            let pixels = model.backend.upload(&pixels, &[pairs.len(), 3, side, side])?;
            let (image, pooled) = model.image(&pixels, &Dropped::default())?;
            images.push(image.detach());
            let guess = model.classes(0, &pooled)?.argmax(1)?.to_vec1::<u32>()?;
            right += pairs.iter().zip(guess).filter(|(pair, guess)| pair.class == Some(*guess)).count();
            let ids: Vec<&[u32]> =
                pairs.iter().flat_map(|p| &p.captions).map(|caption| caption.ids.as_slice()).collect();
            texts.push(model.text(&pad(&ids, eos))?.detach());
            if let (Some(decoder), Some(mapped)) = (decoder, model.mapped(&pooled)?) {
                // Each caption goes with its image's.
                let of = |(i, pair): (usize, &Pair)| vec![i as u32; pair.captions.len()];
                let rows: Vec<u32> = pairs.iter().enumerate().flat_map(of).collect();
                let written: Vec<_> =
                    pairs.iter().flat_map(|p| &p.captions).filter_map(|c| c.written.as_ref()).collect();
                let count = written.iter().map(|caption| caption.labels()).sum();
                let mean = decoder.loss(&model.backend.index_rows(&mapped, &rows)?, &written, count)?;
                loss += f64::from(mean.to_scalar::<f32>()?) * count as f64;
                labels += count;
            }
        }
        Ok((Tensor::cat(&images, 0)?, Tensor::cat(&texts, 0)?, right, (loss, labels)))
    })?;
    let image = Tensor::cat(&parts.iter().map(|p| &p.0).collect::<Vec<_>>(), 0)?;
    let text = Tensor::cat(&parts.iter().map(|p| &p.1).collect::<Vec<_>>(), 0)?;
    let right: usize = parts.iter().map(|p| p.2).sum();
    let captions = captions_of(&data.val, |pair| &pair.texts);
    let scores = recall(&values(&image.matmul(&text.t()?)?)?, data.val.len(), &captions, Protocol::OwnImage)?;
    let mut line = json!({
        "class_accuracy": 100.0 * right as f64 / data.val.len().max(1) as f64,
        "mean_recall": scores.mean_recall, "i2t_R@10": scores.i2t_10, "t2i_R@10": scores.t2i_10,
    });
    if decoder.is_some() {
        let (loss, labels) = parts.iter().fold((0.0, 0), |(l, n), part| (l + part.3.0, n + part.3.1));
        line["caption"] = json!(loss / labels.max(1) as f64);
    }
    Ok(Validation { line, score: Some(scores.mean_recall), ..Validation::default() })
}
