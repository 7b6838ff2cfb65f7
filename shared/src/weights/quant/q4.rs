//! Q4_0 and Q4_1: 32 elements of 4 bits; low nibbles are the first 16 elements, high ones the last 16.

use half::f16;

use super::half_at;

/// d f16 | 16 bytes: y = d (q - 8).
pub(super) fn q4_0(bytes: &[u8; 18], out: &mut [f32; 32]) {
    let d = half_at(bytes, 0);
    for (i, &byte) in bytes[2..].iter().enumerate() {
        out[i] = d * (f32::from(byte & 15) - 8.0);
        out[i + 16] = d * (f32::from(byte >> 4) - 8.0);
    }
}

/// d f16 | m f16 | 16 bytes: y = d q + m.
pub(super) fn q4_1(bytes: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (half_at(bytes, 0), half_at(bytes, 2));
    for (i, &byte) in bytes[4..].iter().enumerate() {
        out[i] = d * f32::from(byte & 15) + m;
        out[i + 16] = d * f32::from(byte >> 4) + m;
    }
}

/// The element of the largest magnitude (the first of equals) becomes -8, so it is exact in either sign.
pub(super) fn to_q4_0(values: &[f32]) -> Vec<u8> {
    let mut out = Vec::with_capacity(values.len() / 32 * 18);
    let (blocks, _) = values.as_chunks::<32>();
    for block in blocks {
        let extreme = block.iter().fold(0.0f32, |best, &v| if v.abs() > best.abs() { v } else { best });
        let d = extreme / -8.0;
        let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
        let q = |v: f32| (v * inverse + 8.5).trunc().clamp(0.0, 15.0) as u8;
        out.extend(f16::from_f32(d).to_le_bytes());
        out.extend((0..16).map(|i| q(block[i]) | q(block[i + 16]) << 4));
    }
    out
}
