//! The largest value of a row, found on the device: four bytes come back.

use crate::{
    backend::{
        Chosen,
        webgpu::{
            Tensor, WebGpu,
            pipeline::Kernel,
            read::{read, read_later},
            word,
        },
    },
    error::{Error, Result},
};

impl WebGpu {
    pub(in crate::backend::webgpu) async fn largest(&self, x: &Tensor, mask: &Tensor) -> Result<Vec<u32>> {
        let ids = self.largest_there(x, mask, None)?;
        told(read(&self.gpu, &ids.data, ids.elements()).await?)
    }

    /// Ids as bits on the device, and their way to the host begun.
    pub(in crate::backend::webgpu) fn largest_later(
        &self,
        x: &Tensor,
        mask: &Tensor,
        place: Option<&Tensor>,
    ) -> Result<Chosen<WebGpu>> {
        let ids = self.largest_there(x, mask, place)?;
        let answer = read_later(&self.gpu, &ids.data, ids.elements());
        Ok(Chosen { ids, answer: Box::pin(async move { told(answer.await?) }) })
    }

    fn largest_there(&self, x: &Tensor, mask: &Tensor, place: Option<&Tensor>) -> Result<Tensor> {
        let (rows, width) = x.rows();
        if mask.elements() != width {
            return Err(Error::Backend(format!("argmax: expected a mask ({width}) but found {:?}", mask.shape)));
        }
        let ids = match place {
            Some(place) if place.shape == [rows] => place.clone(),
            Some(place) => {
                return Err(Error::Backend(format!("argmax: expected a place ({rows}) but found {:?}", place.shape)));
            }
            None => self.tensor(&[rows])?,
        };
        if rows > 0 {
            let buffers = [&x.data, &mask.data, &ids.data];
            self.gpu.dispatch(Kernel::Argmax, &[word(rows)?, word(width)?], &buffers, self.gpu.grid(rows)?)?;
        }
        Ok(ids)
    }
}

fn told(ids: Vec<u32>) -> Result<Vec<u32>> {
    if ids.contains(&u32::MAX) {
        return Err(Error::Backend(
            "expected logits to be numbers, and a token that is not banned, but found neither".into(),
        ));
    }
    Ok(ids)
}
