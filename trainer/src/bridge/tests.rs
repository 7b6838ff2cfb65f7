//! The joint loss, every gradient and five steps of AdamW against PyTorch (tests/golden/make_training.py).

use pollster::block_on;
use rscapret::{
    clip::{ClipVision, ClipVisionConfig, preprocess::PreprocessConfig},
    llama::load_llama_weights,
    tokenizer::GgufVocab,
    weights::{TensorSource as _, quant},
};
use serde::{Deserialize, de::DeserializeOwned};

use super::*;
use crate::{run_dir::Prefixed, vars::restore};

/// Of the largest value of each tensor.
const BOUND: f32 = 1e-4;

#[derive(Deserialize)]
struct Settings {
    lr: f64,
    beta1: f64,
    beta2: f64,
    eps: f64,
    weight_decay: f64,
    clip: f64,
    lambda_c: f64,
    lambda_r: f64,
}

#[derive(Deserialize)]
struct Step {
    loss: f64,
    caption: f64,
    contrast: f64,
}

struct Golden(SafetensorsFile<Vec<u8>>);

impl Golden {
    fn tensor(&self, name: &str) -> Vec<f32> {
        quant::dequantize(&block_on(self.0.fetch(name)).unwrap()).unwrap()
    }

    fn json<T: DeserializeOwned>(&self, key: &str) -> T {
        serde_json::from_str(self.0.metadata(key).unwrap()).unwrap()
    }

    fn assert_close(&self, name: &str, found: &[f32]) {
        let expected = self.tensor(name);
        assert_eq!(found.len(), expected.len(), "{name}");
        let largest = expected.iter().fold(0f32, |most, v| most.max(v.abs()));
        let off = expected.iter().zip(found).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(off <= BOUND * largest, "{name}: off by {off} of {largest}");
    }
}

fn read(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The golden Llama with projections of the golden start; the tower is there for its width alone.
fn model(golden: &Golden) -> (Captioner<Candle>, Vars) {
    let backend = Candle::cpu();
    let weights = block_on(SafetensorsFile::open(read("models/llama-multi-head/model.safetensors"))).unwrap();
    let llama = block_on(load_llama_weights(&backend, &read("models/llama-multi-head/config.json"), &weights)).unwrap();
    let tokenizer = Tokenizer::from_vocab(GgufVocab {
        model: "llama".into(),
        tokens: ["<unk>", "<s>", "</s>"].map(String::from).to_vec(),
        scores: Some(vec![0.0; 3]),
        token_types: Some(vec![2, 3, 3]),
        bos: Some(1),
        eos: Some(2),
        unk: Some(0),
        ..GgufVocab::default()
    });
    let tower = ClipVisionConfig {
        hidden_size: 10,
        intermediate_size: 8,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        image_size: 8,
        patch_size: 8,
        ..ClipVisionConfig::default()
    };
    let vision = block_on(ClipVision::load(&NewVars::new(&backend, 0, 1), &tower)).unwrap();
    let new = NewVars::new(&backend, 0, 1);
    let sizes = ProjectionsConfig {
        feature_size: 10,
        hidden_size: llama.config().hidden_size,
        joint_size: 12,
        visual_tokens: 2,
    };
    let projections = block_on(Projections::load(&new, sizes)).unwrap();
    let vars = new.into_vars();
    restore(&vars, &Prefixed { source: &golden.0, prefix: "before." }).unwrap();
    let preprocess = PreprocessConfig::clip(8);
    let model = Captioner::new(backend, llama, tokenizer.unwrap(), vision, preprocess, projections, "").unwrap();
    (model, vars)
}

fn config(settings: &Settings, workers: usize) -> Config {
    Config {
        training: TrainingConfig {
            seed: 3,
            steps: 5,
            batch: 6,
            workers,
            validate_every: 5,
            patience: None,
            checkpoint_seconds: 120.0,
        },
        llm: PathBuf::new(),
        clip: PathBuf::new(),
        features: None,
        visual_tokens: 2,
        joint_size: 12,
        lambda_c: settings.lambda_c,
        lambda_r: settings.lambda_r,
        same_string: SameString::Masked,
        feature_noise: 0.0,
        max_length: 64,
        query_share: 0.0,
        optim: OptimConfig {
            lr: settings.lr,
            beta1: settings.beta1,
            beta2: settings.beta2,
            eps: settings.eps,
            weight_decay: settings.weight_decay,
            clip: settings.clip,
            muon_lr: 0.0,
        },
        schedule: Schedule::default(),
        data: Vec::new(),
    }
}

#[test]
fn losses_gradients_and_steps_are_pytorchs() {
    let golden = Golden(block_on(SafetensorsFile::open(read("training/bridge.safetensors"))).unwrap());
    let (ids, strings): (Vec<Vec<u32>>, Vec<usize>) = (golden.json("ids"), golden.json("strings"));
    let (settings, history): (Settings, Vec<Step>) = (golden.json("settings"), golden.json("history"));
    let features = golden.tensor("features");
    let pairs = || {
        let caption = |(ids, &string): (&Vec<u32>, &usize)| Caption {
            text: String::new(),
            ids: ids.clone(),
            whole: true,
            string,
        };
        let captions = ids.iter().zip(&strings).map(caption);
        let pair = |(row, caption): (&[f32], Caption)| Pair {
            image: PathBuf::new(),
            features: row.to_vec(),
            captions: vec![caption],
        };
        features.chunks_exact(10).zip(captions).map(pair).collect::<Vec<_>>()
    };
    // The whole batch is drawn at each step, in an order by chance; shares of two workers are contrasted whole.
    for workers in [1, 2] {
        let (model, vars) = model(&golden);
        let config = config(&settings, workers);
        let (norm, pool) = (mean_norm(&model).unwrap(), Workers::new(workers).unwrap());
        let mut optim = Optim::new(&config.optim, &vars);
        for (step, expected) in history.iter().enumerate() {
            rescale(&vars, norm).unwrap();
            let train = [(1.0, pairs())];
            let (gradients, line) = train_step(&config, &train, &model, &vars, &pool, step as u64).unwrap();
            for (key, expected) in
                [("loss", expected.loss), ("caption", expected.caption), ("contrast", expected.contrast)]
            {
                let found = line[key].as_f64().unwrap();
                assert!((found - expected).abs() <= 1e-4 * expected.abs(), "step {step}: {key} {found} but {expected}");
            }
            if step == 0 {
                // Every trained weight has a gradient, and nothing else has.
                assert_eq!(gradients.keys().collect::<Vec<_>>(), vars.keys().collect::<Vec<_>>());
                for (name, gradient) in &gradients {
                    golden.assert_close(&format!("gradient.{name}"), gradient);
                }
            }
            optim.step(&vars, &gradients, 1.0).unwrap();
        }
        for (name, var) in &vars {
            golden.assert_close(&format!("after.{name}"), &values(var).unwrap());
        }
    }
}
