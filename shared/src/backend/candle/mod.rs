//! The Candle backend: CPU (native and wasm SIMD) and CUDA. Its tensors carry automatic differentiation, so the trainer
//! trains through the forward that the browser runs.

mod attention;
mod blocks;
mod cache;
mod composite;
mod compute;
#[cfg(feature = "cuda")]
mod cuda;
mod fused;
mod joined;
mod matrix;
mod node;
mod single;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_bf16;

use candle_core::{DType, Device, Tensor};
use std::sync::Arc;

use super::{Activation, Backend, Mask, Norm, RopeLayout, SelfAttention, composed};
use crate::{
    error::{Error, Result},
    weights::RawTensor,
};

pub use cache::Cache;
pub use compute::Compute;
pub use matrix::Matrix;

/// Candle on one device, in one type.
#[derive(Debug, Clone)]
pub struct Candle {
    device: Arc<Device>,
    compute: Compute,
    /// Whether quantised matrices become dense ones.
    unpacked: bool,
}

impl Candle {
    /// The CPU: all cores natively, one thread with SIMD128 in a browser.
    pub fn cpu() -> Self {
        Self::new(Device::Cpu)
    }

    /// A device that the caller opened, in f32.
    pub fn new(device: Device) -> Self {
        Candle { device: Arc::new(device), compute: Compute::F32, unpacked: false }
    }

    /// The NVIDIA GPU of that number, in f32, with one order of work for all threads.
    ///
    /// # Errors
    /// [`crate::Error::Backend`] with the driver's words where there is none.
    #[cfg(feature = "cuda")]
    pub fn cuda(ordinal: usize) -> Result<Self> {
        Ok(Self::new(cuda::open(ordinal)?))
    }

    /// The same device, whose activations and frozen weights are of that type. Tensors of another one, such as variables, are
    /// cast where they meet them, and get gradients of their own type; embeddings ([`Backend::l2_normalize`]) are f32.
    pub fn computing_in(&self, compute: Compute) -> Self {
        Candle { compute, ..self.clone() }
    }

    /// The same device, on which matrices are dense, in the type that is computed in, whatever their files hold.
    pub fn unpacking(&self) -> Self {
        Candle { unpacked: true, ..self.clone() }
    }

    /// The type of activations and frozen weights.
    pub fn compute(&self) -> Compute {
        self.compute
    }

    /// The device that tensors live on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Whether the fused CPU operations apply; elsewhere the same is composed of Candle's own operations.
    fn fused(&self) -> bool {
        self.device.is_cpu() && self.compute == Compute::F32
    }

    fn dtype(&self) -> DType {
        self.compute.dtype()
    }
}

impl Backend for Candle {
    type Tensor = Tensor;
    type Matrix = Matrix;
    type Cache = Cache;
    /// It is as soon walked through again.
    type Recording = std::convert::Infallible;

    fn upload(&self, values: &[f32], shape: &[usize]) -> Result<Tensor> {
        Ok(Tensor::from_slice(values, shape, self.device())?.to_dtype(self.dtype())?)
    }

    fn upload_matrix(&self, raw: &RawTensor) -> Result<Matrix> {
        Matrix::new(raw, self.device(), self.dtype(), self.unpacked)
    }

    async fn read(&self, x: &Tensor) -> Result<Vec<f32>> {
        Ok(x.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
    }

    fn shape(&self, x: &Tensor) -> Vec<usize> {
        x.dims().to_vec()
    }

    fn reshape(&self, x: &Tensor, shape: &[usize]) -> Result<Tensor> {
        Ok(x.reshape(shape)?)
    }

    fn concat(&self, parts: &[&Tensor], dim: usize) -> Result<Tensor> {
        if parts.windows(2).all(|two| two[0].dtype() == two[1].dtype()) {
            return Ok(Tensor::cat(parts, dim)?);
        }
        let parts: Vec<Tensor> = parts.iter().map(|part| part.to_dtype(self.dtype())).collect::<Result<_, _>>()?;
        Ok(Tensor::cat(&parts, dim)?)
    }

    fn narrow(&self, x: &Tensor, dim: usize, start: usize, len: usize) -> Result<Tensor> {
        Ok(x.narrow(dim, start, len)?.contiguous()?)
    }

    fn index_rows(&self, x: &Tensor, ids: &[u32]) -> Result<Tensor> {
        Ok(x.index_select(&Tensor::from_slice(ids, ids.len(), self.device())?, 0)?)
    }

    fn repeat_rows(&self, x: &Tensor, n: usize) -> Result<Tensor> {
        let mut shape = x.dims().to_vec();
        match shape.first_mut() {
            Some(first) if *first == 1 => *first = n,
            _ => return Err(Error::Backend(format!("repeat_rows: expected shape (1, ...) but found {shape:?}"))),
        }
        Ok(x.broadcast_as(shape)?.contiguous()?)
    }

    fn linear(&self, x: &Tensor, w: &Matrix, bias: Option<&Tensor>) -> Result<Tensor> {
        w.linear(x, bias, self.dtype())
    }

    fn embedding(&self, w: &Matrix, ids: &[u32]) -> Result<Tensor> {
        w.rows(ids, self.device(), self.dtype())
    }

    fn add(&self, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        let sum = |x: &Tensor, y: &Tensor| if x.dims() == y.dims() { x.add(y) } else { x.broadcast_add(y) };
        if x.dtype() == y.dtype() {
            return Ok(sum(x, y)?);
        }
        // A trained tensor: its gradient is a sum over the outer dimensions, and that is taken in f32.
        Ok(sum(&x.to_dtype(DType::F32)?, &y.to_dtype(DType::F32)?)?.to_dtype(self.dtype())?)
    }

    fn layer_norm(&self, x: &Tensor, w: &Tensor, b: &Tensor, eps: f64) -> Result<Tensor> {
        if self.fused() { fused::layer_norm(x, w, b, eps) } else { single::layer_norm(x, w, b, eps) }
    }

    fn rms_norm(&self, x: &Tensor, w: &Tensor, eps: f64) -> Result<Tensor> {
        if self.fused() { fused::rms_norm(x, w, eps) } else { single::rms_norm(x, w, eps) }
    }

    fn activation(&self, x: &Tensor, kind: Activation) -> Result<Tensor> {
        if self.fused() { fused::activation(x, kind) } else { single::activation(x, kind) }
    }

    fn silu_mul(&self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        if self.fused() { fused::silu_mul(gate, up) } else { single::silu_mul(gate, up) }
    }

    fn rope(&self, x: &Tensor, table: &Tensor, start: usize, layout: RopeLayout) -> Result<Tensor> {
        let of_positions = |table: Tensor| table.narrow(0, start, x.dim(1)?)?.contiguous();
        let (cos, sin) = (of_positions(table.get(0)?)?, of_positions(table.get(1)?)?);
        if self.fused() { fused::rope(x, &cos, &sin, layout) } else { single::rope(x, &cos, &sin, layout) }
    }

    fn attention(&self, q: &Tensor, k: &Tensor, v: &Tensor, mask: Mask) -> Result<Tensor> {
        attention::attention(q, k, v, mask)
    }

    fn attention_block(
        &self,
        cache: Option<&mut Cache>,
        x: &Tensor,
        w: &SelfAttention<'_, Self>,
        output: &Matrix,
        start: usize,
    ) -> Result<Tensor> {
        let joined = if cache.is_none() { joined::attention_block(self, x, w, output, start)? } else { None };
        match joined {
            Some(y) => Ok(y),
            None => composed::attention_block(self, cache, x, w, output, start),
        }
    }

    fn mlp_block(&self, x: &Tensor, norm: Norm<'_, Self>, matrices: [&Matrix; 3]) -> Result<Tensor> {
        match joined::mlp_block(self, x, norm, matrices)? {
            Some(y) => Ok(y),
            None => composed::mlp_block(self, x, norm, matrices),
        }
    }

    fn l2_normalize(&self, x: &Tensor) -> Result<Tensor> {
        composite::l2_normalize(x)
    }

    fn patchify(&self, x: &Tensor, patch: usize) -> Result<Tensor> {
        composite::patchify(x, patch)
    }

    fn cache(&self, batch: usize, kv_heads: usize, capacity: usize, head_dim: usize) -> Result<Cache> {
        Cache::new((batch, kv_heads), capacity, head_dim, self.dtype(), self.device())
    }

    fn cached_attention(&self, cache: &mut Cache, q: &Tensor, k: &Tensor, v: &Tensor, start: usize) -> Result<Tensor> {
        cache.append_and_attend(q, k, v, start)
    }

    fn cache_reorder(&self, cache: &mut Cache, rows: &[usize], len: usize) -> Result<()> {
        cache.reorder(rows, len)
    }
}
