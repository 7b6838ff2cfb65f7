//! What a device must be able to do: one method per operation.
//!
//! Encoding is synchronous and may be lazy; [`Backend::read`] alone is async, for a browser's GPU answers later. All
//! activations are f32. Shapes are row-major, outermost first, in the letters of the crate's front page.

pub mod candle;
mod composed;
#[cfg(feature = "webgpu")]
pub mod webgpu;

use std::pin::Pin;

use crate::{
    error::{Error, Result},
    weights::{RawTensor, TensorSource},
};

pub use candle::Candle;
#[cfg(feature = "webgpu")]
pub use webgpu::WebGpu;

/// A device with its operations. Cheap to clone.
pub trait Backend: Clone + 'static {
    /// A dense f32 tensor. Cheap to clone.
    type Tensor: Clone;
    /// A weight matrix (out, in) in the type of its file, perhaps quantised. Cheap to clone.
    type Matrix: Clone;
    /// Keys and values of one layer, allocated once for a capacity: (B, G, capacity, K) each.
    type Cache;
    /// A step of decoding that a device keeps, to do it again; a type without values where none does.
    type Recording;

    // --- in and out -------------------------------------------------------------------------------------------
    /// Host values to the device.
    fn upload(&self, values: &[f32], shape: &[usize]) -> Result<Self::Tensor>;
    /// A weight matrix (out, in) to the device, in its stored type.
    fn upload_matrix(&self, raw: &RawTensor) -> Result<Self::Matrix>;
    /// A weight matrix (out, in) out of a source: `name`, whose elements `shape` may arrange otherwise than the file does (a
    /// convolution's kernel). A device that can takes it in pieces, so that a file may be larger than memory.
    fn load_matrix(
        &self,
        source: &impl TensorSource,
        name: &str,
        shape: [usize; 2],
    ) -> impl Future<Output = Result<Self::Matrix>> {
        async move { self.upload_matrix(&RawTensor { shape: shape.to_vec(), ..source.fetch(name).await? }) }
    }
    /// Device values to the host, row-major.
    fn read(&self, x: &Self::Tensor) -> impl Future<Output = Result<Vec<f32>>>;
    /// Shape of a tensor.
    fn shape(&self, x: &Self::Tensor) -> Vec<usize>;

    // --- shape ------------------------------------------------------------------------------------------------
    /// Same elements, other shape.
    fn reshape(&self, x: &Self::Tensor, shape: &[usize]) -> Result<Self::Tensor>;
    /// Joins along `dim`.
    fn concat(&self, parts: &[&Self::Tensor], dim: usize) -> Result<Self::Tensor>;
    /// `len` entries of `dim` from `start`.
    fn narrow(&self, x: &Self::Tensor, dim: usize, start: usize, len: usize) -> Result<Self::Tensor>;
    /// Rows `ids` of the outermost dimension: (N, ...) -> (ids, ...).
    fn index_rows(&self, x: &Self::Tensor, ids: &[u32]) -> Result<Self::Tensor>;
    /// `x` (1, ...) repeated to (n, ...).
    fn repeat_rows(&self, x: &Self::Tensor, n: usize) -> Result<Self::Tensor>;

    // --- arithmetic -------------------------------------------------------------------------------------------
    /// x (..., in), w (out, in), bias (out) -> x w^T + bias (..., out).
    fn linear(&self, x: &Self::Tensor, w: &Self::Matrix, bias: Option<&Self::Tensor>) -> Result<Self::Tensor>;
    /// Rows of a table: w (V, D), ids -> (ids, D).
    fn embedding(&self, w: &Self::Matrix, ids: &[u32]) -> Result<Self::Tensor>;
    /// x + y, `y` repeated over the outer dimensions that it lacks.
    fn add(&self, x: &Self::Tensor, y: &Self::Tensor) -> Result<Self::Tensor>;
    /// Layer norm over the innermost dimension (Ba et al., 2016).
    fn layer_norm(&self, x: &Self::Tensor, w: &Self::Tensor, b: &Self::Tensor, eps: f64) -> Result<Self::Tensor>;
    /// Root-mean-square norm over the innermost dimension (Zhang and Sennrich, 2019).
    fn rms_norm(&self, x: &Self::Tensor, w: &Self::Tensor, eps: f64) -> Result<Self::Tensor>;
    /// Activation of an MLP, element by element.
    fn activation(&self, x: &Self::Tensor, kind: Activation) -> Result<Self::Tensor>;
    /// silu(gate) * up (SwiGLU; Shazeer, 2020).
    fn silu_mul(&self, gate: &Self::Tensor, up: &Self::Tensor) -> Result<Self::Tensor>;
    /// Rotates x (B, T, heads, K) by its positions `start..start + T`; `table` (2, positions, K / 2) is of their cosines, then of
    /// their sines.
    fn rope(&self, x: &Self::Tensor, table: &Self::Tensor, start: usize, layout: RopeLayout) -> Result<Self::Tensor>;
    /// Attention over keys and values at hand: q (B, T, H, K), k and v (B, S, G, K) -> (B, T, H K), scaled by
    /// 1 / sqrt(K). S is T under a causal mask, and where there are gradients.
    fn attention(&self, q: &Self::Tensor, k: &Self::Tensor, v: &Self::Tensor, mask: Mask) -> Result<Self::Tensor>;
    /// Divides rows of the innermost dimension by their L2 norm.
    fn l2_normalize(&self, x: &Self::Tensor) -> Result<Self::Tensor>;
    /// Pictures (B, 3, height, width) into rows of patches (B, P, 3 patch patch), so that the patch convolution is a
    /// [`Backend::linear`]. Channels outermost inside a row, as in the checkpoint's (D, 3, patch, patch).
    fn patchify(&self, x: &Self::Tensor, patch: usize) -> Result<Self::Tensor>;

    // --- several operations at once: a device may do them in fewer passes ---------------------------------------
    /// x w^T + bias + residual; `residual` has the shape of the result.
    fn linear_add(
        &self,
        x: &Self::Tensor,
        w: &Self::Matrix,
        bias: Option<&Self::Tensor>,
        residual: &Self::Tensor,
    ) -> Result<Self::Tensor> {
        self.add(residual, &self.linear(x, w, bias)?)
    }
    /// activation(x w^T + bias): the inner half of CLIP's MLPs.
    fn linear_activation(
        &self,
        x: &Self::Tensor,
        w: &Self::Matrix,
        bias: Option<&Self::Tensor>,
        kind: Activation,
    ) -> Result<Self::Tensor> {
        self.activation(&self.linear(x, w, bias)?, kind)
    }
    /// silu(y gate^T) * (y up^T), y being `norm` of x: the inner half of a SwiGLU MLP.
    fn linear_silu_mul(
        &self,
        x: &Self::Tensor,
        norm: Norm<'_, Self>,
        gate: &Self::Matrix,
        up: &Self::Matrix,
    ) -> Result<Self::Tensor> {
        composed::linear_silu_mul(self, x, norm, gate, up)
    }
    /// Causal self-attention of the norm of x (B, T, D) at positions `start..start + T`, with rotated queries and keys, over the
    /// cache where one is given -> (B, T, H K), before the output's product.
    fn self_attention(
        &self,
        cache: Option<&mut Self::Cache>,
        x: &Self::Tensor,
        w: &SelfAttention<'_, Self>,
        start: usize,
    ) -> Result<Self::Tensor> {
        composed::self_attention(self, cache, x, w, start)
    }
    /// The first half of a layer: x (B, T, D) and the product of its [`Backend::self_attention`] with `output` (D, H K).
    fn attention_block(
        &self,
        cache: Option<&mut Self::Cache>,
        x: &Self::Tensor,
        w: &SelfAttention<'_, Self>,
        output: &Self::Matrix,
        start: usize,
    ) -> Result<Self::Tensor> {
        composed::attention_block(self, cache, x, w, output, start)
    }
    /// The second: x (..., D) and the product of its [`Backend::linear_silu_mul`] with the last of the matrices: gate and up
    /// (F, D), down (D, F).
    fn mlp_block(&self, x: &Self::Tensor, norm: Norm<'_, Self>, matrices: [&Self::Matrix; 3]) -> Result<Self::Tensor> {
        composed::mlp_block(self, x, norm, matrices)
    }
    /// Index of the largest value of each row of x (rows, V), the first of equals, among those where `mask` (V) is 0
    /// and not negative infinity.
    fn argmax(&self, x: &Self::Tensor, mask: &Self::Tensor) -> impl Future<Output = Result<Vec<u32>>> {
        composed::argmax(self, x, mask)
    }
    /// The `k` largest values of x (N) with their places, largest first, of equals the earlier; fewer where there are fewer.
    /// What is no number comes last.
    fn top_k(&self, x: &Self::Tensor, k: usize) -> impl Future<Output = Result<Vec<(u32, f32)>>> {
        composed::top_k(self, x, k)
    }

    /// As [`Backend::argmax`], for a device that keeps the answer where its next step can read it, so that no step waits for
    /// the host; `None` where the host has it as soon as the device. Ids are left in `place` (rows), if it is given, which an
    /// earlier choice was left in.
    fn choose(
        &self,
        _x: &Self::Tensor,
        _mask: &Self::Tensor,
        _place: Option<&Self::Tensor>,
    ) -> Result<Option<Chosen<Self>>> {
        Ok(None)
    }
    /// Rows of a table by ids that [`Backend::choose`] left on the device: (ids, D).
    fn embedding_of(&self, _w: &Self::Matrix, _ids: &Self::Tensor) -> Result<Self::Tensor> {
        Err(Error::Unsupported("expected ids on the host but found them on the device".into()))
    }
    /// Does `step`, which begins with [`Backend::embedding_of`] these `ids`, reads and writes nothing of the host's, and depends
    /// on when it is done by the positions alone that it gives to rotations, caches and attention over them. A device that can
    /// keeps it for [`Backend::replay`]; what `step` gives is overwritten then.
    fn record<T>(&self, _ids: &Self::Tensor, step: impl FnOnce() -> Result<T>) -> Result<(T, Option<Self::Recording>)> {
        Ok((step()?, None))
    }
    /// Does a recorded step again, with every position greater by `moved` than it was; false, and nothing is done, if it
    /// reads other `ids`. That positions fit is the caller's to see to.
    fn replay(&self, _recording: &Self::Recording, _ids: &Self::Tensor, _moved: i64) -> Result<bool> {
        Ok(false)
    }

    // --- cache ------------------------------------------------------------------------------------------------
    /// An empty cache for `capacity` tokens.
    fn cache(&self, batch: usize, kv_heads: usize, capacity: usize, head_dim: usize) -> Result<Self::Cache>;
    /// Writes k and v (B, T, G, K) at `start..start + T` and attends causally from q (B, T, H, K) over
    /// `0..start + T` -> (B, T, H K).
    fn cached_attention(
        &self,
        cache: &mut Self::Cache,
        q: &Self::Tensor,
        k: &Self::Tensor,
        v: &Self::Tensor,
        start: usize,
    ) -> Result<Self::Tensor>;
    /// Makes sequence `i` of the batch continue what `rows[i]` was, for the first `len` tokens (beam search).
    fn cache_reorder(&self, cache: &mut Self::Cache, rows: &[usize], len: usize) -> Result<()>;
}

/// Ids on the device, and on their way to the host.
pub struct Chosen<B: Backend> {
    /// For [`Backend::embedding_of`].
    pub ids: B::Tensor,
    /// What [`Backend::argmax`] answers.
    pub answer: Pin<Box<dyn Future<Output = Result<Vec<u32>>>>>,
}

/// What [`Backend::rms_norm`] needs beside its input.
pub struct Norm<'a, B: Backend> {
    /// (D).
    pub weight: &'a B::Tensor,
    /// What is added to mean squares.
    pub eps: f64,
}

impl<B: Backend> Clone for Norm<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for Norm<'_, B> {}

/// What [`Backend::self_attention`] needs beside its input.
pub struct SelfAttention<'a, B: Backend> {
    /// Of the input.
    pub norm: Norm<'a, B>,
    /// Queries (H K, D).
    pub q: &'a B::Matrix,
    /// Keys (G K, D).
    pub k: &'a B::Matrix,
    /// Values (G K, D).
    pub v: &'a B::Matrix,
    /// Of [`Backend::rope`], (2, positions, K / 2).
    pub rope: &'a B::Tensor,
    /// Which pairs are rotated.
    pub layout: RopeLayout,
    /// Query heads H.
    pub heads: usize,
    /// Key/value heads G.
    pub groups: usize,
    /// Head dim K.
    pub head_dim: usize,
}

/// Activations of CLIP's MLPs, named as in `hidden_act`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// x sigmoid(1.702 x).
    QuickGelu,
    /// x Phi(x), with the error function.
    Gelu,
}

/// Which pairs of a head the rotation turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeLayout {
    /// (i, i + K / 2): Hugging Face checkpoints.
    Half,
    /// (2 i, 2 i + 1): GGUF files of the `llama` architecture, whose q and k rows are permuted to fit.
    Interleaved,
}

/// Who may look at whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mask {
    /// Everyone at everyone.
    None,
    /// Position t at 0..=t.
    Causal,
}
