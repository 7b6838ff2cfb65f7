//! Q5_K: 256 elements of 5 bits in 8 groups.
//!
//! d f16 | m f16 | 12 bytes of scales and minima as in Q4_K | 32 bytes of fifth bits (bit b of byte l for element
//! 32 b + l) | 128 bytes as in Q4_K: y = d scale q - m minimum.

use super::{half_at, q4_k::scale_and_minimum};

pub(super) fn q5_k(bytes: &[u8; 176], out: &mut [f32; 256]) {
    let (d, m) = (half_at(bytes, 0), half_at(bytes, 2));
    let fifth = &bytes[16..48];
    for (group, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, minimum) = scale_and_minimum(&bytes[4..16], group);
        let (scale, minimum) = (d * scale, m * minimum);
        let quants = &bytes[48 + group / 2 * 32..][..32];
        for ((out, byte), fifth) in out.iter_mut().zip(quants).zip(fifth) {
            let q = byte >> (group % 2 * 4) & 15 | (fifth >> group & 1) << 4;
            *out = scale * f32::from(q) - minimum;
        }
    }
}
