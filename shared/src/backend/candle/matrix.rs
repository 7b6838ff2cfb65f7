//! Weight matrices: dense (perhaps trained) or in the blocks of their file.

use candle_core::{
    CpuStorage, CudaStorage, CustomOp3, D, DType, Device, Layout, Result as CandleResult, Shape, Storage, Tensor, bail,
};

use super::blocks::Blocks;
use crate::{
    error::{Error, Result},
    weights::{RawTensor, quant},
};

/// Elements below which the CPU keeps a quantised matrix as f32. Candle's product with blocks rounds activations to eight
/// bits, which a small model's scores show in the third digit and otherwise on each processor; saving memory is for large
/// ones.
const DENSE: usize = 1 << 20;

/// A weight matrix (out, in).
#[derive(Debug, Clone)]
pub struct Matrix(Kind);

#[derive(Debug, Clone)]
enum Kind {
    /// f32; a gradient is computed for it if `trained`.
    Dense { w: Tensor, trained: bool },
    /// As in its file, frozen.
    Blocks(Blocks),
}

impl Matrix {
    pub(super) fn new(raw: &RawTensor, device: &Device) -> Result<Self> {
        let [rows, columns] = raw.shape[..] else {
            return Err(Error::Backend(format!("expected a matrix but found shape {:?}", raw.shape)));
        };
        let small = device.is_cpu() && rows * columns < DENSE;
        let blocks = if small { None } else { Blocks::new(raw, (rows, columns), device)? };
        if let Some(blocks) = blocks {
            return Ok(Matrix(Kind::Blocks(blocks)));
        }
        Ok(Self::frozen(Tensor::from_vec(quant::dequantize(raw)?, (rows, columns), device)?))
    }

    /// A dense matrix that no gradient is computed for.
    pub fn frozen(w: Tensor) -> Self {
        Matrix(Kind::Dense { w, trained: false })
    }

    /// A dense matrix that gets a gradient; for the trainer.
    pub fn trained(w: Tensor) -> Self {
        Matrix(Kind::Dense { w, trained: true })
    }

    /// x (..., in) -> (..., out).
    pub(super) fn linear(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let input = x.dim(D::Minus1)?;
        let x2 = x.contiguous()?.reshape(((), input))?;
        let y = match &self.0 {
            Kind::Dense { w, trained } => return dense(x, &x2, w, bias, *trained),
            Kind::Blocks(blocks) => blocks.product(&x2)?,
        };
        let y = match bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        };
        Ok(y.reshape(output_shape(x, y.dim(1)?))?)
    }

    /// Rows `ids` (ids, in).
    pub(super) fn rows(&self, ids: &[u32], device: &Device) -> Result<Tensor> {
        let rows = match &self.0 {
            Kind::Dense { w, .. } => w.dim(0)?,
            Kind::Blocks(blocks) => blocks.shape().0,
        };
        if let Some(id) = ids.iter().find(|&&id| id as usize >= rows) {
            return Err(Error::Backend(format!("embedding: expected ids below {rows} but found {id}")));
        }
        match &self.0 {
            Kind::Dense { w, .. } => Ok(w.index_select(&Tensor::from_slice(ids, ids.len(), device)?, 0)?),
            Kind::Blocks(blocks) => blocks.rows(ids, device),
        }
    }
}

fn output_shape(x: &Tensor, out: usize) -> Vec<usize> {
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = out;
    }
    shape
}

fn dense(x: &Tensor, x2: &Tensor, w: &Tensor, bias: Option<&Tensor>, trained: bool) -> Result<Tensor> {
    let shape = output_shape(x, w.dim(0)?);
    let flat = x2.detach().matmul(&w.detach().t()?)?;
    if !x2.track_op() && !trained {
        let y = match bias {
            Some(bias) => flat.broadcast_add(bias)?,
            None => flat,
        };
        return Ok(y.reshape(shape)?);
    }
    let none = Tensor::zeros(1, DType::F32, w.device())?;
    let op = Linear { flat, trained, biased: bias.is_some() };
    Ok(x2.apply_op3(w, bias.unwrap_or(&none), op)?.reshape(shape)?)
}

/// x (n, in), w (out, in), bias (out). Candle's own product would also compute and keep the gradient of a frozen `w`.
struct Linear {
    /// x w^T, made by Candle's product before this node.
    flat: Tensor,
    trained: bool,
    biased: bool,
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> CandleResult<(CpuStorage, Shape)> {
        let (storage, layout) = self.flat.storage_and_layout();
        let Storage::Cpu(cpu) = &*storage else { bail!("expected a tensor on the CPU") };
        let mut y = super::fused::values(cpu, layout)?.to_vec();
        if self.biased {
            let bias = super::fused::values(s3, l3)?;
            for row in y.chunks_exact_mut(bias.len()) {
                for (y, b) in row.iter_mut().zip(bias) {
                    *y += b;
                }
            }
        }
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        s3: &CudaStorage,
        l3: &Layout,
    ) -> CandleResult<(CudaStorage, Shape)> {
        use candle_core::backend::BackendStorage;
        let (storage, layout) = self.flat.storage_and_layout();
        let Storage::Cuda(cuda) = &*storage else { bail!("expected a tensor on a CUDA device") };
        let y = if self.biased {
            let bias = l3.broadcast_as(layout.shape().clone())?;
            cuda.binary_impl::<candle_core::op::Add>(s3, layout, &bias)?
        } else {
            cuda.try_clone(layout)?
        };
        Ok((y, layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _bias: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let dx = if x.track_op() { Some(grad.matmul(&w.detach())?) } else { None };
        if !self.trained {
            return Ok((dx, None, None));
        }
        let dw = grad.t()?.matmul(&x.detach())?;
        let db = if self.biased { Some(column_sums(&grad)?) } else { None };
        Ok((dx, Some(dw), db))
    }
}

fn column_sums(grad: &Tensor) -> CandleResult<Tensor> {
    if !grad.device().is_cpu() {
        return grad.sum(0);
    }
    let columns = grad.dim(1)?;
    let sums = super::fused::with_values(grad, |g| {
        let mut sums = vec![0f32; columns];
        for row in g.chunks_exact(columns) {
            for (s, g) in sums.iter_mut().zip(row) {
                *s += g;
            }
        }
        Ok(sums)
    })?;
    Tensor::from_vec(sums, columns, grad.device())
}
