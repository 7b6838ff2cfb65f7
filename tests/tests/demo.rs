//! What is embedded in the repository, as files: the demo bundle and its album.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use rscapret_tests::{models::demo, shared_data};
use serde_json::Value;
use sha2::{Digest, Sha256};

const MIB: u64 = 1 << 20;

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Bytes of all files below a folder.
fn size(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| {
            let data = entry.metadata().unwrap();
            if data.is_dir() { size(&entry.path()) } else { data.len() }
        })
        .sum()
}

/// Numbers of the album's images, which their files are named by.
fn album() -> BTreeSet<u64> {
    let names = fs::read_dir(demo().join("album")).unwrap().map(|entry| entry.unwrap().file_name());
    let images = names.filter_map(|name| Some(name.to_str()?.strip_suffix(".jpg")?.parse().unwrap()));
    images.collect()
}

#[test]
fn the_demo_is_small() {
    let (whole, album) = (size(&demo()), size(&demo().join("album")));
    assert!(album > 0 && album <= 4 * MIB, "the album has {album} bytes");
    assert!(whole > album && whole <= 24 * MIB, "the demo has {whole} bytes");
}

#[test]
fn the_album_has_five_images_of_each_class() {
    let album = album();
    assert_eq!(album.len(), 105);
    let mut classes = BTreeMap::new();
    // UC Merced's images are numbered class by class, a hundred of each.
    album.iter().for_each(|number| *classes.entry((number - 1) / 100).or_insert(0) += 1);
    assert_eq!(classes, (0..21).map(|class| (class, 5)).collect());

    // The list that the page reads names each of them once.
    let list = read_json(&demo().join("album/album.json"));
    let listed: Vec<&str> = list.as_array().unwrap().iter().map(|entry| entry["file"].as_str().unwrap()).collect();
    assert_eq!(listed.len(), album.len());
    let listed: BTreeSet<String> = listed.into_iter().map(String::from).collect();
    assert_eq!(listed, album.iter().map(|number| format!("{number}.jpg")).collect());
}

#[test]
fn the_album_is_of_the_test_split() {
    let Some(path) = shared_data("ucm/dataset.json") else { return };
    let dataset = read_json(&path);
    let images = dataset["images"].as_array().unwrap().iter();
    let test: BTreeSet<u64> = images
        .filter(|image| image["split"] == "test")
        .map(|image| image["filename"].as_str().unwrap().split('.').next().unwrap().parse().unwrap())
        .collect();
    let others: Vec<u64> = album().difference(&test).copied().collect();
    assert!(others.is_empty(), "trained or chosen on: {others:?}");
}

#[test]
fn the_bundle_has_the_files_that_its_manifest_names() {
    let manifest = read_json(&demo().join("bundle.json"));
    let files = manifest["files"].as_object().unwrap();
    assert_eq!(files.keys().collect::<BTreeSet<_>>().len(), 3);
    for (part, entry) in files {
        let bytes = fs::read(demo().join(entry["path"].as_str().unwrap())).unwrap();
        assert_eq!(entry["bytes"].as_u64(), Some(bytes.len() as u64), "{part}");
        let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(entry["sha256"], digest, "{part}");
    }
}
