//! The weights that a stage trains, by name, and where the models take them from.

use std::{cell::RefCell, collections::BTreeMap};

use candle_core::{DType, Tensor, Var};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rscapret::{
    Candle, Context, Error, Result,
    backend::candle::Matrix,
    nn::Weights,
    weights::{Dtype, RawTensor, TensorSource, quant},
};
use sha2::{Digest, Sha256};

/// Trained variables, in the order of their names.
pub type Vars = BTreeMap<String, Var>;

/// Makes each variable when a model first asks for it, and hands out the same one after that. Values depend on the
/// seed and the name alone, not on the order of the questions.
pub struct NewVars {
    backend: Candle,
    seed: u64,
    /// Scale of matrices that write into a residual stream: 1 / sqrt(2 L).
    residual_scale: f32,
    vars: RefCell<Vars>,
}

impl NewVars {
    /// For a model of `layers` layers.
    pub fn new(backend: &Candle, seed: u64, layers: usize) -> Self {
        let residual_scale = 1.0 / (2.0 * layers.max(1) as f32).sqrt();
        NewVars { backend: backend.clone(), seed, residual_scale, vars: RefCell::default() }
    }

    /// The variables made.
    pub fn into_vars(self) -> Vars {
        self.vars.into_inner()
    }

    fn var(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        if let Some(var) = self.vars.borrow().get(name) {
            if var.dims() != shape {
                let (expected, found) = (shape.to_vec(), var.dims().to_vec());
                return Err(Error::Shape { name: name.to_string(), expected, found });
            }
            return Ok(var.as_tensor().clone());
        }
        let values = self.initial(name, shape);
        let var = Var::from_tensor(&Tensor::from_vec(values, shape, self.backend.device())?)?;
        let tensor = var.as_tensor().clone();
        self.vars.borrow_mut().insert(name.to_string(), var);
        Ok(tensor)
    }

    fn initial(&self, name: &str, shape: &[usize]) -> Vec<f32> {
        let count = shape.iter().product();
        let deviation = if name == "logit_scale" {
            return vec![(1.0f32 / 0.07).ln(); count];
        } else if name.ends_with("bias") {
            0.0
        } else if name.contains("embed") && !name.contains("patch_embedding") {
            0.02
        } else if shape.len() == 1 {
            return vec![1.0; count];
        } else {
            let input: usize = shape[1..].iter().product();
            let residual = ["out_proj.weight", "fc2.weight", "o_proj.weight", "down_proj.weight"];
            let scale = if residual.iter().any(|r| name.ends_with(r)) { self.residual_scale } else { 1.0 };
            scale / (input as f32).sqrt()
        };
        let mut hash = Sha256::new();
        hash.update(self.seed.to_le_bytes());
        hash.update(name);
        let mut rng = ChaCha8Rng::from_seed(hash.finalize().into());
        (0..count).map(|_| normal(&mut rng) * deviation).collect()
    }
}

/// Variables that begin as the tensors of a checkpoint: for training on what is trained already.
pub struct StoredVars<'a, S: TensorSource> {
    backend: Candle,
    source: &'a S,
    vars: RefCell<Vars>,
}

impl<'a, S: TensorSource> StoredVars<'a, S> {
    /// Nothing is read yet.
    pub fn new(backend: &Candle, source: &'a S) -> Self {
        StoredVars { backend: backend.clone(), source, vars: RefCell::default() }
    }

    /// The variables that were asked for.
    pub fn into_vars(self) -> Vars {
        self.vars.into_inner()
    }

    async fn var(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let info = self.source.info(name).ok_or_else(|| Error::MissingTensor(name.to_string()))?;
        let found = info.shape.clone();
        if !fits(&found, shape) {
            return Err(Error::Shape { name: name.to_string(), expected: shape.to_vec(), found });
        }
        let values = quant::dequantize(&self.source.fetch(name).await?).at(name)?;
        let var = Var::from_tensor(&Tensor::from_vec(values, shape, self.backend.device())?)?;
        let tensor = var.as_tensor().clone();
        self.vars.borrow_mut().insert(name.to_string(), var);
        Ok(tensor)
    }
}

impl<S: TensorSource> Weights<Candle> for StoredVars<'_, S> {
    fn backend(&self) -> &Candle {
        &self.backend
    }

    fn has(&self, name: &str) -> bool {
        self.source.info(name).is_some()
    }

    async fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Matrix> {
        Ok(Matrix::trained(self.var(name, &shape).await?))
    }

    async fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.var(name, shape).await
    }
}

/// Whether a tensor of shape `found` can be had as `shape`: a convolution's weight (out, channels, patch, patch) is a matrix
/// of its flattened patches.
fn fits(found: &[usize], shape: &[usize]) -> bool {
    let flat = |rows, columns| found.len() > 2 && found[0] == rows && found[1..].iter().product::<usize>() == columns;
    found == shape || matches!(*shape, [rows, columns] if flat(rows, columns))
}

/// Variables as they are now and will be, but frozen: what is computed with them keeps no graph.
pub struct FixedVars<'a> {
    backend: Candle,
    vars: &'a Vars,
}

impl<'a> FixedVars<'a> {
    /// Of variables that there are.
    pub fn new(backend: &Candle, vars: &'a Vars) -> Self {
        FixedVars { backend: backend.clone(), vars }
    }

    fn var(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let var = self.vars.get(name).ok_or_else(|| Error::MissingTensor(name.to_string()))?;
        if var.dims() != shape {
            let (expected, found) = (shape.to_vec(), var.dims().to_vec());
            return Err(Error::Shape { name: name.to_string(), expected, found });
        }
        Ok(var.as_detached_tensor())
    }
}

impl Weights<Candle> for FixedVars<'_> {
    fn backend(&self) -> &Candle {
        &self.backend
    }

    fn has(&self, name: &str) -> bool {
        self.vars.contains_key(name)
    }

    async fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Matrix> {
        Ok(Matrix::frozen(self.var(name, &shape)?))
    }

    async fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.var(name, shape)
    }
}

/// A standard normal number (Box and Muller).
pub fn normal(rng: &mut impl Rng) -> f32 {
    let (u, v): (f32, f32) = (rng.random::<f32>().max(f32::MIN_POSITIVE), rng.random());
    (-2.0 * u.ln()).sqrt() * (2.0 * std::f32::consts::PI * v).cos()
}

impl Weights<Candle> for NewVars {
    fn backend(&self) -> &Candle {
        &self.backend
    }

    fn has(&self, name: &str) -> bool {
        self.vars.borrow().contains_key(name)
    }

    async fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Matrix> {
        Ok(Matrix::trained(self.var(name, &shape)?))
    }

    async fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.var(name, shape)
    }
}

/// Variables as f32 tensors for a file.
///
/// # Errors
/// What the device answers.
pub fn to_raw(vars: &Vars) -> Result<BTreeMap<String, RawTensor>> {
    vars.iter().map(|(name, var)| Ok((name.clone(), raw(&values(var)?, var.dims())))).collect()
}

/// f32 values as a stored tensor.
pub fn raw(values: &[f32], shape: &[usize]) -> RawTensor {
    let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    RawTensor { shape: shape.to_vec(), dtype: Dtype::F32, bytes }
}

/// Host values of a variable or tensor.
///
/// # Errors
/// What the device answers.
pub fn values(x: &Tensor) -> Result<Vec<f32>> {
    Ok(x.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}

/// Sets every variable to the tensor of its name.
///
/// # Errors
/// A missing or misshapen tensor; nothing is set then.
pub fn restore(vars: &Vars, source: &impl TensorSource) -> Result<()> {
    let mut fetched = Vec::new();
    for (name, var) in vars {
        let raw = pollster::block_on(source.fetch(name))?;
        if !fits(&raw.shape, var.dims()) {
            return Err(Error::Shape { name: name.clone(), expected: var.dims().to_vec(), found: raw.shape });
        }
        fetched.push((var, Tensor::from_vec(quant::dequantize(&raw).at(name)?, var.dims(), var.device())?));
    }
    for (var, tensor) in fetched {
        var.set(&tensor)?;
    }
    Ok(())
}
