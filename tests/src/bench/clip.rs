//! Encoding of images.

use pollster::block_on;
use rscapret::{
    Result,
    backend::{Backend, Candle},
    clip::{ClipVision, ClipVisionConfig, load_vision},
    weights::Dtype,
};

use super::{Row, Wanted, demo_file, finite, median, random::Random, row};

pub(super) const DEMO: &[&str] = &["image-encode/demo", "image-encode/demo/batch"];

pub(super) fn demo(wanted: &Wanted) -> Result<Vec<Row>> {
    let backend = Candle::cpu();
    let (tower, weights) = match demo_file("vision.gguf")? {
        Some(file) => (block_on(load_vision(&backend, file))?.0, "models/demo/vision.gguf"),
        None => {
            let weights = Random::new(&backend, |_| Dtype::F32);
            (block_on(ClipVision::load(&weights, &demo_config()))?, "random weights, f32")
        }
    };
    let mut rows = Vec::new();
    for (name, batch) in DEMO.iter().zip([1, 16]) {
        wanted.measure(&mut rows, name, || {
            let seconds = encode(&backend, &tower, batch)?;
            let side = tower.config().image_size;
            let note = format!("{weights}; {batch} of {side} x {side} pixels at once");
            Ok(row(1e3 * seconds / batch as f64, "ms", note))
        })?;
    }
    Ok(rows)
}

/// The shape of the demo's vision tower, for want of the bundle.
fn demo_config() -> ClipVisionConfig {
    ClipVisionConfig {
        hidden_size: 192,
        intermediate_size: 768,
        num_hidden_layers: 6,
        num_attention_heads: 3,
        image_size: 128,
        patch_size: 16,
        projection_dim: 256,
        ..ClipVisionConfig::default()
    }
}

/// Seconds from pixels to pooled features on the host.
fn encode(backend: &Candle, tower: &ClipVision<Candle>, batch: usize) -> Result<f64> {
    let side = tower.config().image_size;
    let pixels: Vec<f32> = (0..batch * 3 * side * side).map(|i| (i as f32 * 0.37).sin()).collect();
    let pixels = backend.upload(&pixels, &[batch, 3, side, side])?;
    median(7, || finite(&block_on(backend.read(&tower.forward(backend, &pixels)?.pooled))?))
}
