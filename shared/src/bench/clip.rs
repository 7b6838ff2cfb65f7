//! Encoding of images.

use super::{Out, finite, random::Random};
use crate::{
    backend::Backend,
    clip::{ClipVision, ClipVisionConfig, load_vision},
    error::Result,
    weights::Dtype,
};

pub(super) const DEMO: &[&str] = &["image-encode/demo", "image-encode/demo/batch"];
pub(super) const LARGE: &[&str] = &["image-encode/ViT-L-14"];

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
    measure(out, DEMO, &tower, weights).await
}

/// The tower of `openai/clip-vit-large-patch14` with made-up weights.
pub(super) async fn large<B: Backend>(out: &mut Out<'_, B>) -> Result<()> {
    if !LARGE.iter().any(|name| out.wants(name)) {
        return Ok(());
    }
    let weights = Random::new(&out.place.backend, |_| Dtype::F16);
    let tower = ClipVision::load(&weights, &large_config()).await?;
    let note = format!("random weights, {:.0} MB of f16", weights.bytes() as f64 / 1e6);
    measure(out, LARGE, &tower, &note).await
}

/// Milliseconds an image: one at once, then a batch where `names` has a second.
async fn measure<B: Backend>(out: &mut Out<'_, B>, names: &[&str], tower: &ClipVision<B>, weights: &str) -> Result<()> {
    let (backend, side) = (&out.place.backend, tower.config().image_size);
    for (name, batch) in names.iter().zip([1, 16]) {
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

fn large_config() -> ClipVisionConfig {
    ClipVisionConfig {
        hidden_size: 1024,
        intermediate_size: 4096,
        num_hidden_layers: 24,
        num_attention_heads: 16,
        patch_size: 14,
        projection_dim: 768,
        ..ClipVisionConfig::default()
    }
}

/// The shape of the demo's vision tower, for want of the bundle.
fn demo_config() -> ClipVisionConfig {
    ClipVisionConfig {
        hidden_size: 256,
        intermediate_size: 1024,
        num_hidden_layers: 8,
        num_attention_heads: 4,
        image_size: 128,
        patch_size: 16,
        projection_dim: 256,
        ..ClipVisionConfig::default()
    }
}
