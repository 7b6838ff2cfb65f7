//! What is not finite: it comes out as on the CPU, and only where it went in.

use super::{
    Values, compare,
    fused::{HEADS, attention, both, norm, tables},
    nmse,
    products::{dense, matrix},
    random, values,
};
use crate::{
    backend::{Activation, Backend, Candle, Mask, RopeLayout, WebGpu},
    error::Result,
    weights::Dtype,
};

const EXACT: f64 = 1e-6;
const ATTENTION: f64 = 5e-4;

/// Random rows of the innermost dimension, of which three, from `first`, have one element each that is not finite.
fn odd(seed: u64, shape: &[usize], first: usize) -> Values {
    let (mut x, shape) = random(seed, shape);
    let width = shape.last().copied().unwrap_or(1);
    for (i, value) in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].into_iter().enumerate() {
        x[(first + i) * width + i] = value;
    }
    (x, shape)
}

/// The same operation on both devices; what is not finite is right only within the first `$spoilt` elements.
macro_rules! same {
    ($gpu:expr, $name:expr, $bound:expr, $spoilt:expr, $inputs:expr, |$b:ident, $t:ident| $body:expr) => {
        compare($gpu, $name, $bound, &$inputs, |$b: &WebGpu, $t| $body, |$b: &Candle, $t| $body).await?;
        stays_within(&$inputs, $spoilt, |$b, $t| $body).await?
    };
}

async fn stays_within(
    inputs: &[Values],
    spoilt: usize,
    theirs: impl Fn(&Candle, &[candle_core::Tensor]) -> Result<candle_core::Tensor>,
) -> Result<()> {
    let cpu = Candle::cpu();
    let inputs: Vec<_> = inputs.iter().map(|(v, s)| cpu.upload(v, s)).collect::<Result<_>>()?;
    let found = cpu.read(&theirs(&cpu, &inputs)?).await?;
    let (inside, outside) = found.split_at(spoilt);
    ensure!(inside.iter().any(|v| !v.is_finite()), "expected something that is not finite");
    ensure!(!outside.is_empty() && outside.iter().all(|v| v.is_finite()), "expected no more that is not finite");
    Ok(())
}

pub async fn elements_that_are_not_finite(gpu: &WebGpu) -> Result<()> {
    let (odd, even) = (|| odd(1, &[5, 77], 0), || random(2, &[5, 77]));
    same!(gpu, "silu_mul", EXACT, 3 * 77, [odd(), even()], |b, t| b.silu_mul(&t[0], &t[1]));
    same!(gpu, "silu_mul", EXACT, 3 * 77, [even(), odd()], |b, t| b.silu_mul(&t[0], &t[1]));
    for kind in [Activation::QuickGelu, Activation::Gelu] {
        same!(gpu, "activation", EXACT, 3 * 77, [odd()], |b, t| b.activation(&t[0], kind));
    }
    Ok(())
}

pub async fn rows_that_are_not_finite(gpu: &WebGpu) -> Result<()> {
    for width in [5, 333] {
        let inputs = [odd(1, &[2, 4, width], 0), random(2, &[width]), random(3, &[width])];
        let spoilt = 3 * width;
        same!(gpu, "layer_norm", EXACT, spoilt, inputs, |b, t| b.layer_norm(&t[0], &t[1], &t[2], 1e-5));
        same!(gpu, "rms_norm", EXACT, spoilt, inputs, |b, t| b.rms_norm(&t[0], &t[1], 1e-5));
        same!(gpu, "l2_normalize", EXACT, spoilt, inputs, |b, t| b.l2_normalize(&t[0]));
    }
    for layout in [RopeLayout::Half, RopeLayout::Interleaved] {
        let inputs = [odd(1, &[2, 5, 3, 10], 0), random(2, &[2, 9, 5])];
        same!(gpu, "rope", EXACT, 3 * 10, inputs, |b, t| b.rope(&t[0], &t[1], 3, layout));
    }
    Ok(())
}

pub async fn attention_over_what_is_not_finite(gpu: &WebGpu) -> Result<()> {
    // One tile of keys and several. Rows of the first sequence are odd, or of its fourth and fifth token.
    for tokens in [7, 70] {
        let (heads, groups, width) = (4, 2, 8);
        let sequence = tokens * heads * width;
        let q = || random(1, &[2, tokens, heads, width]);
        let [k, v] = [2, 3].map(|seed| move || random(seed, &[2, tokens, groups, width]));
        for mask in [Mask::None, Mask::Causal] {
            let inputs = [odd(1, &q().1, 0), k(), v()];
            same!(gpu, "q", ATTENTION, 3 * width, inputs, |b, t| b.attention(&t[0], &t[1], &t[2], mask));
            let inputs = [q(), odd(2, &k().1, 3 * groups), v()];
            same!(gpu, "k", ATTENTION, sequence, inputs, |b, t| b.attention(&t[0], &t[1], &t[2], mask));
        }
        let inputs = [q(), k(), odd(3, &v().1, 3 * groups)];
        same!(gpu, "v", ATTENTION, sequence, inputs, |b, t| b.attention(&t[0], &t[1], &t[2], Mask::None));
    }
    // A long context, in chunks: some tokens, then one whose queries are odd, then one whose keys are.
    let (heads, groups, width, capacity) = (4, 2, 8, 600);
    let cpu = Candle::cpu();
    let (mut there, mut here) = (gpu.cache(2, groups, capacity, width)?, cpu.cache(2, groups, capacity, width)?);
    let (queries, keys) = (|n| vec![2, n, heads, width], |n| vec![2, n, groups, width]);
    let (r, odd_row) = (|seed, shape: Vec<usize>| random(seed, &shape), |seed, shape: Vec<usize>| odd(seed, &shape, 0));
    let mut start = 0;
    for (step, [q, k, v]) in [
        [r(1, queries(130)), r(2, keys(130)), r(3, keys(130))],
        [odd_row(4, queries(1)), r(5, keys(1)), r(6, keys(1))],
        [r(7, queries(1)), odd_row(8, keys(1)), r(9, keys(1))],
        [r(10, queries(1)), r(11, keys(1)), r(12, keys(1))],
    ]
    .into_iter()
    .enumerate()
    {
        let (tq, tk, tv) = (gpu.upload(&q.0, &q.1)?, gpu.upload(&k.0, &k.1)?, gpu.upload(&v.0, &v.1)?);
        let (hq, hk, hv) = (cpu.upload(&q.0, &q.1)?, cpu.upload(&k.0, &k.1)?, cpu.upload(&v.0, &v.1)?);
        let found = gpu.cached_attention(&mut there, &tq, &tk, &tv, start)?;
        let expected = cpu.read(&cpu.cached_attention(&mut here, &hq, &hk, &hv, start)?).await?;
        ensure!(expected.iter().any(|v| v.is_finite()) && expected.iter().any(|v| !v.is_finite()) == (step > 0));
        let error = nmse(&values(gpu, &found).await?, &expected)?;
        ensure!(error <= ATTENTION, "step {step}: {error:e}");
        start += q.1[1];
    }
    self_attention_of_odd_rows(gpu).await
}

/// Queries, keys and values of a row that is odd, whose norm is no number, and of one of another sequence.
async fn self_attention_of_odd_rows(gpu: &WebGpu) -> Result<()> {
    let ((heads, groups, head_dim), cpu, width) = (HEADS, Candle::cpu(), 64);
    let weights = (1..).zip([heads, groups, groups]).map(|(seed, h)| both(gpu, seed, Dtype::F32, h * head_dim, width));
    let (there, here): (Vec<_>, Vec<_>) = weights.collect::<Result<Vec<_>>>()?.into_iter().unzip();
    let (there_tables, here_tables) = (tables(gpu, 4, width, 0.1)?, tables(&cpu, 4, width, 0.1)?);
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let (mut x, shape) = random(6, &[2, 1, width]);
        x[3] = value;
        for layout in [RopeLayout::Half, RopeLayout::Interleaved] {
            let of_gpu = attention::<WebGpu>(&there, &there_tables, layout);
            let of_cpu = attention::<Candle>(&here, &here_tables, layout);
            let mut cache = gpu.cache(2, groups, 4, head_dim)?;
            let found = gpu.self_attention(Some(&mut cache), &gpu.upload(&x, &shape)?, &of_gpu, 0)?;
            let mut cache = cpu.cache(2, groups, 4, head_dim)?;
            let expected = cpu.self_attention(Some(&mut cache), &cpu.upload(&x, &shape)?, &of_cpu, 0)?;
            let expected = cpu.read(&expected).await?;
            let (odd, even) = expected.split_at(heads * head_dim);
            ensure!(odd.iter().all(|v| v.is_nan()) && even.iter().all(|v| v.is_finite()));
            let error = nmse(&values(gpu, &found).await?, &expected)?;
            ensure!(error <= EXACT, "{value} {layout:?}: {error:e}");
        }
    }
    Ok(())
}

/// Against the same values as floats: the CPU's own products round x to 8 bits, which hides what is no number.
pub async fn quantised_products_of_what_is_not_finite(gpu: &WebGpu) -> Result<()> {
    let cpu = Candle::cpu();
    for dtype in [Dtype::Q4_K, Dtype::Q8_0] {
        let (a, b) = (matrix(4, dtype, 9, 256)?, matrix(5, dtype, 9, 256)?);
        let there = [gpu.upload_matrix(&a)?, gpu.upload_matrix(&b)?];
        let here = [dense(&cpu, &a)?, dense(&cpu, &b)?];
        for n in [4, 12] {
            let inputs = [odd(1, &[n, 256], 0)];
            compare(
                gpu,
                &format!("{dtype} {n}"),
                EXACT,
                &inputs,
                |b, t| b.linear(&t[0], &there[0], None),
                |b, t| b.linear(&t[0], &here[0], None),
            )
            .await?;
            stays_within(&inputs, 3 * 9, |b, t| b.linear(&t[0], &here[0], None)).await?;
        }
        // Of one of two rows, which one kernel takes with their norm, and of some of many.
        let of_two = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].map(|value| {
            let (mut x, shape) = random(1, &[2, 256]);
            x[3] = value;
            (x, shape)
        });
        for x in of_two.into_iter().chain([odd(1, &[12, 256], 0)]) {
            compare(
                gpu,
                &format!("linear_silu_mul {dtype} {:?}", x.1),
                EXACT,
                &[x, random(2, &[256])],
                |b, t| b.linear_silu_mul(&t[0], norm(&t[1]), &there[0], &there[1]),
                |b, t| b.linear_silu_mul(&t[0], norm(&t[1]), &here[0], &here[1]),
            )
            .await?;
        }
    }
    Ok(())
}
