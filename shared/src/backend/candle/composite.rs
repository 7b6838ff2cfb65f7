//! Operations composed of Candle's own: any device, differentiable, and what the fused ones are tested against.

use candle_core::{D, DType, Tensor};

use super::{Activation, RopeLayout};
use crate::error::{Error, Result};

pub fn layer_norm(x: &Tensor, w: &Tensor, b: &Tensor, eps: f64) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let normal = centred.broadcast_div(&(variance + eps)?.sqrt()?)?;
    Ok(normal.broadcast_mul(w)?.broadcast_add(b)?)
}

pub fn rms_norm(x: &Tensor, w: &Tensor, eps: f64) -> Result<Tensor> {
    let mean_square = x.sqr()?.mean_keepdim(D::Minus1)?;
    Ok(x.broadcast_div(&(mean_square + eps)?.sqrt()?)?.broadcast_mul(w)?)
}

pub fn activation(x: &Tensor, kind: Activation) -> Result<Tensor> {
    Ok(match kind {
        // sigmoid(z) = (tanh(z / 2) + 1) / 2, which Candle differentiates on every device.
        Activation::QuickGelu => (x * (x * 0.851)?.tanh()?.affine(0.5, 0.5)?)?,
        Activation::Gelu => x.gelu_erf()?,
    })
}

pub fn silu_mul(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    Ok((gate.silu()? * up)?)
}

/// cos and sin are (T, K / 2), already cut to the positions of x (B, T, heads, K).
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor, layout: RopeLayout) -> Result<Tensor> {
    let (batch, tokens, heads, dim) = x.dims4()?;
    let half = dim / 2;
    let (cos, sin) = (cos.reshape((1, tokens, 1, half))?, sin.reshape((1, tokens, 1, half))?);
    let (a, b) = match layout {
        RopeLayout::Half => (x.narrow(3, 0, half)?, x.narrow(3, half, half)?),
        RopeLayout::Interleaved => {
            let pairs = x.reshape((batch, tokens, heads, half, 2))?;
            (pairs.narrow(4, 0, 1)?.squeeze(4)?, pairs.narrow(4, 1, 1)?.squeeze(4)?)
        }
    };
    let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
    Ok(match layout {
        RopeLayout::Half => Tensor::cat(&[first, second], 3)?,
        RopeLayout::Interleaved => Tensor::stack(&[first, second], 4)?.reshape((batch, tokens, heads, dim))?,
    })
}

/// f32, whatever x is.
pub fn l2_normalize(x: &Tensor) -> Result<Tensor> {
    let x = x.to_dtype(DType::F32)?;
    let norm = x.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?;
    Ok(x.broadcast_div(&norm)?)
}

pub fn patchify(x: &Tensor, patch: usize) -> Result<Tensor> {
    let (batch, channels, height, width) = x.dims4()?;
    if patch == 0 || height % patch != 0 || width % patch != 0 {
        return Err(Error::Backend(format!(
            "patchify: expected sides that are multiples of the patch {patch} but found {height} x {width}"
        )));
    }
    let (rows, columns) = (height / patch, width / patch);
    Ok(x.reshape(&[batch, channels, rows, patch, columns, patch][..])?
        .permute([0, 2, 4, 1, 3, 5].as_slice())?
        .reshape((batch, rows * columns, channels * patch * patch))?)
}
