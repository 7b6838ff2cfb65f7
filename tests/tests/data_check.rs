//! Tables of one's own, and `rscapret data check`: what it counts, refuses and finds on both sides of the test.

use std::{fs, path::Path, process::Output};

use rscapret_tests::{command::rscapret, shared_data, tests_dir};
use rscapret_trainer::dataset::{DatasetConfig, Format, ImageId, Split, load, load_listed, read_datasets};
use serde_json::Value;

fn own(file: &str) -> DatasetConfig {
    let path = tests_dir().join("fixtures/datasets/own").join(file);
    DatasetConfig { max_refused: 1.0, ..DatasetConfig::captions_only("own", path) }
}

#[test]
fn a_csv_of_ones_own() {
    let (dataset, refusals) = load(&own("captions.csv")).unwrap();
    let refused: Vec<String> = refusals.list.iter().map(ToString::to_string).collect();
    assert_eq!(
        refused,
        [
            "`a.jpg (row 5)`: malformed caption: expected split train as in the image's first row but found test",
            "`row 6`: malformed item: CSV error: record 6 (line: 6, byte: 217): found record with 2 fields, but the \
             previous record has 5 fields",
            "`e.jpg (row 7)`: malformed item: `split`: unknown variant `dev`, expected one of `restval`, `train`, `val`, \
             `test`",
            "`row 8`: malformed item: expected the image's name but found none",
            "`f.jpg`: in no split",
            "`c.jpg`: no caption",
        ]
    );
    assert_eq!(dataset.items.len(), 2);
    assert_eq!(dataset.items[0].captions, ["A river, and a road .", "Two roads .", "A second row ."]);
    assert_eq!((dataset.items[0].split, dataset.items[0].class.as_deref()), (Split::Train, Some("river")));
    assert_eq!(dataset.items[1].captions, ["He said \"field\" ."]);
    assert_eq!(dataset.items[1].id, ImageId::Text("b.jpg".to_string()));
    // A row without a split takes that of the configuration.
    let (dataset, _) = load(&DatasetConfig { split: Some(Split::Test), ..own("captions.csv") }).unwrap();
    assert_eq!(dataset.split(Split::Test).map(|item| item.image.to_str().unwrap()).collect::<Vec<_>>(), ["f.jpg"]);
}

#[test]
fn json_lines_of_ones_own() {
    let (dataset, refusals) = load(&own("captions.jsonl")).unwrap();
    let refused: Vec<String> = refusals.list.iter().map(ToString::to_string).collect();
    assert_eq!(
        refused,
        [
            "`c.jpg (line 4)`: malformed item: `text`: expected text or a list but found a number",
            "`line 5`: malformed item: expected an object but found a list",
            "`line 6`: malformed item: EOF while parsing an object at line 1 column 29",
            "`f.jpg`: duplicate id 7",
        ]
    );
    assert_eq!(dataset.items[0].captions, ["A river .", "A road ."]);
    assert_eq!((dataset.items[0].id.clone(), dataset.items[1].class.as_deref()), (ImageId::Number(7), Some("field")));
}

#[test]
fn tables_that_cannot_be_used_are_one_error() {
    let folder = tempfile::tempdir().unwrap();
    let fails = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        load(&DatasetConfig::captions_only("own", path)).unwrap_err().root().to_string()
    };
    assert_eq!(
        fails("a.csv", "\"file, words\"\n"),
        "expected a column with the image's name (`file_name` or `filename` or `file` or `image`) but found `file, words`"
    );
    let error = fails("b.tsv", "image\tcaption\na.jpg\tA lake .\n");
    assert!(
        error.starts_with("expected a column `split`, or `split` in the configuration, but found `image`, `caption`")
    );
    let error = fails("c.jsonl", "{\"image\": \"a.jpg\", \"sentence\": \"A lake .\"}\n");
    assert!(error.starts_with("expected a column with a caption"), "{error}");
    // The format can be said where the name does not tell it.
    let path = folder.path().join("list.txt");
    fs::write(&path, "image,caption_1,split\na.jpg,A lake .,train\n").unwrap();
    let config = DatasetConfig { format: Some(Format::Csv), ..DatasetConfig::captions_only("own", path) };
    assert_eq!(load(&config).unwrap().0.items[0].captions, ["A lake ."]);
}

fn check(config: &Path, options: &[&str]) -> Output {
    rscapret().args(["data", "check"]).arg(config).args(options).output().unwrap()
}

fn stdout(output: &Output) -> &str {
    assert_eq!(std::str::from_utf8(&output.stderr).unwrap(), "");
    std::str::from_utf8(&output.stdout).unwrap()
}

/// Two datasets: `one` has a file that is no picture, and its training image is a test image of `two`.
fn write_two(folder: &Path, max_refused: f64) {
    let picture = |name: &str| fs::read(tests_dir().join("golden/preprocess").join(name)).unwrap();
    let images = folder.join("images");
    fs::create_dir_all(&images).unwrap();
    for (name, bytes) in [
        ("river.png", picture("61x97.png")),
        ("lake.png", picture("97x61.png")),
        ("broken.png", b"no picture".to_vec()),
        ("same.png", picture("61x97.png")),
    ] {
        fs::write(images.join(name), bytes).unwrap();
    }
    fs::write(
        folder.join("one.csv"),
        "image,caption,split\nriver.png,A river .,train\nlake.png,A lake .,val\nbroken.png,A road .,test\ngone.png,A road .,test\n",
    )
    .unwrap();
    fs::write(folder.join("two.csv"), "image,caption,split\nsame.png,A river .,test\nlake.png,A quiet lake .,test\n")
        .unwrap();
    let table = |name: &str| {
        let path = |name: &str| folder.join(name).display().to_string();
        let (annotations, images) = (path(&format!("{name}.csv")), path("images"));
        format!(
            "[[dataset]]\nname = '{name}'\nannotations = '{annotations}'\nimages = '{images}'\nmax_refused = {max_refused}\n"
        )
    };
    fs::write(folder.join("data.toml"), table("one") + &table("two")).unwrap();
}

#[test]
fn training_leaves_out_what_the_check_refuses() {
    let folder = tempfile::tempdir().unwrap();
    write_two(folder.path(), 0.5);
    let mut one = read_datasets(&folder.path().join("data.toml")).unwrap().remove(0);
    let images: Vec<_> = load_listed(&one).unwrap().items.into_iter().map(|item| item.image).collect();
    assert_eq!(images, ["river.png", "lake.png"].map(std::path::PathBuf::from));
    // The missing file alone would be a quarter.
    one.max_refused = 0.25;
    let error = load_listed(&one).unwrap_err().to_string();
    assert!(
        error.contains("found 2 of 4 (50.0 %): `gone.png`: missing file; `broken.png`: unreadable image"),
        "{error}"
    );
}

#[test]
fn what_is_refused_and_shared_is_told_and_too_much_of_it_exits_with_2() {
    let folder = tempfile::tempdir().unwrap();
    write_two(folder.path(), 0.5);
    let config = folder.path().join("data.toml");
    let output = check(&config, &[]);
    let text = stdout(&output).replace(&format!("{}/", folder.path().display()), "");
    assert_eq!(
        text,
        "\
one: one.csv
  split      images  captions  distinct  published
  train           1         1         1          -
  val             1         1         1          -
  test            0         0         0          -
  2 of 4 items refused (50.0 %): 1 missing file, 1 unreadable image
    `gone.png`: missing file
    `broken.png`: unreadable image: expected a JPEG, PNG, WebP or TIFF picture but found bytes that begin with [6e, 6f, 20, 70, 69, 63, 74, 75], which looks like text

two: two.csv
  split      images  captions  distinct  published
  train           0         0         0          -
  val             0         0         0          -
  test            2         2         2          -
  nothing refused

shared by train and test
  images: 1 of the test split
    two: same.png is one: river.png
  captions: 1 different ones, which are 1 of the 2 for testing
"
    );
    assert_eq!(output.status.code(), Some(0));

    write_two(folder.path(), 0.4);
    let output = check(&config, &["--json"]);
    let found: Value = serde_json::from_str(stdout(&output)).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!((&found["datasets"][0]["too_many"], &found["datasets"][1]["too_many"]), (&true.into(), &false.into()));
    assert_eq!(found["datasets"][0]["refused"]["unreadable image"], 1);
    assert_eq!(found["shared_images"][0]["train"], "one: river.png");
    assert_eq!(found["shared_captions"]["examples"][0], "A river .");

    // Without opening the images, one that is no picture is not found.
    let output = check(&config, &["--skip-images"]);
    assert!(stdout(&output).contains("images: not opened") && output.status.success());

    let output = check(&folder.path().join("one.csv"), &[]);
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn the_published_datasets() {
    let Some(data) = shared_data("") else { return };
    let folder = tempfile::tempdir().unwrap();
    let table = |name: &str, annotations: &str, more: &str| {
        format!("[[dataset]]\nname = '{name}'\nannotations = '{}'\n{more}\n", data.join(annotations).display())
    };
    let images = |sub: &str| format!("images = '{}'\n", data.join(sub).display());
    let ucm = table("UCM", "ucm/dataset.json", &(images("ucm/images") + "extension = 'jpg'"));
    let sydney = table("Sydney", "sydney/filenames/descriptions_SYDNEY.txt", "");
    let nwpu = table("NWPU", "nwpu/dataset_nwpu.json", &(images("nwpu/NWPU_images") + "max_refused = 0.96"));
    let rsicd = table("RSICD", "rsicd/dataset_rsicd.json", &(images("rsicd/RSICD_images") + "max_refused = 0.05"));
    let config = folder.path().join("data.toml");
    fs::write(&config, ucm + &sydney + &nwpu + &rsicd).unwrap();

    let output = check(&config, &["--json"]);
    let found: Value = serde_json::from_str(stdout(&output)).unwrap();
    assert_eq!(output.status.code(), Some(2), "RSICD lacks more images than 5 %");
    let datasets = found["datasets"].as_array().unwrap();
    let counts = |at: usize| -> Vec<u64> {
        (0..3).map(|split| datasets[at]["splits"][split]["images"].as_u64().unwrap()).collect()
    };
    assert_eq!(counts(0), [1680, 210, 210]);
    assert_eq!(counts(1), [497, 58, 58]);
    assert_eq!(counts(2), [266, 0, 0]);
    assert_eq!(counts(3).iter().sum::<u64>(), 8973);
    let too_many: Vec<bool> = datasets.iter().map(|dataset| dataset["too_many"] == true).collect();
    assert_eq!(too_many, [false, false, false, true]);
    assert_eq!(datasets[3]["refused"]["missing file"], 855);
    assert_eq!(datasets[3]["published"]["images"][2], 1093);
    assert_eq!(found["shared_captions"]["of"], 1050 + 290);
}
