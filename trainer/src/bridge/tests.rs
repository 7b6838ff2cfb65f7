//! The joint loss, every gradient and five steps of AdamW against PyTorch (tests/golden/make_training.py), as they are and
//! with each option.

use std::path::PathBuf;

use candle_core::{DType, Tensor};
use pollster::block_on;
use rscapret::{
    Backend as _,
    backend::candle::Compute,
    clip::{ClipVision, ClipVisionConfig, preprocess::PreprocessConfig},
    weights::{TensorSource as _, quant, safetensors::SafetensorsFile},
};
use serde::{Deserialize, de::DeserializeOwned};

use super::{
    step::{batch_gradients, caption_loss},
    *,
};
use crate::{
    captioning::Caption,
    cli::device::of_tests,
    golden::{self, read},
    loss::SameString,
    optim::{Gradients, OptimConfig, Schedule},
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
    label_smoothing: f64,
    #[serde(default)]
    patch_grid: Option<usize>,
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

/// The vocabulary's text of the golden prompt, ids 3, 4 and 5.
const PROMPT: &str = "ab";

/// The golden Llama with projections of the golden start; the tower is there for its width alone.
fn model(golden: &Golden, own: &Golden, config: &Config) -> (Models, Vars) {
    let backend = of_tests().unwrap().computing_in(config.training.compute);
    let (llama, tokenizer) = golden::llama(&backend);
    let tower = ClipVisionConfig {
        hidden_size: 10,
        intermediate_size: 8,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        image_size: 16,
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
    let projections = block_on(Projections::load(&new, sizes)).unwrap().with_conventions(config.conventions().unwrap());
    let mut vars = new.into_vars();
    let output = vars.remove_entry("ret_output.weight");
    restore(&vars, &Prefixed { source: &golden.0, prefix: "before." }).unwrap();
    if let Some((name, output)) = output {
        let output = Vars::from([(name, output)]);
        restore(&output, &Prefixed { source: &own.0, prefix: "before." }).unwrap();
        vars.extend(output);
    }
    let preprocess = PreprocessConfig::clip(16);
    let model = Captioner::new(backend, llama, tokenizer, vision, preprocess, projections, "").unwrap();
    (Models::new(model, &vars).unwrap(), vars)
}

fn config(settings: &Settings, options: &Options, workers: usize, micro_batch: Option<usize>) -> Config {
    Config {
        training: TrainingConfig {
            seed: 3,
            steps: 5,
            batch: 6,
            workers,
            compute: Compute::F32,
            validate_every: 5,
            patience: None,
            checkpoint_seconds: 120.0,
        },
        llm: PathBuf::new(),
        llm_weights: LlmWeights::Stored,
        micro_batch,
        clip: PathBuf::new(),
        features: None,
        image_feature: if options.patch_grid.is_some() { CaptionedFrom::Patches } else { CaptionedFrom::Class },
        patch_grid: options.patch_grid,
        visual_tokens: 2,
        joint_size: 12,
        lambda_c: settings.lambda_c,
        lambda_r: settings.lambda_r,
        lambda_ret: options.lambda_ret,
        hidden_layer: options.hidden_layer,
        rescale_ret: options.rescale_ret,
        concatenate: 0.0,
        prompt: if options.prompt.is_empty() { String::new() } else { PROMPT.into() },
        label_smoothing: options.label_smoothing,
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

/// The golden pairs.
fn pairs(golden: &Golden) -> Vec<Pair> {
    pairs_of(golden, golden)
}

/// The same with the features of another file.
fn pairs_of(golden: &Golden, own: &Golden) -> Vec<Pair> {
    let (ids, strings): (Vec<Vec<u32>>, Vec<usize>) = (golden.json("ids"), golden.json("strings"));
    let features = own.tensor("features");
    let rows = features.chunks_exact(features.len() / 6);
    let pair = |(i, row): (usize, &[f32])| {
        let caption = Caption { text: "ab a".into(), tokens: ids[i][1..].to_vec(), whole: true, string: strings[i] };
        Pair { image: PathBuf::new(), features: row.to_vec(), captions: vec![caption] }
    };
    rows.enumerate().map(pair).collect()
}

/// Trains the golden start, and compares each step's losses, the first one's gradients, and the weights after the last
/// with those of `own` whose names begin with `prefix`.
fn assert_trained_as(golden: &Golden, own: &Golden, prefix: &str, options: &Options, history: &[Step]) {
    let settings: Settings = golden.json("settings");
    // The whole batch is drawn at each step, in an order by chance; shares of two workers, and parts of them, are contrasted
    // whole.
    for (workers, micro_batch) in [(1, None), (2, None), (1, Some(2)), (2, Some(1))] {
        let config = config(&settings, options, workers, micro_batch);
        let (model, vars) = model(golden, own, &config);
        assert_eq!(model.trained.caption_start()[1..], options.prompt);
        let norm = options.rescale_ret.then(|| mean_norm(&model.fixed).unwrap());
        let pool = Workers::new(workers, &candle_core::Device::Cpu).unwrap();
        let mut optim = Optim::new(&config.optim, &vars).unwrap();
        for (step, expected) in history.iter().enumerate() {
            rescale(&vars, norm).unwrap();
            let train = [(1.0, pairs_of(golden, if options.patch_grid.is_some() { own } else { golden }))];
            let drawn = &train[0].1;
            let example = |&i: &usize| (&drawn[i], &drawn[i].captions[0]);
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
                    own.assert_close(&format!("{prefix}gradient.{name}"), &values(gradient).unwrap());
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
    for name in ["hidden_layer", "rescale_ret", "concatenate", "lambda_ret", "prompt", "label_smoothing", "all"] {
        let Trained { options, history } = own.json(name);
        // Without it, the same start ends elsewhere.
        let same = |weight: &str| own.tensor(&format!("{name}.{weight}")) == golden.tensor(weight);
        assert!(!same("after.ret_embedding") || !same("after.caption.weight"), "{name}");
        assert_trained_as(&golden, &own, &format!("{name}."), &options, &history);
    }
}

#[test]
fn captions_from_patches_are_pytorchs() {
    let golden = Golden(block_on(SafetensorsFile::open(read("training/bridge.safetensors"))).unwrap());
    let own = Golden(block_on(SafetensorsFile::open(read("training/bridge-patches.safetensors"))).unwrap());
    let Trained { options, history } = own.json("patches");
    assert_eq!((options.patch_grid, own.tensor("features").len()), (Some(2), 6 * 5 * 10));
    assert_trained_as(&golden, &own, "patches.", &options, &history);
}

/// A step of the golden start with all that chance does, on the CPU.
fn one_step(change: impl Fn(&mut Config)) -> (Gradients, Step) {
    let golden = Golden(block_on(SafetensorsFile::open(read("training/bridge.safetensors"))).unwrap());
    let own = Golden(block_on(SafetensorsFile::open(read("training/bridge-options.safetensors"))).unwrap());
    let options = Options { lambda_ret: 0.3, ..Options::default() };
    let mut config = Config {
        concatenate: 0.5,
        feature_noise: 0.2,
        query_share: 0.5,
        ..config(&golden.json("settings"), &options, 1, None)
    };
    change(&mut config);
    let (models, vars) = model(&golden, &own, &config);
    let workers = Workers::new(config.training.workers, &candle_core::Device::Cpu).unwrap();
    let patches = Golden(block_on(SafetensorsFile::open(read("training/bridge-patches.safetensors"))).unwrap());
    let train = [(1.0, pairs_of(&golden, if config.patch_grid.is_some() { &patches } else { &golden }))];
    let (gradients, line) = train_step(&config, &train, &models, &vars, &workers, 0).unwrap();
    assert_eq!(gradients.keys().collect::<Vec<_>>(), vars.keys().collect::<Vec<_>>());
    (gradients, serde_json::from_value(line).unwrap())
}

/// Largest difference of a value, as a share of the largest value.
fn off(found: &Tensor, expected: &Tensor) -> f32 {
    assert_eq!((found.dims(), found.dtype()), (expected.dims(), DType::F32));
    let (found, expected) = (values(found).unwrap(), values(expected).unwrap());
    let largest = expected.iter().fold(0f32, |most, v| most.max(v.abs()));
    expected.iter().zip(&found).fold(0f32, |most, (a, b)| most.max((a - b).abs())) / largest
}

#[test]
fn a_micro_batch_changes_nothing_but_rounding() {
    let (whole, line) = one_step(|_| {});
    // A GPU adds in another order for another number of rows.
    let bound = if of_tests().unwrap().device().is_cpu() { 1e-5 } else { 1e-4 };
    for micro_batch in [1, 2, 4, 100] {
        let (parts, of_parts) = one_step(|config| config.micro_batch = Some(micro_batch));
        for (name, expected) in &whole {
            let off = off(&parts[name], expected);
            assert!(off <= bound, "{micro_batch}: {name} is off by {off}");
        }
        for (key, expected) in &line {
            let found = of_parts[key];
            assert!(
                (found - expected).abs() <= f64::from(bound) * expected.abs(),
                "{micro_batch}: {key} {found} {expected}"
            );
        }
    }
    // Chance and the options do something here.
    let (plain, _) = one_step(|config| (config.feature_noise, config.query_share) = (0.0, 0.0));
    assert!(off(&plain["caption.weight"], &whole["caption.weight"]) > 1e-3);
}

/// A bf16 number is rounded by up to 2^-9 of it, 0.002; some thirty of them stand one after the other.
#[test]
fn a_step_in_bf16_is_near_that_in_f32() {
    let patches = |config: &mut Config| (config.image_feature, config.patch_grid) = (CaptionedFrom::Patches, Some(2));
    for change in [&|_: &mut Config| {}, &patches] as [&dyn Fn(&mut Config); 2] {
        let (whole, line) = one_step(change);
        // A GPU adds what is rounded in another order.
        let bound = if of_tests().unwrap().device().is_cpu() { 0.1 } else { 0.2 };
        for micro_batch in [None, Some(2)] {
            let (narrow, narrow_line) = one_step(|config| {
                change(config);
                config.training.compute = Compute::Bf16;
                config.micro_batch = micro_batch;
            });
            for key in ["loss", "caption", "contrast", "ret"] {
                let (found, expected) = (narrow_line[key], line[key]);
                assert!((found - expected).abs() <= 2e-2 * expected.abs(), "{key} {found} {expected}");
                assert!(found != expected, "{key}");
            }
            for (name, expected) in &whole {
                let off = off(&narrow[name], expected);
                assert!(off <= bound, "{name} is off by {off}");
            }
        }
    }
}

#[test]
fn what_a_model_is_fixed_at_follows_its_variables_and_keeps_no_graph() {
    let golden = Golden(block_on(SafetensorsFile::open(read("training/bridge.safetensors"))).unwrap());
    let config = config(&golden.json("settings"), &Options::default(), 1, None);
    let (models, vars) = model(&golden, &golden, &config);
    let embed = |model: &Captioner<Candle>| text_embedding(model, &[vec![1, 4, 5]]).unwrap();
    let before = values(&embed(&models.fixed)).unwrap();
    assert_eq!(before, values(&embed(&models.trained)).unwrap());
    assert!(embed(&models.trained).track_op() && !embed(&models.fixed).track_op());
    let ret = &vars["ret_embedding"];
    ret.set(&(ret.as_detached_tensor() * -2.0).unwrap()).unwrap();
    let after = values(&embed(&models.fixed)).unwrap();
    assert!(after != before && after == values(&embed(&models.trained)).unwrap());
}

/// Candle keeps the gradient of every leaf that an operation asks it for: of the language model's weights none does.
#[test]
fn a_step_holds_no_gradient_of_a_frozen_weight() {
    let golden = Golden(block_on(SafetensorsFile::open(read("training/bridge.safetensors"))).unwrap());
    let config = config(&golden.json("settings"), &Options::default(), 1, None);
    let (models, vars) = model(&golden, &golden, &config);
    // Of the whole batch the labels would be as many as the inner rows of an MLP.
    let (model, pairs) = (&models.trained, &pairs(&golden)[..4]);
    let captions: Vec<&Caption> = pairs.iter().map(|pair| &pair.captions[0]).collect();
    let features: Vec<f32> = pairs.iter().flat_map(|pair| pair.features.clone()).collect();
    let features = model.backend().upload(&features, &[4, 10]).unwrap();
    let tokens = captions.iter().map(|caption| caption.labels()).sum();
    let caption = caption_loss(model, &features, &captions, &[1; 4], tokens, 0.0).unwrap();
    let text = text_embedding(model, &[vec![1, 4, 5]]).unwrap().sum_all().unwrap();
    let store = (caption + text).unwrap().backward().unwrap();

    let llama = model.llama().config();
    let (d, f, v) = (llama.hidden_size, llama.intermediate_size, llama.vocab_size);
    let frozen = [[d, d], [f, d], [d, f], [v, d], [d, v]];
    let own: Vec<_> = vars.values().map(|var| var.as_tensor().id()).collect();
    let found =
        |trained: bool| store.get_ids().filter(move |id| own.contains(id) == trained).map(|id| store.get_id(*id));
    let others: Vec<Vec<usize>> = found.clone()(false).map(|gradient| gradient.unwrap().dims().to_vec()).collect();
    assert!(others.iter().all(|shape| frozen.iter().all(|frozen| shape[..] != frozen[..])), "{others:?}");
    // Maps to visual tokens, [RET] and the map from its hidden state.
    assert!(found(true).count() >= 3);
}
