//! Shapes, and the operations that move elements without changing them.

use crate::backend::webgpu::{Tensor, WebGpu, pipeline::Kernel, word};
use crate::error::{Error, Result};

/// Elements of a shape.
pub(in crate::backend::webgpu) fn elements(shape: &[usize]) -> Result<usize> {
    shape
        .iter()
        .try_fold(1usize, |n, &d| n.checked_mul(d))
        .ok_or_else(|| Error::Backend(format!("expected a smaller shape but found {shape:?}")))
}

/// Rows of `inner` elements on their way; see `kernels/copy.wgsl`.
pub(in crate::backend::webgpu) struct Move {
    pub rows: usize,
    pub inner: usize,
    pub filled: usize,
    pub origin: usize,
    pub apart: usize,
    pub to: usize,
    pub stride: usize,
}

impl WebGpu {
    pub(in crate::backend::webgpu) fn copy(&self, x: &Tensor, y: &Tensor, how: &Move) -> Result<()> {
        let n = how.rows * how.inner;
        if n == 0 {
            return Ok(());
        }
        let Move { inner, filled, origin, apart, to, stride, .. } = *how;
        let params = [word(n)?, word(inner)?, word(filled)?, word(origin)?, word(apart)?, word(to)?, word(stride)?];
        self.gpu.dispatch(Kernel::Copy, &params, &[&x.data, &y.data], self.gpu.grid(n.div_ceil(64))?)
    }

    pub(in crate::backend::webgpu) fn join(&self, parts: &[&Tensor], dim: usize) -> Result<Tensor> {
        let first = parts.first().ok_or_else(|| Error::Backend("concat: expected a tensor but found none".into()))?;
        let fits = |x: &Tensor| {
            let same = |(i, (a, b)): (usize, (&usize, &usize))| i == dim || a == b;
            dim < x.shape.len()
                && x.shape.len() == first.shape.len()
                && x.shape.iter().zip(&first.shape).enumerate().all(same)
        };
        if let Some(odd) = parts.iter().find(|x| !fits(x)) {
            return Err(Error::Backend(format!(
                "concat: expected shapes like {:?} but for dimension {dim} but found {:?}",
                first.shape, odd.shape
            )));
        }
        let mut shape = first.shape.clone();
        shape[dim] = parts.iter().map(|x| x.shape[dim]).sum();
        let y = self.tensor(&shape)?;
        let (outer, inner) = around(&shape, dim);
        let stride = shape[dim] * inner;
        let mut to = 0;
        for x in parts {
            let len = x.shape[dim] * inner;
            self.copy(x, &y, &Move { rows: outer, inner: len, filled: len, origin: 0, apart: len, to, stride })?;
            to += len;
        }
        Ok(y)
    }

    pub(in crate::backend::webgpu) fn cut(&self, x: &Tensor, dim: usize, start: usize, len: usize) -> Result<Tensor> {
        let have = x.shape.get(dim).copied().unwrap_or(0);
        if start.checked_add(len).is_none_or(|end| end > have) {
            return Err(Error::Backend(format!(
                "narrow: expected {start} and {len} more within {have} of dimension {dim} of {:?}",
                x.shape
            )));
        }
        if start == 0 && len == have {
            return Ok(x.clone());
        }
        let (outer, inner) = around(&x.shape, dim);
        let mut shape = x.shape.clone();
        shape[dim] = len;
        let y = self.tensor(&shape)?;
        let each = len * inner;
        let how = Move {
            rows: outer,
            inner: each,
            filled: each,
            origin: start * inner,
            apart: have * inner,
            to: 0,
            stride: each,
        };
        self.copy(x, &y, &how)?;
        Ok(y)
    }

    pub(in crate::backend::webgpu) fn repeat(&self, x: &Tensor, n: usize) -> Result<Tensor> {
        let mut shape = x.shape.clone();
        match shape.first_mut() {
            Some(first) if *first == 1 => *first = n,
            _ => return Err(Error::Backend(format!("repeat_rows: expected shape (1, ...) but found {shape:?}"))),
        }
        if n == 1 {
            return Ok(x.clone());
        }
        let y = self.tensor(&shape)?;
        let len = x.elements();
        self.copy(x, &y, &Move { rows: n, inner: len, filled: len, origin: 0, apart: 0, to: 0, stride: len })?;
        Ok(y)
    }

    pub(in crate::backend::webgpu) fn pick(&self, x: &Tensor, ids: &[u32]) -> Result<Tensor> {
        let rows = x.shape.first().copied().unwrap_or(0);
        if let Some(id) = ids.iter().find(|&&id| id as usize >= rows) {
            return Err(Error::Backend(format!("index_rows: expected rows below {rows} but found {id}")));
        }
        let mut shape = x.shape.clone();
        shape[0] = ids.len();
        let y = self.tensor(&shape)?;
        let n = y.elements();
        if n > 0 {
            let params = [word(n)?, word(n / ids.len())?];
            let ids = self.upload_words(ids)?;
            self.gpu.dispatch(Kernel::IndexRows, &params, &[&x.data, &y.data, &ids], self.gpu.grid(n.div_ceil(64))?)?;
        }
        Ok(y)
    }

    pub(in crate::backend::webgpu) fn patches(&self, x: &Tensor, patch: usize) -> Result<Tensor> {
        let [batch, channels, height, width] = x.shape[..] else {
            return Err(Error::Backend(format!(
                "patchify: expected (B, channels, height, width) but found {:?}",
                x.shape
            )));
        };
        if patch == 0 || height % patch != 0 || width % patch != 0 {
            return Err(Error::Backend(format!(
                "patchify: expected sides that are multiples of the patch {patch} but found {height} x {width}"
            )));
        }
        let (down, across) = (height / patch, width / patch);
        let y = self.tensor(&[batch, down * across, channels * patch * patch])?;
        let n = y.elements();
        let params = [word(n)?, word(patch)?, word(across)?, word(down)?, word(channels)?];
        self.gpu.dispatch(Kernel::Patchify, &params, &[&x.data, &y.data], self.gpu.grid(n.div_ceil(64))?)?;
        Ok(y)
    }
}

/// Elements outside and inside of a dimension.
fn around(shape: &[usize], dim: usize) -> (usize, usize) {
    (shape[..dim].iter().product(), shape[dim + 1..].iter().product())
}
