//! A quantised weight matrix in the blocks of its file: one row of activations is multiplied with the blocks as they are,
//! many are multiplied with values that are unpacked once for all of them, a tile of weight rows at a time.

use std::{borrow::Cow, sync::Arc};

use candle_core::{
    DType, Device, Module, Result as CandleResult, Tensor,
    quantized::{GgmlDType, QMatMul, QStorage, QTensor},
};
use rayon::prelude::*;

use super::node::Node;
use crate::{
    error::Result,
    weights::{Dtype, RawTensor, quant},
};

/// Elements of a tile: 2 MiB of f32, which stay in a core's cache between unpacking and multiplying.
const TILE: usize = 1 << 19;
/// Tiles of a core in a round of a product.
const ROUND: usize = 4;
/// Rows of activations from which on unpacking pays (`cargo xtask bench -- prefill`).
const MANY: usize = 4;

/// A matrix (out, in) of blocks, frozen. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Blocks {
    product: Arc<QMatMul>,
    tensor: Arc<QTensor>,
    dtype: Dtype,
    /// The file's bytes where the tensor's are in a GPU's memory: rows of an embedding come out of these.
    host: Option<Arc<Vec<u8>>>,
}

impl Blocks {
    /// `None` for the float types, which have no blocks.
    pub fn new(raw: &RawTensor, shape: (usize, usize), device: &Device) -> Result<Option<Self>> {
        let Some(dtype) = ggml(raw.dtype) else { return Ok(None) };
        let storage = QStorage::from_data(Cow::Borrowed(&raw.bytes), device, dtype)?;
        let tensor = Arc::new(QTensor::new(storage, shape)?);
        let product = Arc::new(QMatMul::from_arc(tensor.clone())?);
        let host = (!device.is_cpu()).then(|| Arc::new(raw.bytes.clone()));
        Ok(Some(Blocks { product, tensor, dtype: raw.dtype, host }))
    }

    /// (out, in).
    pub fn shape(&self) -> (usize, usize) {
        match self.tensor.shape().dims() {
            [rows, columns] => (*rows, *columns),
            // `new` takes nothing else.
            _ => (0, 0),
        }
    }

    /// x (n, in) -> x w^T (n, out). Its gradient is the input's alone, and no unpacked weights are kept for it.
    pub fn product(&self, x: &Tensor) -> Result<Tensor> {
        if x.track_op() {
            let (product, blocks) = (self.many(&x.detach())?, self.clone());
            let back = move |grad: &Tensor| -> CandleResult<Tensor> { blocks.input_gradient(&grad.contiguous()?) };
            return Ok(x.apply_op1(Node::new("linear-quantised", product, back))?);
        }
        if x.dim(0)? >= MANY && x.device().is_cpu() {
            return Ok(self.many(x)?);
        }
        // Candle multiplies blocks with f32 alone.
        Ok(self.product.forward(&x.to_dtype(DType::F32)?)?.to_dtype(x.dtype())?)
    }

    /// Rows `ids` (ids, in).
    pub fn rows(&self, ids: &[u32], device: &Device) -> Result<Tensor> {
        let (_, width) = self.shape();
        let rows = ids.iter().map(|&id| id as usize);
        let values = match &self.host {
            Some(bytes) => quant::dequantize_rows(bytes, self.dtype, width, rows)?,
            None => quant::dequantize_rows(&self.tensor.data()?, self.dtype, width, rows)?,
        };
        Ok(Tensor::from_vec(values, (ids.len(), width), device)?)
    }

    /// x w^T by unpacked weights, in the type of x: what training sees.
    pub fn many(&self, x: &Tensor) -> CandleResult<Tensor> {
        if x.dtype() != DType::F32 && x.device().is_cpu() {
            return self.many(&x.to_dtype(DType::F32)?)?.to_dtype(x.dtype());
        }
        let mut parts = Vec::new();
        let keep = |part| {
            parts.push(part);
            Ok(())
        };
        // Every core has tiles of its own: to share the work of each costs more than it brings.
        let cores = rayon::current_num_threads();
        self.tiles(self.shape().0.div_ceil(cores), ROUND * cores, |_, w| x.matmul(&w.to_dtype(x.dtype())?.t()?), keep)?;
        if parts.len() == 1 { Ok(parts.swap_remove(0)) } else { Tensor::cat(&parts, 1) }
    }

    /// grad (n, out) -> grad w (n, in).
    pub fn input_gradient(&self, grad: &Tensor) -> CandleResult<Tensor> {
        if grad.dtype() != DType::F32 && grad.device().is_cpu() {
            return self.input_gradient(&grad.to_dtype(DType::F32)?)?.to_dtype(grad.dtype());
        }
        let mut sum: Option<Tensor> = None;
        let product =
            |start, w: &Tensor| grad.narrow(1, start, w.dim(0)?)?.contiguous()?.matmul(&w.to_dtype(grad.dtype())?);
        // One at a time, for each is as large as the sum; whole tiles, for their number shows in its last bits.
        self.tiles(usize::MAX, 1, product, |part| {
            sum = Some(match sum.take() {
                Some(sum) => (sum + part)?,
                None => part,
            });
            Ok(())
        })?;
        match sum {
            Some(sum) => Ok(sum),
            None => Tensor::zeros((grad.dim(0)?, self.shape().1), grad.dtype(), grad.device()),
        }
    }

    /// Gives `take` what `f` makes of the first row and the f32 values (rows, in) of each tile of at most `most` rows, in their
    /// order; `round` of them are made at once. A GPU unpacks all at once.
    fn tiles(
        &self,
        most: usize,
        round: usize,
        f: impl Fn(usize, &Tensor) -> CandleResult<Tensor> + Sync,
        mut take: impl FnMut(Tensor) -> CandleResult<()>,
    ) -> CandleResult<()> {
        let device = self.tensor.device();
        if !device.is_cpu() {
            return take(f(0, &self.tensor.dequantize(&device)?)?);
        }
        let (rows, width) = self.shape();
        let bytes = self.tensor.data()?;
        let row_bytes = bytes.len() / rows.max(1);
        let most = (TILE / width.max(1)).min(most).max(1);
        let tile = |start: usize| {
            let count = most.min(rows - start);
            let mut values = vec![0f32; count * width];
            values
                .par_chunks_mut(width)
                .zip(bytes[start * row_bytes..(start + count) * row_bytes].par_chunks(row_bytes))
                .with_min_len((most / 16).max(1))
                .try_for_each(|(out, row)| quant::dequantize_into(row, self.dtype, out))
                .map_err(candle_core::Error::wrap)?;
            f(start, &Tensor::from_vec(values, (count, width), &device)?)
        };
        let starts: Vec<usize> = (0..rows).step_by(most).collect();
        for round in starts.chunks(round.max(1)) {
            let made: Vec<Tensor> = round.par_iter().map(|&start| tile(start)).collect::<CandleResult<_>>()?;
            made.into_iter().try_for_each(&mut take)?;
        }
        Ok(())
    }
}

/// Candle's name of a block type; `None` for the float types.
fn ggml(dtype: Dtype) -> Option<GgmlDType> {
    Some(match dtype {
        Dtype::F32 | Dtype::F16 | Dtype::BF16 => return None,
        Dtype::Q4_0 => GgmlDType::Q4_0,
        Dtype::Q4_1 => GgmlDType::Q4_1,
        Dtype::Q5_0 => GgmlDType::Q5_0,
        Dtype::Q5_1 => GgmlDType::Q5_1,
        Dtype::Q8_0 => GgmlDType::Q8_0,
        Dtype::Q2_K => GgmlDType::Q2K,
        Dtype::Q3_K => GgmlDType::Q3K,
        Dtype::Q4_K => GgmlDType::Q4K,
        Dtype::Q5_K => GgmlDType::Q5K,
        Dtype::Q6_K => GgmlDType::Q6K,
    })
}
