//! Encoding of images.

use super::{Out, finite, random::Random};
use crate::{
    backend::Backend,
    clip::{ClipVision, ClipVisionConfig, load_vision},
    error::Result,
    weights::Dtype,
};

pub(super) const DEMO: &[&str] = &["image-encode/demo", "image-encode/demo/batch"];

pub(super) async fn demo<B: Backend>(out: &mut Out<'_, B>, file: Option<Vec<u8>>) -> Result<()> {
    if !DEMO.iter().any(|name| out.wants(name)) {
        return Ok(());
    }
    let backend = &out.place.backend;
    let (tower, weights) = match file {
        Some(file) => (load_vision(backend, file).await?.0, "models/demo/vision.gguf"),
        None => {
            let weights = Random::new(backend, |_| Dtype::F32);
            (ClipVision::load(&weights, &demo_config()).await?, "random weights, f32")
        }
    };
    let side = tower.config().image_size;
    for (name, batch) in DEMO.iter().zip([1, 16]) {
        if out.wants(name) {
            let pixels: Vec<f32> = (0..batch * 3 * side * side).map(|i| (i as f32 * 0.37).sin()).collect();
            let pixels = backend.upload(&pixels, &[batch, 3, side, side])?;
            // From pixels to pooled features on the host.
            let encode = async || finite(&backend.read(&tower.forward(backend, &pixels)?.pooled).await?);
            let seconds = out.median(7, encode).await?;
            let note = format!("{weights}; {batch} of {side} x {side} pixels at once");
            out.row(name, 1e3 * seconds / batch as f64, "ms", &note)?;
        }
    }
    Ok(())
}

/// The shape of the demo's vision tower, for want of the bundle.
fn demo_config() -> ClipVisionConfig {
    ClipVisionConfig {
        hidden_size: 256,
        intermediate_size: 1024,
        num_hidden_layers: 6,
        num_attention_heads: 4,
        image_size: 128,
        patch_size: 16,
        projection_dim: 256,
        ..ClipVisionConfig::default()
    }
}
