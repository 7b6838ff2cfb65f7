//! Frozen linear layers inside of a model: the gradient that remains is right, and no other is there.

use std::cell::RefCell;

use candle_core::{Tensor, Var};
use pollster::block_on;
use rscapret::{
    Backend, Candle, Result,
    backend::{RopeLayout, candle::Matrix},
    bench::Random,
    llama::{Llama, LlamaConfig, RopeScaling},
    nn::Weights,
    weights::{Dtype, quant::dequantize},
};
use rscapret_tests::{
    backend,
    golden::{nmse, read},
};

/// Matrices of 2^20 elements and more, which the CPU keeps in their blocks.
const WIDTH: usize = 1024;
/// More rows than go through the blocks as they are.
const TOKENS: usize = 6;

fn config() -> LlamaConfig {
    LlamaConfig {
        hidden_size: WIDTH,
        intermediate_size: WIDTH,
        num_hidden_layers: 2,
        num_attention_heads: 8,
        num_key_value_heads: 8,
        head_dim: WIDTH / 8,
        vocab_size: WIDTH,
        max_position_embeddings: 16,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        rope_layout: RopeLayout::Half,
        tie_word_embeddings: false,
    }
}

/// Random weights as dense matrices whose tensors are kept to be asked for their gradients.
struct Dense<'a> {
    random: Random<'a, Candle>,
    trained: bool,
    kept: RefCell<Vec<(String, Tensor)>>,
}

impl Weights<Candle> for Dense<'_> {
    fn backend(&self) -> &Candle {
        self.random.backend()
    }

    fn has(&self, _: &str) -> bool {
        true
    }

    async fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Matrix> {
        let w = Tensor::from_vec(dequantize(&self.random.raw(name, shape)?)?, &shape[..], self.backend().device())?;
        self.kept.borrow_mut().push((name.to_string(), w.clone()));
        Ok(if self.trained { Matrix::trained(w) } else { Matrix::frozen(w) })
    }

    async fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let tensor = self.random.tensor(name, shape).await?;
        self.kept.borrow_mut().push((name.to_string(), tensor.clone()));
        Ok(tensor)
    }
}

fn wave(seed: usize, shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0).collect();
    backend().upload(&values, shape).unwrap()
}

/// A loss that depends on all logits in another way each.
fn loss(llama: &Llama<Candle>, x: &Tensor) -> Tensor {
    let backend = backend();
    let logits = llama.logits(&backend, &llama.forward(&backend, x, None).unwrap()).unwrap();
    (logits.tanh().unwrap() * wave(5, logits.dims())).unwrap().sum_all().unwrap()
}

fn value(llama: &Llama<Candle>, x: &Tensor) -> f64 {
    f64::from(loss(llama, x).to_scalar::<f32>().unwrap())
}

/// The gradient of the loss by the input, against differences along some directions.
fn check(what: &str, llama: &Llama<Candle>, bound: f64) -> Vec<f32> {
    let x = Var::from_tensor(&wave(1, &[1, TOKENS, WIDTH])).unwrap();
    let gradients = loss(llama, &x).backward().unwrap();
    let gradient = gradients.get(&x).expect("the input's gradient").clone();
    let at = x.as_detached_tensor();
    // Random directions, and the steepest one, along which errors of rounding are least.
    let steepest =
        &gradient / f64::from(gradient.sqr().unwrap().mean_all().unwrap().sqrt().unwrap().to_scalar::<f32>().unwrap());
    for (i, direction) in [wave(2, at.dims()), wave(3, at.dims()), steepest.unwrap()].iter().enumerate() {
        let expected = f64::from((&gradient * direction).unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap());
        let h = 3e-3;
        let moved = |h: f64| value(llama, &(&at + (direction * h).unwrap()).unwrap());
        // Of fourth order in h.
        let found = (8.0 * (moved(h) - moved(-h)) - (moved(2.0 * h) - moved(-2.0 * h))) / (12.0 * h);
        let size = f64::from(gradient.sqr().unwrap().sum_all().unwrap().sqrt().unwrap().to_scalar::<f32>().unwrap())
            * f64::from(direction.sqr().unwrap().sum_all().unwrap().sqrt().unwrap().to_scalar::<f32>().unwrap());
        let error = (found - expected).abs();
        // Random directions are nearly at right angles to the gradient: the bound is of its size.
        assert!(
            error <= bound * size && (i < 2 || error <= 5.0 * bound * expected.abs()),
            "{what} {i}: {found} {expected} {size}"
        );
    }
    read(&gradient)
}

#[test]
fn gradients_through_frozen_layers_are_right_and_the_only_ones() {
    let backend = backend();
    let load = |trained| {
        let random = Random::new(&backend, |_| Dtype::F32);
        let weights = Dense { random, trained, kept: RefCell::default() };
        (block_on(Llama::load(&weights, &config())).unwrap(), weights.kept.into_inner())
    };
    let (frozen, frozen_weights) = load(false);
    let found = check("f32", &frozen, 2e-3);
    // The same model with gradients of all matrices: the input's is the same.
    let (trained, trained_weights) = load(true);
    let x = Var::from_tensor(&wave(1, &[1, TOKENS, WIDTH])).unwrap();
    let gradients = loss(&trained, &x).backward().unwrap();
    assert!(nmse(&found, &read(gradients.get(&x).unwrap())) < 1e-10);
    let with = |weights: &[(String, Tensor)], gradients: &candle_core::backprop::GradStore| {
        weights.iter().filter(|(_, w)| gradients.get(w).is_some()).count()
    };
    // 7 matrices a layer and the head; not the embedding, which this loss does not pass.
    assert_eq!(with(&trained_weights, &gradients), 2 * 7 + 1);
    let gradients = loss(&frozen, &x).backward().unwrap();
    assert!(frozen_weights.len() == trained_weights.len() && gradients.get(&x).is_some());
    assert_eq!(with(&frozen_weights, &gradients), 0);
}

#[test]
fn gradients_through_blocks_are_right() {
    let backend = backend();
    for (dtype, of) in [(Dtype::Q8_0, (|_: &str| Dtype::Q8_0) as fn(&str) -> Dtype), (Dtype::Q4_K, |_| Dtype::Q4_K)] {
        let llama = block_on(Llama::load(&Random::new(&backend, of), &config())).unwrap();
        // Candle rounds what goes into such a product to 8 bits on a GPU; differences
        // of what is rounded are coarse.
        let found = check(dtype.name(), &llama, if backend.device().is_cpu() { 2e-3 } else { 5e-2 });
        // And that of the values that the blocks stand for.
        let dense = Dense { random: Random::new(&backend, of), trained: true, kept: RefCell::default() };
        let dense = block_on(Llama::load(&dense, &config())).unwrap();
        let x = Var::from_tensor(&wave(1, &[1, TOKENS, WIDTH])).unwrap();
        let gradients = loss(&dense, &x).backward().unwrap();
        let error = nmse(&found, &read(gradients.get(&x).unwrap()));
        assert!(error < 1e-10, "{dtype}: {error:e}");
    }
}
