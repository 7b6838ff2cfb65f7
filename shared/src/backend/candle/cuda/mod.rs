//! Kernels of our own on NVIDIA GPUs, each with its gradient, in f32 and bf16: one pass over memory where Candle's own operations
//! would make five to ten. `build.rs` compiles them, `launch` starts them.

mod activation;
mod attention;
mod launch;
mod norm;
#[cfg(test)]
mod tests;

pub use activation::{activation, silu_mul, silu_mul_gradients, sum};
pub use attention::{rope, softmax, softmax_gradient, swap};
pub use launch::open;
pub use norm::{layer_norm, rms_norm, rms_norm_gradient_and};

use candle_core::Result;

/// Threads of a block.
const BLOCK: u32 = 256;

/// Blocks for so many threads.
fn threads(count: usize) -> Result<((u32, u32), u32)> {
    Ok(((launch::word(count.div_ceil(BLOCK as usize))?, 1), BLOCK))
}
