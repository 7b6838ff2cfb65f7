//! CLIP's towers against Hugging Face's, through the loading code that the programs use.

use candle_core::Tensor;
use pollster::block_on;
use rscapret::{
    Error, Result,
    backend::{Activation, Backend, Candle},
    clip::{Branch, ClipConfig, ClipText, ClipVision, Dropped, ImageFeature},
    nn::Checkpoint,
    weights::TensorSource,
};
use rscapret_tests::{
    backend,
    golden::{Golden, nmse, read},
};

const MODELS: [&str; 2] = ["clip-quick-gelu", "clip-gelu"];
const BOUND: f64 = 1e-10;

fn vision(golden: &Golden, config: &ClipConfig) -> Result<ClipVision<Candle>> {
    let (backend, file) = (backend(), golden.checkpoint());
    let checkpoint = Checkpoint::new(&backend, &file);
    let tower = block_on(ClipVision::load(&checkpoint, &config.vision_config))?;
    checkpoint.finish(|name| name.starts_with("vision_model."))?;
    Ok(tower)
}

fn text(golden: &Golden, config: &ClipConfig) -> Result<ClipText<Candle>> {
    let (backend, file) = (backend(), golden.checkpoint());
    let checkpoint = Checkpoint::new(&backend, &file);
    let tower = block_on(ClipText::load(&checkpoint, &config.text_config))?;
    checkpoint.finish(|name| name.starts_with("text_model."))?;
    Ok(tower)
}

fn open(name: &str) -> (Golden, ClipConfig) {
    let golden = Golden::open(name);
    let config = ClipConfig::from_json(&golden.config).unwrap();
    (golden, config)
}

fn pixels(golden: &Golden) -> Tensor {
    let (values, shape) = golden.tensor("pixels");
    backend().upload(&values, &shape).unwrap()
}

#[test]
fn configurations_are_read() {
    let [(_, quick), (_, exact)] = MODELS.map(open);
    assert_eq!((quick.vision_config.hidden_act, quick.text_config.eos_token_id), (Activation::QuickGelu, 2));
    assert_eq!((exact.vision_config.hidden_act, exact.text_config.eos_token_id), (Activation::Gelu, 40));
    for config in [quick, exact] {
        assert_eq!(config.vision_config.num_patches(), 9);
        assert_eq!([config.projection_dim, config.vision_config.projection_dim], [20, 20]);
    }
}

// --- vision -------------------------------------------------------------------------------------------------------

#[test]
fn pixels_to_pooled_and_hidden() {
    for name in MODELS {
        let (golden, config) = open(name);
        let features = vision(&golden, &config).unwrap().forward(&backend(), &pixels(&golden)).unwrap();
        golden.assert_close("vision.pooler_output", &features.pooled, BOUND);
        golden.assert_close("vision.last_hidden_state", &features.hidden, BOUND);
    }
}

#[test]
fn the_activation_matters() {
    let (golden, mut config) = open("clip-gelu");
    config.vision_config.hidden_act = Activation::QuickGelu;
    let features = vision(&golden, &config).unwrap().forward(&backend(), &pixels(&golden)).unwrap();
    assert!(nmse(&read(&features.pooled), &golden.tensor("vision.pooler_output").0) > 1e-6);
}

#[test]
fn a_picture_of_a_batch_is_the_picture_alone() {
    let (golden, config) = open("clip-quick-gelu");
    let tower = vision(&golden, &config).unwrap();
    let (backend, pixels) = (backend(), pixels(&golden));
    let together = tower.forward(&backend, &pixels).unwrap().hidden;
    for row in 0..3 {
        let alone = tower.forward(&backend, &pixels.narrow(0, row, 1).unwrap()).unwrap().hidden;
        assert!(nmse(&read(&alone), &read(&together.narrow(0, row, 1).unwrap())) <= BOUND, "{row}");
    }
}

#[test]
fn kept_patches_are_a_set_and_the_rest_is_not_seen() {
    let (golden, config) = open("clip-gelu");
    let tower = vision(&golden, &config).unwrap();
    let (backend, pixels) = (backend(), pixels(&golden));
    let pooled = |keep: &[u32]| {
        let dropped = Dropped { patches: Some(keep), ..Dropped::default() };
        read(&tower.forward_dropped(&backend, &pixels, &dropped).unwrap().pooled)
    };
    let all: Vec<u32> = (0..27).collect();
    golden.assert_close("vision.pooler_output", &tower.forward(&backend, &pixels).unwrap().pooled, BOUND);
    assert!(nmse(&pooled(&all), &golden.tensor("vision.pooler_output").0) <= BOUND);
    // Positions go with their patches: the order in which they are kept is nothing to attention.
    let (some, turned) = ([0, 4, 8, 9, 10, 11, 18, 20, 26], [8, 0, 4, 11, 9, 10, 26, 20, 18]);
    assert!(nmse(&pooled(&turned), &pooled(&some)) <= BOUND);
    assert!(nmse(&pooled(&some), &pooled(&all)) > 1e-4);
}

#[test]
fn every_branch_can_be_changed_and_a_skipped_layer_is_none() {
    let (golden, config) = open("clip-gelu");
    let tower = vision(&golden, &config).unwrap();
    let (backend, pixels) = (backend(), pixels(&golden));
    let layers = config.vision_config.num_hidden_layers;
    let pooled = |tower: &ClipVision<Candle>, branch: &Branch<'_, Candle>| {
        let dropped = Dropped { branch: Some(branch), ..Dropped::default() };
        read(&tower.forward_dropped(&backend, &pixels, &dropped).unwrap().pooled)
    };
    let seen = std::cell::RefCell::new(Vec::new());
    let same = pooled(&tower, &|at, added| {
        seen.borrow_mut().push(at);
        Ok(added)
    });
    assert_eq!(seen.into_inner(), (0..2 * layers).collect::<Vec<_>>());
    assert!(nmse(&same, &golden.tensor("vision.pooler_output").0) <= BOUND);
    // Without its last layer the tower is one that never had it.
    let mut shorter = config.clone();
    shorter.vision_config.num_hidden_layers = layers - 1;
    let file = golden.checkpoint();
    let short = block_on(ClipVision::load(&Checkpoint::new(&backend, &file), &shorter.vision_config)).unwrap();
    let short = read(&short.forward(&backend, &pixels).unwrap().pooled);
    let skipped = pooled(&tower, &|at, added| Ok(if at < 2 * (layers - 1) { added } else { added.zeros_like()? }));
    assert!(nmse(&skipped, &short) <= 1e-12);
    assert!(nmse(&short, &same) > 1e-4);
}

#[test]
fn patches_of_the_second_to_last_layer_are_averaged_to_a_grid() {
    let (golden, config) = open("clip-patches");
    let (tower, pixels, backend) = (vision(&golden, &config).unwrap(), pixels(&golden), backend());
    let d = config.vision_config.hidden_size;
    for grid in [1, 2, 4] {
        let of = ImageFeature::Patches { grid };
        let features = tower.features(&backend, &pixels, of).unwrap();
        assert_eq!(features.dims(), [3, of.vectors() * d]);
        golden.assert_close("vision.pooler_output", &features.narrow(1, 0, d).unwrap(), BOUND);
        let patches = features.narrow(1, d, grid * grid * d).unwrap().reshape((3, grid * grid, d)).unwrap();
        golden.assert_close(&format!("vision.patches.{grid}"), &patches, BOUND);
    }
    golden.assert_close(
        "vision.pooler_output",
        &tower.features(&backend, &pixels, ImageFeature::Class).unwrap(),
        BOUND,
    );
    let error = tower.features(&backend, &pixels, ImageFeature::Patches { grid: 3 }).unwrap_err().to_string();
    assert!(error.contains("expected `patch_grid` to divide the 4 patches of a side"), "{error}");
}

#[test]
fn another_size_of_picture_is_refused() {
    let (golden, config) = open("clip-gelu");
    let tower = vision(&golden, &config).unwrap();
    for side in [16, 23, 32] {
        let pixels = backend().upload(&vec![0.5; 3 * side * side], &[1, 3, side, side]).unwrap();
        assert!(tower.forward(&backend(), &pixels).is_err(), "{side}");
    }
}

// --- text ---------------------------------------------------------------------------------------------------------

#[test]
fn ids_to_pooled() {
    for name in MODELS {
        let (golden, config) = open(name);
        let tower = text(&golden, &config).unwrap();
        let ids = golden.ids();
        let pooled = tower.forward(&backend(), &ids).unwrap();
        golden.assert_close("text.pooler_output", &pooled, BOUND);
        // Texts end at different places, one of them at the last.
        let end = if name == "clip-gelu" { 40 } else { 49 };
        let ends: Vec<_> = ids.iter().map(|s| s.iter().position(|&id| id == end).unwrap()).collect();
        assert_eq!(ends, [2, 5, 8, 11]);
        // Padding is nothing but convenience.
        for (row, (sequence, end)) in ids.iter().zip(ends).enumerate() {
            let alone = tower.forward(&backend(), &[sequence[..=end].to_vec()]).unwrap();
            assert!(nmse(&read(&alone), &read(&pooled.narrow(0, row, 1).unwrap())) <= BOUND, "{name} {row}");
        }
    }
}

#[test]
fn texts_that_cannot_be_are_refused() {
    let (golden, config) = open("clip-gelu");
    let tower = text(&golden, &config).unwrap();
    let failure = |ids: &[Vec<u32>]| tower.forward(&backend(), ids).err().unwrap().to_string();
    assert!(failure(&[vec![48, 7, 49]]).contains("expected the end-of-text token 40 but found none"));
    assert!(failure(&[vec![48, 40], vec![48, 7, 40]]).contains("lengths [2, 3]"));
    assert!(failure(&[vec![40; 13]]).contains("of one length from 1 to 12"));
    assert!(failure(&[]).contains("of one length"));
    assert!(failure(&[vec![50, 40]]).contains("below 50"));
}

// --- no silent weights --------------------------------------------------------------------------------------------

#[test]
fn towers_take_all_of_their_tensors_and_shapes_are_checked() {
    let (golden, config) = open("clip-gelu");
    let mut wide = config.clone();
    wide.vision_config.patch_size = 4;
    let error = vision(&golden, &wide).err().unwrap();
    assert!(matches!(error.root(), Error::Shape { name, .. } if name.contains("position_embedding")), "{error}");
    let mut wide = config.clone();
    wide.text_config.intermediate_size = 29;
    let error = text(&golden, &wide).err().unwrap();
    assert!(matches!(error.root(), Error::Shape { name, .. } if name.ends_with("layers.0.mlp.fc1.weight")), "{error}");

    let mut short = config.clone();
    short.vision_config.num_hidden_layers = 1;
    let error = vision(&golden, &short).err().unwrap();
    assert!(matches!(error.root(), Error::ExtraTensors(names) if names.len() == 16), "{error}");
    let mut long = config;
    long.text_config.num_hidden_layers = 3;
    let error = text(&golden, &long).err().unwrap();
    assert!(matches!(error.root(), Error::MissingTensor(name) if name.contains("layers.2.")), "{error}");
    assert!(golden.checkpoint().info("logit_scale").is_some());
}
