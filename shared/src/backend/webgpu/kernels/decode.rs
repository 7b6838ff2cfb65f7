//! What a step of decoding does in one pass where others take several: products of matrices that share their input, which is a
//! norm's output.

use crate::{
    backend::{
        Norm, RopeLayout, SelfAttention,
        webgpu::{Cache, Matrix, Tensor, WebGpu, matrix::Part, pipeline::Kernel, repack::Packing, word},
    },
    error::Result,
};

/// Rows of x up to which each workgroup finds their norms by itself: with more of them that costs more than the dispatch which it
/// saves.
const FEW: usize = 2;

/// Matrices that one kernel can take: in one part each.
struct Together<'a, const N: usize> {
    packings: [Packing; N],
    sixteens: usize,
    fours: usize,
    parts: [&'a Part; N],
}

impl<'a, const N: usize> Together<'a, N> {
    /// `None` where they must be multiplied one by one, for x (..., width) of `n` rows and its norm.
    fn new(matrices: [&'a Matrix; N], norm: Norm<'_, WebGpu>, n: usize, width: usize) -> Option<Self> {
        let fits = |matrix: &Matrix| matrix.0.columns == width && matrix.0.parts.len() == 1;
        let x_fits = (1..=FEW).contains(&n) && width.is_multiple_of(4) && norm.weight.elements() == width;
        let all = x_fits && matrices.into_iter().all(fits);
        all.then(|| Together {
            packings: matrices.map(|matrix| matrix.0.packing),
            sixteens: Packing::sixteens(width),
            fours: width / 4,
            parts: matrices.map(|matrix| &matrix.0.parts[0]),
        })
    }
}

impl WebGpu {
    /// silu(norm(x) gate^T) * (norm(x) up^T), or `None` where that takes several kernels.
    pub(in crate::backend::webgpu) fn gated_product(
        &self,
        x: &Tensor,
        norm: Norm<'_, Self>,
        gate: &Matrix,
        up: &Matrix,
    ) -> Result<Option<Tensor>> {
        let (n, width) = x.rows();
        let Some(together) = Together::new([gate, up], norm, n, width) else { return Ok(None) };
        let ([packing, other], rows) = (together.packings, together.parts[0].rows);
        if packing != other || together.parts[1].rows != rows {
            return Ok(None);
        }
        let mut shape = x.shape.clone();
        shape.pop();
        shape.push(rows);
        let y = self.tensor(&shape)?;
        let [gate, up] = together.parts.map(|part| &part.block);
        let buffers = [&x.data, &y.data, gate, up, &norm.weight.data];
        let [across, down, _] = self.gpu.grid(rows.div_ceil(4))?;
        let params = [word(together.sixteens)?, word(rows)?, (norm.eps as f32).to_bits(), word(together.fours)?];
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
        let Some(together) = Together::new([w.q, w.k, w.v], w.norm, n, width) else { return Ok(None) };
        let (heads, groups, dim) = (w.heads, w.groups, w.head_dim);
        let positions = w.rope.shape.get(1).copied().unwrap_or(0);
        // What does not fit is refused by the single operations, in their words.
        let fits = together.parts.map(|part| part.rows) == [heads * dim, groups * dim, groups * dim]
            && dim.is_multiple_of(4)
            && cache.fits(batch, groups, dim, start + tokens)
            && w.rope.shape == [2, positions, dim / 2]
            && positions >= start + tokens;
        if !fits {
            return Ok(None);
        }
        let q = self.tensor(&[batch, tokens, heads, dim])?;
        let [of_q, of_k, of_v] = together.parts.map(|part| &part.block);
        let buffers = [&x.data, &q.data, of_q, of_k, of_v, cache.block(), &w.norm.weight.data, &w.rope.data];
        let mut params = Vec::with_capacity(11);
        for size in [together.sixteens, tokens, heads, groups, dim, start] {
            params.push(word(size)?);
        }
        params.push(u32::from(w.layout == RopeLayout::Interleaved));
        params.extend([
            word(cache.capacity())?,
            word(positions)?,
            (w.norm.eps as f32).to_bits(),
            word(together.fours)?,
        ]);
        let outputs = (heads + 2 * groups) * dim;
        let [across, down, _] = self.gpu.grid(outputs / 4)?;
        self.gpu.dispatch(Kernel::MatvecJoined(together.packings), &params, &buffers, [across, down, word(n)?])?;
        self.gpu.worked((n * outputs * width) as u64);
        self.attend_to_cache(cache, &q, start).map(Some)
    }
}
