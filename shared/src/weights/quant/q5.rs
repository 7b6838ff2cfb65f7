//! Q5_0 and Q5_1: 32 elements of 5 bits; nibbles as in Q4_0, the fifth bits in a word, bit i for element i.

use super::half_at;

/// d f16 | fifth bits u32 | 16 bytes: y = d (q - 16).
pub(super) fn q5_0(bytes: &[u8; 22], out: &mut [f32; 32]) {
    let d = half_at(bytes, 0);
    quants(&bytes[2..], |i, q| out[i] = d * (q - 16.0));
}

/// d f16 | m f16 | fifth bits u32 | 16 bytes: y = d q + m.
pub(super) fn q5_1(bytes: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (half_at(bytes, 0), half_at(bytes, 2));
    quants(&bytes[4..], |i, q| out[i] = d * q + m);
}

fn quants(bytes: &[u8], mut put: impl FnMut(usize, f32)) {
    let high = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let fifth = |i: usize| ((high >> i & 1) << 4) as u8;
    for (i, &byte) in bytes[4..].iter().enumerate() {
        put(i, f32::from(byte & 15 | fifth(i)));
        put(i + 16, f32::from(byte >> 4 | fifth(i + 16)));
    }
}
