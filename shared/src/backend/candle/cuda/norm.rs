//! Norms; a block of threads takes a row.

use candle_core::{CudaStorage, D, DType, Result as CandleResult, Tensor};

use super::{
    super::node::Node,
    launch::{NORM_FILE, Operands, Param, tensor, word},
};
use crate::error::Result;

/// Shares that the rows are summed in for the gradients of weights.
const SHARES: usize = 64;

/// x (..., D), w (D), b (D); `None` where there is no kernel for these.
pub fn layer_norm(x: &Tensor, w: &Tensor, b: &Tensor, eps: f64) -> Result<Option<Tensor>> {
    let x = x.contiguous()?;
    let norm = Norm { x: x.detach(), w: w.detach(), b: Some(b.detach()), eps };
    let Some(value) = norm.value()? else { return Ok(None) };
    if !(x.track_op() || w.track_op() || b.track_op()) {
        return Ok(Some(tensor(value, x.shape())));
    }
    let (value, trained) = ((value, x.shape().clone()), w.track_op() || b.track_op());
    let back = move |grad: &Tensor| -> CandleResult<[Option<Tensor>; 3]> {
        let (dx, [dw, db]) = norm.gradients(grad, trained)?;
        Ok([Some(dx), dw, db])
    };
    Ok(Some(x.apply_op3(w, b, Node::of_kernel("layer-norm", value, back))?))
}

/// x (..., D), w (D); likewise.
pub fn rms_norm(x: &Tensor, w: &Tensor, eps: f64) -> Result<Option<Tensor>> {
    let x = x.contiguous()?;
    let norm = Norm { x: x.detach(), w: w.detach(), b: None, eps };
    let Some(value) = norm.value()? else { return Ok(None) };
    if !(x.track_op() || w.track_op()) {
        return Ok(Some(tensor(value, x.shape())));
    }
    let (value, trained) = ((value, x.shape().clone()), w.track_op());
    let back = move |grad: &Tensor| -> CandleResult<(Tensor, Option<Tensor>)> {
        let (dx, [dw, _]) = norm.gradients(grad, trained)?;
        Ok((dx, dw))
    };
    Ok(Some(x.apply_op2(w, Node::of_kernel("rms-norm", value, back))?))
}

/// `plus` and the gradient by x, of that by its [`rms_norm`]; likewise. Outside of the graph.
pub fn rms_norm_gradient_and(
    plus: &Tensor,
    x: &Tensor,
    w: &Tensor,
    grad: &Tensor,
    eps: f64,
) -> CandleResult<Option<Tensor>> {
    let (plus, grad, d) = (plus.contiguous()?, grad.contiguous()?, x.dim(D::Minus1)?);
    let inputs = [x, w, &grad, &plus];
    let alike = w.dims() == [d] && grad.dims() == x.dims() && plus.dims() == x.dims();
    let Some(operands) = Operands::of(&inputs, d).filter(|_| alike) else { return Ok(None) };
    let rows = x.elem_count() / d;
    let (outputs, params) = ([(operands.dtype, rows * d)], [Param::of(d)?, Param::F32(eps as f32)]);
    let grid = blocks(rows, d, operands.pack)?;
    let [sum] = operands.run(&NORM_FILE, "rms_norm_gradient_and", &inputs, outputs, &params, grid)?;
    Ok(Some(tensor(sum, x.shape())))
}

/// A norm that was asked for; one with a shift is centred.
struct Norm {
    x: Tensor,
    w: Tensor,
    b: Option<Tensor>,
    eps: f64,
}

impl Norm {
    fn value(&self) -> CandleResult<Option<CudaStorage>> {
        let inputs: Vec<&Tensor> = [&self.x, &self.w].into_iter().chain(&self.b).collect();
        let (rows, d) = self.size()?;
        let Some(operands) = Operands::of(&inputs, d) else { return Ok(None) };
        let name = if self.b.is_some() { "layer_norm" } else { "rms_norm" };
        let outputs = [(operands.dtype, rows * d)];
        let [y] =
            operands.run(&NORM_FILE, name, &inputs, outputs, &self.params(d)?, blocks(rows, d, operands.pack)?)?;
        Ok(Some(y))
    }

    /// By x; by w and b only if they are `trained`.
    fn gradients(&self, grad: &Tensor, trained: bool) -> CandleResult<(Tensor, [Option<Tensor>; 2])> {
        let (grad, (rows, d)) = (grad.contiguous()?, self.size()?);
        let inputs = [&self.x, &self.w, &grad];
        let Some(operands) = Operands::of(&inputs, d) else {
            candle_core::bail!("norm: expected a gradient like {:?} but found {grad:?}", self.x)
        };
        let name = if self.b.is_some() { "layer_norm_gradient" } else { "rms_norm_gradient" };
        let outputs = [(operands.dtype, rows * d), (DType::F32, 2 * rows)];
        let grid = blocks(rows, d, operands.pack)?;
        let [dx, stats] = operands.run(&NORM_FILE, name, &inputs, outputs, &self.params(d)?, grid)?;
        let dx = tensor(dx, self.x.shape());
        if !trained {
            return Ok((dx, [None, None]));
        }
        // Their statistics are f32, whatever the type of the rest.
        let stats = tensor(stats, 2 * rows);
        let shares = rows.min(SHARES);
        let grid = ((word(d.div_ceil(128))?, word(shares)?), 128);
        let params = [Param::of(rows)?, Param::of(d)?];
        let outputs = [(DType::F32, 2 * shares * d)];
        let inputs = [&self.x, &grad, &stats];
        let [sums] = operands.run(&NORM_FILE, "norm_weight_gradient", &inputs, outputs, &params, grid)?;
        let sums = tensor(sums, (2, shares, d)).sum(1)?.to_dtype(self.w.dtype())?;
        let db = self.b.as_ref().map(|_| sums.get(1)).transpose()?;
        Ok((dx, [Some(sums.get(0)?), db]))
    }

    /// Rows and D.
    fn size(&self) -> CandleResult<(usize, usize)> {
        let d = self.x.dim(D::Minus1)?;
        if self.w.dims() != [d] || self.b.as_ref().is_some_and(|b| b.dims() != [d]) {
            candle_core::bail!("norm: expected weights ({d}) but found {:?}", self.w.shape());
        }
        Ok((self.x.elem_count() / d.max(1), d))
    }

    fn params(&self, d: usize) -> CandleResult<[Param; 2]> {
        Ok([Param::of(d)?, Param::F32(self.eps as f32)])
    }
}

/// Blocks for rows of `d`: of no more threads than they have packs.
fn blocks(rows: usize, d: usize, pack: usize) -> CandleResult<((u32, u32), u32)> {
    Ok(((word(rows)?, 1), word((d / pack).next_multiple_of(32).clamp(32, 256))?))
}
