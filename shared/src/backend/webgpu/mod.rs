//! The WebGpu backend: any GPU, in the browser through WebGPU, natively through Vulkan, Metal or DX12.
//!
//! Operations are recorded and go to the device when something is read, or when enough has come together. Weights stay in
//! the bits of their file, repacked into a few layouts whose words are aligned; activations are f32.

#[cfg(any(test, feature = "bench"))]
mod check;
#[cfg(feature = "bench")]
mod clock;
mod device;
mod faults;
mod kernels;
mod matrix;
mod memory;
mod pipeline;
mod read;
mod record;
mod repack;
mod replay;
#[cfg(test)]
mod tests;

use std::rc::Rc;

use super::{Activation, Backend, Chosen, Mask, Norm, RopeLayout, SelfAttention, composed};
use crate::{
    error::{Error, Result},
    weights::{RawTensor, TensorSource},
};

#[cfg(any(test, feature = "bench"))]
pub use check::{GROUPS, check};
pub use device::{Adapter, Options};
pub use kernels::attention::Cache;
pub use matrix::{Matrix, weight_bytes};
pub use record::Counters;
pub use replay::Recording;

use kernels::{linear::After, shape};
use memory::Block;

/// A GPU. Cheap to clone.
#[derive(Clone)]
pub struct WebGpu {
    gpu: Rc<device::Gpu>,
}

/// A dense f32 tensor on the GPU. Cheap to clone.
#[derive(Clone)]
pub struct Tensor {
    data: Rc<Block>,
    shape: Vec<usize>,
}

impl Tensor {
    fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Elements of the innermost dimension, and how many times they come.
    fn rows(&self) -> (usize, usize) {
        let width = self.shape.last().copied().unwrap_or(1);
        (self.elements().checked_div(width).unwrap_or(0), width)
    }
}

impl WebGpu {
    /// Opens the most powerful GPU that is there.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where there is none.
    pub async fn open(options: Options) -> Result<Self> {
        Ok(WebGpu { gpu: Rc::new(device::Gpu::open(options).await?) })
    }

    /// What it is.
    pub fn adapter(&self) -> &Adapter {
        &self.gpu.adapter
    }

    /// Lets the device finish what it was asked for, and add two numbers.
    ///
    /// # Errors
    /// [`Error::Backend`] with what went wrong so far, such as too little memory.
    pub async fn check(&self) -> Result<()> {
        let x = self.upload(&[1.0, 2.0], &[2])?;
        let sums = self.read(&self.add(&x, &x)?).await?;
        if sums == [2.0, 4.0] {
            return Ok(());
        }
        Err(Error::Backend(format!("expected a GPU that adds 1 and 1, 2 and 2, but found {sums:?}")))
    }

    /// Gives the device back with all that is on it, whoever still holds it: what is asked from now on fails.
    pub fn close(&self) {
        self.gpu.device.destroy();
    }

    /// What was asked of the device so far.
    pub fn counters(&self) -> Counters {
        self.gpu.counters()
    }

    /// A copy by the device's own means: the measure of its memory.
    #[cfg(feature = "bench")]
    pub(crate) fn duplicate(&self, x: &Tensor, times: usize) -> Result<Tensor> {
        let y = self.tensor(&x.shape)?;
        let bytes = 4 * x.elements() as u64;
        self.gpu.flush(|encoder| {
            for _ in 0..times {
                encoder.copy_buffer_to_buffer(&x.data.buffer, 0, &y.data.buffer, 0, Some(bytes));
            }
        });
        Ok(y)
    }

    /// What `ask` answers, and the name and microseconds of each kernel that it asks for, in order; none of them where the
    /// device has no clock for that.
    #[cfg(feature = "bench")]
    pub(crate) async fn timed<T>(&self, ask: impl FnOnce() -> Result<T>) -> Result<(T, Vec<(&'static str, f64)>)> {
        self.gpu.timed(ask).await
    }

    fn tensor(&self, shape: &[usize]) -> Result<Tensor> {
        let elements = shape::elements(shape)?;
        Ok(Tensor { data: self.gpu.memory.take(&self.gpu, 4 * elements as u64)?, shape: shape.to_vec() })
    }
}

/// A count as kernels take it.
fn word(value: usize) -> Result<u32> {
    u32::try_from(value).map_err(|_| Error::Backend(format!("expected sizes below 2^32 but found {value}")))
}

impl Backend for WebGpu {
    type Tensor = Tensor;
    type Matrix = Matrix;
    type Cache = Cache;
    type Recording = Recording;

    fn upload(&self, values: &[f32], shape: &[usize]) -> Result<Tensor> {
        if shape::elements(shape)? != values.len() {
            return Err(Error::Backend(format!(
                "upload: expected the values of {shape:?} but found {} of them",
                values.len()
            )));
        }
        let tensor = self.tensor(shape)?;
        self.gpu.write(&tensor.data, bytemuck::cast_slice(values))?;
        Ok(tensor)
    }

    fn upload_matrix(&self, raw: &RawTensor) -> Result<Matrix> {
        Matrix::new(&self.gpu, raw)
    }

    async fn load_matrix(&self, source: &impl TensorSource, name: &str, shape: [usize; 2]) -> Result<Matrix> {
        Matrix::load(&self.gpu, source, name, shape).await
    }

    async fn read(&self, x: &Tensor) -> Result<Vec<f32>> {
        read::read(&self.gpu, &x.data, x.elements()).await
    }

    fn shape(&self, x: &Tensor) -> Vec<usize> {
        x.shape.clone()
    }

    fn reshape(&self, x: &Tensor, shape: &[usize]) -> Result<Tensor> {
        if shape::elements(shape)? != x.elements() {
            return Err(Error::Backend(format!("reshape: expected the elements of {:?} but found {shape:?}", x.shape)));
        }
        Ok(Tensor { data: Rc::clone(&x.data), shape: shape.to_vec() })
    }

    fn concat(&self, parts: &[&Tensor], dim: usize) -> Result<Tensor> {
        self.join(parts, dim)
    }

    fn narrow(&self, x: &Tensor, dim: usize, start: usize, len: usize) -> Result<Tensor> {
        self.cut(x, dim, start, len)
    }

    fn index_rows(&self, x: &Tensor, ids: &[u32]) -> Result<Tensor> {
        self.pick(x, ids)
    }

    fn repeat_rows(&self, x: &Tensor, n: usize) -> Result<Tensor> {
        self.repeat(x, n)
    }

    fn linear(&self, x: &Tensor, w: &Matrix, bias: Option<&Tensor>) -> Result<Tensor> {
        self.product(x, w, bias, After::Nothing)
    }

    fn embedding(&self, w: &Matrix, ids: &[u32]) -> Result<Tensor> {
        self.table_rows(w, ids)
    }

    fn add(&self, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        self.sum(x, y)
    }

    fn layer_norm(&self, x: &Tensor, w: &Tensor, b: &Tensor, eps: f64) -> Result<Tensor> {
        self.centred_norm(x, w, b, eps)
    }

    fn rms_norm(&self, x: &Tensor, w: &Tensor, eps: f64) -> Result<Tensor> {
        self.mean_square_norm(x, w, eps)
    }

    fn activation(&self, x: &Tensor, kind: Activation) -> Result<Tensor> {
        self.activated(x, kind)
    }

    fn silu_mul(&self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        self.gated(gate, up)
    }

    fn rope(&self, x: &Tensor, table: &Tensor, start: usize, layout: RopeLayout) -> Result<Tensor> {
        self.rotated(x, table, start, layout)
    }

    fn attention(&self, q: &Tensor, k: &Tensor, v: &Tensor, mask: Mask) -> Result<Tensor> {
        self.attend(q, k, v, mask)
    }

    fn l2_normalize(&self, x: &Tensor) -> Result<Tensor> {
        self.unit_rows(x)
    }

    fn patchify(&self, x: &Tensor, patch: usize) -> Result<Tensor> {
        self.patches(x, patch)
    }

    fn linear_add(&self, x: &Tensor, w: &Matrix, bias: Option<&Tensor>, residual: &Tensor) -> Result<Tensor> {
        self.product(x, w, bias, After::Residual(residual))
    }

    fn linear_activation(&self, x: &Tensor, w: &Matrix, bias: Option<&Tensor>, kind: Activation) -> Result<Tensor> {
        self.product(x, w, bias, After::Activation(kind))
    }

    fn linear_silu_mul(&self, x: &Tensor, norm: Norm<'_, Self>, gate: &Matrix, up: &Matrix) -> Result<Tensor> {
        match self.gated_product(x, norm, gate, up)? {
            Some(y) => Ok(y),
            None => composed::linear_silu_mul(self, x, norm, gate, up),
        }
    }

    fn self_attention(
        &self,
        cache: Option<&mut Cache>,
        x: &Tensor,
        w: &SelfAttention<'_, Self>,
        start: usize,
    ) -> Result<Tensor> {
        match cache {
            Some(cache) => match self.joined_attention(cache, x, w, start)? {
                Some(y) => Ok(y),
                None => composed::self_attention(self, Some(cache), x, w, start),
            },
            None => composed::self_attention(self, None, x, w, start),
        }
    }

    async fn argmax(&self, x: &Tensor, mask: &Tensor) -> Result<Vec<u32>> {
        self.largest(x, mask).await
    }

    async fn top_k(&self, x: &Tensor, k: usize) -> Result<Vec<(u32, f32)>> {
        self.first_k(x, k).await
    }

    fn choose(&self, x: &Tensor, mask: &Tensor, place: Option<&Tensor>) -> Result<Option<Chosen<Self>>> {
        self.largest_later(x, mask, place).map(Some)
    }

    fn embedding_of(&self, w: &Matrix, ids: &Tensor) -> Result<Tensor> {
        self.table_rows_by(&w.0, &ids.data, ids.elements())
    }

    fn record<T>(&self, ids: &Tensor, step: impl FnOnce() -> Result<T>) -> Result<(T, Option<Recording>)> {
        self.gpu.record(&ids.data, step)
    }

    fn replay(&self, recording: &Recording, ids: &Tensor, moved: i64) -> Result<bool> {
        Ok(self.gpu.replay(recording, &ids.data, moved))
    }

    fn cache(&self, batch: usize, kv_heads: usize, capacity: usize, head_dim: usize) -> Result<Cache> {
        Cache::new(&self.gpu, batch, kv_heads, capacity, head_dim)
    }

    fn cached_attention(&self, cache: &mut Cache, q: &Tensor, k: &Tensor, v: &Tensor, start: usize) -> Result<Tensor> {
        self.append_and_attend(cache, q, k, v, start)
    }

    fn cache_reorder(&self, cache: &mut Cache, rows: &[usize], len: usize) -> Result<()> {
        self.reorder(cache, rows, len)
    }
}
