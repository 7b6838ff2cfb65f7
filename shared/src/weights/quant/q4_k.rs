//! Q4_K: 256 elements of 4 bits in 8 groups.
//!
//! d f16 | m f16 | 12 bytes of 6-bit scales and minima | 128 bytes: y = d scale q - m minimum.

use super::half_at;

pub(super) fn q4_k(bytes: &[u8; 144], out: &mut [f32; 256]) {
    let (d, m) = (half_at(bytes, 0), half_at(bytes, 2));
    for (group, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, minimum) = scale_and_minimum(&bytes[4..16], group);
        let (scale, minimum) = (d * scale, m * minimum);
        // 32 bytes hold two groups: low nibbles the even, high nibbles the odd one.
        let quants = &bytes[16 + group / 2 * 32..][..32];
        for (out, byte) in out.iter_mut().zip(quants) {
            *out = scale * f32::from(byte >> (group % 2 * 4) & 15) - minimum;
        }
    }
}

/// Groups 0 to 3: six low bits of bytes 0 to 3 (scales) and 4 to 7 (minima). Groups 4 to 7: low and high nibbles of
/// bytes 8 to 11, completed by the two high bits of the former.
#[inline]
pub(crate) fn scale_and_minimum(packed: &[u8], group: usize) -> (f32, f32) {
    let (scale, minimum) = match group {
        0..4 => (packed[group] & 63, packed[group + 4] & 63),
        _ => {
            let nibbles = packed[group + 4];
            (nibbles & 15 | packed[group - 4] >> 2 & 48, nibbles >> 4 | packed[group] >> 2 & 48)
        }
    };
    (f32::from(scale), f32::from(minimum))
}
