//! The joint loss, every gradient and five steps of AdamW against PyTorch (tests/golden/make_training.py), as they are and
//! with each option.

use std::path::{Path, PathBuf};

use pollster::block_on;
use rscapret::{
    clip::{ClipVision, ClipVisionConfig, preprocess::PreprocessConfig},
    llama::load_llama_weights,
    tokenizer::{GgufVocab, Tokenizer},
    weights::{TensorSource as _, quant, safetensors::SafetensorsFile},
};
use serde::{Deserialize, de::DeserializeOwned};

use super::{data::Caption, step::batch_gradients, *};
use crate::{
    loss::SameString,
    optim::{OptimConfig, Schedule},
    run_dir::Prefixed,
    stage::TrainingConfig,
    vars::{restore, values},
};

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

#[derive(Deserialize, Default)]
struct Options {
    hidden_layer: Option<usize>,
    rescale_ret: bool,
    /// Which examples stand together.
    sequences: Vec<Vec<usize>>,
    lambda_ret: f64,
    prompt: Vec<u32>,
}

/// A step's losses by their names in the log.
type Step = std::collections::BTreeMap<String, f64>;

/// What PyTorch made of an option.
#[derive(Deserialize)]
struct Trained {
    options: Options,
    history: Vec<Step>,
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

/// The vocabulary's text of the golden prompt, ids 3, 4 and 5.
const PROMPT: &str = "ab";

/// The golden Llama with projections of the golden start; the tower is there for its width alone.
fn model(golden: &Golden, own: &Golden, config: &Config) -> (Captioner<Candle>, Vars) {
    let backend = Candle::cpu();
    let weights = block_on(SafetensorsFile::open(read("models/llama-multi-head/model.safetensors"))).unwrap();
    let llama = block_on(load_llama_weights(&backend, &read("models/llama-multi-head/config.json"), &weights)).unwrap();
    let tokenizer = Tokenizer::from_vocab(GgufVocab {
        model: "llama".into(),
        tokens: ["<unk>", "<s>", "</s>", "\u{2581}", "a", "b"].map(String::from).to_vec(),
        scores: Some(vec![0.0; 6]),
        token_types: Some(vec![2, 3, 3, 1, 1, 1]),
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
        joint_size: config.joint_size,
        visual_tokens: config.visual_tokens,
        ret_output: config.lambda_ret > 0.0,
    };
    let projections = block_on(Projections::load(&new, sizes)).unwrap().with_conventions(config.conventions());
    let mut vars = new.into_vars();
    let output = vars.remove_entry("ret_output.weight");
    restore(&vars, &Prefixed { source: &golden.0, prefix: "before." }).unwrap();
    if let Some((name, output)) = output {
        let output = Vars::from([(name, output)]);
        restore(&output, &Prefixed { source: &own.0, prefix: "before." }).unwrap();
        vars.extend(output);
    }
    let preprocess = PreprocessConfig::clip(8);
    let model = Captioner::new(backend, llama, tokenizer.unwrap(), vision, preprocess, projections, "").unwrap();
    (model, vars)
}

fn config(settings: &Settings, options: &Options, workers: usize) -> Config {
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
        lambda_ret: options.lambda_ret,
        hidden_layer: options.hidden_layer,
        rescale_ret: options.rescale_ret,
        concatenate: 0.0,
        prompt: if options.prompt.is_empty() { String::new() } else { PROMPT.into() },
        label_smoothing: 0.0,
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

/// Trains the golden start, and compares each step's losses, the first one's gradients, and the weights after the last
/// with those of `own` whose names begin with `prefix`.
fn assert_trained_as(golden: &Golden, own: &Golden, prefix: &str, options: &Options, history: &[Step]) {
    let (ids, strings): (Vec<Vec<u32>>, Vec<usize>) = (golden.json("ids"), golden.json("strings"));
    let (settings, features): (Settings, _) = (golden.json("settings"), golden.tensor("features"));
    let pair = |i: usize| {
        let tokens = ids[i][1..].to_vec();
        let caption = Caption { text: String::new(), tokens, whole: true, string: strings[i] };
        Pair { image: PathBuf::new(), features: features[i * 10..][..10].to_vec(), captions: vec![caption] }
    };
    // The whole batch is drawn at each step, in an order by chance; shares of two workers are contrasted whole.
    for workers in [1, 2] {
        let config = config(&settings, options, workers);
        let (model, vars) = model(golden, own, &config);
        assert_eq!(model.caption_start()[1..], options.prompt);
        let norm = options.rescale_ret.then(|| mean_norm(&model).unwrap());
        let pool = Workers::new(workers).unwrap();
        let mut optim = Optim::new(&config.optim, &vars);
        for (step, expected) in history.iter().enumerate() {
            rescale(&vars, norm).unwrap();
            let train = [(1.0, (0..6).map(pair).collect::<Vec<_>>())];
            let pairs = &train[0].1;
            let example = |&i: &usize| (&pairs[i], &pairs[i].captions[0]);
            let together: Vec<Vec<_>> =
                options.sequences.iter().map(|sequence| sequence.iter().map(example).collect()).collect();
            let (gradients, line) = match together.is_empty() {
                true => train_step(&config, &train, &model, &vars, &pool, step as u64),
                false => batch_gradients(&config, &together, &model, &vars, &pool, step as u64),
            }
            .unwrap();
            for (key, expected) in expected {
                let found = line[key].as_f64().unwrap();
                let off = (found - expected).abs();
                assert!(off <= 1e-4 * expected.abs(), "{prefix} step {step}: {key} {found} but {expected}");
            }
            if step == 0 {
                // Every trained weight has a gradient, and nothing else has.
                assert_eq!(gradients.keys().collect::<Vec<_>>(), vars.keys().collect::<Vec<_>>());
                for (name, gradient) in &gradients {
                    own.assert_close(&format!("{prefix}gradient.{name}"), gradient);
                }
            }
            optim.step(&vars, &gradients, 1.0).unwrap();
        }
        for (name, var) in &vars {
            own.assert_close(&format!("{prefix}after.{name}"), &values(var).unwrap());
        }
    }
}

#[test]
fn losses_gradients_and_steps_are_pytorchs() {
    let golden = Golden(block_on(SafetensorsFile::open(read("training/bridge.safetensors"))).unwrap());
    let options = Options { rescale_ret: true, ..Options::default() };
    assert_trained_as(&golden, &golden, "", &options, &golden.json::<Vec<Step>>("history"));
}

#[test]
fn each_option_is_pytorchs() {
    let golden = Golden(block_on(SafetensorsFile::open(read("training/bridge.safetensors"))).unwrap());
    let own = Golden(block_on(SafetensorsFile::open(read("training/bridge-options.safetensors"))).unwrap());
    for name in ["hidden_layer", "rescale_ret", "concatenate", "lambda_ret", "prompt", "all"] {
        let Trained { options, history } = own.json(name);
        // Without it, the same start ends elsewhere.
        let same = |weight: &str| own.tensor(&format!("{name}.{weight}")) == golden.tensor(weight);
        assert!(!same("after.ret_embedding") || !same("after.caption.weight"), "{name}");
        assert_trained_as(&golden, &own, &format!("{name}."), &options, &history);
    }
}
