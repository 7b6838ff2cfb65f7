//! What is done in one pass against what the CPU does in several.

use super::{
    compare, nmse,
    products::{dense, matrix},
    random, values,
};
use crate::{
    backend::{Activation, Backend, Candle, RopeLayout, SelfAttention, WebGpu, candle},
    error::Result,
    weights::Dtype,
};

/// Of products whose input the CPU rounds to 8 bits.
const QUANTISED: f64 = 5e-4;

type Pair = (super::super::Matrix, candle::Matrix);

fn both(gpu: &WebGpu, seed: u64, dtype: Dtype, rows: usize, columns: usize) -> Result<Pair> {
    let raw = matrix(seed, dtype, rows, columns)?;
    Ok((gpu.upload_matrix(&raw)?, Candle::cpu().upload_matrix(&raw)?))
}

pub async fn products_with_something_after(gpu: &WebGpu) -> Result<()> {
    for (n, bias) in [(1, false), (3, true), (37, true)] {
        let (there, here) = both(gpu, 1, Dtype::Q8_0, 67, 96)?;
        let inputs = [random(1, &[n, 96]), random(2, &[n, 67]), random(3, &[67])];
        compare(
            gpu,
            "linear_add",
            QUANTISED,
            &inputs,
            |b, t| b.linear_add(&t[0], &there, bias.then_some(&t[2]), &t[1]),
            |b, t| b.linear_add(&t[0], &here, bias.then_some(&t[2]), &t[1]),
        )
        .await?;
    }
    for (n, kind) in [(1, Activation::QuickGelu), (3, Activation::Gelu), (37, Activation::QuickGelu)] {
        let (there, here) = both(gpu, 1, Dtype::F32, 67, 37)?;
        compare(
            gpu,
            "linear_activation",
            1e-6,
            &[random(1, &[n, 37]), random(3, &[67])],
            |b, t| b.linear_activation(&t[0], &there, Some(&t[1]), kind),
            |b, t| b.linear_activation(&t[0], &here, Some(&t[1]), kind),
        )
        .await?;
    }
    let (there, _) = both(gpu, 1, Dtype::Q8_0, 67, 96)?;
    let (x, y) = (gpu.upload(&[0.0; 96], &[1, 96])?, gpu.upload(&[0.0; 66], &[1, 66])?);
    ensure!(gpu.linear_add(&x, &there, None, &y).is_err() && gpu.linear(&y, &there, None).is_err());
    Ok(())
}

pub async fn gated_products(gpu: &WebGpu) -> Result<()> {
    // Of one packing and of two, which takes another way.
    for dtypes in [[Dtype::Q8_0; 2], [Dtype::Q4_K; 2], [Dtype::Q6_K; 2], [Dtype::F16; 2], [Dtype::Q4_0, Dtype::Q5_1]] {
        let ((gate, cpu_gate), (up, cpu_up)) = (both(gpu, 1, dtypes[0], 67, 256)?, both(gpu, 2, dtypes[1], 67, 256)?);
        for n in [1, 4, 20] {
            compare(
                gpu,
                "linear_silu_mul",
                QUANTISED,
                &[random(1, &[n, 256])],
                |b, t| b.linear_silu_mul(&t[0], &gate, &up),
                |b, t| b.linear_silu_mul(&t[0], &cpu_gate, &cpu_up),
            )
            .await?;
        }
    }
    Ok(())
}

/// Query heads, key/value heads and head dim.
const HEADS: (usize, usize, usize) = (6, 2, 16);

/// Weights are those of q, k and v, tables of cosines and sines.
fn attention<'a, B: Backend>(
    w: &'a [B::Matrix],
    tables: &'a [B::Tensor; 2],
    layout: RopeLayout,
) -> SelfAttention<'a, B> {
    let ((heads, groups, head_dim), [cos, sin]) = (HEADS, tables);
    SelfAttention { q: &w[0], k: &w[1], v: &w[2], cos, sin, layout, heads, groups, head_dim }
}

pub async fn self_attention_over_a_cache(gpu: &WebGpu) -> Result<()> {
    let (heads, groups, head_dim) = HEADS;
    let (width, capacity) = (64, 300);
    let cpu = Candle::cpu();
    for (layout, dtypes) in [
        (RopeLayout::Half, [Dtype::Q8_0; 3]),
        (RopeLayout::Interleaved, [Dtype::Q4_0; 3]),
        (RopeLayout::Half, [Dtype::Q5_0, Dtype::Q5_0, Dtype::Q8_0]),
    ] {
        let rows = [heads, groups, groups].map(|h| h * head_dim);
        // Against the exact values: a softmax makes much of what the CPU's rounding of x changes.
        let (mut there_weights, mut here_weights) = (Vec::new(), Vec::new());
        for i in 0..3 {
            let raw = matrix(i as u64, dtypes[i], rows[i], width)?;
            there_weights.push(gpu.upload_matrix(&raw)?);
            here_weights.push(dense(&cpu, &raw)?);
        }
        let [cos, sin] = [4, 5].map(|seed| random(seed, &[capacity, head_dim / 2]));
        let there_tables = [gpu.upload(&cos.0, &cos.1)?, gpu.upload(&sin.0, &sin.1)?];
        let here_tables = [cpu.upload(&cos.0, &cos.1)?, cpu.upload(&sin.0, &sin.1)?];
        let of_gpu = attention::<WebGpu>(&there_weights, &there_tables, layout);
        let of_cpu = attention::<Candle>(&here_weights, &here_tables, layout);
        let mut there = gpu.cache(2, groups, capacity, head_dim)?;
        let mut here = cpu.cache(2, groups, capacity, head_dim)?;
        let mut start = 0;
        for (step, tokens) in [2, 1, 9, 1, 120, 1, 150, 1].into_iter().enumerate() {
            let (x, shape) = random(100 + step as u64, &[2, tokens, width]);
            let (tx, hx) = (gpu.upload(&x, &shape)?, cpu.upload(&x, &shape)?);
            let found = gpu.self_attention(Some(&mut there), &tx, &of_gpu, start)?;
            let expected = cpu.self_attention(Some(&mut here), &hx, &of_cpu, start)?;
            let error = nmse(&values(gpu, &found).await?, &cpu.read(&expected).await?)?;
            ensure!(error <= 1e-5, "{layout:?} {dtypes:?} step {step}: {error:e}");
            start += tokens;
        }
    }
    Ok(())
}

pub async fn the_largest_of_a_row(gpu: &WebGpu) -> Result<()> {
    let (mut x, shape) = random(1, &[3, 1000]);
    let mut mask = vec![0.0; 1000];
    // The first of equals; the largest must not be chosen; negative infinity is never.
    (x[17], x[900]) = (5.0, 5.0);
    (x[1003], mask[3]) = (9.0, 1.0);
    x[2000..].fill(f32::NEG_INFINITY);
    x[2999] = -3.0e38;
    let (found, expected) = ask(gpu, &x, &shape, &mask).await?;
    let (found, expected) = (found?, expected?);
    ensure!(found == expected, "expected {expected:?} but found {found:?}");
    for bad in [f32::NAN, f32::INFINITY] {
        x[500] = bad;
        let (found, expected) = ask(gpu, &x, &shape, &mask).await?;
        ensure!(found.is_err() && expected.is_err(), "expected {bad} to be refused");
    }
    x[500] = 0.0;
    let (found, expected) = ask(gpu, &x, &shape, &[1.0; 1000]).await?;
    ensure!(found.is_err() && expected.is_err(), "expected an error, for nothing is left to choose");
    Ok(())
}

type Answer = Result<Vec<u32>>;

async fn ask(gpu: &WebGpu, x: &[f32], shape: &[usize], mask: &[f32]) -> Result<(Answer, Answer)> {
    let cpu = Candle::cpu();
    let there = gpu.argmax(&gpu.upload(x, shape)?, &gpu.upload(mask, &[mask.len()])?).await;
    let here = cpu.argmax(&cpu.upload(x, shape)?, &cpu.upload(mask, &[mask.len()])?).await;
    Ok((there, here))
}

/// Less than a tile and many tiles, few and many wanted, equals, and what is no number.
pub async fn the_first_of_many(gpu: &WebGpu) -> Result<()> {
    let cpu = Candle::cpu();
    for (count, k) in [(1, 1), (7, 50), (1024, 3), (1025, 512), (5000, 513), (70_000, 50), (0, 4), (9, 0)] {
        let (mut x, shape) = random(count as u64, &[count]);
        // Equals, within a tile and over tiles.
        x.iter_mut().step_by(5).for_each(|v| *v = (*v * 4.0).round() / 4.0);
        for (at, odd) in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -f32::NAN, -0.0, 0.0].into_iter().enumerate() {
            if let Some(v) = x.get_mut(at * 700 + 3) {
                *v = odd;
            }
        }
        let found = gpu.top_k(&gpu.upload(&x, &shape)?, k).await?;
        let expected = cpu.top_k(&cpu.upload(&x, &shape)?, k).await?;
        let bits = |found: &[(u32, f32)]| found.iter().map(|(at, v)| (*at, v.to_bits())).collect::<Vec<_>>();
        ensure!(bits(&found) == bits(&expected), "{k} of {count}: expected {expected:?} but found {found:?}");
    }
    Ok(())
}
