//! Layer norm and root-mean-square norm with their gradients.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result as CandleResult, Shape, Tensor};
use rayon::prelude::*;

use super::{chunk, values, with_values};
use crate::error::Result;

/// x (..., D), w (D), b (D).
pub fn layer_norm(x: &Tensor, w: &Tensor, b: &Tensor, eps: f64) -> Result<Tensor> {
    Ok(x.contiguous()?.apply_op3(w, b, LayerNorm { eps: eps as f32 })?)
}

/// x (..., D), w (D).
pub fn rms_norm(x: &Tensor, w: &Tensor, eps: f64) -> Result<Tensor> {
    Ok(x.contiguous()?.apply_op2(w, RmsNorm { eps: eps as f32 })?)
}

struct LayerNorm {
    eps: f32,
}

/// Mean and 1 / standard deviation of a row.
fn moments(row: &[f32], eps: f32) -> (f32, f32) {
    let n = row.len() as f32;
    let mean = sum(row.iter().copied()) / n;
    let variance = sum(row.iter().map(|v| (v - mean) * (v - mean))) / n;
    (mean, 1.0 / (variance + eps).sqrt())
}

/// A sum in eight lanes, which the compiler turns into SIMD and which loses less than one running sum.
fn sum(items: impl Iterator<Item = f32>) -> f32 {
    let mut lanes = [0f32; 8];
    for (i, v) in items.enumerate() {
        lanes[i & 7] += v;
    }
    lanes.iter().sum()
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> CandleResult<(CpuStorage, Shape)> {
        let (x, w, b) = (values(s1, l1)?, values(s2, l2)?, values(s3, l3)?);
        let d = w.len();
        let mut out = vec![0f32; x.len()];
        let step = chunk(d);
        out.par_chunks_mut(step).zip(x.par_chunks(step)).for_each(|(out, x)| {
            for (out, x) in out.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
                let (mean, scale) = moments(x, self.eps);
                for (((o, x), w), b) in out.iter_mut().zip(x).zip(w).zip(b) {
                    *o = (x - mean) * scale * w + b;
                }
            }
        });
        Ok((CpuStorage::F32(out), l1.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let d = w.dims1()?;
        let mut dx = vec![0f32; x.elem_count()];
        let (mut dw, mut db) = (vec![0f32; d], vec![0f32; d]);
        with_values(x, |xs| {
            with_values(w, |ws| {
                with_values(grad, |gs| {
                    let mut normal = vec![0f32; d];
                    for ((dx, x), g) in dx.chunks_exact_mut(d).zip(xs.chunks_exact(d)).zip(gs.chunks_exact(d)) {
                        let (mean, scale) = moments(x, self.eps);
                        for (n, x) in normal.iter_mut().zip(x) {
                            *n = (x - mean) * scale;
                        }
                        let gw = || g.iter().zip(ws).map(|(g, w)| g * w);
                        let mean_g = sum(gw()) / d as f32;
                        let mean_gn = sum(gw().zip(&normal).map(|(g, n)| g * n)) / d as f32;
                        for (((dx, g), w), n) in dx.iter_mut().zip(g).zip(ws).zip(&normal) {
                            *dx = (g * w - mean_g - n * mean_gn) * scale;
                        }
                        for (((dw, db), g), n) in dw.iter_mut().zip(&mut db).zip(g).zip(&normal) {
                            *dw += g * n;
                            *db += g;
                        }
                    }
                    Ok(())
                })
            })
        })?;
        Ok((
            Some(Tensor::from_vec(dx, x.shape(), x.device())?),
            w.track_op().then(|| Tensor::from_vec(dw, d, w.device())).transpose()?,
            b.track_op().then(|| Tensor::from_vec(db, d, b.device())).transpose()?,
        ))
    }
}

struct RmsNorm {
    eps: f32,
}

fn inverse_rms(row: &[f32], eps: f32) -> f32 {
    1.0 / (sum(row.iter().map(|v| v * v)) / row.len() as f32 + eps).sqrt()
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        let (x, w) = (values(s1, l1)?, values(s2, l2)?);
        let d = w.len();
        let mut out = vec![0f32; x.len()];
        let step = chunk(d);
        out.par_chunks_mut(step).zip(x.par_chunks(step)).for_each(|(out, x)| {
            for (out, x) in out.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
                let scale = inverse_rms(x, self.eps);
                for ((o, x), w) in out.iter_mut().zip(x).zip(w) {
                    *o = x * scale * w;
                }
            }
        });
        Ok((CpuStorage::F32(out), l1.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>)> {
        let (dx, dw) = rms_norm_gradients(x, w, grad, self.eps)?;
        Ok((Some(dx), w.track_op().then_some(dw)))
    }
}

/// By x and w, of that by their [`rms_norm`].
pub fn rms_norm_gradients(x: &Tensor, w: &Tensor, grad: &Tensor, eps: f32) -> CandleResult<(Tensor, Tensor)> {
    let d = w.dims1()?;
    let mut dx = vec![0f32; x.elem_count()];
    let mut dw = vec![0f32; d];
    with_values(x, |xs| {
        with_values(w, |ws| {
            with_values(grad, |gs| {
                for ((dx, x), g) in dx.chunks_exact_mut(d).zip(xs.chunks_exact(d)).zip(gs.chunks_exact(d)) {
                    let scale = inverse_rms(x, eps);
                    let along = sum(g.iter().zip(ws).zip(x).map(|((g, w), x)| g * w * x)) / d as f32;
                    let pull = along * scale * scale;
                    for (((dx, g), w), x) in dx.iter_mut().zip(g).zip(ws).zip(x) {
                        *dx = (g * w - x * pull) * scale;
                    }
                    for ((dw, g), x) in dw.iter_mut().zip(g).zip(x) {
                        *dw += g * x * scale;
                    }
                }
                Ok(())
            })
        })
    })?;
    Ok((Tensor::from_vec(dx, x.shape(), x.device())?, Tensor::from_vec(dw, d, w.device())?))
}
