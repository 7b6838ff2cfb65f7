//! Weight matrices on the device, in parts that can be bound.

use std::rc::Rc;

use super::{
    device::Gpu,
    memory::Block,
    repack::{Packing, pack},
};
use crate::{
    error::{Error, Result},
    weights::RawTensor,
};

/// Bytes of a file that are packed at once.
const PIECE: usize = 1 << 22;

/// A weight matrix (out, in) in its packing. Cheap to clone.
#[derive(Clone)]
pub struct Matrix(pub(super) Rc<Parts>);

pub(super) struct Parts {
    pub packing: Packing,
    pub rows: usize,
    pub columns: usize,
    /// Eights of elements of a row, the last one perhaps filled with zeros.
    pub octets: usize,
    pub parts: Vec<Part>,
}

/// Consecutive rows.
pub(super) struct Part {
    pub first_row: usize,
    pub rows: usize,
    pub weights: Rc<Block>,
    pub scales: Option<Rc<Block>>,
}

impl Part {
    /// Its buffers in the order of their bindings.
    pub fn buffers(&self) -> impl Iterator<Item = &Block> {
        std::iter::once(&*self.weights).chain(self.scales.as_deref())
    }
}

impl Matrix {
    pub(super) fn new(gpu: &Gpu, raw: &RawTensor) -> Result<Self> {
        let [rows, columns] = raw.shape[..] else {
            return Err(Error::Backend(format!("expected a matrix but found shape {:?}", raw.shape)));
        };
        if rows == 0 || columns == 0 || raw.dtype.bytes_of(&raw.shape) != Some(raw.bytes.len() as u64) {
            return Err(Error::Backend(format!(
                "expected the bytes of {} {:?} but found {}",
                raw.dtype,
                raw.shape,
                raw.bytes.len()
            )));
        }
        let (packing, octets) = (Packing::of(raw.dtype), columns.div_ceil(8));
        let (row_weights, _) = packing.bytes(octets as u64);
        // Scales are less than weights. Even counts of rows keep pairs of scales together.
        let most = (gpu.adapter.max_binding / row_weights) as usize / 2 * 2;
        if most == 0 {
            return Err(Error::Backend(format!(
                "expected rows of at most {} bytes but found {row_weights}",
                gpu.adapter.max_binding
            )));
        }
        let row_bytes = raw.bytes.len() / rows;
        let mut parts = Vec::new();
        for first_row in (0..rows).step_by(most) {
            let rows = most.min(rows - first_row);
            let bytes = &raw.bytes[first_row * row_bytes..][..rows * row_bytes];
            let (weights, scales) = packing.bytes((rows * octets) as u64);
            let part = Part {
                first_row,
                rows,
                weights: gpu.memory.own(gpu, weights, "weights")?,
                scales: if scales > 0 { Some(gpu.memory.own(gpu, scales, "scales")?) } else { None },
            };
            part.fill(gpu, bytes, raw, row_bytes)?;
            parts.push(part);
        }
        Ok(Matrix(Rc::new(Parts { packing, rows, columns, octets, parts })))
    }
}

impl Part {
    fn fill(&self, gpu: &Gpu, bytes: &[u8], raw: &RawTensor, row_bytes: usize) -> Result<()> {
        let piece = (PIECE / row_bytes).max(2) / 2 * 2 * row_bytes;
        let (mut weights, mut scales) = (0, 0);
        for bytes in bytes.chunks(piece) {
            let packed = pack(bytes, raw.dtype, raw.shape[1])?;
            gpu.write_at(&self.weights, weights, &packed.weights)?;
            weights += packed.weights.len() as u64;
            if let Some(block) = &self.scales {
                gpu.write_at(block, scales, &packed.scales)?;
                scales += packed.scales.len() as u64;
            }
            // What is written waits in memory until something is sent.
            gpu.flush(|_| {});
        }
        gpu.faults.check()
    }
}
