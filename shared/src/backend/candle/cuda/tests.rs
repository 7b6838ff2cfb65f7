//! Each kernel against what is composed of Candle's own operations on the CPU, values and gradients, in f32 and bf16, in packs and value by
//! value. They need an NVIDIA GPU: `RSCAPRET_TEST_DEVICE=cuda`.

use candle_core::{DType, Device, Tensor, Var};

use crate::{
    backend::{
        Activation, Backend, Mask, Norm, RopeLayout, SelfAttention,
        candle::{
            Candle, Compute, Matrix, attention, composite, single,
            tests::{nmse, random},
        },
    },
    error::Result,
};

/// `None` where nobody asked for a GPU.
fn gpu() -> Option<Device> {
    if std::env::var("RSCAPRET_TEST_DEVICE").is_ok_and(|name| name.starts_with("cuda")) {
        return Some(super::open(0).unwrap());
    }
    eprintln!("SKIPPED: RSCAPRET_TEST_DEVICE is not cuda");
    None
}

/// `ours` on the GPU in either type gives the values and gradients of `theirs` on the CPU in f32.
fn close(inputs: &[Var], ours: impl Fn(&[Tensor]) -> Result<Tensor>, theirs: impl Fn(&[Tensor]) -> Result<Tensor>) {
    close_within(inputs, 4e-5, ours, theirs);
}

/// With that bound in bf16.
fn close_within(
    inputs: &[Var],
    narrow: f32,
    ours: impl Fn(&[Tensor]) -> Result<Tensor>,
    theirs: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    let Some(gpu) = gpu() else { return };
    for (dtype, bound) in [(DType::F32, 1e-10), (DType::BF16, narrow)] {
        // What is rounded is rounded for both.
        let rounded = |x: &Var| x.to_dtype(dtype).unwrap().to_dtype(DType::F32).unwrap();
        let on_cpu: Vec<Var> = inputs.iter().map(|x| Var::from_tensor(&rounded(x)).unwrap()).collect();
        let there = |x: &Var| Var::from_tensor(&x.to_device(&gpu).unwrap().to_dtype(dtype).unwrap()).unwrap();
        let on_gpu: Vec<Var> = inputs.iter().map(there).collect();
        let tensors = |vars: &[Var]| -> Vec<Tensor> { vars.iter().map(|v| v.as_tensor().clone()).collect() };
        let (a, b) = (ours(&tensors(&on_gpu)).unwrap(), theirs(&tensors(&on_cpu)).unwrap());
        assert_eq!(a.dtype(), dtype);
        let here = |x: &Tensor| x.to_dtype(DType::F32).unwrap().to_device(&Device::Cpu).unwrap();
        assert!(nmse(&here(&a), &b) < bound, "{dtype:?}: values: {}", nmse(&here(&a), &b));
        let weighting = random(99, b.dims()).to_dtype(dtype).unwrap();
        let weighted = |y: &Tensor| {
            let weighting = weighting.to_device(y.device()).unwrap().to_dtype(y.dtype()).unwrap();
            (y * weighting).unwrap().to_dtype(DType::F32).unwrap().sum_all().unwrap().backward().unwrap()
        };
        let (ga, gb) = (weighted(&a), weighted(&b));
        for (i, (x, y)) in on_gpu.iter().zip(&on_cpu).enumerate() {
            let (ga, gb) = (here(ga.get(x.as_tensor()).unwrap()), gb.get(y.as_tensor()).unwrap());
            assert!(nmse(&ga, gb) < 10.0 * bound, "{dtype:?}: gradient of input {i}: {}", nmse(&ga, gb));
        }
    }
}

#[test]
fn norms() {
    // Rows of whole packs, of other widths, of more than a block's threads, and more rows than shares.
    for (rows, d) in [(3, 24), (5, 30), (2, 4096), (130, 8)] {
        let inputs = [random(1, &[2, rows, d]), random(2, &[d]), random(3, &[d])];
        close(
            &inputs,
            |t| single::layer_norm(&t[0], &t[1], &t[2], 1e-5),
            |t| composite::layer_norm(&t[0], &t[1], &t[2], 1e-5),
        );
        close(&inputs[..2], |t| single::rms_norm(&t[0], &t[1], 1e-5), |t| composite::rms_norm(&t[0], &t[1], 1e-5));
    }
}

#[test]
fn blocks_of_a_decoder() {
    let x = random(1, &[2, 45, 24]);
    let rounded = |seed, shape: &[usize]| random(seed, shape).to_dtype(DType::BF16).unwrap().detach();
    let (table, weight) = (rounded(2, &[2, 45, 4]), rounded(3, &[24]));
    let shapes: [&[usize]; 7] = [&[32, 24], &[16, 24], &[16, 24], &[24, 32], &[40, 24], &[40, 24], &[24, 40]];
    let matrices: Vec<Tensor> = (4..).zip(shapes).map(|(seed, shape)| (rounded(seed, shape) * 0.25).unwrap()).collect();
    let layer = |x: &Tensor| -> Result<Tensor> {
        let compute = if x.dtype() == DType::F32 { Compute::F32 } else { Compute::Bf16 };
        let backend = Candle::new(x.device().clone()).computing_in(compute);
        let here = |t: &Tensor| t.to_device(x.device()).unwrap().to_dtype(x.dtype()).unwrap();
        let (table, weight) = (here(&table), here(&weight));
        let w: Vec<Matrix> = matrices.iter().map(|w| Matrix::frozen(here(w))).collect();
        let norm = Norm { weight: &weight, eps: 1e-5 };
        let (q, k, v, layout) = (&w[0], &w[1], &w[2], RopeLayout::Half);
        let attention = SelfAttention { norm, q, k, v, rope: &table, layout, heads: 4, groups: 2, head_dim: 8 };
        let x = backend.attention_block(None, x, &attention, &w[3], 0)?;
        backend.mlp_block(&x, norm, [&w[4], &w[5], &w[6]])
    };
    close_within(&[x], 1e-3, |t| layer(&t[0]), |t| layer(&t[0]));
}

#[test]
fn sums() {
    for shape in [[7, 33], [16, 64]] {
        let parts = [random(1, &shape), random(2, &shape), random(3, &shape)];
        for parts in [&parts[..2], &parts[..]] {
            let Some(gpu) = gpu() else { return };
            let there: Vec<Tensor> = parts.iter().map(|x| x.to_device(&gpu).unwrap()).collect();
            let here: Vec<Tensor> = parts.iter().map(|x| x.as_detached_tensor()).collect();
            let found = super::sum(&there).unwrap().unwrap().to_device(&Device::Cpu).unwrap();
            assert!(nmse(&found, &single::sum(&here).unwrap()) < 1e-12);
        }
    }
}

#[test]
fn activations() {
    for shape in [[7, 33], [16, 64], [1, 5]] {
        let inputs = [random(1, &shape), random(2, &shape)];
        for kind in [Activation::QuickGelu, Activation::Gelu] {
            close(&inputs[..1], |t| single::activation(&t[0], kind), |t| single::activation(&t[0], kind));
        }
        close(&inputs, |t| single::silu_mul(&t[0], &t[1]), |t| composite::silu_mul(&t[0], &t[1]));
    }
}

#[test]
fn gates_far_from_zero() {
    let ends = [-1e30f32, -90.0, -20.0, -5.0, 0.0, 5.0, 20.0, 90.0];
    let inputs = [Var::from_tensor(&Tensor::new(&ends, &Device::Cpu).unwrap()).unwrap(), random(2, &[8])];
    close(
        &inputs[..1],
        |t| single::activation(&t[0], Activation::Gelu),
        |t| single::activation(&t[0], Activation::Gelu),
    );
    // Of the smallest gate the composed one has no number.
    let inputs = [Var::from_tensor(&inputs[0].narrow(0, 1, 7).unwrap()).unwrap(), random(2, &[7])];
    close(&inputs, |t| single::silu_mul(&t[0], &t[1]), |t| composite::silu_mul(&t[0], &t[1]));
}

#[test]
fn rotations() {
    for (heads, dim) in [(3, 8), (2, 32), (4, 6)] {
        let inputs = [random(1, &[2, 5, heads, dim])];
        // Numbers that either type has.
        let table = |seed| random(seed, &[5, dim / 2]).to_dtype(DType::BF16).unwrap().detach();
        let (cos, sin) = (table(2), table(3));
        for layout in [RopeLayout::Half, RopeLayout::Interleaved] {
            let tables = |x: &Tensor| {
                let here = |table: &Tensor| table.to_device(x.device()).unwrap().to_dtype(x.dtype()).unwrap();
                (here(&cos), here(&sin))
            };
            let ours = |t: &[Tensor]| single::rope(&t[0], &tables(&t[0]).0, &tables(&t[0]).1, layout);
            let theirs = |t: &[Tensor]| composite::rope(&t[0], &tables(&t[0]).0, &tables(&t[0]).1, layout);
            close(&inputs, ours, theirs);
        }
    }
}

#[test]
fn attention_of_heads_that_share_keys() {
    for (tokens, heads, groups, dim) in [(5, 4, 2, 8), (45, 2, 2, 64), (1, 2, 1, 6)] {
        let inputs = [
            random(1, &[2, tokens, heads, dim]),
            random(2, &[2, tokens, groups, dim]),
            random(3, &[2, tokens, groups, dim]),
        ];
        for mask in [Mask::None, Mask::Causal] {
            let attend = |t: &[Tensor]| attention::attention(&t[0], &t[1], &t[2], mask);
            close(&inputs, attend, attend);
        }
    }
}
