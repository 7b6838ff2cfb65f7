//! Weight matrices: dense (perhaps trained) or in the blocks of their file.

use candle_core::{
    CpuStorage, CudaStorage, CustomOp3, D, DType, Device, Layout, Result as CandleResult, Shape, Storage, Tensor,
    backend::BackendStorage, bail,
};
use half::bf16;

use super::blocks::Blocks;
use crate::{
    error::{Error, Result},
    weights::{Dtype, RawTensor, quant},
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
    /// Of floats; a gradient is computed for it if `trained`.
    Dense { w: Tensor, trained: bool },
    /// As in its file, frozen.
    Blocks(Blocks),
}

impl Matrix {
    /// In its blocks, unless it is small, has none or is to be `unpacked`; else dense in `dtype`.
    pub(super) fn new(raw: &RawTensor, device: &Device, dtype: DType, unpacked: bool) -> Result<Self> {
        let [rows, columns] = raw.shape[..] else {
            return Err(Error::Backend(format!("expected a matrix but found shape {:?}", raw.shape)));
        };
        let small = device.is_cpu() && rows * columns < DENSE;
        let blocks = if small || unpacked { None } else { Blocks::new(raw, (rows, columns), device)? };
        if let Some(blocks) = blocks {
            return Ok(Matrix(Kind::Blocks(blocks)));
        }
        let shape = (rows, columns);
        Ok(Self::frozen(match (dtype, raw.dtype) {
            (DType::BF16, Dtype::BF16) => Tensor::from_raw_buffer(&raw.bytes, DType::BF16, &[rows, columns], device)?,
            // Rounded here: half as much goes to the device.
            (DType::BF16, _) => {
                let values: Vec<bf16> = quant::dequantize(raw)?.into_iter().map(bf16::from_f32).collect();
                Tensor::from_vec(values, shape, device)?
            }
            _ => Tensor::from_vec(quant::dequantize(raw)?, shape, device)?,
        }))
    }

    /// A dense matrix that no gradient is computed for.
    pub fn frozen(w: Tensor) -> Self {
        Matrix(Kind::Dense { w: w.detach(), trained: false })
    }

    /// A dense matrix that gets a gradient; for the trainer.
    pub fn trained(w: Tensor) -> Self {
        Matrix(Kind::Dense { w, trained: true })
    }

    /// x (..., in) -> (..., out) in `dtype`.
    pub(super) fn linear(&self, x: &Tensor, bias: Option<&Tensor>, dtype: DType) -> Result<Tensor> {
        let x = x.to_dtype(dtype)?.contiguous()?;
        let y = match &self.0 {
            Kind::Dense { w, trained } => return dense(&x, w, bias, *trained),
            Kind::Blocks(blocks) => blocks.product(&x.reshape(((), x.dim(D::Minus1)?))?)?,
        };
        let y = match bias {
            Some(bias) => y.broadcast_add(&bias.to_dtype(dtype)?)?,
            None => y,
        };
        Ok(y.reshape(output_shape(&x, y.dim(1)?))?)
    }

    /// Whether no gradient is computed for it.
    pub(super) fn is_frozen(&self) -> bool {
        !matches!(&self.0, Kind::Dense { trained: true, .. })
    }

    /// x (n, in) -> x w^T (n, out) outside of the graph, but as it is computed inside of one.
    pub(super) fn frozen_product(&self, x: &Tensor) -> CandleResult<Tensor> {
        match &self.0 {
            Kind::Dense { w, .. } => x.matmul(&w.detach().to_dtype(x.dtype())?.t()?),
            Kind::Blocks(blocks) => blocks.many(x),
        }
    }

    /// Of the product with it: grad (n, out) -> grad w (n, in), in the type of `grad`.
    pub(super) fn input_gradient(&self, grad: &Tensor) -> CandleResult<Tensor> {
        let grad = grad.contiguous()?;
        match &self.0 {
            Kind::Dense { w, .. } => grad.matmul(&w.detach().to_dtype(grad.dtype())?),
            Kind::Blocks(blocks) => blocks.input_gradient(&grad),
        }
    }

    /// Rows `ids` (ids, in) in `dtype`.
    pub(super) fn rows(&self, ids: &[u32], device: &Device, dtype: DType) -> Result<Tensor> {
        let rows = match &self.0 {
            Kind::Dense { w, .. } => w.dim(0)?,
            Kind::Blocks(blocks) => blocks.shape().0,
        };
        if let Some(id) = ids.iter().find(|&&id| id as usize >= rows) {
            return Err(Error::Backend(format!("embedding: expected ids below {rows} but found {id}")));
        }
        match &self.0 {
            // The cast comes after: a trained row that stands several times sums its gradients in f32.
            Kind::Dense { w, .. } => {
                Ok(w.index_select(&Tensor::from_slice(ids, ids.len(), device)?, 0)?.to_dtype(dtype)?)
            }
            Kind::Blocks(blocks) => Ok(blocks.rows(ids, device)?.to_dtype(dtype)?),
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

/// x in the type of the product; w and the bias are cast to it.
fn dense(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, trained: bool) -> Result<Tensor> {
    let dtype = x.dtype();
    if !x.track_op() && !trained {
        let y = x.reshape(((), x.dim(D::Minus1)?))?.matmul(&w.detach().to_dtype(dtype)?.t()?)?;
        let y = match bias {
            Some(bias) => y.broadcast_add(&bias.to_dtype(dtype)?)?,
            None => y,
        };
        return Ok(y.reshape(output_shape(x, w.dim(0)?))?);
    }
    let cast = |x: &Tensor| (x.dtype() != dtype).then(|| x.detach().to_dtype(dtype)).transpose();
    let none = Tensor::zeros(1, dtype, w.device())?;
    let cast_bias = bias.map(cast).transpose()?.flatten();
    let op = Linear { w: cast(w)?, bias: cast_bias, trained, biased: bias.is_some() };
    Ok(x.apply_op3(w, bias.unwrap_or(&none), op)?)
}

/// x (..., in), w (out, in), bias (out). Candle's own product would also compute and keep the gradient of a frozen `w`, and
/// the change of shape on either side would be nodes of their own.
struct Linear {
    /// The weight in the type of x, where it is of another.
    w: Option<Tensor>,
    /// Likewise.
    bias: Option<Tensor>,
    trained: bool,
    biased: bool,
}

/// x (..., in), w (out, in) -> x w^T as a matrix (n, out), with its layout, and its shape (..., out).
fn product<S: BackendStorage>(x: &S, lx: &Layout, w: &S, lw: &Layout) -> CandleResult<(S, Layout, Shape)> {
    let (out, input) = lw.shape().dims2()?;
    if lx.shape().dims().last() != Some(&input) {
        bail!("linear: expected x (..., {input}) but found {:?}", lx.shape());
    }
    let n = lx.shape().elem_count() / input.max(1);
    let rows = Layout::contiguous_with_offset((n, input), lx.start_offset());
    let y = x.matmul(w, (1, n, out, input), &rows, &lw.transpose(0, 1)?)?;
    let mut shape = lx.shape().dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = out;
    }
    Ok((y, Layout::contiguous((n, out)), Shape::from(shape)))
}

/// y + bias, row by row.
fn biased<S: BackendStorage>(y: &S, layout: &Layout, bias: &S, lb: &Layout) -> CandleResult<S> {
    y.binary_impl::<candle_core::op::Add>(bias, layout, &lb.broadcast_as(layout.shape().clone())?)
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> CandleResult<(CpuStorage, Shape)> {
        let (mut y, layout, shape) = match &self.w {
            Some(w) => on_cpu(w, |w, lw| product(s1, l1, w, lw))?,
            None => product(s1, l1, s2, l2)?,
        };
        if !self.biased {
            return Ok((y, shape));
        }
        if let Some(bias) = &self.bias {
            return Ok((on_cpu(bias, |bias, lb| biased(&y, &layout, bias, lb))?, shape));
        }
        let CpuStorage::F32(sums) = &mut y else { return Ok((biased(&y, &layout, s3, l3)?, shape)) };
        let bias = super::fused::values(s3, l3)?;
        for row in sums.chunks_exact_mut(bias.len()) {
            for (y, b) in row.iter_mut().zip(bias) {
                *y += b;
            }
        }
        Ok((y, shape))
    }

    fn cuda_fwd(
        &self,
        s1: &CudaStorage,
        l1: &Layout,
        s2: &CudaStorage,
        l2: &Layout,
        s3: &CudaStorage,
        l3: &Layout,
    ) -> CandleResult<(CudaStorage, Shape)> {
        let (y, layout, shape) = match &self.w {
            Some(w) => on_cuda(w, |w, lw| product(s1, l1, w, lw))?,
            None => product(s1, l1, s2, l2)?,
        };
        let y = match &self.bias {
            _ if !self.biased => y,
            Some(bias) => on_cuda(bias, |bias, lb| biased(&y, &layout, bias, lb))?,
            None => biased(&y, &layout, s3, l3)?,
        };
        Ok((y, shape))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        bias: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?.reshape(((), w.dim(0)?))?;
        let cast = self.w.clone().unwrap_or_else(|| w.detach());
        let dx = if x.track_op() { Some(grad.matmul(&cast)?.reshape(x.shape())?) } else { None };
        if !self.trained {
            return Ok((dx, None, None));
        }
        let dw = grad.t()?.matmul(&x.detach().reshape(((), w.dim(1)?))?)?.to_dtype(w.dtype())?;
        let db = if self.biased { Some(column_sums(&grad)?.to_dtype(bias.dtype())?) } else { None };
        Ok((dx, Some(dw), db))
    }
}

fn on_cpu<T>(x: &Tensor, f: impl FnOnce(&CpuStorage, &Layout) -> CandleResult<T>) -> CandleResult<T> {
    let (storage, layout) = x.storage_and_layout();
    let Storage::Cpu(cpu) = &*storage else { bail!("expected a tensor on the CPU") };
    f(cpu, layout)
}

fn on_cuda<T>(x: &Tensor, f: impl FnOnce(&CudaStorage, &Layout) -> CandleResult<T>) -> CandleResult<T> {
    let (storage, layout) = x.storage_and_layout();
    let Storage::Cuda(cuda) = &*storage else { bail!("expected a tensor on a CUDA device") };
    f(cuda, layout)
}

/// In f32.
fn column_sums(grad: &Tensor) -> CandleResult<Tensor> {
    let grad = grad.to_dtype(DType::F32)?;
    if !grad.device().is_cpu() {
        return grad.sum(0);
    }
    let columns = grad.dim(1)?;
    let sums = super::fused::with_values(&grad, |g| {
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
