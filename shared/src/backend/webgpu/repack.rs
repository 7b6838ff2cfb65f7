//! Weights from the blocks of their file into layouts that a GPU reads in aligned words, scales apart.
//!
//! Integers stay what they are, but for those of Q2_K and Q3_K, which become f16. What stands beside them becomes one scale (and
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

/// Elements that rows are filled up to a multiple of.
const STRIPE: usize = 64;

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
            ($($name:literal),*) => {
                concat!($(include_str!(concat!("layouts/", $name, ".wgsl"))),*)
            };
        }
        match self {
            Packing::F32 => layout!("f32", "values"),
            Packing::F16 if f16 => layout!("f16_native", "values"),
            Packing::F16 => layout!("f16", "values"),
            Packing::Q8 => layout!("q8", "dots"),
            Packing::Q4Sym => layout!("q4_sym", "dots"),
            Packing::Q4 => layout!("q4", "dots"),
            Packing::Q5 => layout!("q5", "dots"),
            Packing::Q6 => layout!("q6", "dots"),
        }
    }

    /// Sixteens of elements that a row of `columns` takes, a multiple of 4: what is missing is filled with zeros.
    pub fn sixteens(columns: usize) -> usize {
        STRIPE / 16 * columns.div_ceil(STRIPE)
    }

    /// Bytes of `sixteens` times sixteen elements, whole rows: of the weights, of bits above them, of what stands beside them. So
    /// they lie, one behind the other.
    pub fn bytes(self, sixteens: u64) -> [u64; 3] {
        match self {
            Packing::F32 => [sixteens * 64, 0, 0],
            Packing::F16 => [sixteens * 32, 0, 0],
            Packing::Q8 => [sixteens * 16, 0, sixteens],
            Packing::Q4Sym => [sixteens * 8, 0, sixteens],
            Packing::Q4 => [sixteens * 8, 0, 2 * sixteens],
            Packing::Q5 => [sixteens * 8, 2 * sixteens, 2 * sixteens],
            Packing::Q6 => [sixteens * 8, 4 * sixteens, 2 * sixteens],
        }
    }
}

/// Rows in their layout.
pub(super) struct Packed {
    pub weights: Vec<u8>,
    /// The fifth and sixth bits, of five and six bits an element.
    pub upper: Vec<u8>,
    pub scales: Vec<u8>,
}

/// Packs whole rows of `columns` elements.
pub(super) fn pack(bytes: &[u8], dtype: Dtype, columns: usize) -> Result<Packed> {
    let row_bytes = dtype.bytes_of(&[columns]).filter(|&n| n > 0);
    let row_bytes = row_bytes
        .ok_or_else(|| Error::Backend(format!("{dtype}: expected whole blocks but found rows of {columns}")))?;
    let (packing, sixteens) = (Packing::of(dtype), Packing::sixteens(columns));
    let rows = bytes.len() / row_bytes as usize;
    let [weights, upper, scales] = packing.bytes((rows * sixteens) as u64).map(|n| Vec::with_capacity(n as usize));
    let mut packed = Packed { weights, upper, scales };
    let [of_weights, _, of_scales] = packing.bytes(sixteens as u64).map(|n| n as usize);
    let mut q = Vec::with_capacity(16 * sixteens);
    for (i, row) in (1..).zip(bytes.chunks_exact(row_bytes as usize)) {
        if matches!(packing, Packing::F32 | Packing::F16) {
            floats(dtype, row, columns, &mut packed.weights)?;
            packed.weights.resize(i * of_weights, 0);
            continue;
        }
        q.clear();
        for block in row.chunks_exact(dtype.block_bytes()) {
            integers(dtype, block, &mut q, &mut packed.scales)?;
        }
        q.resize(16 * sixteens, 0);
        packed.scales.resize(i * of_scales, 0);
        q.as_chunks().0.iter().for_each(|stripe| lay(packing, stripe, &mut packed));
    }
    Ok(packed)
}

/// A row in the floats of its packing.
fn floats(dtype: Dtype, row: &[u8], columns: usize, out: &mut Vec<u8>) -> Result<()> {
    if matches!(dtype, Dtype::F32 | Dtype::F16) {
        out.extend_from_slice(row);
        return Ok(());
    }
    let values = quant::dequantize(&RawTensor { shape: vec![1, columns], dtype, bytes: row.to_vec() })?.into_iter();
    match Packing::of(dtype) {
        Packing::F32 => out.extend(values.flat_map(f32::to_le_bytes)),
        _ => out.extend(values.flat_map(|v| f16::from_f32(v).to_le_bytes())),
    }
    Ok(())
}

/// The integers of a block's elements in order, and as f16 what they are multiplied by, and what is added.
fn integers(dtype: Dtype, block: &[u8], q: &mut Vec<u8>, beside: &mut Vec<u8>) -> Result<()> {
    let word_at = |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    match dtype {
        Dtype::Q8_0 => {
            beside.extend(&block[..2]);
            q.extend(block[2..].iter().map(|&q| q ^ 128));
        }
        Dtype::Q4_0 => {
            beside.extend(&block[..2]);
            q.extend(halves(&block[2..]));
        }
        Dtype::Q4_1 => {
            beside.extend(&block[..4]);
            q.extend(halves(&block[4..]));
        }
        Dtype::Q5_0 => {
            let d = half_at(block, 0);
            pair(d, -16.0 * d, beside);
            q.extend(five(halves(&block[6..]), word_at(2)));
        }
        Dtype::Q5_1 => {
            beside.extend(&block[..4]);
            q.extend(five(halves(&block[8..]), word_at(4)));
        }
        Dtype::Q4_K => {
            groups(&block[..16], beside);
            q.extend((0..8).flat_map(|group| k_group(&block[16..], group)));
        }
        Dtype::Q5_K => {
            groups(&block[..16], beside);
            for group in 0..8 {
                let bits =
                    block[16..48].iter().zip(0..).fold(0, |bits, (byte, i)| bits | u32::from(byte >> group & 1) << i);
                q.extend(five(k_group(&block[48..], group), bits));
            }
        }
        Dtype::Q6_K => {
            let d = half_at(block, 208);
            let scale = |byte: &u8| f16::from_f32(d * f32::from(*byte as i8)).to_le_bytes();
            beside.extend(block[192..208].iter().flat_map(scale));
            let low = |i: usize| block[i / 128 * 64 + i % 64] >> (i / 64 % 2 * 4) & 15;
            q.extend((0..256).map(|i| low(i) | crumb(&block[128..192], i) << 4));
        }
        Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::Q2_K | Dtype::Q3_K => {
            return Err(Error::Backend(format!("{dtype}: expected a type that is packed as integers")));
        }
    }
    Ok(())
}

/// One sixteen of a stripe after the other; see `layouts/octet.wgsl`.
fn lay(packing: Packing, stripe: &[u8; STRIPE], packed: &mut Packed) {
    // Four j of sixteen s, an element a byte.
    let fours: &[[u8; 4]] = stripe.as_chunks().0;
    let four = |s: usize, j: usize| u32::from_le_bytes(fours[4 * j + s]);
    if packing == Packing::Q8 {
        let words: [u32; 16] = std::array::from_fn(|i| four(i / 4, i % 4));
        packed.weights.extend_from_slice(bytemuck::cast_slice(&words.map(u32::to_le)));
        return;
    }
    let low = |s: usize, j: usize| nibbles(four(s, j) & 0x0f0f_0f0f);
    let words: [u32; 8] = std::array::from_fn(|i| low(i / 2, i % 2 * 2) | low(i / 2, i % 2 * 2 + 1) << 16);
    packed.weights.extend_from_slice(bytemuck::cast_slice(&words.map(u32::to_le)));
    let above = |s: usize, j: usize| nibbles(four(s, j) >> 4 & 0x0f0f_0f0f);
    match packing {
        Packing::Q5 => {
            let fifths: [u16; 4] = std::array::from_fn(|s| (0..4).fold(0, |bits, j| bits | (above(s, j) << j) as u16));
            packed.upper.extend_from_slice(bytemuck::cast_slice(&fifths.map(u16::to_le)));
        }
        Packing::Q6 => {
            let octet = |i: usize| above(i / 2, i % 2 * 2) | above(i / 2, i % 2 * 2 + 1) << 2;
            let bits: [u16; 8] = std::array::from_fn(|i| octet(i) as u16);
            packed.upper.extend_from_slice(bytemuck::cast_slice(&bits.map(u16::to_le)));
        }
        _ => {}
    }
}

/// The low nibbles of four bytes side by side; high ones must be none.
fn nibbles(four: u32) -> u32 {
    four & 0xf | four >> 4 & 0xf0 | four >> 8 & 0xf00 | four >> 12 & 0xf000
}

/// Elements of 16 bytes: low nibbles first, then the high ones.
fn halves(bytes: &[u8]) -> [u8; 32] {
    let mut q = [0; 32];
    let (low, high) = q.split_at_mut(16);
    for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
        (*low, *high) = (byte & 15, byte >> 4);
    }
    q
}

/// Elements of a group of a K type: 32 bytes hold two, low nibbles the even, high ones the odd.
fn k_group(bytes: &[u8], group: usize) -> [u8; 32] {
    bytes.as_chunks().0[group / 2].map(|byte: u8| byte >> (group % 2 * 4) & 15)
}

/// Four bits an element and a fifth, bit i for element i.
fn five(low: [u8; 32], fifths: u32) -> [u8; 32] {
    std::array::from_fn(|i| low[i] | ((fifths >> i & 1) << 4) as u8)
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
