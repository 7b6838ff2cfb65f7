//! Stored elements to f32 and back.
//!
//! Blocks are GGML's. The arithmetic keeps the order of the reference implementation in the Python package `gguf`, so
//! that values agree bit for bit: products first, one subtraction or addition last, no fused operations.

mod float;
mod q2_k;
mod q3_k;
mod q4;
mod q4_k;
mod q5;
mod q5_k;
mod q6_k;
mod q8;

#[cfg(feature = "webgpu")]
pub(crate) use q2_k::crumb;
#[cfg(feature = "webgpu")]
pub(crate) use q4_k::scale_and_minimum;

use super::{Dtype, RawTensor};
use crate::error::{Error, Result};

/// All of a tensor's elements, row-major.
///
/// # Errors
/// [`Error::Malformed`] if the bytes are not those of shape and type.
pub fn dequantize(tensor: &RawTensor) -> Result<Vec<f32>> {
    if tensor.dtype.bytes_of(&tensor.shape) != Some(tensor.bytes.len() as u64) {
        return Err(Error::Malformed(format!(
            "expected the bytes of {} {:?} but found {}",
            tensor.dtype,
            tensor.shape,
            tensor.bytes.len()
        )));
    }
    let mut out = vec![0.0; tensor.bytes.len() / tensor.dtype.block_bytes() * tensor.dtype.block_size()];
    dequantize_into(&tensor.bytes, tensor.dtype, &mut out)?;
    Ok(out)
}

/// Some rows of a matrix with `row_len` columns, in the order asked for: (rows, row_len).
///
/// # Errors
/// [`Error::Malformed`] if `row_len` is no whole number of blocks or a row lies outside `bytes`.
pub fn dequantize_rows(
    bytes: &[u8],
    dtype: Dtype,
    row_len: usize,
    rows: impl IntoIterator<Item = usize>,
) -> Result<Vec<f32>> {
    let row_bytes = dtype.bytes_of(&[row_len]).and_then(|n| usize::try_from(n).ok()).ok_or_else(|| {
        Error::Malformed(format!("expected rows of whole blocks of {} but found {row_len}", dtype.block_size()))
    })?;
    let mut out = Vec::new();
    for row in rows {
        let start = row.checked_mul(row_bytes);
        let row_bytes = start
            .and_then(|start| bytes.get(start..start.checked_add(row_bytes)?))
            .ok_or_else(|| Error::Malformed(format!("expected row {row} but found {} bytes in all", bytes.len())))?;
        let filled = out.len();
        out.resize(filled + row_len, 0.0);
        dequantize_into(row_bytes, dtype, &mut out[filled..])?;
    }
    Ok(out)
}

/// Consecutive blocks.
///
/// # Errors
/// [`Error::Malformed`] if `bytes` are not exactly those of `out.len()` elements.
pub fn dequantize_into(bytes: &[u8], dtype: Dtype, out: &mut [f32]) -> Result<()> {
    if dtype.bytes_of(&[out.len()]) != Some(bytes.len() as u64) {
        return Err(Error::Malformed(format!(
            "expected the bytes of {} elements of {dtype} but found {}",
            out.len(),
            bytes.len()
        )));
    }
    match dtype {
        Dtype::F32 => each::<4, 1>(bytes, out, float::f32),
        Dtype::F16 => each::<2, 1>(bytes, out, float::f16),
        Dtype::BF16 => each::<2, 1>(bytes, out, float::bf16),
        Dtype::Q4_0 => each::<18, 32>(bytes, out, q4::q4_0),
        Dtype::Q4_1 => each::<20, 32>(bytes, out, q4::q4_1),
        Dtype::Q5_0 => each::<22, 32>(bytes, out, q5::q5_0),
        Dtype::Q5_1 => each::<24, 32>(bytes, out, q5::q5_1),
        Dtype::Q8_0 => each::<34, 32>(bytes, out, q8::q8_0),
        Dtype::Q2_K => each::<84, 256>(bytes, out, q2_k::q2_k),
        Dtype::Q3_K => each::<110, 256>(bytes, out, q3_k::q3_k),
        Dtype::Q4_K => each::<144, 256>(bytes, out, q4_k::q4_k),
        Dtype::Q5_K => each::<176, 256>(bytes, out, q5_k::q5_k),
        Dtype::Q6_K => each::<210, 256>(bytes, out, q6_k::q6_k),
    }
    Ok(())
}

/// Values to F32, F16, BF16, Q8_0 or Q4_0, row-major; rows must be whole blocks.
///
/// # Errors
/// [`Error::Unsupported`] for other types; [`Error::Config`] if the values are no whole number of blocks, or one is not
/// finite or too large for the type.
pub fn quantize(values: &[f32], dtype: Dtype) -> Result<Vec<u8>> {
    if !values.len().is_multiple_of(dtype.block_size()) {
        return Err(Error::Config(format!(
            "expected whole blocks of {} for {dtype} but found {} values",
            dtype.block_size(),
            values.len()
        )));
    }
    if let Some((i, v)) = values.iter().enumerate().find(|(_, v)| !v.is_finite()) {
        return Err(Error::Config(format!("expected finite values but found {v} at {i}")));
    }
    let bytes = match dtype {
        Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Dtype::F16 => float::to_f16(values),
        Dtype::BF16 => float::to_bf16(values),
        Dtype::Q8_0 => q8::to_q8_0(values),
        Dtype::Q4_0 => q4::to_q4_0(values),
        other => {
            return Err(Error::Unsupported(format!(
                "expected F32, F16, BF16, Q8_0 or Q4_0 to quantise to but found {other}"
            )));
        }
    };
    // Half precision ends at 65504; a value or a block's scale beyond it would come back as infinity.
    let blocks = bytes.chunks_exact(dtype.block_bytes());
    let overflow = match dtype {
        Dtype::F16 | Dtype::Q8_0 | Dtype::Q4_0 => blocks.enumerate().find(|(_, b)| half_at(b, 0).is_infinite()),
        Dtype::BF16 => blocks.enumerate().find(|(_, b)| float::bf16_value([b[0], b[1]]).is_infinite()),
        _ => None,
    };
    match overflow {
        None => Ok(bytes),
        Some((block, _)) => Err(Error::Config(format!(
            "expected values that {dtype} can hold but found larger ones from {} on",
            block * dtype.block_size()
        ))),
    }
}

/// Calls `block` for each block of `B` bytes and `N` elements.
fn each<const B: usize, const N: usize>(bytes: &[u8], out: &mut [f32], block: impl Fn(&[u8; B], &mut [f32; N])) {
    let (blocks, _) = bytes.as_chunks::<B>();
    let (outs, _) = out.as_chunks_mut::<N>();
    for (bytes, out) in blocks.iter().zip(outs) {
        block(bytes, out);
    }
}

/// The f16 at byte `at`.
#[inline]
pub(crate) fn half_at(bytes: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_those_of_the_whole() {
        let values: Vec<f32> = (0..4 * 64).map(|i| (i as f32 * 0.37).sin()).collect();
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::Q8_0, Dtype::Q4_0] {
            let bytes = quantize(&values, dtype).unwrap();
            let whole = dequantize(&RawTensor { shape: vec![4, 64], dtype, bytes: bytes.clone() }).unwrap();
            let rows = dequantize_rows(&bytes, dtype, 64, [3, 0, 3]).unwrap();
            assert_eq!(rows, [&whole[192..], &whole[..64], &whole[192..]].concat());
            assert!(dequantize_rows(&bytes, dtype, 64, [4]).is_err());
            assert!(dequantize_rows(&bytes, dtype, 64, [usize::MAX]).is_err());
        }
    }

    #[test]
    fn errors_are_bounded_by_the_step() {
        let values: Vec<f32> = (0..320).map(|i| (i as f32 * 1.7).sin() * 3.0).collect();
        let bytes = quantize(&values, Dtype::Q8_0).unwrap();
        let back = dequantize(&RawTensor { shape: vec![320], dtype: Dtype::Q8_0, bytes }).unwrap();
        let worst = values.iter().zip(&back).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        // Half a step of the integers, and the scale's rounding to half precision.
        assert!(worst <= 3.0 / 127.0 / 2.0 + 3.0 / 2048.0, "{worst}");
    }

    #[test]
    fn what_cannot_be_stored_is_refused() {
        assert!(quantize(&[0.0; 31], Dtype::Q8_0).is_err());
        assert!(quantize(&[0.0; 256], Dtype::Q4_K).unwrap_err().to_string().contains("Q4_K"));
        let mut values = [1.0; 64];
        values[40] = f32::NAN;
        assert!(quantize(&values, Dtype::F32).unwrap_err().to_string().contains("NaN at 40"));
        values[40] = 1e30;
        for dtype in [Dtype::F16, Dtype::Q8_0, Dtype::Q4_0] {
            let error = quantize(&values, dtype).unwrap_err().to_string();
            assert!(error.contains("larger ones"), "{error}");
        }
        assert!(quantize(&[f32::MAX], Dtype::BF16).is_err());
    }

    #[test]
    fn bytes_must_fit_the_shape() {
        let short = RawTensor { shape: vec![2, 32], dtype: Dtype::Q8_0, bytes: vec![0; 67] };
        assert!(
            dequantize(&short).unwrap_err().to_string().starts_with("expected the bytes of Q8_0 [2, 32] but found 67")
        );
    }
}
