//! Q8_0: d f16 | 32 i8: y = d q.

use half::f16;

use super::half_at;

pub(super) fn q8_0(bytes: &[u8; 34], out: &mut [f32; 32]) {
    let d = half_at(bytes, 0);
    for (out, &q) in out.iter_mut().zip(&bytes[2..]) {
        *out = f32::from(q as i8) * d;
    }
}

/// Ties round away from zero, as in GGML.
pub(super) fn to_q8_0(values: &[f32]) -> Vec<u8> {
    let mut out = Vec::with_capacity(values.len() / 32 * 34);
    let (blocks, _) = values.as_chunks::<32>();
    for block in blocks {
        let d = block.iter().fold(0.0f32, |best, v| best.max(v.abs())) / 127.0;
        let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
        out.extend(f16::from_f32(d).to_le_bytes());
        out.extend(block.iter().map(|v| (v * inverse).round() as i8 as u8));
    }
    out
}
