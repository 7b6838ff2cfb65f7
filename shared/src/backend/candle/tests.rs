//! The fused operations against the composed ones, values and gradients; the cache against attention at hand.

use candle_core::{
    DType, Device, Tensor, Var,
    quantized::{GgmlDType, QTensor},
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Activation, Candle, Compute, Mask, Matrix, Norm, RopeLayout, SelfAttention, composite, fused};
use crate::{
    backend::Backend,
    error::Result,
    weights::{Dtype, RawTensor},
};

pub(super) fn random(seed: u64, shape: &[usize]) -> Var {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.random_range(-2.0..2.0)).collect();
    Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu).unwrap()).unwrap()
}

pub(super) fn nmse(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    let error = (a - b).unwrap().sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
    error / (b.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap() + 1e-12)
}

/// Values, and the gradients of a random weighting of them, agree.
pub(super) fn same(
    inputs: &[Var],
    ours: impl Fn(&[Tensor]) -> Result<Tensor>,
    theirs: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    close(1e-10, inputs, ours, theirs);
}

/// As [`same`], with a bound of the values; that of the gradients is ten times as large.
pub(super) fn close(
    bound: f32,
    inputs: &[Var],
    ours: impl Fn(&[Tensor]) -> Result<Tensor>,
    theirs: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    let tensors: Vec<Tensor> = inputs.iter().map(|v| v.as_tensor().clone()).collect();
    let (a, b) = (ours(&tensors).unwrap(), theirs(&tensors).unwrap());
    assert!(nmse(&a, &b) < bound, "values: {}", nmse(&a, &b));
    let weighting = random(99, a.dims());
    let gradients = |y: &Tensor| (y * weighting.as_tensor()).unwrap().sum_all().unwrap().backward().unwrap();
    let (ga, gb) = (gradients(&a), gradients(&b));
    for (i, input) in inputs.iter().enumerate() {
        let (ga, gb) = (ga.get(input.as_tensor()).unwrap(), gb.get(input.as_tensor()).unwrap());
        assert!(nmse(ga, gb) < 10.0 * bound, "gradient of input {i}: {}", nmse(ga, gb));
    }
}

#[test]
fn norms() {
    let inputs = [random(1, &[3, 5, 24]), random(2, &[24]), random(3, &[24])];
    same(
        &inputs,
        |t| fused::layer_norm(&t[0], &t[1], &t[2], 1e-5),
        |t| composite::layer_norm(&t[0], &t[1], &t[2], 1e-5),
    );
    same(&inputs[..2], |t| fused::rms_norm(&t[0], &t[1], 1e-5), |t| composite::rms_norm(&t[0], &t[1], 1e-5));
}

#[test]
fn activations() {
    let inputs = [random(1, &[7, 33]), random(2, &[7, 33])];
    for kind in [Activation::QuickGelu, Activation::Gelu] {
        same(&inputs[..1], |t| fused::activation(&t[0], kind), |t| composite::activation(&t[0], kind));
    }
    same(&inputs, |t| fused::silu_mul(&t[0], &t[1]), |t| composite::silu_mul(&t[0], &t[1]));
}

#[test]
fn rotations() {
    let inputs = [random(1, &[2, 5, 3, 8])];
    let (cos, sin) = (random(2, &[5, 4]).as_detached_tensor(), random(3, &[5, 4]).as_detached_tensor());
    for layout in [RopeLayout::Half, RopeLayout::Interleaved] {
        same(&inputs, |t| fused::rope(&t[0], &cos, &sin, layout), |t| composite::rope(&t[0], &cos, &sin, layout));
    }
}

/// Attention head by head, of Candle's own operations.
fn plain_attention(q: &Tensor, k: &Tensor, v: &Tensor, causal: bool) -> Result<Tensor> {
    let (_, tokens, heads, dim) = q.dims4()?;
    let groups = k.dim(2)?;
    let mut outputs = Vec::new();
    for h in 0..heads {
        let head = |x: &Tensor, h: usize| x.narrow(2, h, 1)?.squeeze(2);
        let (q, k, v) = (head(q, h)?, head(k, h * groups / heads)?, head(v, h * groups / heads)?);
        let mut scores = (q.matmul(&k.t()?)? * (1.0 / (dim as f64).sqrt()))?;
        if causal {
            let mask: Vec<f32> =
                (0..tokens * tokens).map(|i| if i % tokens > i / tokens { f32::NEG_INFINITY } else { 0.0 }).collect();
            scores = scores.broadcast_add(&Tensor::from_vec(mask, (1, tokens, tokens), &Device::Cpu)?)?;
        }
        let e = scores.exp()?;
        outputs.push(e.broadcast_div(&e.sum_keepdim(2)?)?.matmul(&v)?);
    }
    Ok(Tensor::cat(&outputs, 2)?)
}

#[test]
fn attention_with_groups() {
    let inputs = [random(1, &[2, 5, 6, 8]), random(2, &[2, 5, 2, 8]), random(3, &[2, 5, 2, 8])];
    for (mask, causal) in [(Mask::None, false), (Mask::Causal, true)] {
        same(
            &inputs,
            |t| Candle::cpu().attention(&t[0], &t[1], &t[2], mask),
            |t| plain_attention(&t[0], &t[1], &t[2], causal),
        );
    }
}

#[test]
fn linear_and_its_frozen_twin() {
    let inputs = [random(1, &[2, 3, 8]), random(2, &[5, 8]), random(3, &[5])];
    let plain = |t: &[Tensor]| Ok(t[0].broadcast_matmul(&t[1].t()?)?.broadcast_add(&t[2])?);
    same(&inputs, |t| Matrix::trained(t[1].clone()).linear(&t[0], Some(&t[2]), DType::F32), plain);
    let (x, w) = (inputs[0].as_tensor(), inputs[1].as_tensor());
    let y = Matrix::frozen(w.clone()).linear(x, None, DType::F32).unwrap();
    let gradients = y.sum_all().unwrap().backward().unwrap();
    assert!(gradients.get(w).is_none(), "a frozen matrix got a gradient");
    assert!(gradients.get(x).is_some());
}

/// Against the operations that they join, each a node of its own.
#[test]
fn joined_operations_are_the_single_ones() {
    let x = random(1, &[2, 5, 24]);
    let (table, weight) = (random(2, &[2, 9, 4]).as_detached_tensor(), random(3, &[24]).as_detached_tensor());
    let [q, k, v, o, gate, up, down] =
        [(4, 32, 24), (5, 16, 24), (6, 16, 24), (7, 24, 32), (8, 40, 24), (9, 40, 24), (10, 24, 40)]
            .map(|(seed, out, input)| Matrix::frozen(random(seed, &[out, input]).as_detached_tensor()));
    let norm = Norm { weight: &weight, eps: 1e-5 };
    for (backend, bound) in [(Candle::cpu(), 1e-10), (Candle::cpu().computing_in(Compute::Bf16), 1e-3)] {
        let inner = |t: &Tensor| t.to_dtype(backend.dtype()).unwrap();
        let outer = |t: Result<Tensor>| Ok(t?.to_dtype(DType::F32)?);
        for layout in [RopeLayout::Half, RopeLayout::Interleaved] {
            let w = SelfAttention { norm, q: &q, k: &k, v: &v, rope: &table, layout, heads: 4, groups: 2, head_dim: 8 };
            let single = |x: &Tensor| backend.linear_add(&backend.self_attention(None, x, &w, 3)?, &o, None, x);
            close(
                bound,
                std::slice::from_ref(&x),
                |t| outer(backend.attention_block(None, &inner(&t[0]), &w, &o, 3)),
                |t| outer(single(&inner(&t[0]))),
            );
        }
        let single = |x: &Tensor| backend.linear_add(&backend.linear_silu_mul(x, norm, &gate, &up)?, &down, None, x);
        close(
            bound,
            std::slice::from_ref(&x),
            |t| outer(backend.mlp_block(&inner(&t[0]), norm, [&gate, &up, &down])),
            |t| outer(single(&inner(&t[0]))),
        );
    }
    // A trained matrix keeps its gradient, and so does a norm's weight.
    let (backend, w) = (Candle::cpu(), random(7, &[40, 24]));
    let trained = Matrix::trained(w.as_tensor().clone());
    let gradients = |y: Tensor| y.sum_all().unwrap().backward().unwrap();
    let y = backend.mlp_block(x.as_tensor(), norm, [&trained, &up, &down]).unwrap();
    assert!(gradients(y).get(w.as_tensor()).is_some());
    let weight = random(3, &[24]);
    let norm = Norm { weight: weight.as_tensor(), eps: 1e-5 };
    let y = backend.mlp_block(x.as_tensor(), norm, [&gate, &up, &down]).unwrap();
    assert!(gradients(y).get(weight.as_tensor()).is_some());
}

/// Large enough to stay in blocks, with rows that no tile divides; quantised and unpacked by Candle.
#[test]
fn products_with_blocks() {
    let (out, input) = (1283, 1024);
    let whole = random(5, &[out, input]).as_detached_tensor();
    for (ours, theirs) in [
        (Dtype::Q4_0, GgmlDType::Q4_0),
        (Dtype::Q4_1, GgmlDType::Q4_1),
        (Dtype::Q5_0, GgmlDType::Q5_0),
        (Dtype::Q5_1, GgmlDType::Q5_1),
        (Dtype::Q8_0, GgmlDType::Q8_0),
        (Dtype::Q2_K, GgmlDType::Q2K),
        (Dtype::Q3_K, GgmlDType::Q3K),
        (Dtype::Q4_K, GgmlDType::Q4K),
        (Dtype::Q5_K, GgmlDType::Q5K),
        (Dtype::Q6_K, GgmlDType::Q6K),
    ] {
        let blocks = QTensor::quantize(&whole, theirs).unwrap();
        let raw = RawTensor { shape: vec![out, input], dtype: ours, bytes: blocks.data().unwrap().into_owned() };
        let (matrix, w) =
            (Matrix::new(&raw, &Device::Cpu, DType::F32, false).unwrap(), blocks.dequantize(&Device::Cpu).unwrap());
        let bias = random(6, &[out]).as_detached_tensor();
        // One row by blocks, whose activations are rounded; many by unpacked values, which round nothing.
        for (rows, bound) in [(1, 5e-4), (2, 5e-4), (4, 1e-10), (37, 1e-10)] {
            let x = random(7, &[1, rows, input]).as_detached_tensor();
            let expected = x.reshape((rows, input)).unwrap().matmul(&w.t().unwrap()).unwrap();
            let expected = expected.broadcast_add(&bias).unwrap().reshape((1, rows, out)).unwrap();
            let error = nmse(&matrix.linear(&x, Some(&bias), DType::F32).unwrap(), &expected);
            assert!(error < bound, "{ours}, {rows} rows: {error}");
        }
        let ids = [1282, 0, 700];
        let rows = matrix.rows(&ids, &Device::Cpu, DType::F32).unwrap();
        assert!(nmse(&rows, &w.index_select(&Tensor::new(&ids, &Device::Cpu).unwrap(), 0).unwrap()) < 1e-12);
        let error = matrix.rows(&[1283], &Device::Cpu, DType::F32).unwrap_err().to_string();
        assert!(error.contains("expected ids below 1283 but found 1283"), "{error}");
        // In training it differs from a frozen f32 matrix in nothing.
        let inputs = [random(8, &[3, input])];
        same(
            &inputs,
            |t| matrix.linear(&t[0], None, DType::F32),
            |t| Matrix::frozen(w.clone()).linear(&t[0], None, DType::F32),
        );
        // In bf16 from its blocks or from unpacked weights, which are rounded once more.
        let dense = Matrix::new(&raw, &Device::Cpu, DType::BF16, true).unwrap();
        let near = |t: &[Tensor], matrix: &Matrix| Ok(matrix.linear(&t[0], None, DType::BF16)?.to_dtype(DType::F32)?);
        close(1e-4, &inputs, |t| near(t, &matrix), |t| matrix.linear(&t[0], None, DType::F32));
        close(1e-4, &inputs, |t| near(t, &dense), |t| matrix.linear(&t[0], None, DType::F32));
    }
}

#[test]
fn cache_continues_and_reorders() {
    let backend = Candle::cpu();
    let (q, k, v) = (random(1, &[2, 6, 4, 8]), random(2, &[2, 6, 2, 8]), random(3, &[2, 6, 2, 8]));
    let whole = backend.attention(&q, &k, &v, Mask::Causal).unwrap();
    let mut cache = backend.cache(2, 2, 9, 8).unwrap();
    let cut = |x: &Var, from: usize, len: usize| x.narrow(1, from, len).unwrap();
    for (from, len) in [(0, 3), (3, 1), (4, 2)] {
        let part = backend
            .cached_attention(&mut cache, &cut(&q, from, len), &cut(&k, from, len), &cut(&v, from, len), from)
            .unwrap();
        assert!(nmse(&part, &whole.narrow(1, from, len).unwrap()) < 1e-10);
    }
    backend.cache_reorder(&mut cache, &[1, 1], 5).unwrap();
    let second = |x: &Var| Tensor::cat(&[&cut(x, 5, 1).narrow(0, 1, 1).unwrap(); 2], 0).unwrap();
    let out = backend.cached_attention(&mut cache, &second(&q), &second(&k), &second(&v), 5).unwrap();
    for b in 0..2 {
        let expected = whole.narrow(0, 1, 1).unwrap().narrow(1, 5, 1).unwrap();
        assert!(nmse(&out.narrow(0, b, 1).unwrap(), &expected) < 1e-10);
    }
    assert!(backend.cached_attention(&mut cache, &q, &k, &v, 5).is_err(), "more tokens than the cache holds");
}
