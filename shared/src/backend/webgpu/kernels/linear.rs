//! Products with weight matrices, and their rows as embeddings.

use super::shape::Move;
use crate::{
    backend::{
        Activation,
        webgpu::{Matrix, Tensor, WebGpu, matrix::Parts, memory::Block, pipeline::Kernel, word},
    },
    error::{Error, Result},
};
use std::rc::Rc;

/// Rows of x up to which each is multiplied by itself: then reading the weights is all that counts.
pub(super) const FEW: usize = 8;

/// What is done to a product before it is written.
#[derive(Clone, Copy)]
pub(in crate::backend::webgpu) enum After<'a> {
    Nothing,
    /// Added, of the shape of the result.
    Residual(&'a Tensor),
    Activation(Activation),
}

/// An activation's number in `kernels/activate.wgsl`.
pub(super) fn number(kind: Activation) -> u32 {
    match kind {
        Activation::QuickGelu => 1,
        Activation::Gelu => 2,
    }
}

impl WebGpu {
    /// What `after` makes of x w^T + bias.
    pub(in crate::backend::webgpu) fn product(
        &self,
        x: &Tensor,
        w: &Matrix,
        bias: Option<&Tensor>,
        after: After<'_>,
    ) -> Result<Tensor> {
        let (residual, kind) = match after {
            After::Nothing => (None, 0),
            After::Residual(residual) => (Some(residual), 0),
            After::Activation(kind) => (None, number(kind)),
        };
        let ((n, width), w) = (x.rows(), &*w.0);
        let mut shape = x.shape.clone();
        let outputs = w.rows;
        match shape.last_mut() {
            Some(last) if width == w.columns => *last = outputs,
            _ => {
                return Err(Error::Backend(format!("linear: expected x (..., {}) but found {:?}", w.columns, x.shape)));
            }
        }
        if bias.is_some_and(|b| b.elements() != outputs) || residual.is_some_and(|r| r.elements() != n * outputs) {
            return Err(Error::Backend(format!("linear: expected bias ({outputs}) and residual ({n}, {outputs})")));
        }
        let y = self.tensor(&shape)?;
        if n == 0 {
            return Ok(y);
        }
        // Before x is copied: a product that is refused shall cost nothing.
        let few = n <= FEW;
        let grid = |rows: usize| match few {
            true => {
                let [across, down, _] = self.gpu.grid(rows.div_ceil(4))?;
                Ok([across, down, word(n)?])
            }
            false => super::dimensions(&self.gpu, "linear", [rows.div_ceil(256), n.div_ceil(16), 1]),
        };
        let grids = w.parts.iter().map(|part| grid(part.rows)).collect::<Result<Vec<_>>>()?;
        let x = self.whole_fours(x, n, width)?;
        let flag = |present: bool| u32::from(present);
        for (part, grid) in w.parts.iter().zip(grids) {
            let mut params = vec![
                word(w.sixteens)?,
                word(part.rows)?,
                word(part.first_row)?,
                word(outputs)?,
                flag(bias.is_some()),
                flag(residual.is_some()),
                kind,
                word(width.div_ceil(4))?,
            ];
            let kernel = if few { Kernel::Matvec(w.packing) } else { Kernel::Matmul(w.packing) };
            if !few {
                params.push(word(n)?);
            }
            let mut buffers = vec![&x.data, &y.data, &part.block];
            // What is absent is bound to something that is there, and not read.
            buffers.push(bias.map_or(&x.data, |b| &b.data));
            buffers.push(residual.map_or(&x.data, |r| &r.data));
            self.gpu.dispatch(kernel, &params, &buffers, grid)?;
        }
        self.gpu.worked((n * outputs) as u64 * w.columns as u64);
        Ok(y)
    }

    /// Rows as kernels read them, filled with zeros to a multiple of 4.
    fn whole_fours(&self, x: &Tensor, n: usize, width: usize) -> Result<Tensor> {
        let stride = width.next_multiple_of(4);
        if width == stride {
            return Ok(x.clone());
        }
        let padded = self.tensor(&[n, stride])?;
        let how = Move { rows: n, inner: stride, filled: width, origin: 0, apart: width, to: 0, stride };
        self.copy(x, &padded, &how)?;
        Ok(padded)
    }

    pub(in crate::backend::webgpu) fn table_rows(&self, w: &Matrix, ids: &[u32]) -> Result<Tensor> {
        let w = &*w.0;
        if let Some(id) = ids.iter().find(|&&id| id as usize >= w.rows) {
            return Err(Error::Backend(format!("embedding: expected ids below {} but found {id}", w.rows)));
        }
        if ids.is_empty() {
            return self.tensor(&[0, w.columns]);
        }
        self.table_rows_by(w, &self.upload_words(ids)?, ids.len())
    }

    /// Rows by ids that the device has: one that the table has not gives a row of anything.
    pub(in crate::backend::webgpu) fn table_rows_by(&self, w: &Parts, ids: &Rc<Block>, n: usize) -> Result<Tensor> {
        let y = self.tensor(&[n, w.columns])?;
        for part in &w.parts {
            let params = [word(w.sixteens)?, word(part.rows)?, word(part.first_row)?, word(w.columns)?, word(n)?];
            let buffers = [ids, &y.data, &part.block];
            let grid = self.gpu.grid((2 * n * w.sixteens).div_ceil(64))?;
            self.gpu.dispatch(Kernel::Embedding(w.packing), &params, &buffers, grid)?;
        }
        Ok(y)
    }

    /// Words as a buffer from the pool.
    pub(in crate::backend::webgpu) fn upload_words(&self, words: &[u32]) -> Result<Rc<Block>> {
        let block = self.gpu.memory.take(&self.gpu, 4 * words.len() as u64)?;
        self.gpu.write(&block, bytemuck::cast_slice(words))?;
        Ok(block)
    }
}
