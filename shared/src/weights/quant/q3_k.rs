//! Q3_K: 256 elements of 3 bits in 16 groups.
//!
//! 32 bytes of third bits (bit b of byte l for element 32 b + l) | 64 bytes as in Q2_K | 12 bytes of 6-bit scales
//! | d f16: y = d (scale - 32) (q - 4 where the third bit is clear).

use super::{half_at, q2_k::crumb};

pub(super) fn q3_k(bytes: &[u8; 110], out: &mut [f32; 256]) {
    let (third, quants, scales) = (&bytes[..32], &bytes[32..96], &bytes[96..108]);
    let d = half_at(bytes, 108);
    for (group, out) in out.chunks_exact_mut(16).enumerate() {
        // Low four bits of scales 0 to 7 and 8 to 15 share bytes 0 to 7; the upper two of four scales share one of the
        // last four bytes.
        let low = scales[group % 8] >> (group / 8 * 4) & 15;
        let high = scales[8 + group % 4] >> (group / 4 * 2) & 3;
        let scale = d * (f32::from(low | high << 4) - 32.0);
        for (i, out) in out.iter_mut().enumerate() {
            let at = group * 16 + i;
            let set = third[at % 32] >> (at / 32) & 1;
            *out = scale * (f32::from(crumb(quants, at) | set << 2) - 4.0);
        }
    }
}
