//! Q6_K: 256 elements of 6 bits in 16 groups.
//!
//! 128 bytes of low nibbles (64 bytes for 128 elements, low nibbles first) | 64 bytes of upper bits as in Q2_K
//! | 16 i8 scales | d f16: y = d scale (q - 32).

use super::{half_at, q2_k::crumb};

pub(super) fn q6_k(bytes: &[u8; 210], out: &mut [f32; 256]) {
    let (low, high, scales) = (&bytes[..128], &bytes[128..192], &bytes[192..208]);
    let d = half_at(bytes, 208);
    for (group, out) in out.chunks_exact_mut(16).enumerate() {
        let scale = d * f32::from(scales[group] as i8);
        for (i, out) in out.iter_mut().enumerate() {
            let at = group * 16 + i;
            let nibble = low[at / 128 * 64 + at % 64] >> (at / 64 % 2 * 4) & 15;
            *out = scale * (f32::from(nibble | crumb(high, at) << 4) - 32.0);
        }
    }
}
