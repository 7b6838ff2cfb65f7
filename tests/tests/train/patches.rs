//! Captions from a grid of patches in place of the class token, all the way: features, training, bundle, captions.

use std::fs;

use pollster::block_on;
use rscapret::{
    Backend, Candle,
    backend::webgpu::Options,
    caption::{Captioner, DecodeOptions},
    clip::preprocess::decode,
    dialogue::Dialogue,
    weights::safetensors::SafetensorsFile,
};
use rscapret_tests::models::open_gpu;
use rscapret_trainer::files::open_bundle;

use super::{CAPTIONS, Path, call, config, export, losses, models, scores, succeeds, tensors, toml, train};

const PATCHES: &str = "image_feature = 'patches'\npatch_grid = 2\n";

fn metadata(file: &Path, key: &str) -> Option<String> {
    let file = block_on(SafetensorsFile::open(fs::read(file).unwrap())).unwrap();
    file.metadata(key).map(str::to_string)
}

/// Captions of the training images by a bundle on a device.
fn captions<B: Backend>(bundle: &Path, backend: B) -> Vec<String> {
    let b = open_bundle(bundle).unwrap();
    let captioner = block_on(Captioner::load(backend, &b.manifest, &b.id, b.llm, b.vision, b.projections)).unwrap();
    let caption = |i: usize| {
        let picture = decode(&fs::read(models().join(format!("images/{i}.png"))).unwrap()).unwrap();
        let features = captioner.features(&[picture]).unwrap();
        let caption = block_on(captioner.caption(&features, &DecodeOptions::default())).unwrap();
        // A dialogue begins with it.
        let mut dialogue = Dialogue::new(&captioner, 80).unwrap();
        dialogue.see(&features).unwrap();
        assert_eq!((captioner.projections().tokens_of_image(), dialogue.len()), (16, 16));
        let (mut answer, mut said) = (dialogue.answer(&DecodeOptions::default()).unwrap(), String::new());
        while let Some(piece) = block_on(answer.next()).unwrap() {
            said += &piece;
        }
        assert_eq!(said, caption);
        caption
    };
    (0..CAPTIONS.len()).map(caption).collect()
}

#[test]
fn sixteen_pairs_are_memorised_by_their_patches() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let features = format!("{PATCHES}features = '{}'\n", folder.join("patches.safetensors").display());
    let text = toml(400, &features);
    fs::write(folder.join("train.toml"), &text).unwrap();
    let encode = ["features", "train.toml", "--out", "patches.safetensors"];
    succeeds(folder, &encode);
    assert!(succeeds(folder, &encode).ends_with(" 0 of them new\n"));
    let of_file = |key| metadata(&folder.join("patches.safetensors"), key);
    // Five vectors of the tower's 64.
    assert_eq!((of_file("patch_grid").as_deref(), of_file("feature_size").as_deref()), (Some("2"), Some("320")));
    succeeds(folder, &["train", "train.toml", "--run", "run"]);
    let bundle = export(&folder.join("run"), "bundle", &["--dtype", "f32"]);
    for maps in [folder.join("run"), bundle.clone()] {
        assert_eq!(metadata(&maps.join("projections.safetensors"), "patch_grid").as_deref(), Some("2"));
    }
    let (found, row) = scores(folder, "bundle", &text);
    assert_eq!(found, CAPTIONS, "losses {:?}", losses(&folder.join("run")));
    assert_eq!([&row["t2i_R@1"], &row["i2t_R@1"]], [100.0, 100.0], "{row}");
    assert_eq!(captions(&bundle, Candle::cpu()), CAPTIONS);
    if let Some(gpu) = open_gpu(Options::default()) {
        assert_eq!(captions(&bundle, gpu), CAPTIONS);
    }
    // Of its parts a bundle like it, which has said a caption before it is one.
    let merge = ["merge", "--llm", "bundle", "--vision", "bundle", "--projections", "bundle", "--out", "merged"];
    succeeds(folder, &merge);
    let projections = |bundle: &str| fs::read(folder.join(bundle).join("projections.safetensors")).unwrap();
    assert!(projections("merged") == projections("bundle"));
    let page = succeeds(folder, &["inspect", "bundle/projections.safetensors"]);
    assert!(page.contains("patch_grid"), "{page}");

    // A configuration of class tokens takes another file.
    let class = toml(4, &features.replace(PATCHES, ""));
    fs::write(folder.join("class.toml"), &class).unwrap();
    for arguments in [&["train", "class.toml", "--run", "class"][..], &["features", "class.toml", encode[2], encode[3]]]
    {
        let (code, _, error) = call(folder, arguments);
        let words = "patches.safetensors: expected features of the class token but found those of patches in a grid of 2 x 2\n\
                     make a file for this configuration with `rscapret features`";
        assert!(code == Some(1) && error.contains(words), "{error}");
    }
}

#[test]
fn stored_features_of_patches_are_the_towers_and_views_are_pictures_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let stored = format!("{PATCHES}features = 'patches.safetensors'\nfeature_noise = 0.1\nconcatenate = 0.5\n");
    let views = |more: &str| toml(6, more).replace("views = 1", "views = 3").replace("feature_noise = 0.0\n", "");
    fs::write(folder.join("stored.toml"), views(&stored)).unwrap();
    let own = stored.replace("features = 'patches.safetensors'\n", "");
    fs::write(folder.join("own.toml"), views(&own)).unwrap();
    succeeds(folder, &["features", "stored.toml", "--out", "patches.safetensors"]);
    for run in ["stored", "own"] {
        succeeds(folder, &["train", &format!("{run}.toml"), "--run", run]);
    }
    let maps = |run: &str| tensors(&folder.join(run).join("projections.safetensors"));
    assert!(maps("stored") == maps("own"));
}

#[test]
fn a_sweep_compares_patches_with_the_class_token() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let models = models().display();
    fs::write(folder.join("base.toml"), toml(2, "")).unwrap();
    let data = format!("name = 'own'\nannotations = '{models}/data.csv'\nimages = '{models}/images'\n");
    fs::write(folder.join("eval.toml"), data).unwrap();
    let sweep = "base = 'base.toml'\neval = 'eval.toml'\nsplit = 'train'\n[[variant]]\nname = 'class'\n\
                 [[variant]]\nname = 'patches'\nset = { image_feature = 'patches', patch_grid = 2 }\n";
    fs::write(folder.join("sweep.toml"), sweep).unwrap();
    let table = succeeds(folder, &["sweep", "sweep.toml", "--out", "sweep"]);
    assert!(table.contains("| class ") && table.contains("| patches "), "{table}");
    let grid = |name: &str| metadata(&folder.join("sweep").join(name).join("projections.safetensors"), "patch_grid");
    assert_eq!((grid("class"), grid("patches").as_deref()), (None, Some("2")));
}

#[test]
fn a_grid_that_is_none_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (i, (more, words)) in [
        ("image_feature = 'patches'", "expected `patch_grid` from 1 to 64 for image_feature = \"patches\" but found none"),
        ("image_feature = 'patches'\npatch_grid = 65", "but found 65"),
        ("patch_grid = 2", "expected no `patch_grid` for image_feature = \"class\" but found 2"),
        (
            "image_feature = 'patches'\npatch_grid = 3",
            "expected `patch_grid` to divide the 2 patches of a side of the tower's pictures but found 3\ntake one of 1, 2",
        ),
        (
            "image_feature = 'patches'\npatch_grid = 2\nconcatenate = 1.0\nprompt = 'from above: '",
            "expected a language model with a context of at least ",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let error = train(&config(1, more), &folder.path().join(i.to_string()), false).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}
