//! OpenCLIP's checkpoints against OpenCLIP's own embeddings, through the loading code of every command.

use std::{
    fs,
    panic::catch_unwind,
    path::{Path, PathBuf},
};

use pollster::block_on;
use rscapret::{
    backend::{Activation, Backend},
    clip::{ClipConfig, preprocess::PreprocessConfig},
    nn::Checkpoint,
    weights::{TensorSource, quant::dequantize, safetensors::SafetensorsFile},
};
use rscapret_tests::{
    backend,
    golden::{nmse, read},
    tests_dir,
};
use rscapret_trainer::{
    clip::{Clip, ClipModel},
    clip_finetune,
    features::{Tower, tower_hash},
    files::{
        clip::{ClipFiles, ClipWeights},
        torch::TorchFile,
    },
    run_dir::RunDir,
};

const BOUND: f64 = 1e-10;

fn golden(name: &str) -> PathBuf {
    tests_dir().join("golden/open_clip").join(name)
}

fn open(path: &Path) -> (ClipConfig, ClipFiles) {
    let files = ClipFiles::open(path).unwrap();
    (ClipConfig::from_json(&files.config_json).unwrap(), files)
}

fn assert_embeds(path: &Path, model: &str) {
    let expected = block_on(SafetensorsFile::open(fs::read(golden("expected.safetensors")).unwrap())).unwrap();
    let tensor = |name: &str| {
        let raw = block_on(expected.fetch(&format!("{model}.{name}"))).unwrap();
        (dequantize(&raw).unwrap(), raw.shape)
    };
    let (backend, (config, files)) = (backend(), open(path));
    let checkpoint = Checkpoint::new(&backend, &files.weights);
    let clip = ClipModel::load(&checkpoint, &config).unwrap();
    checkpoint.finish(|_| true).unwrap();
    let (pixels, shape) = tensor("pixels");
    let found = read(&clip.image_embedding(&backend.upload(&pixels, &shape).unwrap()).unwrap());
    let error = nmse(&found, &tensor("image").0);
    assert!(error <= BOUND, "{model}: images are off by {error:e}");
    let ids: Vec<Vec<u32>> = serde_json::from_str(expected.metadata(&format!("{model}.ids")).unwrap()).unwrap();
    let found: Vec<f32> =
        ids.iter().flat_map(|ids| read(&clip.text_embedding(std::slice::from_ref(ids)).unwrap())).collect();
    let error = nmse(&found, &tensor("text").0);
    assert!(error <= BOUND, "{model}: texts are off by {error:e}");
}

#[test]
fn safetensors_and_pt_embed_as_open_clip_does() {
    // The folder, the file alone, and the same weights as PyTorch saves them.
    for path in [golden(""), golden("open_clip_model.safetensors"), golden("plain.pt")] {
        assert_embeds(&path, "plain");
    }
    // Half precision, `module.`, an optimiser beside it, and no configuration.
    assert_embeds(&golden("training/checkpoint.pt"), "training");
}

#[test]
fn what_weights_do_not_tell_is_the_configurations() {
    let (config, files) = open(&golden(""));
    assert_eq!((config.vision_config.num_attention_heads, config.text_config.num_attention_heads), (2, 3));
    assert_eq!(config.vision_config.hidden_act, Activation::QuickGelu);
    let preprocess = PreprocessConfig::from_json(std::str::from_utf8(&files.preprocessor_json).unwrap()).unwrap();
    assert_eq!((preprocess.crop_size, preprocess.image_mean, preprocess.image_std), (16, [0.5; 3], [0.25; 3]));
    // Without it heads are 64 wide, which these towers are not; the activation is another.
    let folder = tempfile::tempdir().unwrap();
    let alone = folder.path().join("plain.pt");
    fs::copy(golden("plain.pt"), &alone).unwrap();
    let error = ClipFiles::open(&alone).err().unwrap().to_string();
    assert!(error.contains("vision heads: expected 16 to be a multiple of 0"), "{error}");
    let (config, _) = open(&golden("training/checkpoint.pt"));
    assert_eq!((config.vision_config.num_attention_heads, config.text_config.num_attention_heads), (2, 1));
    assert_eq!((config.vision_config.hidden_act, config.vision_config.image_size), (Activation::Gelu, 12));
}

#[test]
fn the_tower_alone_and_its_hash() {
    let tower = Tower::open(&backend(), &golden("")).unwrap();
    assert_eq!(tower.feature_size(), 16);
    let hash = |path: &str| tower_hash(&golden(path)).unwrap();
    assert_eq!(hash(""), hash("open_clip_model.safetensors"));
    assert_ne!(hash(""), hash("plain.pt"));
}

/// Without a step to speak of (a rate of 0), what fine-tuning writes is what it read: a Hugging Face folder of the same model.
#[test]
fn fine_tuning_makes_a_hugging_face_folder_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for name in ["open_clip_config.json", "plain.pt"] {
        fs::copy(golden(name), at(name)).unwrap();
    }
    // Letters, and CLIP's own names of begin and end, within the tiny vocabulary.
    let mut vocab: serde_json::Map<_, _> = ('a'..='z').zip(0u32..).map(|(c, id)| (c.into(), id.into())).collect();
    vocab.extend([("<|startoftext|>".into(), 28.into()), ("<|endoftext|>".into(), 29.into())]);
    let tokenizer = serde_json::json!({
        "version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    fs::write(at("tokenizer.json"), tokenizer.to_string()).unwrap();
    let mut rows = "file_name,caption,split\n".to_string();
    for (name, split) in [("64x64", "train"), ("97x61", "train"), ("61x97", "val")] {
        fs::copy(tests_dir().join(format!("golden/preprocess/{name}.png")), at(&format!("{name}.png"))).unwrap();
        rows += &format!("{name}.png,a river of {split},{split}\n");
    }
    fs::write(at("data.csv"), rows).unwrap();
    let config = format!(
        "training = {{ seed = 1, steps = 2, batch = 2, workers = 1, validate_every = 1 }}\nmicro_batch = 1\nclip = '{}'\n\
         same_string = 'masked'\noptim = {{ lr = 0.0 }}\n[[data]]\n\
         dataset = {{ name = 'own', annotations = '{}', images = '{}' }}",
        at("plain.pt").display(),
        at("data.csv").display(),
        folder.path().display()
    );
    let config: clip_finetune::Config = toml::from_str(&config).unwrap();
    clip_finetune::run(&config, &RunDir::open(&at("run"), &config, false).unwrap(), &backend()).unwrap();
    let model = at("run/model");
    assert!(model.join("tokenizer.json").exists() && !model.join("plain.pt").exists());
    let (_, files) = open(&model);
    assert!(matches!(files.weights, ClipWeights::HuggingFace(_)));
    assert_embeds(&model, "plain");
    assert!(Clip::open(&backend(), &model).unwrap().joint_size() == 12);
}

#[test]
fn damaged_checkpoints_are_errors_and_never_panics() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged.pt");
    let good = fs::read(golden("plain.pt")).unwrap();
    let pickle = good.windows(4).position(|w| w == b"\x80\x02cc").unwrap_or(64);
    let attempt = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let path = path.clone();
        catch_unwind(move || {
            let file = TorchFile::open(&path)?;
            for info in file.tensors() {
                block_on(file.fetch(&info.name))?;
            }
            Ok::<_, rscapret::Error>(())
        })
        .expect("no damage may panic")
    };
    assert!(attempt(&good).is_ok());
    for len in (0..good.len()).step_by(997) {
        assert!(attempt(&good[..len]).is_err(), "cut at {len}");
    }
    // Each byte of the pickle in turn, and some of the directory at the end.
    let directory = good.len() - 3000..good.len();
    for at in (pickle..pickle + 1500).chain(directory.step_by(7)) {
        for value in [0xff, good[at] ^ 0x01] {
            let mut bytes = good.clone();
            bytes[at] = value;
            let _ = attempt(&bytes);
        }
    }
}
