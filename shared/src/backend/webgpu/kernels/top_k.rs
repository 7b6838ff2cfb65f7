//! The largest values of a row, found on the device: eight bytes of each come back.

use std::rc::Rc;

use crate::{
    backend::{
        composed,
        webgpu::{Tensor, WebGpu, pipeline::Kernel, read::read, word},
    },
    error::Result,
};

/// Values that a workgroup sorts.
const TILE: usize = 1024;
/// Of larger answers, passes would leave too much over.
const MOST: usize = TILE / 2;

impl WebGpu {
    pub(in crate::backend::webgpu) async fn first_k(&self, x: &Tensor, k: usize) -> Result<Vec<(u32, f32)>> {
        let wanted = k.min(x.elements());
        if wanted > MOST {
            return composed::top_k(self, x, k).await;
        }
        if wanted == 0 {
            return Ok(Vec::new());
        }
        let (mut from, mut count, mut first) = (Rc::clone(&x.data), x.elements(), true);
        loop {
            let tiles = count.div_ceil(TILE);
            let found = self.tensor(&[tiles, wanted, 2])?;
            let params = [word(count)?, word(wanted)?, u32::from(first)];
            self.gpu.dispatch(Kernel::TopK, &params, &[&from, &found.data], self.gpu.grid(tiles)?)?;
            (from, count, first) = (found.data, tiles * wanted, false);
            if tiles == 1 {
                break;
            }
        }
        let words: Vec<u32> = read(&self.gpu, &from, 2 * wanted).await?;
        Ok(words.as_chunks::<2>().0.iter().map(|&[key, place]| (place, composed::value_of(key))).collect())
    }
}
