//! Activations and sums; a thread takes a pack.

use candle_core::{CudaStorage, Result as CandleResult, Tensor};

use super::{
    super::{Activation, node::Node},
    launch::{ACTIVATION_FILE, Operands, Param, tensor},
    threads,
};
use crate::error::Result;

/// An activation's number in `activation.cu`.
fn number(kind: Activation) -> Param {
    Param::U32(match kind {
        Activation::QuickGelu => 0,
        Activation::Gelu => 1,
    })
}

/// Runs a kernel element by element over tensors of one shape; `None` where there is none for these.
fn each<const N: usize>(name: &str, inputs: &[&Tensor], more: &[Param]) -> CandleResult<Option<[CudaStorage; N]>> {
    let Some(first) = inputs.first() else { return Ok(None) };
    let (n, alike) = (first.elem_count(), inputs.iter().all(|x| x.dims() == first.dims()));
    let Some(operands) = Operands::of(inputs, n).filter(|_| alike) else { return Ok(None) };
    let packs = n / operands.pack;
    let params = [&[Param::of(packs)?], more].concat();
    let outputs = [(operands.dtype, n); N];
    operands.run(&ACTIVATION_FILE, name, inputs, outputs, &params, threads(packs)?).map(Some)
}

/// Element by element; `None` where there is no kernel for x.
pub fn activation(x: &Tensor, kind: Activation) -> Result<Option<Tensor>> {
    let x = x.contiguous()?;
    let inner = x.detach();
    let Some([y]) = each("activation", &[&inner], &[number(kind)])? else { return Ok(None) };
    if !x.track_op() {
        return Ok(Some(tensor(y, x.shape())));
    }
    let value = (y, x.shape().clone());
    let back = move |grad: &Tensor| -> CandleResult<Tensor> {
        match each("activation_gradient", &[&inner, &grad.contiguous()?], &[number(kind)])? {
            Some([dx]) => Ok(tensor(dx, inner.shape())),
            None => candle_core::bail!("activation: expected a gradient like {inner:?} but found {grad:?}"),
        }
    };
    Ok(Some(x.apply_op1(Node::of_kernel("activation", value, back))?))
}

/// silu(gate) up; likewise.
pub fn silu_mul(gate: &Tensor, up: &Tensor) -> Result<Option<Tensor>> {
    let (gate, up) = (gate.contiguous()?, up.contiguous()?);
    let (gates, ups) = (gate.detach(), up.detach());
    let Some([y]) = each("silu_mul", &[&gates, &ups], &[])? else { return Ok(None) };
    if !(gate.track_op() || up.track_op()) {
        return Ok(Some(tensor(y, gate.shape())));
    }
    let value = (y, gate.shape().clone());
    let back = move |grad: &Tensor| -> CandleResult<(Tensor, Option<Tensor>)> {
        match silu_mul_gradients(&gates, &ups, grad)? {
            Some((dgate, dup)) => Ok((dgate, Some(dup))),
            None => candle_core::bail!("silu-mul: expected a gradient like {gates:?} but found {grad:?}"),
        }
    };
    Ok(Some(gate.apply_op2(&up, Node::of_kernel("silu-mul", value, back))?))
}

/// By gate and up, of that by their [`silu_mul`]; likewise.
pub fn silu_mul_gradients(gate: &Tensor, up: &Tensor, grad: &Tensor) -> CandleResult<Option<(Tensor, Tensor)>> {
    let (gate, up, grad) = (gate.contiguous()?, up.contiguous()?, grad.contiguous()?);
    let Some([dgate, dup]) = each("silu_mul_gradients", &[&gate, &up, &grad], &[])? else { return Ok(None) };
    Ok(Some((tensor(dgate, gate.shape()), tensor(dup, up.shape()))))
}

/// Of two or three of one shape and type, outside of the graph; likewise.
pub fn sum(parts: &[Tensor]) -> CandleResult<Option<Tensor>> {
    let parts = parts.iter().map(Tensor::contiguous).collect::<CandleResult<Vec<_>>>()?;
    let name = match parts.len() {
        2 => "sum_of_two",
        3 => "sum_of_three",
        _ => return Ok(None),
    };
    let Some([sum]) = each(name, &parts.iter().collect::<Vec<_>>(), &[])? else { return Ok(None) };
    Ok(Some(tensor(sum, parts[0].shape())))
}
