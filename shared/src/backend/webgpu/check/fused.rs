//! What is done in one pass against what the CPU does in several.

use super::{
    compare, nmse,
    products::{dense, matrix},
    random, untouched, values,
};
use crate::{
    backend::{Activation, Backend, Candle, Norm, RopeLayout, SelfAttention, WebGpu, candle},
    error::{Error, Result},
    weights::{Dtype, quant},
};

/// Of products whose input the CPU rounds to 8 bits.
const QUANTISED: f64 = 5e-4;

type Pair = (super::super::Matrix, candle::Matrix);

pub(super) fn both(gpu: &WebGpu, seed: u64, dtype: Dtype, rows: usize, columns: usize) -> Result<Pair> {
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

/// One for each packing.
pub(in super::super) const OF_EACH_PACKING: [Dtype; 7] =
    [Dtype::F32, Dtype::F16, Dtype::Q8_0, Dtype::Q4_0, Dtype::Q4_K, Dtype::Q5_K, Dtype::Q6_K];

/// Elements of a row that blocks of all these types fit, whole stripes or not; some so many that a lane goes through its row twice.
fn columns(dtypes: &[Dtype]) -> usize {
    match dtypes[0] {
        Dtype::F32 => 44,
        Dtype::Q8_0 => 96,
        Dtype::F16 | Dtype::Q4_K => 1280,
        _ => dtypes.iter().map(|dtype| dtype.block_size()).fold(192, usize::max),
    }
}

pub async fn gated_products(gpu: &WebGpu) -> Result<()> {
    let of_one = OF_EACH_PACKING.map(|dtype| ([dtype; 2], columns(&[dtype])));
    // What takes another way: two packings, and rows that are no whole fours.
    let others = [([Dtype::Q4_0, Dtype::Q5_1], 192), ([Dtype::F16; 2], 42)];
    for (dtypes, columns) in of_one.into_iter().chain(others) {
        let (gate, up) = (matrix(1, dtypes[0], 67, columns)?, matrix(2, dtypes[1], 67, columns)?);
        let (there_gate, there_up) = (gpu.upload_matrix(&gate)?, gpu.upload_matrix(&up)?);
        let cpu = Candle::cpu();
        let (here_gate, here_up) = (dense(&cpu, &gate)?, dense(&cpu, &up)?);
        for (n, size) in [(1, 1.0), (2, 1.0), (2, 1e-3), (2, 1e25), (4, 1.0), (20, 1.0)] {
            let (mut x, shape) = random(1, &[n, columns]);
            // Of small ones eps is a part; squares of large ones are infinite.
            x.iter_mut().for_each(|x| *x *= size);
            compare(
                gpu,
                &format!("linear_silu_mul {dtypes:?}"),
                1e-6,
                &[(x, shape), random(2, &[columns])],
                |b, t| b.linear_silu_mul(&t[0], norm(&t[1]), &there_gate, &there_up),
                |b, t| b.linear_silu_mul(&t[0], norm(&t[1]), &here_gate, &here_up),
            )
            .await?;
        }
    }
    Ok(())
}

/// Of a weight.
pub(super) fn norm<B: Backend>(weight: &B::Tensor) -> Norm<'_, B> {
    Norm { weight, eps: 1e-5 }
}

/// Query heads, key/value heads and head dim.
pub(super) const HEADS: (usize, usize, usize) = (6, 2, 16);

/// What stands for cosines and sines, and a norm's weight (width) of about `size`.
pub(super) fn tables<B: Backend>(b: &B, capacity: usize, width: usize, size: f32) -> Result<[B::Tensor; 2]> {
    let (rope, mut weight) = (random(4, &[2, capacity, HEADS.2 / 2]), random(5, &[width]));
    weight.0.iter_mut().for_each(|w| *w *= size);
    Ok([b.upload(&rope.0, &rope.1)?, b.upload(&weight.0, &weight.1)?])
}

/// Weights are those of q, k and v, tables those of [`tables`].
pub(super) fn attention<'a, B: Backend>(
    w: &'a [B::Matrix],
    tables: &'a [B::Tensor; 2],
    layout: RopeLayout,
) -> SelfAttention<'a, B> {
    let ((heads, groups, head_dim), [rope, weight]) = (HEADS, tables);
    SelfAttention { norm: norm(weight), q: &w[0], k: &w[1], v: &w[2], rope, layout, heads, groups, head_dim }
}

/// Types of queries, keys and values that are not alike: those of llama.cpp's mixtures (Q4_K_M and Q5_K_M first), and one
/// of three packings.
pub(in super::super) const MIXTURES: [[Dtype; 3]; 8] = [
    [Dtype::Q4_K, Dtype::Q4_K, Dtype::Q6_K],
    [Dtype::Q5_K, Dtype::Q5_K, Dtype::Q6_K],
    [Dtype::Q4_K, Dtype::Q4_K, Dtype::Q5_K],
    [Dtype::Q4_K, Dtype::Q4_K, Dtype::Q8_0],
    [Dtype::Q3_K, Dtype::Q3_K, Dtype::Q5_K],
    [Dtype::Q2_K, Dtype::Q2_K, Dtype::Q4_K],
    [Dtype::Q5_0, Dtype::Q5_0, Dtype::Q8_0],
    [Dtype::F16, Dtype::Q4_0, Dtype::F32],
];

pub async fn self_attention_over_a_cache(gpu: &WebGpu) -> Result<()> {
    let (heads, groups, head_dim) = HEADS;
    let capacity = 300;
    let cpu = Candle::cpu();
    let rows = [heads, groups, groups].map(|h| h * head_dim);
    let types = OF_EACH_PACKING.map(|dtype| [dtype; 3]).into_iter().chain(MIXTURES);
    for (i, (dtypes, layout)) in types.zip([RopeLayout::Half, RopeLayout::Interleaved].into_iter().cycle()).enumerate()
    {
        let width = columns(&dtypes);
        // Against the exact values: a softmax makes much of what the CPU's rounding of x changes.
        let (mut there_weights, mut here_weights) = (Vec::new(), Vec::new());
        let mut size = 0.0f32;
        for (seed, (dtype, rows)) in (0..).zip(dtypes.into_iter().zip(rows)) {
            let raw = matrix(seed, dtype, rows, width)?;
            there_weights.push(gpu.upload_matrix(&raw)?);
            here_weights.push(dense(&cpu, &raw)?);
            size = quant::dequantize(&raw)?.into_iter().fold(size, |size, w| size.max(w.abs()));
        }
        // Queries and keys of usual size, that no softmax is a mere choice.
        let usual = 4.0 / (size * (width as f32).sqrt());
        let there_tables = tables(gpu, capacity, width, usual)?;
        let here_tables = tables(&cpu, capacity, width, usual)?;
        let of_gpu = attention::<WebGpu>(&there_weights, &there_tables, layout);
        let of_cpu = attention::<Candle>(&here_weights, &here_tables, layout);
        let mut there = gpu.cache(2, groups, capacity, head_dim)?;
        let mut here = cpu.cache(2, groups, capacity, head_dim)?;
        let mut start = 0;
        // A whole conversation for some, few tokens for all.
        let steps: &[usize] = if i % 5 == 0 { &[2, 1, 9, 1, 120, 1, 150, 1] } else { &[3, 1] };
        for (step, &tokens) in steps.iter().enumerate() {
            let (x, shape) = random(100 + step as u64, &[2, tokens, width]);
            let (tx, hx) = (gpu.upload(&x, &shape)?, cpu.upload(&x, &shape)?);
            let found = gpu.self_attention(Some(&mut there), &tx, &of_gpu, start)?;
            let expected = cpu.self_attention(Some(&mut here), &hx, &of_cpu, start)?;
            let error = nmse(&values(gpu, &found).await?, &cpu.read(&expected).await?)?;
            ensure!(error <= 1e-5, "{layout:?} {dtypes:?} step {step}: {error:e}");
            start += tokens;
        }
        untouched(gpu, &there).await?;
    }
    Ok(())
}

/// A Llama's layers and some more of everything; w are q, k, v, o, gate, up, down.
fn chain<B: Backend>(
    b: &B,
    x: &B::Tensor,
    bias: &B::Tensor,
    w: &[B::Matrix],
    tables: &[B::Tensor; 2],
    cache: &mut B::Cache,
) -> Result<B::Tensor> {
    let (of, weight) = (attention::<B>(w, tables, RopeLayout::Half), &tables[1]);
    let mut y = x.clone();
    for (step, kind) in [Activation::Gelu, Activation::QuickGelu, Activation::Gelu].into_iter().enumerate() {
        let attended = b.self_attention(Some(&mut *cache), &y, &of, 3 * step)?;
        y = b.linear_add(&attended, &w[3], None, &y)?;
        let normed = b.layer_norm(&b.rms_norm(&y, weight, 1e-5)?, weight, bias, 1e-5)?;
        let inner = b.linear_silu_mul(&normed, norm(weight), &w[4], &w[5])?;
        y = b.activation(&b.linear_add(&inner, &w[6], None, &y)?, kind)?;
        // In another order, through more buffers.
        let halves = [b.narrow(&y, 1, 1, 2)?, b.narrow(&y, 1, 0, 1)?];
        y = b.add(&b.concat(&[&halves[0], &halves[1]], 1)?, x)?;
    }
    b.l2_normalize(&y)
}

/// All else here is sent operation by operation, for every output is poisoned first. As in use, nothing is poisoned now: the
/// buffers of a chain pass from one operation to the next within one submission.
pub async fn many_operations_in_one_submission(gpu: &WebGpu) -> Result<()> {
    let guard = gpu.gpu.memory.guard.replace(0);
    let result = chained(gpu).await;
    gpu.gpu.memory.guard.set(guard);
    result
}

async fn chained(gpu: &WebGpu) -> Result<()> {
    let ((heads, groups, head_dim), cpu) = (HEADS, Candle::cpu());
    let (width, inner) = (64, 96);
    let shapes = [heads, groups, groups].map(|h| (h * head_dim, width)).into_iter().chain([
        (width, heads * head_dim),
        (inner, width),
        (inner, width),
        (width, inner),
    ]);
    let (mut there_weights, mut here_weights) = (Vec::new(), Vec::new());
    for (seed, (rows, columns)) in (0..).zip(shapes) {
        let raw = matrix(seed, Dtype::F32, rows, columns)?;
        there_weights.push(gpu.upload_matrix(&raw)?);
        here_weights.push(cpu.upload_matrix(&raw)?);
    }
    let bias: Vec<f32> = random(2, &[width]).0.into_iter().map(|v| 0.1 * v).collect();
    let (there_bias, here_bias) = (gpu.upload(&bias, &[width])?, cpu.upload(&bias, &[width])?);
    let (there_tables, here_tables) = (tables(gpu, 16, width, 0.1)?, tables(&cpu, 16, width, 0.1)?);
    // Again in the buffers that the first time left behind.
    for seed in [5, 6] {
        let (x, shape) = random(seed, &[2, 3, width]);
        let (there, here) = (gpu.upload(&x, &shape)?, cpu.upload(&x, &shape)?);
        let mut cache = gpu.cache(2, groups, 16, head_dim)?;
        let before = gpu.counters();
        let found = gpu.read(&chain(gpu, &there, &there_bias, &there_weights, &there_tables, &mut cache)?).await?;
        let after = gpu.counters();
        let (sent, dispatches) = (after.submissions - before.submissions, after.dispatches - before.dispatches);
        ensure!(sent == 1 && dispatches > 30, "expected one submission but found {sent} of {dispatches} dispatches");
        let mut cache = cpu.cache(2, groups, 16, head_dim)?;
        let expected = chain(&cpu, &here, &here_bias, &here_weights, &here_tables, &mut cache)?;
        let error = nmse(&found, &cpu.read(&expected).await?)?;
        ensure!(error <= 1e-5, "expected an error of at most 1e-5 but found {error:e}");
    }
    Ok(())
}

/// Greedy decoding's way: ids that never leave the device choose rows of a table, which may lie in parts.
pub async fn rows_that_were_chosen_there(gpu: &WebGpu) -> Result<()> {
    let cpu = Candle::cpu();
    let (vocabulary, n) = (301, 5);
    let (mut logits, shape) = random(1, &[n, vocabulary]);
    let mut mask = vec![0.0; vocabulary];
    // The first, the last, one in the middle, what random values are largest, and what is largest but banned.
    (logits[0], logits[2 * vocabulary - 1], logits[2 * vocabulary + 150]) = (9.0, 9.0, 9.0);
    (logits[4 * vocabulary + 7], mask[7]) = (9.0, 1.0);
    let mask_there = gpu.upload(&mask, &[vocabulary])?;
    let expected = cpu.argmax(&cpu.upload(&logits, &shape)?, &cpu.upload(&mask, &[vocabulary])?).await?;
    ensure!(expected[..3] == [0, vocabulary as u32 - 1, 150], "{expected:?}");
    for dtype in [Dtype::F32, Dtype::Q8_0, Dtype::Q6_K] {
        let width = columns(&[dtype]);
        let (there, here) = both(gpu, 1, dtype, vocabulary, width)?;
        let Some(chosen) = gpu.choose(&gpu.upload(&logits, &shape)?, &mask_there, None)? else {
            return Err(Error::Backend("expected ids on the device but found none".into()));
        };
        let rows = gpu.embedding_of(&there, &chosen.ids)?;
        ensure!(gpu.shape(&rows) == [n, width]);
        let right = cpu.read(&cpu.embedding(&here, &expected)?).await?;
        let error = nmse(&values(gpu, &rows).await?, &right)?;
        ensure!(error <= 1e-6, "{dtype}: expected an error of at most 1e-6 but found {error:e}");
        let ids = chosen.answer.await?;
        ensure!(ids == expected, "expected {expected:?} but found {ids:?}");
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
