//! The type that activations and frozen weights have.

use candle_core::DType;
use serde::{Deserialize, Serialize};

/// What is computed in. Sums of products, statistics of norms, softmax, losses and whatever is trained are f32 in either.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compute {
    /// 32 bits.
    #[default]
    F32,
    /// The upper 16 of them: half of the memory, and many times as fast on a GPU.
    Bf16,
}

impl Compute {
    pub(super) fn dtype(self) -> DType {
        match self {
            Compute::F32 => DType::F32,
            Compute::Bf16 => DType::BF16,
        }
    }
}
