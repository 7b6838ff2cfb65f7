//! Search where the rows lie on a device.

use super::{Hit, RetrievalIndex};
use crate::{
    backend::Backend,
    error::Result,
    weights::{Dtype, RawTensor},
};

/// The rows of an index on a device, for many queries of many rows.
pub struct OnDevice<'a, B: Backend> {
    index: &'a RetrievalIndex,
    backend: B,
    /// (N, J); `None` where there are no rows.
    rows: Option<B::Matrix>,
}

impl RetrievalIndex {
    /// Copies the rows to a device.
    ///
    /// # Errors
    /// What the device answers, such as too little memory.
    pub fn on<B: Backend>(&self, backend: &B) -> Result<OnDevice<'_, B>> {
        let rows = match self.is_empty() {
            true => None,
            false => {
                let bytes = self.rows.iter().flat_map(|v| v.to_le_bytes()).collect();
                let shape = vec![self.len(), self.dimension];
                Some(backend.upload_matrix(&RawTensor { shape, dtype: Dtype::F32, bytes })?)
            }
        };
        Ok(OnDevice { index: self, backend: backend.clone(), rows })
    }
}

impl<'a, B: Backend> OnDevice<'a, B> {
    /// As [`RetrievalIndex::top_k`]; scores may differ in their last bits, for devices add in orders of their own.
    ///
    /// # Errors
    /// As [`RetrievalIndex::push`]; what the device answers.
    pub async fn top_k(&self, query: &[f32], k: usize) -> Result<Vec<Hit<'a>>> {
        let query = self.index.unit(query)?;
        let Some(rows) = &self.rows else { return Ok(Vec::new()) };
        let query = self.backend.upload(&query, &[1, self.index.dimension])?;
        let scores = self.backend.linear(&query, rows, None)?;
        let scores = self.backend.reshape(&scores, &[self.index.len()])?;
        let found = self.backend.top_k(&scores, k).await?;
        let hit = |(at, score)| Hit { id: &self.index.ids[at as usize], index: at as usize, score };
        Ok(found.into_iter().map(hit).collect())
    }
}

#[cfg(test)]
mod tests {
    use pollster::block_on;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::backend::Candle;

    #[test]
    fn a_device_finds_what_the_index_finds() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut vector = || (0..12).map(|_| rng.random_range(-1.0..1.0)).collect::<Vec<f32>>();
        let mut index = RetrievalIndex::new("b", 12).unwrap();
        assert_eq!(block_on(index.on(&Candle::cpu()).unwrap().top_k(&vector(), 3)).unwrap(), []);
        for i in 0..300 {
            index.push(i.to_string(), &vector()).unwrap();
        }
        let there = index.on(&Candle::cpu()).unwrap();
        for _ in 0..20 {
            let query = vector();
            let (found, expected) = (block_on(there.top_k(&query, 7)).unwrap(), index.top_k(&query, 7).unwrap());
            let places = |hits: &[Hit]| hits.iter().map(|hit| (hit.index, hit.id.to_string())).collect::<Vec<_>>();
            assert_eq!(places(&found), places(&expected));
            assert!(found.iter().zip(&expected).all(|(a, b)| (a.score - b.score).abs() < 1e-6));
        }
        assert!(block_on(there.top_k(&[0.0; 12], 1)).is_err());
    }
}
