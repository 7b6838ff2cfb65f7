//! The largest value of a row, found on the device: four bytes come back.

use crate::{
    backend::webgpu::{Tensor, WebGpu, pipeline::Kernel, read::read, word},
    error::{Error, Result},
};

impl WebGpu {
    pub(in crate::backend::webgpu) async fn largest(&self, x: &Tensor, mask: &Tensor) -> Result<Vec<u32>> {
        let (rows, width) = x.rows();
        if mask.elements() != width {
            return Err(Error::Backend(format!("argmax: expected a mask ({width}) but found {:?}", mask.shape)));
        }
        let ids = self.tensor(&[rows])?;
        if rows > 0 {
            let buffers = [&*x.data, &*mask.data, &*ids.data];
            self.gpu.dispatch(Kernel::Argmax, &[word(rows)?, word(width)?], &buffers, self.gpu.grid(rows)?)?;
        }
        let ids: Vec<u32> = read(&self.gpu, &ids.data, rows).await?;
        if ids.contains(&u32::MAX) {
            return Err(Error::Backend(
                "expected logits to be numbers, and a token that is not banned, but found neither".into(),
            ));
        }
        Ok(ids)
    }
}
