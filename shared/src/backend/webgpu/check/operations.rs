//! Every operation but the products, on sizes that fit no workgroup.

use super::{Cache, Values, compare, nmse, random, untouched, values};
use crate::{
    backend::{Activation, Backend, Candle, Mask, RopeLayout, WebGpu, candle},
    error::Result,
};

/// Bound of everything but attention.
const EXACT: f64 = 1e-6;
const ATTENTION: f64 = 5e-4;

/// The same operation on both devices.
macro_rules! same {
    ($gpu:expr, $name:literal, $bound:expr, $inputs:expr, |$b:ident, $t:ident| $body:expr) => {
        compare($gpu, $name, $bound, &$inputs, |$b: &WebGpu, $t| $body, |$b: &Candle, $t| $body).await?
    };
}

pub async fn shapes(gpu: &WebGpu) -> Result<()> {
    let x = || random(1, &[3, 5, 7]);
    same!(gpu, "reshape", 0.0, [x()], |b, t| b.reshape(&t[0], &[7, 15]));
    for dim in 0..3 {
        let mut other = vec![3, 5, 7];
        other[dim] = 2;
        same!(gpu, "concat", 0.0, [x(), random(2, &other), x()], |b, t| b.concat(&[&t[0], &t[1], &t[2]], dim));
        same!(gpu, "narrow", 0.0, [x()], |b, t| b.narrow(&t[0], dim, 1, 2));
    }
    same!(gpu, "index_rows", 0.0, [random(1, &[9, 3, 5])], |b, t| b.index_rows(&t[0], &[8, 0, 4, 4]));
    same!(gpu, "repeat_rows", 0.0, [random(1, &[1, 5, 7])], |b, t| b.repeat_rows(&t[0], 3));
    same!(gpu, "patchify", 0.0, [random(1, &[2, 3, 15, 10])], |b, t| b.patchify(&t[0], 5));
    let x = gpu.upload(&x().0, &[3, 5, 7])?;
    ensure!(gpu.reshape(&x, &[7, 16]).is_err() && gpu.narrow(&x, 1, 4, 2).is_err() && gpu.patchify(&x, 2).is_err());
    ensure!(gpu.index_rows(&x, &[3]).is_err() && gpu.repeat_rows(&x, 2).is_err() && gpu.concat(&[], 0).is_err());
    ensure!(gpu.upload(&[1.0], &[2]).is_err());
    Ok(())
}

pub async fn elements(gpu: &WebGpu) -> Result<()> {
    let wide = || (random(1, &[13, 77]), random(2, &[13, 77]));
    same!(gpu, "add", EXACT, [wide().0, wide().1], |b, t| b.add(&t[0], &t[1]));
    same!(gpu, "add", EXACT, [random(1, &[4, 5, 6]), random(2, &[5, 6])], |b, t| b.add(&t[0], &t[1]));
    same!(gpu, "add", EXACT, [random(1, &[4, 6]), random(2, &[6])], |b, t| b.add(&t[0], &t[1]));
    same!(gpu, "silu_mul", EXACT, [wide().0, wide().1], |b, t| b.silu_mul(&t[0], &t[1]));
    // Far out, where exponentials end, and close to zero.
    let steps: Vec<f32> = (-4000..4000).map(|i| i as f32 * 0.025).chain([0.0, 1e-7, -1e-7]).collect();
    let far = |_| -> Values { (steps.clone(), vec![steps.len()]) };
    for kind in [Activation::QuickGelu, Activation::Gelu] {
        same!(gpu, "activation", EXACT, [far(0)], |b, t| b.activation(&t[0], kind));
    }
    let odd: Values = (vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1.0, -0.0], vec![5]);
    same!(gpu, "add", EXACT, [odd.clone(), odd.clone()], |b, t| b.add(&t[0], &t[1]));
    let x = gpu.upload(&[0.0; 6], &[2, 3])?;
    let y = gpu.upload(&[0.0; 2], &[2])?;
    ensure!(gpu.add(&x, &y).is_err() && gpu.add(&y, &x).is_err() && gpu.silu_mul(&x, &y).is_err());
    Ok(())
}

pub async fn norms(gpu: &WebGpu) -> Result<()> {
    for width in [5, 64, 333] {
        let inputs = [random(1, &[2, 7, width]), random(2, &[width]), random(3, &[width])];
        same!(gpu, "layer_norm", EXACT, inputs, |b, t| b.layer_norm(&t[0], &t[1], &t[2], 1e-5));
        same!(gpu, "rms_norm", EXACT, inputs, |b, t| b.rms_norm(&t[0], &t[1], 1e-5));
        same!(gpu, "l2_normalize", EXACT, inputs, |b, t| b.l2_normalize(&t[0]));
    }
    let x = gpu.upload(&[0.0; 6], &[2, 3])?;
    let w = gpu.upload(&[0.0; 2], &[2])?;
    ensure!(gpu.rms_norm(&x, &w, 1e-5).is_err());
    Ok(())
}

pub async fn rotations(gpu: &WebGpu) -> Result<()> {
    for layout in [RopeLayout::Half, RopeLayout::Interleaved] {
        let inputs = [random(1, &[2, 5, 3, 10]), random(2, &[2, 9, 5])];
        same!(gpu, "rope", EXACT, inputs, |b, t| b.rope(&t[0], &t[1], 3, layout));
    }
    let x = gpu.upload(&[0.0; 8], &[1, 1, 2, 4])?;
    let table = gpu.upload(&[0.0; 8], &[2, 2, 2])?;
    ensure!(gpu.rope(&x, &table, 1, RopeLayout::Half).is_ok());
    ensure!(gpu.rope(&x, &table, 2, RopeLayout::Half).is_err());
    Ok(())
}

pub async fn attention_at_hand(gpu: &WebGpu) -> Result<()> {
    // Tokens, heads, groups, width: one tile and several, groups shared and not, all widths of vectors.
    for (tokens, heads, groups, width) in [(5, 6, 2, 8), (130, 3, 3, 64), (67, 4, 1, 80), (9, 2, 1, 256)] {
        let inputs = [
            random(1, &[2, tokens, heads, width]),
            random(2, &[2, tokens, groups, width]),
            random(3, &[2, tokens, groups, width]),
        ];
        for mask in [Mask::None, Mask::Causal] {
            same!(gpu, "attention", ATTENTION, inputs, |b, t| b.attention(&t[0], &t[1], &t[2], mask));
        }
    }
    // One query and several over other numbers of keys; a query of zeros has the mean of what it sees.
    for (tokens, seen) in [(1, 9), (1, 300), (3, 70)] {
        let inputs = [random(1, &[4, tokens, 3, 16]), random(2, &[4, seen, 3, 16]), random(3, &[4, seen, 3, 16])];
        same!(gpu, "attention", ATTENTION, inputs, |b, t| b.attention(&t[0], &t[1], &t[2], Mask::None));
        let inputs = [random(1, &[4, seen, 3, 16])];
        same!(gpu, "mean", EXACT, inputs, |b, t| {
            b.attention(&b.upload(&vec![0.0; 4 * 3 * 16], &[4, 1, 3, 16])?, &t[0], &t[0], Mask::None)
        });
    }
    let q = gpu.upload(&[0.0; 10], &[1, 1, 1, 10])?;
    ensure!(gpu.attention(&q, &q, &q, Mask::None).is_err(), "no whole vectors");
    Ok(())
}

/// A conversation in a cache: prefill, then token by token past a chunk's end, then beams that change places.
pub async fn attention_over_a_cache(gpu: &WebGpu) -> Result<()> {
    let (heads, groups, width, capacity) = (6, 2, 16, 600);
    let cpu = Candle::cpu();
    let mut there = gpu.cache(2, groups, capacity, width)?;
    let mut here = cpu.cache(2, groups, capacity, width)?;
    let mut start = 0;
    for (step, tokens) in [1, 70, 1, 1, 200, 3, 1, 1, 300, 1].into_iter().enumerate() {
        turn(gpu, (&mut there, &mut here), [heads, groups, width], start, tokens).await?;
        start += tokens;
        if step % 3 == 1 {
            gpu.cache_reorder(&mut there, &[1, 0], start)?;
            cpu.cache_reorder(&mut here, &[1, 0], start)?;
        }
        if step == 4 {
            gpu.cache_reorder(&mut there, &[1, 1], start)?;
            cpu.cache_reorder(&mut here, &[1, 1], start)?;
        }
    }
    untouched(gpu, &there).await?;
    let q = gpu.upload(&vec![0.0; 2 * 30 * heads * width], &[2, 30, heads, width])?;
    let k = gpu.upload(&vec![0.0; 2 * 30 * groups * width], &[2, 30, groups, width])?;
    ensure!(gpu.cached_attention(&mut there, &q, &k, &k, start).is_err(), "more tokens than the cache holds");
    ensure!(gpu.cache_reorder(&mut there, &[0, 2], 3).is_err());
    // One token by heads of other widths, in a cache that is one chunk and in one of several.
    for (shape, capacity) in [([4, 2, 128], 400), ([2, 1, 256], 600), ([3, 3, 80], 400), ([8, 1, 64], 520)] {
        let [_, groups, width] = shape;
        let mut there = gpu.cache(2, groups, capacity, width)?;
        let mut here = cpu.cache(2, groups, capacity, width)?;
        let mut start = 0;
        for tokens in [1, 30, 1, 230, 1, 1] {
            turn(gpu, (&mut there, &mut here), shape, start, tokens).await?;
            start += tokens;
        }
        untouched(gpu, &there).await?;
    }
    Ok(())
}

/// Some more tokens of two sequences; query heads, heads of keys and their elements.
async fn turn(
    gpu: &WebGpu,
    (there, here): (&mut Cache, &mut candle::Cache),
    [heads, groups, width]: [usize; 3],
    start: usize,
    tokens: usize,
) -> Result<()> {
    let cpu = Candle::cpu();
    let seed = 10 * start as u64;
    let inputs = [(1, heads), (2, groups), (3, groups)].map(|(i, h)| random(seed + i, &[2, tokens, h, width]));
    let [q, k, v] = &inputs;
    let (tq, tk, tv) = (gpu.upload(&q.0, &q.1)?, gpu.upload(&k.0, &k.1)?, gpu.upload(&v.0, &v.1)?);
    let (hq, hk, hv) = (cpu.upload(&q.0, &q.1)?, cpu.upload(&k.0, &k.1)?, cpu.upload(&v.0, &v.1)?);
    let found = gpu.cached_attention(there, &tq, &tk, &tv, start)?;
    let expected = cpu.cached_attention(here, &hq, &hk, &hv, start)?;
    let error = nmse(&values(gpu, &found).await?, &cpu.read(&expected).await?)?;
    ensure!(error <= ATTENTION, "{tokens} tokens at {start} of {heads}, {groups}, {width}: {error:e}");
    Ok(())
}
