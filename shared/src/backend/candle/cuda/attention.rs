//! What stands around attention's products.

use candle_core::{Result as CandleResult, Tensor};

use super::{
    super::{RopeLayout, node::Node},
    launch::{ATTENTION_FILE, Operands, Param, tensor},
    threads,
};
use crate::error::Result;

/// x (B, T, heads, K); cos and sin (T, K / 2), already cut to the positions; `None` where there is no kernel for these.
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor, layout: RopeLayout) -> Result<Option<Tensor>> {
    let x = x.contiguous()?;
    let (cos, sin) = (cos.detach().contiguous()?, sin.detach().contiguous()?);
    let Some(value) = turned(&x.detach(), &cos, &sin, layout, 1.0)? else { return Ok(None) };
    if !x.track_op() {
        return Ok(Some(value));
    }
    let back = move |grad: &Tensor| -> CandleResult<Tensor> {
        match turned(&grad.contiguous()?, &cos, &sin, layout, -1.0)? {
            Some(dx) => Ok(dx),
            None => candle_core::bail!("rope: expected a gradient like {cos:?} but found {grad:?}"),
        }
    };
    Ok(Some(x.apply_op1(Node::new("rope", value, back))?))
}

fn turned(x: &Tensor, cos: &Tensor, sin: &Tensor, layout: RopeLayout, sign: f32) -> CandleResult<Option<Tensor>> {
    let (_, tokens, heads, dim) = x.dims4()?;
    let half = dim / 2;
    if dim % 2 != 0 || cos.dims() != [tokens, half] || sin.dims() != [tokens, half] {
        candle_core::bail!("rope: expected cos and sin ({tokens}, {half}) but found {:?}", cos.shape());
    }
    let inputs = [x, cos, sin];
    let (name, width) = match layout {
        RopeLayout::Half => ("rope_half", half),
        // Pairs of either type are less than a pack.
        RopeLayout::Interleaved => ("rope_interleaved", 1),
    };
    // A pair is read at once.
    let aligned = layout == RopeLayout::Half || x.layout().start_offset().is_multiple_of(2);
    let Some(operands) = Operands::of(&inputs, width).filter(|_| aligned) else { return Ok(None) };
    let packs = x.elem_count() / 2 / operands.pack;
    let params = [Param::of(packs)?, Param::of(tokens)?, Param::of(heads)?, Param::of(half)?, Param::F32(sign)];
    let outputs = [(operands.dtype, x.elem_count())];
    let [y] = operands.run(&ATTENTION_FILE, name, &inputs, outputs, &params, threads(packs)?)?;
    Ok(Some(tensor(y, x.shape())))
}

/// (B, M, N, K) -> (B, N, M, K); likewise. Outside of the graph.
pub fn swap(x: &Tensor) -> CandleResult<Option<Tensor>> {
    let (batch, m, n, k) = x.dims4()?;
    let Some(operands) = Operands::of(&[x], k) else { return Ok(None) };
    let (packs, across) = (x.elem_count() / operands.pack, k / operands.pack);
    let params = [Param::of(packs)?, Param::of(m)?, Param::of(n)?, Param::of(across)?];
    let outputs = [(operands.dtype, x.elem_count())];
    let [y] = operands.run(&ATTENTION_FILE, "swap", &[x], outputs, &params, threads(packs)?)?;
    Ok(Some(tensor(y, (batch, n, m, k))))
}

/// Softmax of `scale` times the scores (N, rows, seen) over the keys; row r sees keys up to that at `first + r % tokens`, if a first
/// one is given; likewise.
pub fn softmax(scores: &Tensor, scale: f64, tokens: usize, first: Option<usize>) -> Result<Option<Tensor>> {
    let (n, rows, seen) = scores.dims3()?;
    let Some(operands) = Operands::of(&[scores], 1) else { return Ok(None) };
    let first = match first {
        Some(first) => i32::try_from(first).map_err(candle_core::Error::wrap)?,
        None => -1,
    };
    let params = [
        Param::of(n * rows)?,
        Param::of(rows)?,
        Param::of(seen)?,
        Param::F32(scale as f32),
        Param::of(tokens)?,
        Param::I32(first),
    ];
    let outputs = [(operands.dtype, scores.elem_count())];
    let [y] = operands.run(&ATTENTION_FILE, "softmax", &[scores], outputs, &params, threads(32 * n * rows)?)?;
    Ok(Some(tensor(y, scores.shape())))
}

/// ds = p (dp - sum(dp p)) scale, row by row; likewise.
pub fn softmax_gradient(p: &Tensor, dp: &Tensor, scale: f64) -> CandleResult<Option<Tensor>> {
    let (n, rows, seen) = p.dims3()?;
    let inputs = [p, dp];
    let Some(operands) = Operands::of(&inputs, 1).filter(|_| p.dims() == dp.dims()) else { return Ok(None) };
    let params = [Param::of(n * rows)?, Param::of(seen)?, Param::F32(scale as f32)];
    let outputs = [(operands.dtype, p.elem_count())];
    let grid = threads(32 * n * rows)?;
    let [ds] = operands.run(&ATTENTION_FILE, "softmax_gradient", &inputs, outputs, &params, grid)?;
    Ok(Some(tensor(ds, p.shape())))
}
