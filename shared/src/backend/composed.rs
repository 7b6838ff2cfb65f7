//! What a backend may do in fewer passes, composed of its single operations.

use super::{Backend, Mask, SelfAttention};
use crate::error::{Error, Result};

/// See [`Backend::self_attention`].
pub(super) fn self_attention<B: Backend>(
    backend: &B,
    cache: Option<&mut B::Cache>,
    x: &B::Tensor,
    w: &SelfAttention<'_, B>,
    start: usize,
) -> Result<B::Tensor> {
    let shape = backend.shape(x);
    let split = |x: &B::Tensor, heads: usize| backend.reshape(x, &[shape[0], shape[1], heads, w.head_dim]);
    let rotate = |x: &B::Tensor, heads| backend.rope(&split(x, heads)?, w.cos, w.sin, start, w.layout);
    let q = rotate(&backend.linear(x, w.q, None)?, w.heads)?;
    let k = rotate(&backend.linear(x, w.k, None)?, w.groups)?;
    let v = split(&backend.linear(x, w.v, None)?, w.groups)?;
    match cache {
        Some(cache) => backend.cached_attention(cache, &q, &k, &v, start),
        None => backend.attention(&q, &k, &v, Mask::Causal),
    }
}

/// See [`Backend::argmax`].
pub(super) async fn argmax<B: Backend>(backend: &B, x: &B::Tensor, mask: &B::Tensor) -> Result<Vec<u32>> {
    let (values, mask) = (backend.read(x).await?, backend.read(mask).await?);
    let row = |row: &[f32]| {
        let mut best: Option<(u32, f32)> = None;
        for (id, (&value, &mask)) in (0u32..).zip(row.iter().zip(&mask)) {
            if mask != 0.0 {
                continue;
            }
            if value.is_nan() || value == f32::INFINITY {
                return Err(Error::Backend(format!("expected logits to be numbers but found {value} for token {id}")));
            }
            if value > best.map_or(f32::NEG_INFINITY, |(_, value)| value) {
                best = Some((id, value));
            }
        }
        best.map(|(id, _)| id)
            .ok_or_else(|| Error::Backend("expected a token that is not banned but found none".into()))
    };
    values.chunks_exact(mask.len().max(1)).map(row).collect()
}
