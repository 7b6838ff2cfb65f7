//! Attention over keys at hand and over a cache, and the cache.

use std::rc::Rc;

use crate::{
    backend::{
        Mask,
        webgpu::{Tensor, WebGpu, device::Gpu, memory::Block, pipeline::Kernel, word},
    },
    error::{Error, Result},
};

/// Most elements of a head: four vectors of four elements for each of sixteen invocations.
const MOST_WIDTH: usize = 256;
/// Room for keys that a small workgroup goes through: most lanes of a large one would have none, and all would wait for each other.
const LITTLE: usize = 128;
/// Room for keys that is not cut into chunks: joining them is a dispatch more.
const WHOLE: usize = 512;
/// Room for keys that a chunk of a longer context has at least.
const CHUNK: usize = 256;
/// Most chunks of a context.
const MOST_CHUNKS: usize = 16;

/// Keys and values of one layer (B, 2 G, capacity, K), allocated once: of each sequence all keys, then all values. One
/// buffer, for a device binds few.
pub struct Cache {
    block: Rc<Block>,
    batch: usize,
    groups: usize,
    capacity: usize,
    width: usize,
}

impl Cache {
    pub(in crate::backend::webgpu) fn new(
        gpu: &Gpu,
        batch: usize,
        groups: usize,
        capacity: usize,
        width: usize,
    ) -> Result<Self> {
        let bytes = 4 * super::shape::elements(&[batch, 2, groups, capacity, width])? as u64;
        let block = gpu.memory.own(gpu, bytes, "keys and values")?;
        Ok(Cache { block, batch, groups, capacity, width })
    }

    /// Whether it is for such keys and has room for `seen` of them.
    pub(super) fn fits(&self, batch: usize, groups: usize, width: usize, seen: usize) -> bool {
        (self.batch, self.groups, self.width) == (batch, groups, width) && seen <= self.capacity
    }

    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    pub(in crate::backend::webgpu) fn block(&self) -> &Rc<Block> {
        &self.block
    }
}

/// Where keys and values lie, in elements, and which of them a query sees.
struct Keys<'a> {
    keys: &'a Rc<Block>,
    values: &'a Rc<Block>,
    /// From a key to its value in one buffer.
    apart: usize,
    seen: usize,
    groups: usize,
    by_batch: usize,
    by_token: usize,
    by_group: usize,
    /// Position of the first query under a causal mask.
    first: Option<usize>,
    chunks: usize,
    /// Keys that there may be in a later step that is otherwise this one.
    room: usize,
}

impl WebGpu {
    pub(in crate::backend::webgpu) fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor, mask: Mask) -> Result<Tensor> {
        let ([batch, tokens, _, width], [kb, seen, groups, kw]) = (four(q)?, four(k)?);
        let masked = mask == Mask::Causal;
        if kb != batch || kw != width || k.shape != v.shape || (masked && seen != tokens) {
            return Err(Error::Backend(format!(
                "attention: expected keys and values that fit {:?} but found {:?} and {:?}",
                q.shape, k.shape, v.shape
            )));
        }
        let keys = Keys {
            keys: &k.data,
            values: &v.data,
            apart: 0,
            seen,
            groups,
            by_batch: seen * groups * width,
            by_token: groups * width,
            by_group: width,
            first: masked.then_some(0),
            chunks: 1,
            room: seen,
        };
        self.attend_to(q, &keys)
    }

    pub(in crate::backend::webgpu) fn append_and_attend(
        &self,
        cache: &mut Cache,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        start: usize,
    ) -> Result<Tensor> {
        let ([batch, tokens, _, width], new) = (four(q)?, four(k)?);
        let seen = start + tokens;
        if batch != cache.batch || seen > cache.capacity {
            return Err(Error::Backend(format!(
                "cache: expected a batch of {} and at most {} tokens but found {batch} and {seen}",
                cache.batch, cache.capacity
            )));
        }
        if width != cache.width || new != [batch, tokens, cache.groups, width] || k.shape != v.shape {
            return Err(Error::Backend(format!(
                "cache: expected keys and values ({batch}, {tokens}, {}, {}) but found {:?} and {:?}",
                cache.groups, cache.width, k.shape, v.shape
            )));
        }
        let n = k.elements();
        if n > 0 {
            let sizes = [n, tokens, cache.groups, width, start, cache.capacity].map(word);
            let params = sizes.into_iter().collect::<Result<Vec<u32>>>()?;
            let buffers = [&k.data, &v.data, &cache.block];
            self.gpu.dispatch(Kernel::CacheAppend, &params, &buffers, self.gpu.grid(n.div_ceil(64))?)?;
        }
        self.attend_to_cache(cache, q, start)
    }

    /// Causal attention from q (B, T, H, K) at `start` over what the cache holds, T more than `start`.
    pub(super) fn attend_to_cache(&self, cache: &Cache, q: &Tensor, start: usize) -> Result<Tensor> {
        let [_, tokens, _, width] = four(q)?;
        let keys = Keys {
            keys: &cache.block,
            values: &cache.block,
            apart: cache.groups * cache.capacity * width,
            seen: start + tokens,
            groups: cache.groups,
            by_batch: 2 * cache.groups * cache.capacity * width,
            by_token: width,
            by_group: cache.capacity * width,
            first: Some(start),
            // By the room and not by what is seen: steps stay alike.
            chunks: match cache.capacity {
                ..=WHOLE => 1,
                capacity if tokens == 1 => capacity.div_ceil(CHUNK).min(MOST_CHUNKS),
                _ => 1,
            },
            room: cache.capacity,
        };
        self.attend_to(q, &keys)
    }

    fn attend_to(&self, q: &Tensor, keys: &Keys<'_>) -> Result<Tensor> {
        let [batch, tokens, heads, width] = four(q)?;
        let groups = keys.groups;
        if groups == 0 || heads % groups != 0 || width % 4 != 0 || width > MOST_WIDTH {
            return Err(Error::Backend(format!(
                "attention: expected heads that {groups} groups divide, of at most {MOST_WIDTH} elements in fours, but \
                 found {heads} of {width}"
            )));
        }
        let (rows, chunks) = (tokens * (heads / groups), keys.chunks);
        let (kernel, together) = match tokens {
            1 if keys.room <= LITTLE => (Kernel::AttentionOfOneToFew, 1),
            1 => (Kernel::AttentionOfOne, 1),
            _ => (Kernel::Attention, 4),
        };
        let grid = super::dimensions(&self.gpu, "attention", [rows.div_ceil(together), batch * groups, chunks])?;
        let y = self.tensor(&[batch, tokens, heads * width])?;
        if y.elements() == 0 {
            return Ok(y);
        }
        let sizes = [tokens, keys.seen, keys.first.unwrap_or(0)];
        let strides = [keys.by_batch / 4, keys.by_token / 4, keys.by_group / 4, chunks, keys.apart / 4];
        let mut params = sizes.map(word).into_iter().collect::<Result<Vec<u32>>>()?;
        params.push(u32::from(keys.first.is_some()));
        for size in [heads, groups, width / 4].into_iter().chain(strides) {
            params.push(word(size)?);
        }
        params.push((1.0 / (width as f32).sqrt()).to_bits());
        if chunks == 1 {
            let buffers = [&q.data, keys.keys, keys.values, &y.data];
            self.gpu.dispatch(kernel, &params, &buffers, grid)?;
            return Ok(y);
        }
        let n = batch * groups * rows;
        let parts = self.tensor(&[n, chunks, width + 4])?;
        self.gpu.dispatch(kernel, &params, &[&q.data, keys.keys, keys.values, &parts.data], grid)?;
        let sizes = [tokens, heads, groups, width / 4, chunks, n].map(word);
        let params = sizes.into_iter().collect::<Result<Vec<u32>>>()?;
        self.gpu.dispatch(Kernel::AttentionJoin, &params, &[&parts.data, &y.data], self.gpu.grid(n)?)?;
        Ok(y)
    }

    pub(in crate::backend::webgpu) fn reorder(&self, cache: &mut Cache, rows: &[usize], len: usize) -> Result<()> {
        if rows.len() != cache.batch || rows.iter().any(|&r| r >= cache.batch) || len > cache.capacity {
            return Err(Error::Backend(format!(
                "cache: expected {} rows below it and at most {} tokens but found {rows:?} and {len}",
                cache.batch, cache.capacity
            )));
        }
        let n = cache.batch * 2 * cache.groups * len * cache.width;
        if n == 0 {
            return Ok(());
        }
        let rows = rows.iter().map(|&r| word(r)).collect::<Result<Vec<u32>>>()?;
        let rows = self.upload_words(&rows)?;
        let ordered = self.tensor(&[n])?;
        let pairs: [(&Rc<Block>, &Rc<Block>); 2] = [(&cache.block, &ordered.data), (&ordered.data, &cache.block)];
        for (back, (x, y)) in pairs.into_iter().enumerate() {
            let sizes = [n, 2 * cache.groups, cache.width, len, cache.capacity, back].map(word);
            let params = sizes.into_iter().collect::<Result<Vec<u32>>>()?;
            let grid = self.gpu.grid(n.div_ceil(64))?;
            self.gpu.dispatch(Kernel::CacheGather, &params, &[x, &rows, y], grid)?;
        }
        Ok(())
    }
}

fn four(x: &Tensor) -> Result<[usize; 4]> {
    x.shape
        .as_slice()
        .try_into()
        .map_err(|_| Error::Backend(format!("attention: expected (B, T, heads, K) but found {:?}", x.shape)))
}
