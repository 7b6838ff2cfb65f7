//! Keys and values of one layer, allocated once.

use candle_core::{DType, Device, Tensor};

use super::attention::{group, grouped, ungroup};
use crate::error::{Error, Result};

/// (B G, capacity, K) each; written in place, never concatenated.
#[derive(Debug)]
pub struct Cache {
    k: Tensor,
    v: Tensor,
    batch: usize,
    kv_heads: usize,
    capacity: usize,
}

impl Cache {
    pub(super) fn new(
        (batch, kv_heads): (usize, usize),
        capacity: usize,
        head_dim: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let zeros = || Tensor::zeros((batch * kv_heads, capacity, head_dim), dtype, device);
        Ok(Cache { k: zeros()?, v: zeros()?, batch, kv_heads, capacity })
    }

    /// See [`crate::backend::Backend::cached_attention`].
    pub(super) fn append_and_attend(&mut self, q: &Tensor, k: &Tensor, v: &Tensor, start: usize) -> Result<Tensor> {
        let (batch, tokens, heads, dim) = q.dims4()?;
        let seen = start + tokens;
        if batch != self.batch || seen > self.capacity {
            return Err(Error::Backend(format!(
                "cache: expected a batch of {} and at most {} tokens but found {batch} and {seen}",
                self.batch, self.capacity
            )));
        }
        self.k.slice_set(&group(&k.detach(), self.kv_heads)?, 1, start)?;
        self.v.slice_set(&group(&v.detach(), self.kv_heads)?, 1, start)?;
        let (k, v) = (self.k.narrow(1, 0, seen)?, self.v.narrow(1, 0, seen)?);
        let (out, _) = grouped(&group(q, self.kv_heads)?, &k, &v, tokens, Some(start))?;
        Ok(ungroup(&out, batch, tokens)?.reshape((batch, tokens, heads * dim))?)
    }

    /// See [`crate::backend::Backend::cache_reorder`].
    pub(super) fn reorder(&mut self, rows: &[usize], len: usize) -> Result<()> {
        if rows.len() != self.batch || rows.iter().any(|&r| r >= self.batch) || len > self.capacity {
            return Err(Error::Backend(format!(
                "cache: expected {} rows below it and at most {} tokens but found {rows:?} and {len}",
                self.batch, self.capacity
            )));
        }
        let heads = self.kv_heads;
        let ids: Vec<u32> = rows.iter().flat_map(|&r| (0..heads).map(move |g| (r * heads + g) as u32)).collect();
        let ids = Tensor::from_slice(&ids, ids.len(), self.k.device())?;
        for side in [&self.k, &self.v] {
            let moved = side.narrow(1, 0, len)?.contiguous()?.index_select(&ids, 0)?;
            side.slice_set(&moved, 1, 0)?;
        }
        Ok(())
    }
}
