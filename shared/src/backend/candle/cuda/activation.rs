//! Activations and sums; a thread takes a pack.

use candle_core::{Result as CandleResult, Tensor};

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

/// Element by element; `None` where there is no kernel for x.
pub fn activation(x: &Tensor, kind: Activation) -> Result<Option<Tensor>> {
    let x = x.contiguous()?;
    let (inner, n) = (x.detach(), x.elem_count());
    let Some(operands) = Operands::of(&[&inner], n) else { return Ok(None) };
    let packs = n / operands.pack;
    let params = [Param::of(packs)?, number(kind)];
    let outputs = [(operands.dtype, n)];
    let [y] = operands.run(&ACTIVATION_FILE, "activation", &[&inner], outputs, &params, threads(packs)?)?;
    if !x.track_op() {
        return Ok(Some(tensor(y, x.shape())));
    }
    let value = (y, x.shape().clone());
    let back = move |grad: &Tensor| -> CandleResult<Tensor> {
        let grad = grad.contiguous()?;
        let inputs = [&inner, &grad];
        let Some(operands) = Operands::of(&inputs, n) else {
            candle_core::bail!("activation: expected a gradient like {inner:?} but found {grad:?}")
        };
        let packs = n / operands.pack;
        let params = [Param::of(packs)?, number(kind)];
        let outputs = [(operands.dtype, n)];
        let [dx] = operands.run(&ACTIVATION_FILE, "activation_gradient", &inputs, outputs, &params, threads(packs)?)?;
        Ok(tensor(dx, inner.shape()))
    };
    Ok(Some(x.apply_op1(Node::of_kernel("activation", value, back))?))
}

/// silu(gate) up; likewise.
pub fn silu_mul(gate: &Tensor, up: &Tensor) -> Result<Option<Tensor>> {
    let (gate, up) = (gate.contiguous()?, up.contiguous()?);
    let (gates, ups, n) = (gate.detach(), up.detach(), gate.elem_count());
    let inputs = [&gates, &ups];
    let Some(operands) = Operands::of(&inputs, n).filter(|_| gate.dims() == up.dims()) else { return Ok(None) };
    let packs = n / operands.pack;
    let outputs = [(operands.dtype, n)];
    let [y] = operands.run(&ACTIVATION_FILE, "silu_mul", &inputs, outputs, &[Param::of(packs)?], threads(packs)?)?;
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
    let (gate, up, grad, n) = (gate.contiguous()?, up.contiguous()?, grad.contiguous()?, gate.elem_count());
    let inputs = [&gate, &up, &grad];
    let alike = up.elem_count() == n && grad.elem_count() == n;
    let Some(operands) = Operands::of(&inputs, n).filter(|_| alike) else { return Ok(None) };
    let packs = n / operands.pack;
    let outputs = [(operands.dtype, n); 2];
    let (params, grid) = ([Param::of(packs)?], threads(packs)?);
    let [dgate, dup] = operands.run(&ACTIVATION_FILE, "silu_mul_gradients", &inputs, outputs, &params, grid)?;
    Ok(Some((tensor(dgate, gate.shape()), tensor(dup, up.shape()))))
}

/// Of two or three of one shape and type, outside of the graph; likewise.
pub fn sum(parts: &[Tensor]) -> CandleResult<Option<Tensor>> {
    let parts = parts.iter().map(Tensor::contiguous).collect::<CandleResult<Vec<_>>>()?;
    let (inputs, Some(first)) = (parts.iter().collect::<Vec<_>>(), parts.first()) else { return Ok(None) };
    let name = match inputs.len() {
        2 => "sum_of_two",
        3 => "sum_of_three",
        _ => return Ok(None),
    };
    let (n, alike) = (first.elem_count(), parts.iter().all(|part| part.dims() == first.dims()));
    let Some(operands) = Operands::of(&inputs, n).filter(|_| alike) else { return Ok(None) };
    let packs = n / operands.pack;
    let outputs = [(operands.dtype, n)];
    let [sum] = operands.run(&ACTIVATION_FILE, name, &inputs, outputs, &[Param::of(packs)?], threads(packs)?)?;
    Ok(Some(tensor(sum, first.shape())))
}
