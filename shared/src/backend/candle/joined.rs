//! Several operations with frozen matrices as one node of the graph. Candle's way back fills a tensor with zeros and adds to
//! it at each node, and keeps what each was made of; here that is done once for all of them, and kept is what the gradient
//! of the whole needs.

use candle_core::{Result as CandleResult, Tensor};

use super::{Candle, Mask, Matrix, attention, fused, node::Node, single};
use crate::{
    backend::{Backend, SelfAttention},
    error::Result,
};

/// Causal attention of x (B, T, D) with rotated queries and keys, as [`Backend::self_attention`] has it; `None` where single
/// nodes must do it: a trained matrix, or nothing to go back to.
pub fn self_attention(
    backend: &Candle,
    x: &Tensor,
    w: &SelfAttention<'_, Candle>,
    start: usize,
) -> Result<Option<Tensor>> {
    if !x.track_op() || ![w.q, w.k, w.v].into_iter().all(Matrix::is_frozen) {
        return Ok(None);
    }
    let (batch, tokens, _) = x.dims3()?;
    let inner = x.detach();
    let heads_of = |w: &Matrix, heads: usize, dim: usize| -> Result<Tensor> {
        Ok(backend.linear(&inner, w, None)?.reshape((batch, tokens, heads, dim))?)
    };
    let rotated = |x: &Tensor| backend.rope(x, w.cos, w.sin, start, w.layout);
    let q = rotated(&heads_of(w.q, w.heads, w.head_dim)?)?;
    let k = rotated(&heads_of(w.k, w.groups, w.head_dim)?)?;
    let v = heads_of(w.v, w.groups, w.head_dim)?;
    let (out, attended) = attention::attend(&q, &k, &v, Mask::Causal)?;

    // The gradient of a rotation is that by the opposite angle.
    let (cos, sin, layout, own) = (w.cos.detach(), w.sin.neg()?.detach(), w.layout, backend.clone());
    let matrices = [w.q, w.k, w.v].map(Matrix::clone);
    let (shape, type_of_x) = (x.shape().clone(), x.dtype());
    let back = move |grad: &Tensor| -> CandleResult<Tensor> {
        let [dq, dk, dv] = attended.gradients(grad)?;
        let rotated = |d: &Tensor| own.rope(d, &cos, &sin, start, layout).map_err(candle_core::Error::wrap);
        let mut sum: Option<Tensor> = None;
        for (w, d) in matrices.iter().zip([rotated(&dq)?, rotated(&dk)?, dv]) {
            let part = w.input_gradient(&d.reshape((batch * tokens, ()))?)?;
            sum = Some(match sum {
                Some(sum) => (sum + part)?,
                None => part,
            });
        }
        match sum {
            Some(sum) => sum.reshape(&shape)?.to_dtype(type_of_x),
            None => Tensor::zeros(&shape, type_of_x, grad.device()),
        }
    };
    Ok(Some(x.apply_op1(Node::new("self-attention", out, back))?))
}

/// silu(x gate^T) * (x up^T), on the same terms.
pub fn linear_silu_mul(backend: &Candle, x: &Tensor, gate: &Matrix, up: &Matrix) -> Result<Option<Tensor>> {
    if !x.track_op() || !gate.is_frozen() || !up.is_frozen() {
        return Ok(None);
    }
    let inner = x.detach();
    let gates = backend.linear(&inner, gate, None)?;
    let ups = backend.linear(&inner, up, None)?;
    let out = backend.silu_mul(&gates, &ups)?;
    let (gate, up, is_fused) = (gate.clone(), up.clone(), backend.fused());
    let (shape, type_of_x) = (x.shape().clone(), x.dtype());
    let back = move |grad: &Tensor| -> CandleResult<Tensor> {
        let (dgate, dup) = match is_fused {
            true => fused::silu_mul_gradients(&gates, &ups, grad)?,
            false => single::silu_mul_gradients(&gates, &ups, grad)?,
        };
        let rows = |d: &Tensor| d.flatten_to(candle_core::D::Minus2);
        let sum = (gate.input_gradient(&rows(&dgate)?)? + up.input_gradient(&rows(&dup)?)?)?;
        sum.reshape(&shape)?.to_dtype(type_of_x)
    };
    Ok(Some(x.apply_op1(Node::new("gated", out, back))?))
}
