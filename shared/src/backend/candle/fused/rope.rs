//! Rotary position embedding with its gradient, which is the rotation by the opposite angle.

use candle_core::{CpuStorage, CustomOp3, Layout, Result as CandleResult, Shape, Tensor};

use super::values;
use crate::{backend::RopeLayout, error::Result};

/// x (B, T, heads, K); cos and sin (T, K / 2), already cut to the positions.
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor, layout: RopeLayout) -> Result<Tensor> {
    Ok(x.contiguous()?.apply_op3(cos, sin, Rope { layout, sign: 1.0 })?)
}

struct Rope {
    layout: RopeLayout,
    sign: f32,
}

impl CustomOp3 for Rope {
    fn name(&self) -> &'static str {
        "rope"
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
        let (x, cos, sin) = (values(s1, l1)?, values(s2, l2)?, values(s3, l3)?);
        let (_, tokens, heads, dim) = l1.shape().dims4()?;
        let half = dim / 2;
        let mut out = vec![0f32; x.len()];
        for (row, (out, x)) in out.chunks_exact_mut(dim).zip(x.chunks_exact(dim)).enumerate() {
            let at = (row / heads % tokens) * half;
            for (i, (c, s)) in cos[at..at + half].iter().zip(&sin[at..at + half]).enumerate() {
                let (i, j) = match self.layout {
                    RopeLayout::Half => (i, i + half),
                    RopeLayout::Interleaved => (2 * i, 2 * i + 1),
                };
                let s = s * self.sign;
                out[i] = x[i] * c - x[j] * s;
                out[j] = x[j] * c + x[i] * s;
            }
        }
        Ok((CpuStorage::F32(out), l1.shape().clone()))
    }

    fn bwd(
        &self,
        _x: &Tensor,
        cos: &Tensor,
        sin: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let back = Rope { layout: self.layout, sign: -self.sign };
        Ok((Some(grad.contiguous()?.apply_op3_no_bwd(cos, sin, &back)?), None, None))
    }
}
