//! What a backend may do in fewer passes, composed of its single operations.

use super::{Backend, Mask, Norm, SelfAttention};
use crate::error::{Error, Result};

/// See [`Backend::self_attention`].
pub(super) fn self_attention<B: Backend>(
    backend: &B,
    cache: Option<&mut B::Cache>,
    x: &B::Tensor,
    w: &SelfAttention<'_, B>,
    start: usize,
) -> Result<B::Tensor> {
    let (shape, x) = (backend.shape(x), &backend.rms_norm(x, w.norm.weight, w.norm.eps)?);
    let split = |x: &B::Tensor, heads: usize| backend.reshape(x, &[shape[0], shape[1], heads, w.head_dim]);
    let rotate = |x: &B::Tensor, heads| backend.rope(&split(x, heads)?, w.rope, start, w.layout);
    let q = rotate(&backend.linear(x, w.q, None)?, w.heads)?;
    let k = rotate(&backend.linear(x, w.k, None)?, w.groups)?;
    let v = split(&backend.linear(x, w.v, None)?, w.groups)?;
    match cache {
        Some(cache) => backend.cached_attention(cache, &q, &k, &v, start),
        None => backend.attention(&q, &k, &v, Mask::Causal),
    }
}

/// See [`Backend::linear_silu_mul`].
pub(super) fn linear_silu_mul<B: Backend>(
    backend: &B,
    x: &B::Tensor,
    norm: Norm<'_, B>,
    gate: &B::Matrix,
    up: &B::Matrix,
) -> Result<B::Tensor> {
    let x = backend.rms_norm(x, norm.weight, norm.eps)?;
    backend.silu_mul(&backend.linear(&x, gate, None)?, &backend.linear(&x, up, None)?)
}

/// See [`Backend::attention_block`].
pub(super) fn attention_block<B: Backend>(
    backend: &B,
    cache: Option<&mut B::Cache>,
    x: &B::Tensor,
    w: &SelfAttention<'_, B>,
    output: &B::Matrix,
    start: usize,
) -> Result<B::Tensor> {
    backend.linear_add(&backend.self_attention(cache, x, w, start)?, output, None, x)
}

/// See [`Backend::mlp_block`].
pub(super) fn mlp_block<B: Backend>(
    backend: &B,
    x: &B::Tensor,
    norm: Norm<'_, B>,
    [gate, up, down]: [&B::Matrix; 3],
) -> Result<B::Tensor> {
    backend.linear_add(&backend.linear_silu_mul(x, norm, gate, up)?, down, None, x)
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

/// See [`Backend::top_k`].
pub(super) async fn top_k<B: Backend>(backend: &B, x: &B::Tensor, k: usize) -> Result<Vec<(u32, f32)>> {
    // Largest first, of equals the earlier: one number orders both.
    let order = |(place, key): (u32, u32)| u64::from(!key) << 32 | u64::from(place);
    let mut all: Vec<u64> = (0..).zip(backend.read(x).await?.into_iter().map(key_of)).map(order).collect();
    let k = k.min(all.len());
    if k > 0 && k < all.len() {
        all.select_nth_unstable(k - 1);
    }
    all.truncate(k);
    all.sort_unstable();
    Ok(all.into_iter().map(|at| (at as u32, value_of(!(at >> 32) as u32))).collect())
}

/// A number that counts upwards as the value does; 0 for what is no number.
fn key_of(value: f32) -> u32 {
    let bits = value.to_bits();
    match value.is_nan() {
        true => 0,
        false if value.is_sign_negative() => !bits,
        false => bits | 1 << 31,
    }
}

/// The value of such a number.
pub(super) fn value_of(key: u32) -> f32 {
    match key {
        0 => f32::NAN,
        _ if key >> 31 == 1 => f32::from_bits(key & !(1 << 31)),
        _ => f32::from_bits(!key),
    }
}
