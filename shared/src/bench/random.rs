//! Weights of any shape and type without a file: random blocks, valid and of sensible size.

use std::{
    cell::{Cell, RefCell},
    io::Write,
};

use half::f16;

use crate::{
    backend::Backend,
    error::{Error, Result},
    llama::LlamaConfig,
    nn::Weights,
    weights::{
        Dtype, RawTensor, TensorInfo,
        gguf::{GgufWriter, gguf_name},
        quant,
    },
};

/// Answers every request for weights; matrices in the type that `dtype` says for their name.
pub struct Random<'a, B> {
    backend: &'a B,
    dtype: fn(&str) -> Dtype,
    noise: RefCell<Noise>,
    bytes: Cell<u64>,
}

impl<'a, B> Random<'a, B> {
    /// For a backend.
    pub fn new(backend: &'a B, dtype: fn(&str) -> Dtype) -> Self {
        Random { backend, dtype, noise: RefCell::new(Noise(1)), bytes: Cell::new(0) }
    }

    /// A matrix (out, in); the same order of questions gives the same values.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a type that is not made, or whose blocks do not fit the shape.
    pub fn raw(&self, name: &str, shape: [usize; 2]) -> Result<RawTensor> {
        let raw = self.noise.borrow_mut().matrix((self.dtype)(name), shape)?;
        self.bytes.set(self.bytes.get() + raw.bytes.len() as u64);
        Ok(raw)
    }

    /// Bytes of all matrices so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.get()
    }
}

impl<B: Backend> Weights<B> for Random<'_, B> {
    fn backend(&self) -> &B {
        self.backend
    }

    fn has(&self, _: &str) -> bool {
        true
    }

    async fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<B::Matrix> {
        self.backend.upload_matrix(&self.raw(name, shape)?)
    }

    async fn tensor(&self, name: &str, shape: &[usize]) -> Result<B::Tensor> {
        self.backend.upload(&self.noise.borrow_mut().vector(name, shape.iter().product()), shape)
    }
}

/// Writes a Llama without a tokenizer as GGUF: a file of any size, with little memory. The same arguments give the same
/// bytes.
///
/// # Errors
/// A configuration or a type that is not supported; [`Error::Io`] if `out` fails.
pub fn random_gguf(config: &LlamaConfig, dtype: impl Fn(&str) -> Dtype, out: &mut impl Write) -> Result<()> {
    let mut file = GgufWriter::new();
    file.metadata("general.architecture", "llama")?;
    for (key, value) in config.to_gguf()?.iter() {
        file.metadata(key, value.clone())?;
    }
    for (name, shape) in config.tensors() {
        let stored = gguf_name(&name)
            .ok_or_else(|| Error::Unsupported(format!("expected a tensor of a Llama but found `{name}`")))?;
        let dtype = if shape.len() == 1 { Dtype::F32 } else { dtype(&name) };
        file.declare(TensorInfo { name: stored, shape, dtype })?;
    }
    let mut noise = Noise(1);
    file.write_with(out, |info| match info.shape[..] {
        [rows, columns] => Ok(noise.matrix(info.dtype, [rows, columns])?.bytes),
        _ => quant::quantize(&noise.vector(&info.name, info.shape.iter().product()), Dtype::F32),
    })
}

/// A matrix (out, in) of a type; the same arguments give the same values.
///
/// # Errors
/// As [`Random::raw`].
pub fn random_matrix(dtype: Dtype, shape: [usize; 2]) -> Result<RawTensor> {
    Noise(1).matrix(dtype, shape)
}

/// SplitMix64 (Steele et al., 2014).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Even between plus and minus sqrt 3: mean 0, variance 1.
    fn unit(&mut self) -> f32 {
        ((self.next() >> 40) as f32 / (1u32 << 23) as f32 - 1.0) * 3f32.sqrt()
    }

    /// Scales of norms are about one, all else is small.
    fn vector(&mut self, name: &str, len: usize) -> Vec<f32> {
        let (mean, spread) = if name.ends_with("norm.weight") { (1.0, 0.1) } else { (0.0, 0.02) };
        (0..len).map(|_| mean + spread * self.unit()).collect()
    }

    /// Elements of variance 1 / columns, so that a product with them keeps the size of what goes in.
    fn matrix(&mut self, dtype: Dtype, shape: [usize; 2]) -> Result<RawTensor> {
        let spread = 1.0 / (shape[1] as f32).sqrt();
        let rows_of_blocks =
            || Error::Unsupported(format!("expected rows of whole {dtype} blocks but found {shape:?}"));
        let len = dtype.bytes_of(&shape).ok_or_else(rows_of_blocks)? as usize;
        let mut bytes = vec![0; len];
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
        let half = |at: &mut [u8], value: f32| at[..2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
        // Scales that random quants of a block, even over their range, need.
        for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
            match dtype {
                Dtype::F32 => block.copy_from_slice(&(spread * self.unit()).to_le_bytes()),
                Dtype::F16 => half(block, spread * self.unit()),
                Dtype::Q8_0 => half(block, spread / 74.0),
                // Quants count from -8 to 7: half of the scales are negative, or all values would lean to one side, and every
                // product with them more so.
                Dtype::Q4_0 => half(block, if self.next() & 1 == 0 { spread } else { -spread } / 4.64),
                // Scales and minima are even below 64, quants below 16: minima of 7.5 scales bring the mean to zero.
                Dtype::Q4_K => {
                    half(block, spread / 240.0);
                    half(&mut block[2..], spread / 240.0 * 7.5);
                }
                // As Q4_0, but from -16 to 15.
                Dtype::Q5_0 => half(block, if self.next() & 1 == 0 { spread } else { -spread } / 9.25),
                // As Q4_K, but quants are below 32.
                Dtype::Q5_K => {
                    half(block, spread / 480.0);
                    half(&mut block[2..], spread / 480.0 * 15.5);
                }
                Dtype::Q6_K => half(&mut block[208..], spread / 1370.0),
                other => {
                    return Err(Error::Unsupported(format!(
                        "expected a type that the benchmark makes but found {other}"
                    )));
                }
            }
        }
        Ok(RawTensor { shape: shape.to_vec(), dtype, bytes })
    }
}

#[cfg(test)]
mod tests {
    use crate::weights::quant::dequantize;

    use super::*;

    #[test]
    fn matrices_are_of_the_size_that_keeps_activations() {
        use Dtype::{F16, F32, Q4_0, Q4_K, Q5_0, Q5_K, Q6_K, Q8_0};
        for dtype in [F32, F16, Q8_0, Q4_0, Q4_K, Q5_0, Q5_K, Q6_K] {
            let raw = Noise(7).matrix(dtype, [64, 1024]).unwrap();
            let values = dequantize(&raw).unwrap();
            let mean = values.iter().sum::<f32>() / values.len() as f32;
            let spread = (values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32).sqrt();
            assert!((0.8..1.25).contains(&(spread * 32.0)) && mean.abs() < 0.001, "{dtype}: {mean} {spread}");
        }
    }
}
