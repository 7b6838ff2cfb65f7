//! Kernels without a GPU, then every operation on one against the CPU.

mod decode;
mod faults;
mod table;
mod text;
mod weights;

use pollster::block_on;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Options, Tensor, WebGpu, memory::SENTINEL, read::read};
use crate::backend::{Backend, Candle};

/// The abilities of a GPU that kernels have variants for: all, none, and bindings and grids so small that matrices are
/// split and grids have lines.
const VARIANTS: [Options; 3] = [
    Options { shader_f16: true, subgroups: true, max_binding: None, max_groups: None },
    Options { shader_f16: false, subgroups: false, max_binding: None, max_groups: None },
    Options { shader_f16: false, subgroups: true, max_binding: Some(1 << 14), max_groups: Some(3) },
];

/// A device whose outputs are poisoned and have sentinels behind them. `None` where there is no GPU, with a visible
/// line; with `CI=true` that is a failure.
fn open(options: Options) -> Option<WebGpu> {
    match block_on(WebGpu::open(options)) {
        Ok(gpu) => {
            gpu.gpu.memory.guard.set(256);
            Some(gpu)
        }
        Err(error) => {
            assert!(
                std::env::var("CI").as_deref() != Ok("true"),
                "{error}\nCI must not skip: install mesa-vulkan-drivers"
            );
            eprintln!("SKIPPED: {error} (install mesa-vulkan-drivers)");
            None
        }
    }
}

/// Values in -2..2 and their shape.
type Values = (Vec<f32>, Vec<usize>);

fn random(seed: u64, shape: &[usize]) -> Values {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    ((0..shape.iter().product()).map(|_| rng.random_range(-2.0..2.0)).collect(), shape.to_vec())
}

/// Values of a tensor; what lies behind them must be untouched.
fn values(gpu: &WebGpu, x: &Tensor) -> Vec<f32> {
    let words: Vec<u32> = block_on(read(&gpu.gpu, &x.data, (x.data.buffer.size() / 4) as usize)).unwrap();
    let (inside, behind) = words.split_at(x.elements());
    assert!(behind.len() >= 64 && behind.iter().all(|&w| w == SENTINEL), "written behind the end of {:?}", x.shape);
    inside.iter().map(|&w| f32::from_bits(w)).collect()
}

/// Error relative to the values' own size; what is not finite must agree.
fn nmse(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let (mut error, mut size) = (0.0, 0.0);
    for (i, (&a, &b)) in found.iter().zip(expected).enumerate() {
        if a.is_finite() && b.is_finite() {
            error += f64::from(a - b).powi(2);
            size += f64::from(b).powi(2);
        } else {
            assert!(a == b || (a.is_nan() && b.is_nan()), "expected {b} but found {a} at {i}");
        }
    }
    error / (size + 1e-12)
}

/// Runs an operation on both devices and compares.
fn compare(
    gpu: &WebGpu,
    name: &str,
    bound: f64,
    inputs: &[Values],
    ours: impl Fn(&WebGpu, &[Tensor]) -> crate::Result<Tensor>,
    theirs: impl Fn(&Candle, &[candle_core::Tensor]) -> crate::Result<candle_core::Tensor>,
) {
    let cpu = Candle::cpu();
    let there: Vec<_> = inputs.iter().map(|(v, s)| gpu.upload(v, s).unwrap()).collect();
    let here: Vec<_> = inputs.iter().map(|(v, s)| cpu.upload(v, s).unwrap()).collect();
    let (found, expected) = (ours(gpu, &there).unwrap(), theirs(&cpu, &here).unwrap());
    assert_eq!(gpu.shape(&found), cpu.shape(&expected), "{name}");
    let error = nmse(&values(gpu, &found), &block_on(cpu.read(&expected)).unwrap());
    assert!(error <= bound, "{name} {:?}: expected an error of at most {bound:e} but found {error:e}", found.shape);
}
