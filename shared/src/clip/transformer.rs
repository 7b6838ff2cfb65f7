//! The pre-norm transformer that both towers share.

use std::ops::Range;

use crate::{
    backend::{Activation, Backend, Mask},
    error::Result,
    nn::{LayerNorm, Linear, Weights},
};

/// What training does to a layer's branch: (index of the branch, two a layer, and what it would add) -> what it adds.
pub type Branch<'a, B> = dyn Fn(usize, <B as Backend>::Tensor) -> Result<<B as Backend>::Tensor> + 'a;

/// Shape of an [`Encoder`].
pub(super) struct Shape {
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub hidden_act: Activation,
    pub layer_norm_eps: f64,
}

/// A stack of pre-norm transformer layers.
#[derive(Clone)]
pub struct Encoder<B: Backend> {
    layers: Vec<Layer<B>>,
    heads: usize,
    activation: Activation,
}

#[derive(Clone)]
struct Layer<B: Backend> {
    layer_norm1: LayerNorm<B>,
    q_proj: Linear<B>,
    k_proj: Linear<B>,
    v_proj: Linear<B>,
    out_proj: Linear<B>,
    layer_norm2: LayerNorm<B>,
    fc1: Linear<B>,
    fc2: Linear<B>,
}

impl<B: Backend> Encoder<B> {
    /// `{prefix}.layers.{i}. ...`
    pub(super) async fn load(w: &impl Weights<B>, prefix: &str, shape: Shape) -> Result<Self> {
        let (d, f, eps) = (shape.hidden_size, shape.intermediate_size, shape.layer_norm_eps);
        let mut layers = Vec::new();
        for i in 0..shape.num_hidden_layers {
            let name = |part: &str| format!("{prefix}.layers.{i}.{part}");
            layers.push(Layer {
                layer_norm1: LayerNorm::load(w, &name("layer_norm1"), d, eps).await?,
                q_proj: Linear::load(w, &name("self_attn.q_proj"), d, d).await?,
                k_proj: Linear::load(w, &name("self_attn.k_proj"), d, d).await?,
                v_proj: Linear::load(w, &name("self_attn.v_proj"), d, d).await?,
                out_proj: Linear::load(w, &name("self_attn.out_proj"), d, d).await?,
                layer_norm2: LayerNorm::load(w, &name("layer_norm2"), d, eps).await?,
                fc1: Linear::load(w, &name("mlp.fc1"), f, d).await?,
                fc2: Linear::load(w, &name("mlp.fc2"), d, f).await?,
            });
        }
        Ok(Encoder { layers, heads: shape.num_attention_heads, activation: shape.hidden_act })
    }

    /// x (B, T, D), same shape out.
    pub fn forward(&self, backend: &B, x: &B::Tensor, mask: Mask) -> Result<B::Tensor> {
        self.forward_branches(backend, x, mask, None)
    }

    /// Layers L.
    pub(super) fn len(&self) -> usize {
        self.layers.len()
    }

    /// As [`Encoder::forward`], with what every branch adds going through `branch` first.
    pub(super) fn forward_branches(
        &self,
        backend: &B,
        x: &B::Tensor,
        mask: Mask,
        branch: Option<&Branch<'_, B>>,
    ) -> Result<B::Tensor> {
        self.forward_layers(backend, x, mask, 0..self.len(), branch)
    }

    /// The same by some of the layers.
    pub(super) fn forward_layers(
        &self,
        backend: &B,
        x: &B::Tensor,
        mask: Mask,
        layers: Range<usize>,
        branch: Option<&Branch<'_, B>>,
    ) -> Result<B::Tensor> {
        let add = |x: &B::Tensor, inner: &B::Tensor, out: &Linear<B>, index: usize| match branch {
            None => out.forward_add(backend, inner, x),
            Some(branch) => backend.add(x, &branch(index, out.forward(backend, inner)?)?),
        };
        let mut x = x.clone();
        for (i, layer) in self.layers.iter().enumerate().take(layers.end).skip(layers.start) {
            let attended = layer.attend(backend, &layer.layer_norm1.forward(backend, &x)?, self.heads, mask)?;
            x = add(&x, &attended, &layer.out_proj, 2 * i)?;
            let normed = layer.layer_norm2.forward(backend, &x)?;
            let inner = layer.fc1.forward_activated(backend, &normed, self.activation)?;
            x = add(&x, &inner, &layer.fc2, 2 * i + 1)?;
        }
        Ok(x)
    }
}

impl<B: Backend> Layer<B> {
    fn attend(&self, backend: &B, x: &B::Tensor, heads: usize, mask: Mask) -> Result<B::Tensor> {
        let shape = backend.shape(x);
        let split = [shape[0], shape[1], heads, shape[2] / heads];
        let q = backend.reshape(&self.q_proj.forward(backend, x)?, &split)?;
        let k = backend.reshape(&self.k_proj.forward(backend, x)?, &split)?;
        let v = backend.reshape(&self.v_proj.forward(backend, x)?, &split)?;
        backend.attention(&q, &k, &v, mask)
    }
}
