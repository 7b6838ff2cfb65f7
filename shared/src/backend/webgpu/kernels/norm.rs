//! Norms over the innermost dimension: one workgroup a row.

use super::linear::FEW;
use crate::{
    backend::webgpu::{Tensor, WebGpu, pipeline::Kernel, word},
    error::{Error, Result},
};

impl WebGpu {
    pub(in crate::backend::webgpu) fn mean_square_norm(&self, x: &Tensor, w: &Tensor, eps: f64) -> Result<Tensor> {
        let kernel = if x.rows().0 <= FEW { Kernel::RmsNormOfFew } else { Kernel::RmsNorm };
        self.norm(kernel, x, &[w], Some(eps))
    }

    pub(in crate::backend::webgpu) fn centred_norm(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        eps: f64,
    ) -> Result<Tensor> {
        self.norm(Kernel::LayerNorm, x, &[w, b], Some(eps))
    }

    pub(in crate::backend::webgpu) fn unit_rows(&self, x: &Tensor) -> Result<Tensor> {
        self.norm(Kernel::L2Normalize, x, &[], None)
    }

    fn norm(&self, kernel: Kernel, x: &Tensor, weights: &[&Tensor], eps: Option<f64>) -> Result<Tensor> {
        let (rows, width) = x.rows();
        if let Some(w) = weights.iter().find(|w| w.elements() != width) {
            return Err(Error::Backend(format!(
                "{}: expected weights ({width}) but found {:?}",
                kernel.name(),
                w.shape
            )));
        }
        let y = self.tensor(&x.shape)?;
        if rows > 0 {
            let mut params = vec![word(rows)?, word(width)?];
            params.extend(eps.map(|eps| (eps as f32).to_bits()));
            let mut buffers = vec![&x.data];
            buffers.extend(weights.iter().map(|w| &w.data));
            buffers.push(&y.data);
            self.gpu.dispatch(kernel, &params, &buffers, self.gpu.grid(rows)?)?;
        }
        Ok(y)
    }
}
