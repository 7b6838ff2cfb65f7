//! Exact search among many embeddings.

use super::{Out, random::Random};
use crate::{
    backend::{Backend, Candle},
    error::{Error, Result},
    retrieval::RetrievalIndex,
    weights::{Dtype, quant::dequantize},
};

pub(super) const NAMES: &[&str] = &["retrieval/100000x256"];
const ROWS: usize = 100_000;
const DIMENSION: usize = 256;
const WANTED: usize = 50;

/// Milliseconds a query, the rows on the device; what is found must be what the index itself finds.
pub(super) async fn measure<B: Backend>(out: &mut Out<'_, B>) -> Result<()> {
    let [name] = NAMES else { return Ok(()) };
    if !out.wants(name) {
        return Ok(());
    }
    let cpu = Candle::cpu();
    let values = dequantize(&Random::new(&cpu, |_| Dtype::F32).raw("rows", [ROWS + 1, DIMENSION])?)?;
    let mut index = RetrievalIndex::new("benchmark", DIMENSION)?;
    let (rows, query) = values.split_at(ROWS * DIMENSION);
    for (i, row) in rows.chunks_exact(DIMENSION).enumerate() {
        index.push(i.to_string(), row)?;
    }
    let there = index.on(&out.place.backend)?;
    let (found, expected) = (there.top_k(query, WANTED).await?, index.top_k(query, WANTED)?);
    // Neighbours whose scores differ by less than rounding may change places.
    let wrong = found.iter().zip(&expected).find(|(a, b)| (a.score - b.score).abs() > 1e-5);
    if found.len() != WANTED || wrong.is_some() {
        return Err(Error::Backend(format!("{name}: expected {:?} but found {:?}", expected[0], found.first())));
    }
    let seconds = out.median(7, async || there.top_k(query, WANTED).await.map(drop)).await?;
    out.row(name, 1e3 * seconds, "ms", &format!("exact, the first {WANTED}"))
}
