//! Golden models: folders of `golden/models`, as Hugging Face's `save_pretrained` writes them, with what is expected.

use pollster::block_on;
use rscapret::weights::{TensorSource, quant::dequantize, safetensors::SafetensorsFile};

use crate::{backend, tests_dir};

/// A tiny model and what transformers computes with it.
pub struct Golden {
    /// `config.json`.
    pub config: Vec<u8>,
    /// `model.safetensors`, as bytes: tests damage copies of it.
    pub weights: Vec<u8>,
    expected: SafetensorsFile<Vec<u8>>,
}

impl Golden {
    /// Reads the folder `golden/models/{name}`.
    ///
    /// # Panics
    /// When a file is missing.
    pub fn open(name: &str) -> Self {
        let dir = tests_dir().join("golden/models").join(name);
        let read = |file: &str| std::fs::read(dir.join(file)).unwrap_or_else(|e| panic!("{name}/{file}: {e}"));
        let expected = block_on(SafetensorsFile::open(read("expected.safetensors"))).unwrap();
        Golden { config: read("config.json"), weights: read("model.safetensors"), expected }
    }

    /// The checkpoint.
    ///
    /// # Panics
    /// When it cannot be read.
    pub fn checkpoint(&self) -> SafetensorsFile<Vec<u8>> {
        block_on(SafetensorsFile::open(self.weights.clone())).unwrap()
    }

    /// Token ids that went in, one sequence a row.
    ///
    /// # Panics
    /// When there are none.
    pub fn ids(&self) -> Vec<Vec<u32>> {
        serde_json::from_str(self.expected.metadata("ids").unwrap()).unwrap()
    }

    /// A float input or a result, with its shape.
    ///
    /// # Panics
    /// When there is none of that name.
    pub fn tensor(&self, name: &str) -> (Vec<f32>, Vec<usize>) {
        let raw = block_on(self.expected.fetch(name)).unwrap();
        (dequantize(&raw).unwrap(), raw.shape)
    }

    /// Asserts that `found` is the result `name` within `bound` (see [`nmse`]), shape and all.
    ///
    /// # Panics
    /// When it is not.
    pub fn assert_close(&self, name: &str, found: &candle_core::Tensor, bound: f64) {
        let (expected, shape) = self.tensor(name);
        assert_eq!(found.dims(), shape, "{name}");
        let error = nmse(&read(found), &expected);
        assert!(error <= bound, "{name}: expected an error of at most {bound:e} but found {error:e}");
    }
}

/// Values on the host, row-major.
///
/// # Panics
/// When the backend refuses.
pub fn read(x: &candle_core::Tensor) -> Vec<f32> {
    use rscapret::backend::Backend;
    block_on(backend().read(x)).unwrap()
}

/// Squared error over the squared size of what was expected; infinite where a value is not finite.
///
/// # Panics
/// When lengths differ or nothing but zeros was expected.
pub fn nmse(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let square = |v: f64| v * v;
    let size: f64 = expected.iter().map(|&e| square(e.into())).sum();
    assert!(size > 0.0, "expected values other than zero");
    let error: f64 = found.iter().zip(expected).map(|(&f, &e)| square(f64::from(f) - f64::from(e))).sum();
    if error.is_finite() { error / size } else { f64::INFINITY }
}
