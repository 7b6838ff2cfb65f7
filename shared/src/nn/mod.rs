//! Layers that both models are made of, generic over the backend, and where their weights come from.

mod weights;

pub use weights::{Checkpoint, Weights};

use crate::{
    backend::{Activation, Backend, Norm},
    error::{Error, Result},
};

/// An error unless `whole` is a positive multiple of `part`; `what` names them.
pub(crate) fn divides(what: &str, whole: usize, part: usize) -> Result<()> {
    if part == 0 || whole == 0 || !whole.is_multiple_of(part) {
        return Err(Error::Config(format!("{what}: expected {whole} to be a multiple of {part}")));
    }
    Ok(())
}

/// y = x w^T + b.
#[derive(Clone)]
pub struct Linear<B: Backend> {
    weight: B::Matrix,
    bias: Option<B::Tensor>,
}

impl<B: Backend> Linear<B> {
    /// `{name}.weight` (output, input) and `{name}.bias` (output).
    pub async fn load(w: &impl Weights<B>, name: &str, output: usize, input: usize) -> Result<Self> {
        let weight = w.matrix(&format!("{name}.weight"), [output, input]).await?;
        let bias = Some(w.tensor(&format!("{name}.bias"), &[output]).await?);
        Ok(Linear { weight, bias })
    }

    /// `{name}.weight` (output, input), no bias.
    pub async fn load_unbiased(w: &impl Weights<B>, name: &str, output: usize, input: usize) -> Result<Self> {
        let weight = w.matrix(&format!("{name}.weight"), [output, input]).await?;
        Ok(Linear { weight, bias: None })
    }

    /// Of weights at hand.
    pub fn new(weight: B::Matrix, bias: Option<B::Tensor>) -> Self {
        Linear { weight, bias }
    }

    /// x (..., input) -> (..., output).
    pub fn forward(&self, backend: &B, x: &B::Tensor) -> Result<B::Tensor> {
        backend.linear(x, &self.weight, self.bias.as_ref())
    }

    /// x (..., input) and `residual` (..., output), added to the product.
    pub fn forward_add(&self, backend: &B, x: &B::Tensor, residual: &B::Tensor) -> Result<B::Tensor> {
        backend.linear_add(x, &self.weight, self.bias.as_ref(), residual)
    }

    /// x (..., input) -> (..., output), through an activation.
    pub fn forward_activated(&self, backend: &B, x: &B::Tensor, kind: Activation) -> Result<B::Tensor> {
        backend.linear_activation(x, &self.weight, self.bias.as_ref(), kind)
    }

    /// Its matrix, for operations that take several.
    pub fn weight(&self) -> &B::Matrix {
        &self.weight
    }
}

/// Layer norm with its scale and shift.
#[derive(Clone)]
pub struct LayerNorm<B: Backend> {
    weight: B::Tensor,
    bias: B::Tensor,
    eps: f64,
}

impl<B: Backend> LayerNorm<B> {
    /// `{name}.weight` and `{name}.bias`, (width) each.
    pub async fn load(w: &impl Weights<B>, name: &str, width: usize, eps: f64) -> Result<Self> {
        let weight = w.tensor(&format!("{name}.weight"), &[width]).await?;
        let bias = w.tensor(&format!("{name}.bias"), &[width]).await?;
        Ok(LayerNorm { weight, bias, eps })
    }

    /// x (..., width), same shape out.
    pub fn forward(&self, backend: &B, x: &B::Tensor) -> Result<B::Tensor> {
        backend.layer_norm(x, &self.weight, &self.bias, self.eps)
    }
}

/// Root-mean-square norm with its scale.
#[derive(Clone)]
pub struct RmsNorm<B: Backend> {
    weight: B::Tensor,
    eps: f64,
}

impl<B: Backend> RmsNorm<B> {
    /// `{name}.weight` (width).
    pub async fn load(w: &impl Weights<B>, name: &str, width: usize, eps: f64) -> Result<Self> {
        Ok(RmsNorm { weight: w.tensor(&format!("{name}.weight"), &[width]).await?, eps })
    }

    /// x (..., width), same shape out.
    pub fn forward(&self, backend: &B, x: &B::Tensor) -> Result<B::Tensor> {
        backend.rms_norm(x, &self.weight, self.eps)
    }

    /// For operations that begin with it.
    pub fn parts(&self) -> Norm<'_, B> {
        Norm { weight: &self.weight, eps: self.eps }
    }
}
