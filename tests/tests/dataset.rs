//! Datasets: every layout, broken ones with the exact words of their refusals, and the published ones with their
//! counts.

use std::collections::HashSet;
use std::path::PathBuf;

use rscapret_tests::{shared_data, tests_dir};
use rscapret_trainer::dataset::{Dataset, DatasetConfig, Format, ImageId, Refusals, Split, load, summary};

fn fixture(path: &str) -> PathBuf {
    tests_dir().join("fixtures/datasets").join(path)
}

/// A configuration that no share of refusals fails.
fn config(annotations: &str, images: Option<&str>) -> DatasetConfig {
    let config = DatasetConfig::captions_only("broken", fixture(annotations));
    DatasetConfig { images: images.map(fixture), max_refused: 1.0, ..config }
}

fn words(refusals: &Refusals) -> Vec<String> {
    refusals.list.iter().map(ToString::to_string).collect()
}

/// The text of a failed load, with the fixtures' folder cut off.
fn failure(config: &DatasetConfig) -> String {
    load(config).unwrap_err().to_string().replace(&fixture("").display().to_string(), "")
}

fn images(dataset: &Dataset, split: Split) -> usize {
    dataset.split(split).count()
}

#[test]
fn karpathy_refuses_item_by_item() {
    let plain = config("karpathy/dataset.json", Some("karpathy/images"));
    let (dataset, refusals) = load(&DatasetConfig { extension: Some(".jpg".into()), ..plain }).unwrap();
    assert_eq!(
        words(&refusals),
        [
            "`2.tif`: empty caption 1",
            "`3.tif`: empty file",
            "`4.tif`: missing file",
            "`5.tif`: no caption",
            "`5.tif`: duplicate id 0",
            "`1.tif`: duplicate file name",
            "`../1.tif`: file name outside the image folder",
            "`8.tif`: malformed item: unknown variant `dev`, expected one of `restval`, `train`, `val`, `test`",
            "`9.tif`: malformed item: invalid type: string \"a string where a list belongs\", expected a sequence",
            "`10.tif`: malformed item: missing field `imgid`",
            "`images[11]`: malformed item: invalid type: string \"a string where an object belongs\", expected struct Image",
            "`11.tif`: malformed item: invalid type: floating point `1.5`, expected a whole number or a string",
        ]
    );
    assert_eq!((refusals.items(), refusals.seen), (11, 14));
    let ids: Vec<&ImageId> = dataset.items.iter().map(|item| &item.id).collect();
    assert_eq!(ids, [&ImageId::Number(0), &ImageId::Number(1), &ImageId::Number(12)]);
    assert_eq!(dataset.items[0].captions, ["A field .", "Another field ."]);
    assert_eq!(dataset.items[1].captions, ["A runway .", "Two runways ."]);
    assert_eq!(dataset.items[1].split, Split::Train);
    assert_eq!(dataset.image_path(&dataset.items[2]).ok(), Some(fixture("karpathy/images/5.jpg")));
}

#[test]
fn too_many_refusals_end_it() {
    let config = DatasetConfig { max_refused: 0.5, ..config("karpathy/dataset.json", Some("karpathy/images")) };
    assert_eq!(
        failure(&config),
        "karpathy/dataset.json: expected at most 50.0 % of the items refused but found 14 of 14 (100.0 %): \
         `1.tif`: missing file; `2.tif`: missing file; `3.tif`: missing file; `4.tif`: missing file; `5.tif`: no caption; \
         and 9 more\nmend or complete the dataset, or raise `max_refused` (now 0.5) if this is all there is of it"
    );
}

#[test]
fn captions_need_no_images() {
    let (dataset, refusals) = load(&config("karpathy/dataset.json", None)).unwrap();
    assert_eq!(dataset.items.len(), 5);
    assert_eq!(dataset.image_path(&dataset.items[0]).ok(), None);
    assert!(!refusals.counts().contains_key("missing file"));
}

#[test]
fn nwpu_layout() {
    let (dataset, refusals) = load(&config("nwpu/dataset.json", Some("nwpu/NWPU_images"))).unwrap();
    assert_eq!(
        words(&refusals),
        [
            "`airplane/airplane_111.jpg`: missing file",
            "`airplane_2.jpg`: malformed item: missing field `raw`",
            "`lake`: malformed item: expected a list of images but found a string",
        ]
    );
    assert_eq!(dataset.items.len(), 1);
    let item = &dataset.items[0];
    assert_eq!(item.captions, ["An airplane .", "It’s a “plane” ."]);
    assert_eq!(item.class.as_deref(), Some("airplane"));
    assert_eq!(item.image, PathBuf::from("airplane/airplane_1.jpg"));
}

#[test]
fn sydney_text_layout() {
    let (dataset, refusals) = load(&config("sydney/descriptions_SYDNEY.txt", None)).unwrap();
    assert_eq!(words(&refusals), ["`3.tif`: no caption", "`5`: in no split", "`4.tif`: no caption"]);
    assert_eq!(refusals.to_string(), "3 of 5 items refused: 1 in no split, 2 no caption");
    assert_eq!(dataset.items[0].captions, ["a residential area", "many houses"]);
    assert_eq!((images(&dataset, Split::Train), images(&dataset, Split::Val)), (1, 1));
}

#[test]
fn coco_layout() {
    let coco = config("coco/captions.json", None);
    assert_eq!(
        failure(&coco),
        "coco/captions.json: expected `split` beside a COCO file but found none, in neither the configuration nor the \
         images\nsay which it is: split = \"train\", \"val\" or \"test\""
    );
    let (dataset, refusals) = load(&DatasetConfig { split: Some(Split::Val), ..coco }).unwrap();
    assert_eq!(
        words(&refusals),
        [
            "`annotations[3]`: caption of an unknown image 99",
            "`annotations[4]`: malformed caption: missing field `caption`",
            "`c.jpg`: no caption",
            "`d.jpg`: malformed item: missing field `id`",
        ]
    );
    assert_eq!(dataset.items[0].captions, ["first .", "first again ."]);
    assert_eq!(images(&dataset, Split::Val), 2);
}

#[test]
fn files_that_are_no_dataset() {
    for (file, words) in [
        ("truncated.json", "expected a JSON dataset but found EOF while parsing a string at line 21 column 25"),
        ("list.json", "expected a dataset object but found a list"),
        ("neither.json", "expected `images` (Karpathy, COCO) or lists of images by class (NWPU) but found neither"),
        ("absent.json", "expected a readable file but found: No such file or directory (os error 2)"),
    ] {
        assert_eq!(failure(&config(file, None)), format!("{file}: {words}"));
    }
    let wrong = DatasetConfig { format: Some(Format::Coco), ..config("nwpu/dataset.json", None) };
    assert_eq!(failure(&wrong), "nwpu/dataset.json: expected the layout of Coco but found that of Nwpu");
    assert_eq!(
        failure(&config("nwpu/dataset.json", Some("nowhere"))),
        "dataset `broken`: expected a folder of images but found none at `nowhere`\n\
         leave `images` out to use the captions alone"
    );
}

#[test]
fn configuration_refuses_unknown_keys_and_impossible_values() {
    let table = "name = \"ucm\"\nannotations = \"dataset.json\"\n";
    let plain: DatasetConfig = toml::from_str(table).unwrap();
    assert_eq!((plain.weight, plain.max_refused, plain.format), (1.0, 0.0, None));
    let unknown = toml::from_str::<DatasetConfig>(&format!("{table}max_refusd = 0.1")).unwrap_err().to_string();
    assert!(unknown.contains("unknown field `max_refusd`, expected one of `name`, `format`"), "{unknown}");
    let sydney: DatasetConfig = toml::from_str(&format!("{table}format = \"sydney-text\"")).unwrap();
    assert_eq!(sydney.format, Some(Format::SydneyText));
    for (key, words) in [
        ("max_refused = nan", "dataset `ucm`: expected `max_refused` from 0 to 1 but found NaN"),
        ("weight = 0.0", "dataset `ucm`: expected `weight` to be a positive number but found 0"),
    ] {
        let config: DatasetConfig = toml::from_str(&format!("{table}{key}")).unwrap();
        assert_eq!(load(&config).unwrap_err().to_string(), words);
    }
}

/// Items by split, and captions in all.
fn counts(dataset: &Dataset) -> ([usize; 3], usize) {
    (Split::ALL.map(|split| images(dataset, split)), dataset.items.iter().map(|item| item.captions.len()).sum())
}

#[test]
fn published_datasets_have_their_published_counts() {
    let Some(data) = shared_data("") else { return };
    let read = |annotations: &str| load(&DatasetConfig::captions_only("real", data.join(annotations))).unwrap();

    let (ucm, refusals) = read("ucm/dataset.json");
    assert!(refusals.list.is_empty());
    assert_eq!(counts(&ucm), ([1680, 210, 210], 10_500));
    assert_eq!(
        summary(&ucm).to_string(),
        "real\n  train    1680 images     8400 captions     1637 distinct\n  \
         val       210 images     1050 captions      391 distinct\n  \
         test      210 images     1050 captions      377 distinct\n  \
         146 distinct captions stand in both train and test"
    );

    let (sydney, _) = read("sydney/dataset.json");
    assert_eq!(counts(&sydney), ([497, 58, 58], 3065));
    let (text, refusals) = read("sydney/filenames/descriptions_SYDNEY.txt");
    assert!(refusals.list.is_empty());
    assert_eq!(counts(&text), ([497, 58, 58], 3065));

    // The folder holds RSICD without its test split, and a fifth of NWPU.
    assert_eq!(counts(&read("rsicd/dataset_rsicd.json").0), ([8734, 1094, 0], 49_140));
    let (nwpu, _) = read("nwpu/dataset_nwpu.json");
    assert_eq!(counts(&nwpu), ([5670, 0, 0], 28_350));
    assert_eq!(nwpu.items.iter().filter_map(|item| item.class.as_deref()).collect::<HashSet<_>>().len(), 45);
}

#[test]
fn published_datasets_with_their_images() {
    let Some(data) = shared_data("") else { return };
    let config = |annotations: &str, images: &str, max_refused| DatasetConfig {
        images: Some(data.join(images)),
        max_refused,
        ..DatasetConfig::captions_only("real", data.join(annotations))
    };
    let ucm = DatasetConfig { extension: Some("jpg".into()), ..config("ucm/dataset.json", "ucm/images", 0.0) };
    let (dataset, refusals) = load(&ucm).unwrap();
    assert_eq!((dataset.items.len(), refusals.list.len()), (2100, 0));

    let (dataset, refusals) = load(&config("rsicd/dataset_rsicd.json", "rsicd/RSICD_images", 0.1)).unwrap();
    assert_eq!(dataset.items.len(), 8973);
    assert_eq!(refusals.to_string(), "855 of 9828 items refused: 855 missing file");
    let strict = load(&config("rsicd/dataset_rsicd.json", "rsicd/RSICD_images", 0.05)).unwrap_err().to_string();
    assert!(
        strict.contains("expected at most 5.0 % of the items refused but found 855 of 9828 (8.7 %): `"),
        "{strict}"
    );

    let (dataset, _) = load(&config("nwpu/dataset_nwpu.json", "nwpu/NWPU_images", 1.0)).unwrap();
    assert_eq!(dataset.items.len(), 266);
    let (dataset, _) = load(&config("sydney/dataset.json", "sydney/images", 1.0)).unwrap();
    assert_eq!(dataset.items.len(), 9);
}
