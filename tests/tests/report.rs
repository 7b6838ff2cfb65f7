//! `rscapret report`: the page and TensorBoard's events of a run.

use std::{fs, time::Duration};

use rscapret_tests::{command::rscapret, tests_dir};
use rscapret_trainer::report::{Series, events};

#[test]
fn event_files_are_tensorboards_own_byte_by_byte() {
    let series = |name: &str, points: &[(u64, f64)]| Series { name: name.into(), points: points.to_vec() };
    let begun = 1_700_000_000.5;
    let written = events(
        &[series("loss", &[(0, 3.25), (10, 2.1), (300, 1e-7)]), series("validation/mean_recall", &[(70_000, 56.4)])],
        begun,
        |step| begun + step as f64 / 2.0,
    );
    assert_eq!(written, fs::read(tests_dir().join("golden/events/run.tfevents")).unwrap());
}

#[test]
fn a_page_of_a_run() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("my run");
    fs::create_dir(&run).unwrap();
    let write = |name: &str, text: &str| fs::write(run.join(name), text).unwrap();
    let report = || {
        let output = rscapret().arg("report").arg(&run).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, _, error) = report();
    assert!(code == Some(1) && error.contains("metrics.jsonl: expected the metrics of a run but found"), "{error}");

    let photo = tests_dir().join("golden/preprocess/photo-97x61.jpg");
    write("config.toml", "seed = 1\nllm = \"<here>\"\n");
    write("data.json", "[]");
    write(
        "metrics.jsonl",
        "{\"loss\":3.5,\"rate\":0.1,\"learning_rate\":3e-5,\"seconds_per_step\":0.5,\"step\":10}\n\
         {\"loss\":2.5,\"rate\":1.0,\"learning_rate\":3e-4,\"seconds_per_step\":0.5,\"step\":20}\n\
         {\"step\":20,\"validation\":{\"caption\":1.5,\"mean_recall\":40.25}}\n",
    );
    let sample = serde_json::json!({ "step": 20, "image": photo, "caption": "a <river>", "references": ["A river ."] });
    write("samples.jsonl", &format!("{sample}\n"));
    let (code, said, error) = report();
    assert_eq!((code, error.as_str()), (Some(0), ""));
    assert!(said.ends_with("report.html: 5 curves, 1 sample\n"), "{said}");

    let page = fs::read_to_string(run.join("report.html")).unwrap();
    assert_eq!(page.matches("<svg").count(), 5);
    for part in [
        "<title>my run</title>",
        "validation/mean_recall <b>40.25</b>",
        "<figcaption>learning_rate <b>",
        "a &lt;river&gt;",
        "A river .",
        "&lt;here&gt;",
    ] {
        assert!(page.contains(part), "{part}");
    }
    // Nothing beside it: no address but the image's own data.
    assert!(page.contains("src=\"data:image/bmp;base64,Qk0") && !page.contains("http") && !page.contains("<script"));
    assert_eq!(page.matches("src=").count(), 1);
    // Once more, after the run went on with another configuration, and there is still one event file.
    let later = fs::metadata(run.join("data.json")).unwrap().modified().unwrap() + Duration::from_secs(3600);
    fs::File::options().append(true).open(run.join("config.toml")).unwrap().set_modified(later).unwrap();
    assert_eq!(report().0, Some(0));
    let names = fs::read_dir(&run).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(names.filter(|name| name.starts_with("events.out.tfevents.")).count(), 1);
}
