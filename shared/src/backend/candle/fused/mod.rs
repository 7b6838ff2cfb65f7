//! One pass over memory where Candle's own operations would make five to ten; each with its gradient. CPU only.

mod activation;
mod norm;
mod rope;

pub(super) use activation::exp;
pub use activation::{activation, silu_mul, silu_mul_gradients};
pub use norm::{layer_norm, rms_norm, rms_norm_gradients};
pub use rope::rope;

use candle_core::{CpuStorage, Layout, Result, Storage, Tensor, bail};

/// The values of a contiguous f32 operand.
pub(super) fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(&storage.as_slice::<f32>()?[from..to]),
        None => bail!("expected a contiguous tensor but found {layout:?}"),
    }
}

/// Runs `f` over the values of a CPU tensor; not recorded for differentiation.
pub(super) fn with_values<T>(x: &Tensor, f: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    match &*storage {
        Storage::Cpu(cpu) => f(values(cpu, layout)?),
        _ => bail!("expected a tensor on the CPU"),
    }
}

/// Elements below which threads cost more than they bring.
pub(super) const PARALLEL_FROM: usize = 1 << 15;

/// Rows of `width` in chunks that are worth a thread.
pub(super) fn chunk(width: usize) -> usize {
    (PARALLEL_FROM / 2).div_ceil(width.max(1)) * width
}
