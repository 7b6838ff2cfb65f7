//! GGML block formats.
#[allow(missing_docs)]
pub fn dequantize(raw: &super::RawTensor) -> crate::Result<Vec<f32>> {
    Ok(raw.bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}
