//! Where layers get their weights: a checkpoint on its way to a device, or the trainer's variables.

use std::{cell::RefCell, collections::BTreeSet};

use crate::{
    backend::Backend,
    error::{Context, Error, Result},
    weights::{TensorSource, quant},
};

/// Named weights on a device. Every request states the shape that the configuration demands.
pub trait Weights<B: Backend> {
    /// The device.
    fn backend(&self) -> &B;

    /// Whether there is a tensor of that name (for what a checkpoint may lawfully lack, such as a tied head).
    fn has(&self, name: &str) -> bool;

    /// A matrix (out, in), in its stored type.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::Shape`], or what the source answers.
    fn matrix(&self, name: &str, shape: [usize; 2]) -> impl Future<Output = Result<B::Matrix>>;

    /// A tensor as f32 (norms, biases, positions).
    ///
    /// # Errors
    /// As [`Weights::matrix`].
    fn tensor(&self, name: &str, shape: &[usize]) -> impl Future<Output = Result<B::Tensor>>;
}

/// A [`TensorSource`] on its way to a device; remembers what was asked for, so that nothing is left over in silence.
pub struct Checkpoint<'a, B: Backend, S: TensorSource> {
    backend: &'a B,
    source: &'a S,
    used: RefCell<BTreeSet<String>>,
}

impl<'a, B: Backend, S: TensorSource> Checkpoint<'a, B, S> {
    /// Nothing is read yet.
    pub fn new(backend: &'a B, source: &'a S) -> Self {
        Checkpoint { backend, source, used: RefCell::default() }
    }

    /// Checks that the model used every tensor whose name passes `own`.
    ///
    /// # Errors
    /// [`Error::ExtraTensors`].
    pub fn finish(self, own: impl Fn(&str) -> bool) -> Result<()> {
        let used = self.used.into_inner();
        let extra: Vec<String> = self
            .source
            .tensors()
            .iter()
            .filter(|t| own(&t.name) && !used.contains(&t.name))
            .map(|t| t.name.clone())
            .collect();
        if extra.is_empty() { Ok(()) } else { Err(Error::ExtraTensors(extra)) }
    }

    /// Checks a tensor's shape and counts it as used.
    fn take(&self, name: &str, shape: &[usize]) -> Result<()> {
        let info = self.source.info(name).ok_or_else(|| Error::MissingTensor(name.to_string()))?;
        if info.shape != shape {
            return Err(Error::Shape { name: name.to_string(), expected: shape.to_vec(), found: info.shape.clone() });
        }
        self.used.borrow_mut().insert(name.to_string());
        Ok(())
    }
}

impl<B: Backend, S: TensorSource> Weights<B> for Checkpoint<'_, B, S> {
    fn backend(&self) -> &B {
        self.backend
    }

    fn has(&self, name: &str) -> bool {
        self.source.info(name).is_some()
    }

    async fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<B::Matrix> {
        // A convolution's weight (out, channels, patch, patch) is a matrix of its flattened patches.
        let stored = self.source.info(name).map(|t| t.shape.clone()).unwrap_or_default();
        let flat = stored.len() == 4 && stored[0] == shape[0] && stored[1..].iter().product::<usize>() == shape[1];
        self.take(name, if flat { &stored } else { &shape })?;
        self.backend.load_matrix(self.source, name, shape).await.at(format!("`{name}`"))
    }

    async fn tensor(&self, name: &str, shape: &[usize]) -> Result<B::Tensor> {
        self.take(name, shape)?;
        let raw = self.source.fetch(name).await.at(format!("`{name}`"))?;
        self.backend.upload(&quant::dequantize(&raw)?, shape).at(format!("`{name}`"))
    }
}
