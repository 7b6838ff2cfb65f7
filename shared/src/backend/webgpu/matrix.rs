//! Weight matrices on the device, in parts that can be bound.

use std::rc::Rc;

use super::{
    device::Gpu,
    memory::Block,
    read::read,
    repack::{Packing, pack},
};
use crate::{
    error::{Error, Result},
    weights::{Dtype, RawTensor, TensorInfo, TensorSource},
};

/// Bytes of a file that are packed at once.
const PIECE: usize = 1 << 22;

/// Bytes that may be on their way to the device: more would pile up in the host's memory.
const UNSETTLED: u64 = 1 << 26;

/// A weight matrix (out, in) in its packing. Cheap to clone.
#[derive(Clone)]
pub struct Matrix(pub(super) Rc<Parts>);

pub(super) struct Parts {
    pub packing: Packing,
    pub rows: usize,
    pub columns: usize,
    /// Sixteens of elements of a row, the last ones perhaps filled with zeros.
    pub sixteens: usize,
    pub parts: Vec<Part>,
}

/// Consecutive rows.
pub(super) struct Part {
    pub first_row: usize,
    pub rows: usize,
    /// Weights, and behind them what [`Packing::bytes`] says.
    pub block: Rc<Block>,
}

impl Matrix {
    pub(super) fn new(gpu: &Gpu, raw: &RawTensor) -> Result<Self> {
        let [rows, columns] = raw.shape[..] else {
            return Err(Error::Backend(format!("expected a matrix but found shape {:?}", raw.shape)));
        };
        let matrix = Matrix::empty(gpu, raw.dtype, rows, columns)?;
        if raw.dtype.bytes_of(&raw.shape) != Some(raw.bytes.len() as u64) {
            return Err(Error::Backend(format!(
                "expected the bytes of {} {:?} but found {}",
                raw.dtype,
                raw.shape,
                raw.bytes.len()
            )));
        }
        let row_bytes = raw.bytes.len() / rows;
        let piece = piece(row_bytes);
        for (i, bytes) in raw.bytes.chunks(piece * row_bytes).enumerate() {
            matrix.fill(gpu, i * piece, bytes, raw.dtype, row_bytes)?;
        }
        gpu.faults.check()?;
        Ok(matrix)
    }

    /// Reads piece after piece: never more than a few megabytes are in the host's memory.
    pub(super) async fn load(gpu: &Gpu, source: &impl TensorSource, name: &str, shape: [usize; 2]) -> Result<Self> {
        let info = source.info(name).ok_or_else(|| Error::MissingTensor(name.to_string()))?;
        let ([rows, columns], dtype, bytes) = (shape, info.dtype, info.bytes()?);
        let row_bytes = dtype.bytes_of(&[columns]).unwrap_or_default();
        if row_bytes == 0 || row_bytes.checked_mul(rows as u64) != Some(bytes) || info.shape.first() != Some(&rows) {
            return Err(Error::Shape { name: name.to_string(), expected: shape.to_vec(), found: info.shape.clone() });
        }
        let matrix = Matrix::empty(gpu, dtype, rows, columns)?;
        let piece = piece(row_bytes as usize);
        for start in (0..rows).step_by(piece) {
            let raw = source.fetch_rows(name, start..rows.min(start + piece)).await?;
            matrix.fill(gpu, start, &raw.bytes, dtype, row_bytes as usize)?;
            gpu.unsettled.set(gpu.unsettled.get() + raw.bytes.len() as u64);
            if gpu.unsettled.get() > UNSETTLED {
                gpu.unsettled.set(0);
                // Waits until the device has it all.
                let _: Vec<u32> = read(gpu, &matrix.0.parts[0].block, 1).await?;
            }
            gpu.faults.check()?;
        }
        Ok(matrix)
    }

    /// Its buffers, without values.
    fn empty(gpu: &Gpu, dtype: Dtype, rows: usize, columns: usize) -> Result<Self> {
        if rows == 0 || columns == 0 {
            return Err(Error::Backend(format!("expected a matrix but found {rows} rows of {columns}")));
        }
        let (packing, sixteens) = (Packing::of(dtype), Packing::sixteens(columns));
        let row_bytes = packing.bytes(sixteens as u64).iter().sum::<u64>();
        let most = (gpu.adapter.max_binding / row_bytes) as usize;
        if most == 0 {
            return Err(Error::Backend(format!(
                "expected rows of at most {} bytes but found {row_bytes}",
                gpu.adapter.max_binding
            )));
        }
        let mut parts = Vec::new();
        for first_row in (0..rows).step_by(most) {
            let rows = most.min(rows - first_row);
            let bytes = packing.bytes((rows * sixteens) as u64).iter().sum();
            parts.push(Part { first_row, rows, block: gpu.memory.own(gpu, bytes, "weights")? });
        }
        Ok(Matrix(Rc::new(Parts { packing, rows, columns, sixteens, parts })))
    }

    /// Fills consecutive rows from `first_row`.
    fn fill(&self, gpu: &Gpu, first_row: usize, bytes: &[u8], dtype: Dtype, row_bytes: usize) -> Result<()> {
        let Parts { packing, columns, sixteens, parts, .. } = &*self.0;
        let end = first_row + bytes.len() / row_bytes;
        for part in parts {
            let (from, to) = (first_row.max(part.first_row), end.min(part.first_row + part.rows));
            if from >= to {
                continue;
            }
            let packed = pack(&bytes[(from - first_row) * row_bytes..(to - first_row) * row_bytes], dtype, *columns)?;
            let before = packing.bytes(((from - part.first_row) * sixteens) as u64);
            let all = packing.bytes((part.rows * sixteens) as u64);
            let mut start = 0;
            for ((bytes, before), all) in
                [&packed.weights, &packed.upper, &packed.scales].into_iter().zip(before).zip(all)
            {
                gpu.write_at(&part.block, start + before, bytes)?;
                start += all;
            }
            // What is written waits in memory until something is sent.
            gpu.flush(|_| {});
        }
        Ok(())
    }
}

/// Bytes that tensors take on the device: matrices in their packing, all else as f32.
pub fn weight_bytes(tensors: &[TensorInfo]) -> u64 {
    let bytes = |info: &TensorInfo| {
        let (outer, inner) = match info.shape[..] {
            [] | [_] => return 4 * info.shape.iter().product::<usize>() as u64,
            [outer, ref inner @ ..] => (outer as u64, inner.iter().product::<usize>()),
        };
        Packing::of(info.dtype).bytes(outer.saturating_mul(Packing::sixteens(inner) as u64)).iter().sum()
    };
    tensors.iter().map(bytes).sum()
}

/// Rows that are packed at once.
fn piece(row_bytes: usize) -> usize {
    (PIECE / row_bytes.max(1)).max(1)
}
