//! What a GPU computes by, on the CPU: single nodes against what is composed of Candle's own operations, in f32; and all
//! operations in bf16 against f32.

use candle_core::{DType, Device, Tensor, Var};

use super::{
    Activation, Candle, Compute, Mask, Matrix, RopeLayout, composite, single,
    tests::{close, random, same},
};
use crate::{
    backend::Backend,
    error::Result,
    weights::{Dtype, RawTensor},
};

/// A bf16 number has 8 bits: rounding is off by 2^-9 at most, 4e-6 as an NMSE.
const ROUNDED: f32 = 4e-5;

/// The same operation on a backend in f32, which is fused, and in bf16, whose result is read as f32.
fn in_both(inputs: &[Var], operation: impl Fn(&Candle, &[Tensor]) -> Result<Tensor>) {
    let (wide, narrow) = (Candle::cpu(), Candle::cpu().computing_in(Compute::Bf16));
    let half = |t: &[Tensor]| -> Vec<Tensor> { t.iter().map(|t| t.to_dtype(DType::BF16).unwrap()).collect() };
    close(
        ROUNDED,
        inputs,
        |t| {
            let y = operation(&narrow, &half(t))?;
            assert_eq!(y.dtype(), DType::BF16);
            Ok(y.to_dtype(DType::F32)?)
        },
        |t| operation(&wide, t),
    );
}

#[test]
fn single_nodes_are_what_they_are_composed_of() {
    let inputs = [random(1, &[3, 5, 24]), random(2, &[24]), random(3, &[24])];
    same(
        &inputs,
        |t| single::layer_norm(&t[0], &t[1], &t[2], 1e-5),
        |t| composite::layer_norm(&t[0], &t[1], &t[2], 1e-5),
    );
    same(&inputs[..2], |t| single::rms_norm(&t[0], &t[1], 1e-5), |t| composite::rms_norm(&t[0], &t[1], 1e-5));
    let inputs = [random(1, &[7, 33]), random(2, &[7, 33])];
    for kind in [Activation::QuickGelu, Activation::Gelu] {
        // Candle's own slope of GELU has six digits.
        close(1e-9, &inputs[..1], |t| single::activation(&t[0], kind), |t| composite::activation(&t[0], kind));
    }
    same(&inputs, |t| single::silu_mul(&t[0], &t[1]), |t| composite::silu_mul(&t[0], &t[1]));
    let inputs = [random(1, &[2, 5, 3, 8])];
    let (cos, sin) = (random(2, &[5, 4]).as_detached_tensor(), random(3, &[5, 4]).as_detached_tensor());
    for layout in [RopeLayout::Half, RopeLayout::Interleaved] {
        same(&inputs, |t| single::rope(&t[0], &cos, &sin, layout), |t| composite::rope(&t[0], &cos, &sin, layout));
    }
}

#[test]
fn gates_far_from_zero_keep_their_slope_in_bf16() {
    let ends = Tensor::new(&[-90f32, -20.0, -5.0, 0.0, 5.0, 20.0, 90.0], &Device::Cpu).unwrap();
    let inputs = [Var::from_tensor(&ends).unwrap(), random(2, &[7])];
    in_both(&inputs, |b, t| b.silu_mul(&t[0], &t[1]));
    in_both(&inputs[..1], |b, t| b.activation(&t[0], Activation::QuickGelu));
}

#[test]
fn operations_in_bf16_are_those_in_f32() {
    let x = random(1, &[2, 5, 24]);
    in_both(&[x.clone(), random(2, &[24]), random(3, &[24])], |b, t| b.layer_norm(&t[0], &t[1], &t[2], 1e-5));
    in_both(&[x.clone(), random(2, &[24])], |b, t| b.rms_norm(&t[0], &t[1], 1e-5));
    for kind in [Activation::QuickGelu, Activation::Gelu] {
        in_both(std::slice::from_ref(&x), |b, t| b.activation(&t[0], kind));
    }
    in_both(&[x.clone(), random(2, &[2, 5, 24])], |b, t| b.silu_mul(&t[0], &t[1]));
    in_both(&[x.clone(), random(2, &[5, 24])], |b, t| b.add(&t[0], &t[1]));
    let table = random(2, &[2, 9, 4]).as_detached_tensor();
    for layout in [RopeLayout::Half, RopeLayout::Interleaved] {
        in_both(&[random(4, &[2, 5, 3, 8])], |b, t| b.rope(&t[0], &table, 3, layout));
    }
    let inputs = [random(1, &[2, 5, 6, 8]), random(2, &[2, 5, 2, 8]), random(3, &[2, 5, 2, 8])];
    for mask in [Mask::None, Mask::Causal] {
        in_both(&inputs, |b, t| b.attention(&t[0], &t[1], &t[2], mask));
    }
    in_both(&[random(1, &[2, 3, 8, 8])], |b, t| b.patchify(&t[0], 4));
}

/// Master weights stay f32, are cast where they are used, and get their gradients in f32.
#[test]
fn trained_weights_are_f32_in_either() {
    let (wide, narrow) = (Candle::cpu(), Candle::cpu().computing_in(Compute::Bf16));
    let inputs = [random(1, &[2, 3, 8]), random(2, &[5, 8]), random(3, &[5])];
    let linear = |b: &Candle, t: &[Tensor]| b.linear(&t[0], &Matrix::trained(t[1].clone()), Some(&t[2]));
    close(ROUNDED, &inputs, |t| Ok(linear(&narrow, t)?.to_dtype(DType::F32)?), |t| linear(&wide, t));
    let embedding = |b: &Candle, t: &[Tensor]| {
        // Rows of a table, a position added, a row of one's own before them.
        let rows = b.add(&b.embedding(&Matrix::trained(t[0].clone()), &[1, 3, 1])?, &t[1])?;
        b.concat(&[&rows, &b.repeat_rows(&t[2], 2)?], 0)
    };
    let inputs = [random(1, &[4, 8]), random(2, &[3, 8]), random(3, &[1, 8])];
    close(ROUNDED, &inputs, |t| Ok(embedding(&narrow, t)?.to_dtype(DType::F32)?), |t| embedding(&wide, t));
    let x = narrow.upload(&[3.0, 4.0], &[1, 2]).unwrap();
    assert_eq!((x.dtype(), narrow.l2_normalize(&x).unwrap().dtype()), (DType::BF16, DType::F32));
    assert_eq!(pollster::block_on(narrow.read(&x)).unwrap(), [3.0, 4.0]);
}

#[test]
fn weights_become_bf16_from_any_type() {
    let narrow = Candle::cpu().computing_in(Compute::Bf16);
    let values = [1.0f32, -2.5, 0.4375, 3.0e4];
    let bytes = |dtype| crate::weights::quant::quantize(&values, dtype).unwrap();
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
        let raw = RawTensor { shape: vec![2, 2], dtype, bytes: bytes(dtype) };
        let matrix = narrow.upload_matrix(&raw).unwrap();
        let rows = pollster::block_on(narrow.read(&narrow.embedding(&matrix, &[1, 0]).unwrap())).unwrap();
        let error = rows.iter().zip([0.4375, 3.0e4, 1.0, -2.5]).map(|(a, b): (&f32, f32)| (a / b - 1.0).abs());
        assert!(error.fold(0.0, f32::max) < 4e-3, "{dtype}: {rows:?}");
    }
}

#[test]
fn a_cache_in_bf16_continues_as_attention_at_hand() {
    let backend = Candle::cpu().computing_in(Compute::Bf16);
    let [q, k, v] = [(1, 4), (2, 2), (3, 2)]
        .map(|(seed, heads)| random(seed, &[2, 6, heads, 8]).as_detached_tensor().to_dtype(DType::BF16).unwrap());
    let whole = backend.attention(&q, &k, &v, Mask::Causal).unwrap().to_dtype(DType::F32).unwrap();
    let mut cache = backend.cache(2, 2, 6, 8).unwrap();
    for (from, len) in [(0, 4), (4, 1), (5, 1)] {
        let cut = |x: &Tensor| x.narrow(1, from, len).unwrap();
        let part = backend.cached_attention(&mut cache, &cut(&q), &cut(&k), &cut(&v), from).unwrap();
        let error = super::tests::nmse(&part.to_dtype(DType::F32).unwrap(), &whole.narrow(1, from, len).unwrap());
        assert!(error < ROUNDED, "{error}");
    }
}
