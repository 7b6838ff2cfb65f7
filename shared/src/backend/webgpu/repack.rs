//! Weights from the blocks of their file into layouts that a GPU reads in aligned words, scales apart.
//!
//! Integers stay as they are, but for Q2_K and Q3_K, which become f16. What stands beside them becomes one scale (and
//! minimum) for each 32 elements, or 16 of Q6_K, rounded to f16: for the K types that is the product of a block's scale
//! and a group's.

use half::f16;

use crate::{
    error::{Error, Result},
    weights::{
        Dtype, RawTensor,
        quant::{self, crumb, half_at, scale_and_minimum},
    },
};

/// How a matrix lies on the device; see `layouts/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Packing {
    F32,
    F16,
    Q8,
    Q4Sym,
    Q4,
    Q5,
    Q6,
}

impl Packing {
    #[cfg(test)]
    pub const ALL: [Packing; 7] =
        [Packing::F32, Packing::F16, Packing::Q8, Packing::Q4Sym, Packing::Q4, Packing::Q5, Packing::Q6];

    /// Where weights of a type go. BF16 has a wider range than f16, so it takes the room of f32; types that few
    /// files have become f16.
    pub fn of(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 | Dtype::BF16 => Packing::F32,
            Dtype::F16 | Dtype::Q2_K | Dtype::Q3_K => Packing::F16,
            Dtype::Q8_0 => Packing::Q8,
            Dtype::Q4_0 => Packing::Q4Sym,
            Dtype::Q4_1 | Dtype::Q4_K => Packing::Q4,
            Dtype::Q5_0 | Dtype::Q5_1 | Dtype::Q5_K => Packing::Q5,
            Dtype::Q6_K => Packing::Q6,
        }
    }

    /// The kernels' part that reads it.
    pub fn source(self, f16: bool) -> &'static str {
        macro_rules! layout {
            ($name:literal, $product:literal) => {
                concat!(
                    include_str!(concat!("layouts/", $name, ".wgsl")),
                    include_str!(concat!("layouts/", $product, ".wgsl")),
                    include_str!("layouts/dots.wgsl")
                )
            };
        }
        match self {
            Packing::F32 => layout!("f32", "values"),
            Packing::F16 if f16 => layout!("f16_native", "values"),
            Packing::F16 => layout!("f16", "values"),
            Packing::Q8 => layout!("q8", "scaled"),
            Packing::Q4Sym => layout!("q4_sym", "scaled"),
            Packing::Q4 => layout!("q4", "values"),
            Packing::Q5 => layout!("q5", "values"),
            Packing::Q6 => layout!("q6", "scaled"),
        }
    }

    /// Bytes of `octets` times eight elements, and of what stands beside them.
    pub fn bytes(self, octets: u64) -> (u64, u64) {
        match self {
            Packing::F32 => (octets * 32, 0),
            Packing::F16 => (octets * 16, 0),
            Packing::Q8 => (octets * 8, octets / 2),
            Packing::Q4Sym => (octets * 4, octets / 2),
            Packing::Q4 => (octets * 4, octets),
            Packing::Q5 => (octets * 5, octets),
            Packing::Q6 => (octets * 6, octets),
        }
    }
}

/// Rows in their layout.
#[derive(Default)]
pub(super) struct Packed {
    pub weights: Vec<u8>,
    pub scales: Vec<u8>,
}

/// Packs whole rows of `columns` elements.
pub(super) fn pack(bytes: &[u8], dtype: Dtype, columns: usize) -> Result<Packed> {
    let mut packed = Packed::default();
    let (weights, scales) = (&mut packed.weights, &mut packed.scales);
    match dtype {
        Dtype::F32 | Dtype::BF16 | Dtype::Q2_K | Dtype::Q3_K => {
            let rows = bytes.len() as u64 / dtype.bytes_of(&[columns]).filter(|&n| n > 0).unwrap_or(1);
            let shape = vec![rows as usize, columns];
            let values = quant::dequantize(&RawTensor { shape, dtype, bytes: bytes.to_vec() })?;
            for row in values.chunks_exact(columns.max(1)) {
                let padding = columns.next_multiple_of(8) - columns;
                let row = row.iter().copied().chain(std::iter::repeat_n(0.0, padding));
                match Packing::of(dtype) {
                    Packing::F32 => weights.extend(row.flat_map(f32::to_le_bytes)),
                    _ => weights.extend(row.flat_map(|v| f16::from_f32(v).to_le_bytes())),
                }
            }
        }
        Dtype::F16 => {
            for row in bytes.chunks_exact(2 * columns.max(1)) {
                weights.extend(row);
                weights.resize(weights.len().next_multiple_of(16), 0);
            }
        }
        Dtype::Q8_0 => {
            for block in bytes.chunks_exact(34) {
                scales.extend(&block[..2]);
                weights.extend(block[2..].iter().map(|&q| q ^ 128));
            }
        }
        Dtype::Q4_0 => {
            for block in bytes.chunks_exact(18) {
                scales.extend(&block[..2]);
                nibbles(&halves(&block[2..]), weights);
            }
        }
        Dtype::Q4_1 => {
            for block in bytes.chunks_exact(20) {
                scales.extend(&block[..4]);
                nibbles(&halves(&block[4..]), weights);
            }
        }
        Dtype::Q5_0 => {
            for block in bytes.chunks_exact(22) {
                let d = half_at(block, 0);
                pair(d, -16.0 * d, scales);
                five(&halves(&block[6..]), &block[2..6], weights);
            }
        }
        Dtype::Q5_1 => {
            for block in bytes.chunks_exact(24) {
                scales.extend(&block[..4]);
                five(&halves(&block[8..]), &block[4..8], weights);
            }
        }
        Dtype::Q4_K => {
            for block in bytes.chunks_exact(144) {
                groups(&block[..16], scales);
                for group in 0..8 {
                    nibbles(&k_group(&block[16..], group), weights);
                }
            }
        }
        Dtype::Q5_K => {
            for block in bytes.chunks_exact(176) {
                groups(&block[..16], scales);
                for group in 0..8 {
                    let fifth = block[16..48]
                        .iter()
                        .enumerate()
                        .fold(0u32, |bits, (i, byte)| bits | u32::from(byte >> group & 1) << i);
                    five(&k_group(&block[48..], group), &fifth.to_le_bytes(), weights);
                }
            }
        }
        Dtype::Q6_K => block_q6_k(bytes, weights, scales),
    }
    // Two scales share a word.
    scales.resize(scales.len().next_multiple_of(4), 0);
    if packed.weights.len() % 4 != 0 {
        return Err(Error::Backend(format!("{dtype}: expected whole words of weights")));
    }
    Ok(packed)
}

fn block_q6_k(bytes: &[u8], weights: &mut Vec<u8>, scales: &mut Vec<u8>) {
    for block in bytes.chunks_exact(210) {
        let d = half_at(block, 208);
        for group in 0..8 {
            for half in 0..2 {
                let scale = d * f32::from(block[192 + 2 * group + half] as i8);
                scales.extend(f16::from_f32(scale).to_le_bytes());
            }
            let at = |i: usize| 32 * group + i;
            let low = |i: usize| block[at(i) / 128 * 64 + at(i) % 64] >> (at(i) / 64 % 2 * 4) & 15;
            nibbles(&std::array::from_fn(low), weights);
            for four in 0..8 {
                weights.push((0..4).fold(0, |byte, i| byte | crumb(&block[128..192], at(4 * four + i)) << (2 * i)));
            }
        }
    }
}

/// Elements of 16 bytes: low nibbles first, then the high ones.
fn halves(bytes: &[u8]) -> [u8; 32] {
    std::array::from_fn(|i| bytes[i % 16] >> (i / 16 * 4) & 15)
}

/// Elements of a group of a K type: 32 bytes hold two, low nibbles the even, high ones the odd.
fn k_group(bytes: &[u8], group: usize) -> [u8; 32] {
    std::array::from_fn(|i| bytes[group / 2 * 32 + i] >> (group % 2 * 4) & 15)
}

/// Four words, each of eight elements: low nibbles the first four, high ones the last.
fn nibbles(q: &[u8; 32], out: &mut Vec<u8>) {
    for octet in q.chunks_exact(8) {
        out.extend((0..4).map(|i| octet[i] | octet[i + 4] << 4));
    }
}

/// Nibbles, and the word of fifth bits.
fn five(q: &[u8; 32], fifth: &[u8], out: &mut Vec<u8>) {
    nibbles(q, out);
    out.extend(fifth);
}

fn pair(d: f32, m: f32, out: &mut Vec<u8>) {
    out.extend(f16::from_f32(d).to_le_bytes());
    out.extend(f16::from_f32(m).to_le_bytes());
}

/// Scale and minimum of the eight groups of a K block, whose first 16 bytes these are.
fn groups(head: &[u8], out: &mut Vec<u8>) {
    let (d, m) = (half_at(head, 0), half_at(head, 2));
    for group in 0..8 {
        let (scale, minimum) = scale_and_minimum(&head[4..16], group);
        pair(d * scale, -m * minimum, out);
    }
}
