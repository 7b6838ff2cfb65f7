//! Scaled dot-product attention (Vaswani et al., 2017) with grouped keys and values (Ainslie et al., 2023): one node of
//! the graph whose gradient reuses the saved probabilities.

use candle_core::{D, DType, Result as CandleResult, Tensor, bail};
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use super::cuda;
use super::{Mask, node::Node};
use crate::error::Result;

/// q (B, T, H, K), k and v (B, T, G, K) -> (B, T, H K).
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: Mask) -> Result<Tensor> {
    let (out, done) = attend(&q.detach(), &k.detach(), &v.detach(), mask)?;
    if !(q.track_op() || k.track_op() || v.track_op()) {
        return Ok(out);
    }
    let back = move |grad: &Tensor| Ok(done.gradients(grad)?.map(Some));
    Ok(q.apply_op3(k, v, Node::new("attention", out, back))?)
}

/// What attention's gradients need of it.
pub(super) struct Attended {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    probabilities: Tensor,
    /// (B, T, H, K).
    shape: (usize, usize, usize, usize),
    groups: usize,
}

/// As [`attention`], outside of the graph.
pub(super) fn attend(q: &Tensor, k: &Tensor, v: &Tensor, mask: Mask) -> Result<(Tensor, Attended)> {
    let shape @ (batch, tokens, heads, dim) = q.dims4()?;
    let groups = k.dim(2)?;
    let first = match mask {
        Mask::None => None,
        Mask::Causal => Some(0),
    };
    let (q, k, v) = (group(q, groups)?, group(k, groups)?, group(v, groups)?);
    let (out, probabilities) = grouped(&q, &k, &v, tokens, first)?;
    let out = ungroup(&out, batch, tokens)?.reshape((batch, tokens, heads * dim))?;
    Ok((out, Attended { q, k, v, probabilities, shape, groups }))
}

impl Attended {
    /// By q, k and v, of that by the output (B, T, H K).
    pub fn gradients(&self, grad: &Tensor) -> CandleResult<[Tensor; 3]> {
        let ((batch, tokens, heads, dim), p) = (self.shape, &self.probabilities);
        let grad = group(&grad.reshape((batch, tokens, heads, dim))?, self.groups)?;
        let dv = p.t()?.matmul(&grad)?;
        let dp = grad.matmul(&self.v.t()?)?;
        let ds = softmax_gradient(p, &dp, 1.0 / (dim as f64).sqrt())?;
        let dq = ds.matmul(&self.k)?;
        let dk = ds.t()?.matmul(&self.q)?;
        let back = |d: &Tensor| ungroup(d, batch, tokens);
        Ok([back(&dq)?, back(&dk)?, back(&dv)?])
    }
}

/// Attention of grouped heads: q (B G, R T, K) with R = H / G heads a group, k and v (B G, S, K) -> output like q, and
/// the probabilities (B G, R T, S). `first` is the position of the first query under a causal mask.
pub(super) fn grouped(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    tokens: usize,
    first: Option<usize>,
) -> Result<(Tensor, Tensor)> {
    let scale = 1.0 / (q.dim(D::Minus1)? as f64).sqrt();
    let scores = q.matmul(&k.t()?)?;
    let probabilities = if fits_fused(&scores) {
        softmax_cpu(&scores, scale as f32, tokens, first)?
    } else {
        softmax(&scores, scale, tokens, first)?
    };
    Ok((probabilities.matmul(v)?, probabilities))
}

/// (B, T, heads, K) -> (B G, heads / G * T, K).
pub(super) fn group(x: &Tensor, groups: usize) -> CandleResult<Tensor> {
    let (batch, tokens, heads, dim) = x.dims4()?;
    if groups == 0 || heads % groups != 0 {
        bail!("expected a number of heads that {groups} groups divide but found {heads}");
    }
    let x = if tokens == 1 { x.contiguous()? } else { swapped(x)? };
    x.reshape((batch * groups, heads / groups * tokens, dim))
}

/// The way back: (B G, heads / G * T, K) -> (B, T, heads, K).
pub(super) fn ungroup(x: &Tensor, batch: usize, tokens: usize) -> CandleResult<Tensor> {
    let (rows, inner, dim) = x.dims3()?;
    let heads = rows / batch * (inner / tokens);
    if tokens == 1 {
        return x.reshape((batch, 1, heads, dim));
    }
    swapped(&x.reshape((batch, heads, tokens, dim))?)
}

/// (B, M, N, K) -> (B, N, M, K), of its own.
fn swapped(x: &Tensor) -> CandleResult<Tensor> {
    #[cfg(feature = "cuda")]
    if let Some(y) = cuda::swap(x)? {
        return Ok(y);
    }
    x.transpose(1, 2)?.contiguous()
}

fn fits_fused(x: &Tensor) -> bool {
    x.device().is_cpu() && x.dtype() == DType::F32
}

/// Softmax over the keys, in f32 and then in the type of the scores; row r of a group is the query at `first + r % tokens`.
fn softmax(scores: &Tensor, scale: f64, tokens: usize, first: Option<usize>) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Some(probabilities) = cuda::softmax(scores, scale, tokens, first)? {
        return Ok(probabilities);
    }
    let (_, rows, seen) = scores.dims3()?;
    let dtype = scores.dtype();
    let mut scores = (scores.to_dtype(DType::F32)? * scale)?;
    if let Some(first) = first {
        let mask: Vec<f32> = (0..rows)
            .flat_map(|r| (0..seen).map(move |s| if s > first + r % tokens { f32::NEG_INFINITY } else { 0.0 }))
            .collect();
        scores = scores.broadcast_add(&Tensor::from_vec(mask, (1, rows, seen), scores.device())?)?;
    }
    let shifted = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    Ok(shifted.broadcast_div(&shifted.sum_keepdim(D::Minus1)?)?.to_dtype(dtype)?)
}

fn softmax_cpu(scores: &Tensor, scale: f32, tokens: usize, first: Option<usize>) -> Result<Tensor> {
    let (_, rows, seen) = scores.dims3()?;
    let out = super::fused::with_values(scores, |x| {
        let mut out = vec![0f32; x.len()];
        let step = super::fused::chunk(seen);
        out.par_chunks_mut(step).zip(x.par_chunks(step)).enumerate().for_each(|(c, (out, x))| {
            for (r, (out, x)) in out.chunks_exact_mut(seen).zip(x.chunks_exact(seen)).enumerate() {
                let row = (c * (step / seen) + r) % rows;
                let visible = first.map_or(seen, |first| (first + row % tokens + 1).min(seen));
                softmax_row(&mut out[..visible], &x[..visible], scale);
            }
        });
        Ok(out)
    })?;
    Ok(Tensor::from_vec(out, scores.shape(), scores.device())?)
}

fn softmax_row(out: &mut [f32], x: &[f32], scale: f32) {
    let largest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut total = 0f32;
    for (o, x) in out.iter_mut().zip(x) {
        *o = super::fused::exp((x - largest) * scale);
    }
    for o in out.iter() {
        total += o;
    }
    let inverse = 1.0 / total;
    for o in out {
        *o *= inverse;
    }
}

/// ds = p (dp - sum(dp p)) scale, row by row, in f32 and then in the type of p.
fn softmax_gradient(p: &Tensor, dp: &Tensor, scale: f64) -> CandleResult<Tensor> {
    #[cfg(feature = "cuda")]
    if let Some(ds) = cuda::softmax_gradient(p, dp, scale)? {
        return Ok(ds);
    }
    if !fits_fused(p) {
        let (wide, dp) = (p.to_dtype(DType::F32)?, dp.to_dtype(DType::F32)?);
        let along = (&dp * &wide)?.sum_keepdim(D::Minus1)?;
        return ((wide * dp.broadcast_sub(&along)?)? * scale)?.to_dtype(p.dtype());
    }
    let seen = p.dim(D::Minus1)?;
    let ds = super::fused::with_values(p, |ps| {
        super::fused::with_values(dp, |dps| {
            let mut out = vec![0f32; ps.len()];
            let step = super::fused::chunk(seen);
            out.par_chunks_mut(step).zip(ps.par_chunks(step)).zip(dps.par_chunks(step)).for_each(|((out, p), dp)| {
                for ((out, p), dp) in out.chunks_exact_mut(seen).zip(p.chunks_exact(seen)).zip(dp.chunks_exact(seen)) {
                    let along: f32 = p.iter().zip(dp).map(|(p, d)| p * d).sum();
                    for ((o, p), d) in out.iter_mut().zip(p).zip(dp) {
                        *o = p * (d - along) * scale as f32;
                    }
                }
            });
            Ok(out)
        })
    })?;
    Tensor::from_vec(ds, p.shape(), p.device())
}
