//! Quick-GELU, GELU and the SwiGLU product with their gradients.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result as CandleResult, Shape, Tensor};
use rayon::prelude::*;

use super::{PARALLEL_FROM, values, with_values};
use crate::{backend::Activation, error::Result};

/// Element by element.
pub fn activation(x: &Tensor, kind: Activation) -> Result<Tensor> {
    Ok(x.contiguous()?.apply_op1(Activate { kind })?)
}

/// silu(gate) up.
pub fn silu_mul(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    Ok(gate.contiguous()?.apply_op2(&up.contiguous()?, SiluMul)?)
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// exp within 2 ulp or so, in operations that the compiler vectorises (Cody and Waite's reduction, degree 6).
pub(in crate::backend::candle) fn exp(x: f32) -> f32 {
    let x = x.clamp(-87.0, 88.0);
    // Adding and taking away 1.5 * 2^23 rounds to the nearest whole number.
    const ROUND: f32 = 12_582_912.0;
    let n = x * std::f32::consts::LOG2_E + ROUND - ROUND;
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let p = p * r * r + r + 1.0;
    p * f32::from_bits(((n as i32 + 127) as u32) << 23)
}

/// Error function by Abramowitz and Stegun 7.1.26 in f64 would be too coarse (1.5e-7 is near f32's step); this is
/// libm's, through Candle.
fn erf(x: f32) -> f32 {
    candle_core::cpu::erf::erf_f32(x)
}

fn value(kind: Activation, x: f32) -> f32 {
    match kind {
        Activation::QuickGelu => x * sigmoid(1.702 * x),
        Activation::Gelu => 0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2)),
    }
}

fn slope(kind: Activation, x: f32) -> f32 {
    match kind {
        Activation::QuickGelu => {
            let s = sigmoid(1.702 * x);
            s * (1.0 + 1.702 * x * (1.0 - s))
        }
        Activation::Gelu => {
            let density = exp(-0.5 * x * x) * 0.398_942_3;
            0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2)) + x * density
        }
    }
}

fn map1(x: &[f32], f: impl Fn(f32) -> f32 + Sync) -> Vec<f32> {
    let mut out = vec![0f32; x.len()];
    out.par_chunks_mut(PARALLEL_FROM).zip(x.par_chunks(PARALLEL_FROM)).for_each(|(out, x)| {
        for (o, x) in out.iter_mut().zip(x) {
            *o = f(*x);
        }
    });
    out
}

fn map2(x: &[f32], y: &[f32], f: impl Fn(f32, f32) -> f32 + Sync) -> Vec<f32> {
    let mut out = vec![0f32; x.len()];
    out.par_chunks_mut(PARALLEL_FROM).zip(x.par_chunks(PARALLEL_FROM)).zip(y.par_chunks(PARALLEL_FROM)).for_each(
        |((out, x), y)| {
            for ((o, x), y) in out.iter_mut().zip(x).zip(y) {
                *o = f(*x, *y);
            }
        },
    );
    out
}

struct Activate {
    kind: Activation,
}

impl CustomOp1 for Activate {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        let x = values(s, l)?;
        // The match stands outside of the loop, so that each loop vectorises.
        let out = match self.kind {
            Activation::QuickGelu => map1(x, |x| value(Activation::QuickGelu, x)),
            Activation::Gelu => map1(x, |x| value(Activation::Gelu, x)),
        };
        Ok((CpuStorage::F32(out), l.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _res: &Tensor, grad: &Tensor) -> CandleResult<Option<Tensor>> {
        let dx = with_values(x, |x| {
            with_values(grad, |g| {
                Ok(match self.kind {
                    Activation::QuickGelu => map2(x, g, |x, g| g * slope(Activation::QuickGelu, x)),
                    Activation::Gelu => map2(x, g, |x, g| g * slope(Activation::Gelu, x)),
                })
            })
        })?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}

struct SiluMul;

impl CustomOp2 for SiluMul {
    fn name(&self) -> &'static str {
        "silu-mul"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        let out = map2(values(s1, l1)?, values(s2, l2)?, |g, u| g * sigmoid(g) * u);
        Ok((CpuStorage::F32(out), l1.shape().clone()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>)> {
        let (dgate, dup) = silu_mul_gradients(gate, up, grad)?;
        Ok((Some(dgate), Some(dup)))
    }
}

/// By gate and up, of that by their [`silu_mul`].
pub fn silu_mul_gradients(gate: &Tensor, up: &Tensor, grad: &Tensor) -> CandleResult<(Tensor, Tensor)> {
    let (dgate, dup) = with_values(gate, |gate| {
        with_values(up, |up| {
            with_values(grad, |grad| {
                let dup = map2(gate, grad, |g, d| d * g * sigmoid(g));
                let slopes = map2(gate, up, |g, u| {
                    let s = sigmoid(g);
                    u * s * (1.0 + g * (1.0 - s))
                });
                Ok((map2(&slopes, grad, |s, d| s * d), dup))
            })
        })
    })?;
    Ok((Tensor::from_vec(dgate, gate.shape(), gate.device())?, Tensor::from_vec(dup, up.shape(), up.device())?))
}

#[cfg(test)]
mod tests {
    #[test]
    fn exp_is_close_to_the_libms() {
        for i in -8700..8800 {
            let x = i as f32 / 100.0;
            let (ours, theirs) = (super::exp(x) as f64, (x as f64).exp());
            assert!((ours - theirs).abs() <= 3e-7 * theirs, "exp({x}): {ours} but {theirs}");
        }
    }
}
