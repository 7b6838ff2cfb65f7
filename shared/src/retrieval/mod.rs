//! Exact search by cosine similarity in the joint space, for text to picture, picture to text and picture to picture.

mod file;
mod on_device;

use std::cmp::Ordering;

use crate::error::{Error, Result};

pub use on_device::OnDevice;

/// Embeddings with names, all from one bundle: those of another bundle lie in another space.
#[derive(Debug, Clone, PartialEq)]
pub struct RetrievalIndex {
    bundle: String,
    dimension: usize,
    ids: Vec<String>,
    /// (ids, dimension), rows of length 1.
    rows: Vec<f32>,
}

/// A row that was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Hit<'a> {
    /// Name of the row.
    pub id: &'a str,
    /// Place of the row, in order of insertion.
    pub index: usize,
    /// Cosine of the angle to the query.
    pub score: f32,
}

impl RetrievalIndex {
    /// Without rows, for embeddings (J = `dimension`) that the bundle of this hash makes.
    ///
    /// # Errors
    /// [`Error::Config`] for no dimension.
    pub fn new(bundle: impl Into<String>, dimension: usize) -> Result<Self> {
        if dimension == 0 || u32::try_from(dimension).is_err() {
            return Err(Error::Config(format!("expected an index of at least 1 dimension but found {dimension}")));
        }
        Ok(Self { bundle: bundle.into(), dimension, ids: Vec::new(), rows: Vec::new() })
    }

    /// Adds an embedding (J), of any length but 0.
    ///
    /// # Errors
    /// [`Error::Config`] for another number of values, or values without direction: zero, NaN, infinity.
    pub fn push(&mut self, id: impl Into<String>, embedding: &[f32]) -> Result<()> {
        let row = self.unit(embedding)?;
        self.rows.extend(row);
        self.ids.push(id.into());
        Ok(())
    }

    /// Takes a row out; later ones move up by one.
    ///
    /// # Errors
    /// [`Error::Config`] if there is no such row.
    pub fn remove(&mut self, index: usize) -> Result<String> {
        if index >= self.len() {
            return Err(Error::Config(format!("expected a row below {} but found {index}", self.len())));
        }
        self.rows.drain(index * self.dimension..(index + 1) * self.dimension);
        Ok(self.ids.remove(index))
    }

    /// The `k` rows nearest to a query (J), nearest first, of equals the earlier; fewer where there are fewer.
    ///
    /// # Errors
    /// As [`RetrievalIndex::push`].
    pub fn top_k(&self, query: &[f32], k: usize) -> Result<Vec<Hit<'_>>> {
        let query = self.unit(query)?;
        let mut scored: Vec<(usize, f32)> = self
            .rows
            .chunks_exact(self.dimension)
            .map(|row| row.iter().zip(&query).map(|(a, b)| a * b).sum::<f32>())
            .enumerate()
            .collect();
        let nearer = |a: &(usize, f32), b: &(usize, f32)| -> Ordering { b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)) };
        let k = k.min(scored.len());
        if k > 0 && k < scored.len() {
            scored.select_nth_unstable_by(k - 1, nearer);
        }
        scored.truncate(k);
        scored.sort_unstable_by(nearer);
        Ok(scored.into_iter().map(|(index, score)| Hit { id: &self.ids[index], index, score }).collect())
    }

    /// # Errors
    /// [`Error::Config`] where the embeddings are another bundle's.
    pub fn expect_bundle(&self, hash: &str) -> Result<()> {
        if self.bundle == hash {
            return Ok(());
        }
        Err(Error::Config(format!(
            "expected an index of bundle {hash} but found one of bundle {}\nindex the pictures again",
            self.bundle
        )))
    }

    /// Hash of the bundle that made the embeddings.
    pub fn bundle(&self) -> &str {
        &self.bundle
    }

    /// J.
    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Names of the rows.
    pub fn ids(&self) -> &[String] {
        &self.ids
    }

    fn unit(&self, embedding: &[f32]) -> Result<Vec<f32>> {
        if embedding.len() != self.dimension {
            return Err(Error::Config(format!(
                "expected an embedding of {} values but found {}",
                self.dimension,
                embedding.len()
            )));
        }
        let norm = embedding.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        if !norm.is_finite() || norm == 0.0 {
            return Err(Error::Config(format!(
                "expected an embedding with a direction but found one of length {norm}"
            )));
        }
        Ok(embedding.iter().map(|&v| (f64::from(v) / norm) as f32).collect())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nearest_first_and_the_earlier_of_equals() {
        let mut index = RetrievalIndex::new("b", 2).unwrap();
        for (id, row) in [("up", [0.0, 2.0]), ("right", [0.1, 0.0]), ("up again", [0.0, 9.0]), ("down", [0.0, -1.0])] {
            index.push(id, &row).unwrap();
        }
        let hits = index.top_k(&[0.0, 5.0], 3).unwrap();
        assert_eq!(
            hits.iter().map(|h| (h.id, h.index)).collect::<Vec<_>>(),
            [("up", 0), ("up again", 2), ("right", 1)]
        );
        assert_eq!(hits[0].score, 1.0);
        assert_eq!(index.top_k(&[1.0, 0.0], 99).unwrap().len(), 4);
        assert_eq!(index.top_k(&[1.0, 0.0], 0).unwrap(), []);
        assert_eq!(index.remove(0).unwrap(), "up");
        assert_eq!(index.top_k(&[0.0, 1.0], 1).unwrap()[0].id, "up again");
        assert!(index.remove(3).is_err());
    }

    #[test]
    fn rows_without_direction_are_refused() {
        let mut index = RetrievalIndex::new("b", 2).unwrap();
        for row in [&[0.0, 0.0][..], &[f32::NAN, 1.0], &[f32::INFINITY, 1.0], &[1.0], &[1.0, 1.0, 1.0], &[]] {
            assert!(matches!(index.push("x", row), Err(Error::Config(_))), "{row:?}");
            assert!(index.top_k(row, 1).is_err());
        }
        assert!(index.is_empty() && RetrievalIndex::new("b", 0).is_err());
        // Lengths that overflow f32 when squared are lengths.
        index.push("far", &[3e30, 4e30]).unwrap();
        assert_eq!(index.top_k(&[3e-30, 4e-30], 1).unwrap()[0].score, 1.0);
    }

    #[test]
    fn another_bundle_is_refused() {
        let index = RetrievalIndex::new("aa", 2).unwrap();
        assert!(index.expect_bundle("aa").is_ok());
        let error = index.expect_bundle("bb").unwrap_err().to_string();
        assert!(error.contains("bundle bb") && error.contains("bundle aa"));
    }

    proptest! {
        #[test]
        fn top_k_is_the_head_of_the_sorted_whole(
            // Few values, so that equals are common.
            rows in prop::collection::vec(prop::array::uniform3(-2..3i8), 0..40),
            query in prop::array::uniform3(1..4i8),
            k in 0..45usize,
        ) {
            let mut index = RetrievalIndex::new("b", 3).unwrap();
            let mut kept: Vec<[f32; 3]> = Vec::new();
            for row in rows.iter().filter(|row| **row != [0; 3]) {
                let row = row.map(f32::from);
                index.push(kept.len().to_string(), &row).unwrap();
                let norm = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
                kept.push(row.map(|v| (f64::from(v) / norm) as f32));
            }
            let query = query.map(f32::from);
            let norm = query.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
            let unit = query.map(|v| (f64::from(v) / norm) as f32);
            let mut all: Vec<(usize, f32)> = kept
                .iter()
                .map(|row| row[0] * unit[0] + row[1] * unit[1] + row[2] * unit[2])
                .enumerate()
                .collect();
            all.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap());
            let hits = index.top_k(&query, k).unwrap();
            prop_assert_eq!(hits.len(), k.min(all.len()));
            for (hit, (at, score)) in hits.iter().zip(&all) {
                prop_assert_eq!((hit.index, hit.id.parse()), (*at, Ok(*at)));
                prop_assert_eq!(hit.score, *score);
            }
        }
    }
}
