//! Products with every type of weights, and their rows.

use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{compare, random};
use crate::{
    backend::{Backend, Candle, WebGpu, candle},
    error::Result,
    weights::{Dtype, RawTensor, quant},
};

/// A matrix of random bits with scales of usual size.
pub(in super::super) fn matrix(seed: u64, dtype: Dtype, rows: usize, columns: usize) -> Result<RawTensor> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let shape = vec![rows, columns];
    let halves: &[usize] = match dtype {
        Dtype::F32 | Dtype::F16 | Dtype::BF16 => {
            let (values, _) = random(seed, &shape);
            return Ok(RawTensor { bytes: quant::quantize(&values, dtype)?, shape, dtype });
        }
        Dtype::Q4_0 | Dtype::Q5_0 | Dtype::Q8_0 => &[0],
        Dtype::Q4_1 | Dtype::Q5_1 | Dtype::Q4_K | Dtype::Q5_K => &[0, 2],
        Dtype::Q2_K => &[80, 82],
        Dtype::Q3_K => &[108],
        Dtype::Q6_K => &[208],
    };
    let mut bytes = vec![0; dtype.bytes_of(&shape).unwrap_or_default() as usize];
    rng.fill_bytes(&mut bytes);
    for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
        for &at in halves {
            let scale = half::f16::from_f32(rng.random_range(0.001..0.02));
            block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
        }
    }
    Ok(RawTensor { shape, dtype, bytes })
}

pub(super) fn dense(cpu: &Candle, raw: &RawTensor) -> Result<candle::Matrix> {
    let raw = RawTensor {
        shape: raw.shape.clone(),
        dtype: Dtype::F32,
        bytes: quant::dequantize(raw)?.iter().flat_map(|v| v.to_le_bytes()).collect(),
    };
    cpu.upload_matrix(&raw)
}

/// Shapes (rows, columns) of a type: odd numbers of rows, and of columns where blocks allow it; one so wide that a lane of
/// few rows' products goes through its row twice.
fn shapes(dtype: Dtype) -> Vec<(usize, usize)> {
    match dtype.block_size() {
        1 => vec![(7, 5), (67, 37), (130, 64), (3, 264), (5, 1100), (300, 24)],
        32 => vec![(7, 32), (67, 96), (130, 320), (5, 1120), (300, 32)],
        _ => vec![(7, 256), (67, 768), (67, 1280), (300, 256)],
    }
}

pub async fn products_of_every_type(gpu: &WebGpu) -> Result<()> {
    for dtype in Dtype::ALL {
        for (rows, columns) in shapes(dtype) {
            let raw = matrix(3, dtype, rows, columns)?;
            let cpu = Candle::cpu();
            let (there, plain, blocks) = (gpu.upload_matrix(&raw)?, dense(&cpu, &raw)?, cpu.upload_matrix(&raw)?);
            for n in [1, 3, 9, 37] {
                let inputs = [random(1, &[n, columns]), random(2, &[rows])];
                let name = format!("linear {dtype} ({rows}, {columns})");
                let on_gpu = |b: &WebGpu, t: &[_]| b.linear(&t[0], &there, Some(&t[1]));
                // Of the same values: only the f16 of scales and the order of sums differ.
                compare(gpu, &name, 1e-6, &inputs, on_gpu, |b, t| b.linear(&t[0], &plain, Some(&t[1]))).await?;
                // Of the CPU's own product, which rounds x to 8 bits.
                compare(gpu, &name, 5e-4, &inputs, on_gpu, |b, t| b.linear(&t[0], &blocks, Some(&t[1]))).await?;
                compare(
                    gpu,
                    &name,
                    1e-6,
                    &inputs[..1],
                    |b, t| b.linear(&t[0], &there, None),
                    |b, t| b.linear(&t[0], &plain, None),
                )
                .await?;
            }
        }
    }
    Ok(())
}

pub async fn rows_of_every_type(gpu: &WebGpu) -> Result<()> {
    for dtype in Dtype::ALL {
        for (rows, columns) in shapes(dtype) {
            let raw = matrix(5, dtype, rows, columns)?;
            let (there, here) = (gpu.upload_matrix(&raw)?, Candle::cpu().upload_matrix(&raw)?);
            let ids = [rows as u32 - 1, 0, 2, 2, rows as u32 / 2];
            let name = format!("embedding {dtype} ({rows}, {columns})");
            compare(gpu, &name, 1e-6, &[], |b, _| b.embedding(&there, &ids), |b, _| b.embedding(&here, &ids)).await?;
            ensure!(gpu.embedding(&there, &[rows as u32]).is_err());
        }
    }
    Ok(())
}

pub async fn infinities_and_what_is_no_number_come_through(gpu: &WebGpu) -> Result<()> {
    for n in [1, 12] {
        let mut x = random(1, &[n, 64]);
        x.0[5] = f32::INFINITY;
        let raw = matrix(4, Dtype::F32, 9, 64)?;
        let (there, here) = (gpu.upload_matrix(&raw)?, Candle::cpu().upload_matrix(&raw)?);
        let inputs = [x.clone()];
        compare(
            gpu,
            "linear",
            1e-6,
            &inputs,
            |b, t| b.linear(&t[0], &there, None),
            |b, t| b.linear(&t[0], &here, None),
        )
        .await?;
        x.0[7] = f32::NAN;
        compare(gpu, "linear", 1e-6, &[x], |b, t| b.linear(&t[0], &there, None), |b, t| b.linear(&t[0], &here, None))
            .await?;
    }
    Ok(())
}
