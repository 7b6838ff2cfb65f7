//! What a step of decoding does in one pass where others take several: products of matrices that share their input.

use crate::{
    backend::{
        RopeLayout, SelfAttention,
        webgpu::{Cache, Matrix, Tensor, WebGpu, matrix::Part, pipeline::Kernel, repack::Packing, word},
    },
    error::Result,
};

use super::linear::FEW;

/// Matrices that one kernel can take: in one part each.
struct Together<'a, const N: usize> {
    packings: [Packing; N],
    octets: usize,
    parts: [&'a Part; N],
}

impl<'a, const N: usize> Together<'a, N> {
    /// `None` where they must be multiplied one by one, for x (..., width) of `n` rows.
    fn new(matrices: [&'a Matrix; N], n: usize, width: usize) -> Option<Self> {
        let fits = |matrix: &Matrix| matrix.0.columns == width && matrix.0.parts.len() == 1;
        let all = (1..=FEW).contains(&n) && width.is_multiple_of(8) && matrices.into_iter().all(fits);
        all.then(|| Together {
            packings: matrices.map(|matrix| matrix.0.packing),
            octets: width / 8,
            parts: matrices.map(|matrix| &matrix.0.parts[0]),
        })
    }
}

impl WebGpu {
    /// silu(x gate^T) * (x up^T), or `None` where that takes several kernels.
    pub(in crate::backend::webgpu) fn gated_product(
        &self,
        x: &Tensor,
        gate: &Matrix,
        up: &Matrix,
    ) -> Result<Option<Tensor>> {
        let (n, width) = x.rows();
        let Some(together) = Together::new([gate, up], n, width) else { return Ok(None) };
        let ([packing, other], rows) = (together.packings, together.parts[0].rows);
        if packing != other || together.parts[1].rows != rows {
            return Ok(None);
        }
        let mut shape = x.shape.clone();
        shape.pop();
        shape.push(rows);
        let y = self.tensor(&shape)?;
        let mut buffers = vec![&x.data, &y.data];
        buffers.extend(together.parts.iter().flat_map(|part| part.buffers()));
        let [across, down, _] = self.gpu.grid(rows.div_ceil(4))?;
        let params = [word(together.octets)?, word(rows)?];
        self.gpu.dispatch(Kernel::MatvecGated(packing), &params, &buffers, [across, down, word(n)?])?;
        self.gpu.worked(2 * (n * rows * width) as u64);
        Ok(Some(y))
    }

    /// Queries, keys and values of few tokens, the latter into the cache, and attention over it; `None` where that
    /// takes more kernels.
    pub(in crate::backend::webgpu) fn joined_attention(
        &self,
        cache: &mut Cache,
        x: &Tensor,
        w: &SelfAttention<'_, Self>,
        start: usize,
    ) -> Result<Option<Tensor>> {
        let (n, width) = x.rows();
        let [batch, tokens, _] = x.shape[..] else { return Ok(None) };
        let Some(together) = Together::new([w.q, w.k, w.v], n, width) else { return Ok(None) };
        let (heads, groups, dim) = (w.heads, w.groups, w.head_dim);
        let rows = together.parts.map(|part| part.rows);
        let table = |t: &Tensor| t.shape.len() == 2 && t.shape[0] >= start + tokens && 2 * t.shape[1] == dim;
        // What does not fit is refused by the single operations, in their words.
        let fits = rows == [heads * dim, groups * dim, groups * dim]
            && cache.fits(batch, groups, dim, start + tokens)
            && table(w.cos)
            && table(w.sin);
        if !fits {
            return Ok(None);
        }
        let outputs = (heads + 2 * groups) * dim;
        let joined = self.tensor(&[batch, tokens, outputs])?;
        let mut buffers = vec![&x.data, &joined.data];
        buffers.extend(together.parts.iter().flat_map(|part| part.buffers()));
        let [across, down, _] = self.gpu.grid(rows.iter().map(|rows| rows.div_ceil(4)).sum())?;
        let params = [word(together.octets)?, word(rows[0])?, word(rows[1])?, word(rows[2])?];
        self.gpu.dispatch(Kernel::MatvecJoined(together.packings), &params, &buffers, [across, down, word(n)?])?;
        self.gpu.worked((n * outputs * width) as u64);

        let q = self.tensor(&[batch, tokens, heads, dim])?;
        let pairs = n * outputs / 2;
        let interleaved = u32::from(w.layout == RopeLayout::Interleaved);
        let mut params = Vec::with_capacity(8);
        for size in [pairs, tokens, heads, groups, dim / 2, start] {
            params.push(word(size)?);
        }
        params.extend([interleaved, word(cache.capacity())?]);
        let [keys, values] = cache.buffers();
        let buffers = [&joined.data, &w.cos.data, &w.sin.data, &q.data, keys, values];
        self.gpu.dispatch(Kernel::RopeAppend, &params, &buffers, self.gpu.grid(pairs.div_ceil(64))?)?;
        self.attend_to_cache(cache, &q, start).map(Some)
    }
}
