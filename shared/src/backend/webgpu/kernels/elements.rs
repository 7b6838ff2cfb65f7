//! Operations element by element, and the rotation of positions.

use crate::{
    backend::{
        Activation, RopeLayout,
        webgpu::{Tensor, WebGpu, pipeline::Kernel, word},
    },
    error::{Error, Result},
};

impl WebGpu {
    pub(in crate::backend::webgpu) fn sum(&self, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        let lacks = x.shape.len().checked_sub(y.shape.len());
        if lacks.is_none_or(|lacks| x.shape[lacks..] != y.shape[..]) {
            return Err(Error::Backend(format!(
                "add: expected the innermost dimensions of {:?} but found {:?}",
                x.shape, y.shape
            )));
        }
        self.each(Kernel::Add, x, Some(y), Some(word(y.elements())?))
    }

    pub(in crate::backend::webgpu) fn gated(&self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        if gate.shape != up.shape {
            return Err(Error::Backend(format!("silu_mul: expected {:?} twice but found {:?}", gate.shape, up.shape)));
        }
        self.each(Kernel::SiluMul, gate, Some(up), None)
    }

    pub(in crate::backend::webgpu) fn activated(&self, x: &Tensor, kind: Activation) -> Result<Tensor> {
        self.each(Kernel::Activation, x, None, Some(super::linear::number(kind)))
    }

    fn each(&self, kernel: Kernel, x: &Tensor, other: Option<&Tensor>, param: Option<u32>) -> Result<Tensor> {
        let out = self.tensor(&x.shape)?;
        let n = x.elements();
        if n > 0 {
            let mut params = vec![word(n)?];
            params.extend(param);
            let mut buffers = vec![&x.data];
            buffers.extend(other.map(|y| &y.data));
            buffers.push(&out.data);
            self.gpu.dispatch(kernel, &params, &buffers, self.gpu.grid(n.div_ceil(64))?)?;
        }
        Ok(out)
    }

    pub(in crate::backend::webgpu) fn rotated(
        &self,
        x: &Tensor,
        table: &Tensor,
        start: usize,
        layout: RopeLayout,
    ) -> Result<Tensor> {
        let [_, tokens, heads, dim] = x.shape[..] else {
            return Err(Error::Backend(format!("rope: expected (B, T, heads, K) but found {:?}", x.shape)));
        };
        let positions = table.shape.get(1).copied().unwrap_or(0);
        if dim % 2 != 0 || table.shape != [2, positions, dim / 2] || start + tokens > positions {
            return Err(Error::Backend(format!(
                "rope: expected a table (2, {} or more, {}) but found {:?}",
                start + tokens,
                dim / 2,
                table.shape
            )));
        }
        let y = self.tensor(&x.shape)?;
        let pairs = x.elements() / 2;
        if pairs > 0 {
            let interleaved = u32::from(layout == RopeLayout::Interleaved);
            let sizes = [word(pairs)?, word(tokens)?, word(heads)?, word(dim / 2)?, word(start)?];
            let params = sizes.into_iter().chain([interleaved, word(positions)?]).collect::<Vec<u32>>();
            let buffers = [&x.data, &table.data, &y.data];
            self.gpu.dispatch(Kernel::Rope, &params, &buffers, self.gpu.grid(pairs.div_ceil(64))?)?;
        }
        Ok(y)
    }
}
