//! The halves of a decoder's layer as one node of the graph each, where their matrices are frozen. Candle's way back fills a
//! tensor with zeros and adds to it at each node, and the graph keeps what each node was made of; here that is done once a
//! half, and kept is what the gradient of the whole needs.

use candle_core::{D, Result as CandleResult, Tensor};

use super::{Candle, Mask, Matrix, attention, fused, node::Node, single};
use crate::{
    backend::{Backend, Norm, SelfAttention},
    error::Result,
};

/// As [`Backend::attention_block`] without a cache; `None` where single nodes must do it: something is trained but x, or there is
/// nothing to go back to.
pub fn attention_block(
    backend: &Candle,
    x: &Tensor,
    w: &SelfAttention<'_, Candle>,
    output: &Matrix,
    start: usize,
) -> Result<Option<Tensor>> {
    if !applies(backend, x, w.norm, &[w.q, w.k, w.v, output]) {
        return Ok(None);
    }
    let (batch, tokens, _) = x.dims3()?;
    let inner = x.contiguous()?.detach();
    let normed = backend.rms_norm(&inner, w.norm.weight, w.norm.eps)?.flatten_to(D::Minus2)?;
    let split = |w: &Matrix, heads: usize, dim: usize| -> Result<Tensor> {
        Ok(w.frozen_product(&normed)?.reshape((batch, tokens, heads, dim))?)
    };
    let q = backend.rope(&split(w.q, w.heads, w.head_dim)?, w.rope, start, w.layout)?;
    let k = backend.rope(&split(w.k, w.groups, w.head_dim)?, w.rope, start, w.layout)?;
    let (out, attended) = attention::attend(&q, &k, &split(w.v, w.groups, w.head_dim)?, Mask::Causal)?;
    let product = output.frozen_product(&out.flatten_to(D::Minus2)?)?.reshape(inner.shape())?;
    let value = single::sum(&[inner.clone(), product])?;

    let (table, layout, own) = (turned_back(w.rope)?, w.layout, backend.clone());
    let (norm, eps) = (w.norm.weight.detach(), w.norm.eps);
    let (matrices, output) = ([w.q, w.k, w.v].map(Matrix::clone), output.clone());
    let back = move |grad: &Tensor| -> CandleResult<Tensor> {
        let rows = grad.reshape((batch * tokens, ()))?;
        let [dq, dk, dv] = attended.gradients(&output.input_gradient(&rows)?)?;
        let back = |d: &Tensor| own.rope(d, &table, start, layout).map_err(candle_core::Error::wrap);
        let parts = matrices.iter().zip([back(&dq)?, back(&dk)?, dv]);
        let parts = parts.map(|(w, d)| w.input_gradient(&d.reshape((batch * tokens, ()))?));
        let sum = single::sum(&parts.collect::<CandleResult<Vec<_>>>()?)?.reshape(inner.shape())?;
        norm_gradient_and(&own, grad, &inner, &norm, &sum, eps)
    };
    Ok(Some(x.apply_op1(Node::new("attention-block", value, back))?))
}

/// As [`Backend::mlp_block`], on the same terms.
pub fn mlp_block(
    backend: &Candle,
    x: &Tensor,
    norm: Norm<'_, Candle>,
    matrices: [&Matrix; 3],
) -> Result<Option<Tensor>> {
    if !applies(backend, x, norm, &matrices) {
        return Ok(None);
    }
    let [gate, up, down] = matrices.map(Matrix::clone);
    let inner = x.contiguous()?.detach();
    let normed = backend.rms_norm(&inner, norm.weight, norm.eps)?.flatten_to(D::Minus2)?;
    let (gates, ups) = (gate.frozen_product(&normed)?, up.frozen_product(&normed)?);
    let product = down.frozen_product(&backend.silu_mul(&gates, &ups)?)?.reshape(inner.shape())?;
    let value = single::sum(&[inner.clone(), product])?;
    let (own, weight, eps) = (backend.clone(), norm.weight.detach(), norm.eps);
    let back = move |grad: &Tensor| -> CandleResult<Tensor> {
        let grad_inner = down.input_gradient(&grad.flatten_to(D::Minus2)?)?;
        let (dgate, dup) = match own.fused() {
            true => fused::silu_mul_gradients(&gates, &ups, &grad_inner)?,
            false => single::silu_mul_gradients(&gates, &ups, &grad_inner)?,
        };
        let sum = single::sum(&[gate.input_gradient(&dgate)?, up.input_gradient(&dup)?])?.reshape(inner.shape())?;
        norm_gradient_and(&own, grad, &inner, &weight, &sum, eps)
    };
    Ok(Some(x.apply_op1(Node::new("mlp-block", value, back))?))
}

/// Whether x alone gets a gradient, and all is of one type.
fn applies(backend: &Candle, x: &Tensor, norm: Norm<'_, Candle>, matrices: &[&Matrix]) -> bool {
    let frozen = !norm.weight.track_op() && matrices.iter().all(|w| w.is_frozen());
    x.track_op() && frozen && x.dtype() == backend.dtype()
}

/// The table of the opposite angles.
fn turned_back(table: &Tensor) -> CandleResult<Tensor> {
    Tensor::stack(&[table.get(0)?, table.get(1)?.neg()?], 0).map(|table| table.detach())
}

/// What goes past a norm and what goes through it, back: `past` and the gradient of the norm by x, of `grad` by its value.
fn norm_gradient_and(
    backend: &Candle,
    past: &Tensor,
    x: &Tensor,
    w: &Tensor,
    grad: &Tensor,
    eps: f64,
) -> CandleResult<Tensor> {
    if backend.fused() {
        return past + fused::rms_norm_gradients(x, w, grad, eps as f32)?.0;
    }
    single::rms_norm_gradient_and(past, x, w, grad, eps)
}
