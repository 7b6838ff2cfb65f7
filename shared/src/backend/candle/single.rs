//! The operations that are fused on the CPU, as single nodes of the graph on any device and in any float type: kernels of
//! our own on CUDA, elsewhere composed of Candle's own, statistics in f32, each with its gradient, for which nothing is kept
//! but the inputs.

use candle_core::{D, DType, Result as CandleResult, Tensor};

#[cfg(feature = "cuda")]
use super::cuda;
use super::{Activation, RopeLayout, composite, node::Node};
use crate::error::Result;

fn wide(x: &Tensor) -> CandleResult<Tensor> {
    x.detach().to_dtype(DType::F32)
}

/// x (..., D), w (D), b (D).
pub fn layer_norm(x: &Tensor, w: &Tensor, b: &Tensor, eps: f64) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Some(y) = cuda::layer_norm(x, w, b, eps)? {
        return Ok(y);
    }
    let value = composite::layer_norm(&wide(x)?, &wide(w)?, &wide(b)?, eps)?.to_dtype(x.dtype())?;
    if !(x.track_op() || w.track_op() || b.track_op()) {
        return Ok(value);
    }
    let (xs, ws, bias, trained) = (x.detach(), w.detach(), b.dtype(), w.track_op() || b.track_op());
    let back = move |grad: &Tensor| -> CandleResult<[Option<Tensor>; 3]> {
        let x = wide(&xs)?;
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let (dx, dw) = norm_gradient(&centred, &ws, grad, eps, true, trained)?;
        let db = if trained { Some(rows_summed(&wide(grad)?)?.to_dtype(bias)?) } else { None };
        Ok([Some(dx.to_dtype(xs.dtype())?), dw, db])
    };
    Ok(x.apply_op3(w, b, Node::new("layer-norm", value, back))?)
}

/// x (..., D), w (D).
pub fn rms_norm(x: &Tensor, w: &Tensor, eps: f64) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Some(y) = cuda::rms_norm(x, w, eps)? {
        return Ok(y);
    }
    let value = composite::rms_norm(&wide(x)?, &wide(w)?, eps)?.to_dtype(x.dtype())?;
    if !(x.track_op() || w.track_op()) {
        return Ok(value);
    }
    let (xs, ws, trained) = (x.detach(), w.detach(), w.track_op());
    let back = move |grad: &Tensor| -> CandleResult<(Tensor, Option<Tensor>)> {
        let (dx, dw) = norm_gradient(&wide(&xs)?, &ws, grad, eps, false, trained)?;
        Ok((dx.to_dtype(xs.dtype())?, dw))
    };
    Ok(x.apply_op2(w, Node::new("rms-norm", value, back))?)
}

/// `plus` and the gradient by x of a frozen [`rms_norm`], of that by the norm.
pub fn rms_norm_gradient_and(plus: &Tensor, x: &Tensor, w: &Tensor, grad: &Tensor, eps: f64) -> CandleResult<Tensor> {
    #[cfg(feature = "cuda")]
    if let Some(sum) = cuda::rms_norm_gradient_and(plus, x, w, grad, eps)? {
        return Ok(sum);
    }
    let (dx, _) = norm_gradient(&wide(x)?, w, grad, eps, false, false)?;
    (dx.to_dtype(plus.dtype())? + plus)?.to_dtype(x.dtype())
}

/// Of two or three of one shape and type, outside of the graph.
pub fn sum(parts: &[Tensor]) -> CandleResult<Tensor> {
    #[cfg(feature = "cuda")]
    if let Some(sum) = cuda::sum(parts)? {
        return Ok(sum);
    }
    let Some((first, others)) = parts.split_first() else { candle_core::bail!("sum: expected parts") };
    others.iter().try_fold(first.clone(), |sum, part| sum + part)
}

/// Gradients by x, in f32, and by w of n(x) w, n(x) = x / sqrt(mean(x^2) + eps); `centred`: x had its mean taken away.
fn norm_gradient(
    x: &Tensor,
    w: &Tensor,
    grad: &Tensor,
    eps: f64,
    centred: bool,
    trained: bool,
) -> CandleResult<(Tensor, Option<Tensor>)> {
    let scale = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?.recip()?;
    let (normal, grad) = (x.broadcast_mul(&scale)?, wide(grad)?);
    let dw = if trained { Some(rows_summed(&(&grad * &normal)?)?.to_dtype(w.dtype())?) } else { None };
    let grad = grad.broadcast_mul(&wide(w)?)?;
    let along = (&grad * &normal)?.mean_keepdim(D::Minus1)?;
    let mut dx = (&grad - normal.broadcast_mul(&along)?)?;
    if centred {
        dx = dx.broadcast_sub(&grad.mean_keepdim(D::Minus1)?)?;
    }
    Ok((dx.broadcast_mul(&scale)?, dw))
}

/// (..., D) -> (D).
fn rows_summed(x: &Tensor) -> CandleResult<Tensor> {
    x.reshape(((), x.dim(D::Minus1)?))?.sum(0)
}

/// Element by element.
pub fn activation(x: &Tensor, kind: Activation) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Some(y) = cuda::activation(x, kind)? {
        return Ok(y);
    }
    let value = composite::activation(&wide(x)?, kind)?.to_dtype(x.dtype())?;
    if !x.track_op() {
        return Ok(value);
    }
    let xs = x.detach();
    let back = move |grad: &Tensor| -> CandleResult<Tensor> {
        (wide(grad)? * slope(&wide(&xs)?, kind)?)?.to_dtype(xs.dtype())
    };
    Ok(x.apply_op1(Node::new("activation", value, back))?)
}

fn slope(x: &Tensor, kind: Activation) -> CandleResult<Tensor> {
    match kind {
        // s (1 + 1.702 x (1 - s)).
        Activation::QuickGelu => {
            let s = (x * 0.851)?.tanh()?.affine(0.5, 0.5)?;
            let inner = ((x * 1.702)? * s.affine(-1.0, 1.0)?)?;
            s * (inner + 1.0)?
        }
        // Phi(x) + x phi(x).
        Activation::Gelu => {
            let phi = (x * std::f64::consts::FRAC_1_SQRT_2)?.erf()?.affine(0.5, 0.5)?;
            let density = (x.sqr()? * -0.5)?.exp()?.affine((0.5 * std::f64::consts::FRAC_1_PI).sqrt(), 0.0)?;
            phi + (x * density)?
        }
    }
}

/// silu(gate) up, without f32: the widest values of a Llama.
pub fn silu_mul(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Some(y) = cuda::silu_mul(gate, up)? {
        return Ok(y);
    }
    let (gates, ups) = (gate.detach(), up.detach());
    let value = composite::silu_mul(&gates, &ups)?;
    if !(gate.track_op() || up.track_op()) {
        return Ok(value);
    }
    let back = move |grad: &Tensor| silu_mul_gradients(&gates, &ups, grad).map(|(dgate, dup)| (dgate, Some(dup)));
    Ok(gate.apply_op2(up, Node::new("silu-mul", value, back))?)
}

/// By gate and up, of that by their [`silu_mul`].
pub fn silu_mul_gradients(gate: &Tensor, up: &Tensor, grad: &Tensor) -> CandleResult<(Tensor, Tensor)> {
    #[cfg(feature = "cuda")]
    if let Some(both) = cuda::silu_mul_gradients(gate, up, grad)? {
        return Ok(both);
    }
    // silu' = s (1 - silu(-g)), s = sigmoid(g): no difference of near numbers, which bf16 would not survive.
    let minus = gate.neg()?;
    let s = (minus.exp()? + 1.0)?.recip()?;
    let slope = (s * minus.silu()?.affine(-1.0, 1.0)?)?;
    Ok((((grad * up)? * slope)?, (grad * gate.silu()?)?))
}

/// x (B, T, heads, K); cos and sin (T, K / 2), already cut to the positions.
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor, layout: RopeLayout) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Some(y) = cuda::rope(x, cos, sin, layout)? {
        return Ok(y);
    }
    let (cos, sin) = (cos.detach().to_dtype(x.dtype())?, sin.detach().to_dtype(x.dtype())?);
    let value = composite::rope(&x.detach(), &cos, &sin, layout)?;
    if !x.track_op() {
        return Ok(value);
    }
    // The gradient is the rotation by the opposite angle.
    let back = move |grad: &Tensor| -> CandleResult<Tensor> {
        composite::rope(grad, &cos, &sin.neg()?, layout).map_err(candle_core::Error::wrap)
    };
    Ok(x.apply_op1(Node::new("rope", value, back))?)
}
