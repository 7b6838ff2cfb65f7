//! Q2_K: 256 elements of 2 bits in 16 groups.
//!
//! 16 bytes of (scale, minimum), 4 bits each | 64 bytes | d f16 | m f16: y = d scale q - m minimum.

use super::half_at;

pub(super) fn q2_k(bytes: &[u8; 84], out: &mut [f32; 256]) {
    let (d, m) = (half_at(bytes, 80), half_at(bytes, 82));
    let quants = &bytes[16..80];
    for (group, out) in out.chunks_exact_mut(16).enumerate() {
        let scale = d * f32::from(bytes[group] & 15);
        let minimum = m * f32::from(bytes[group] >> 4);
        for (i, out) in out.iter_mut().enumerate() {
            *out = scale * f32::from(crumb(quants, group * 16 + i)) - minimum;
        }
    }
}

/// Element `i` of 2-bit elements: each 32 bytes hold 128 of them, 32 for each pair of bits from the lowest up.
#[inline]
pub(crate) fn crumb(quants: &[u8], i: usize) -> u8 {
    let (half, shift, lane) = (i / 128, i / 32 % 4 * 2, i % 32);
    quants[half * 32 + lane] >> shift & 3
}
