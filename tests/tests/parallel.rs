//! `--gpus N` on the processor: N processes of W workers train as one process of N W workers, to the last byte; and whatever
//! happens to one of them ends all, in order.

use std::{
    fs,
    path::Path,
    process::{Child, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use rscapret_tests::{
    command::{call, rscapret, succeeds},
    tensors, tests_dir, tiny,
};
use serde_json::Value;

/// Letters alone, for that is what the tiny text tower knows.
const CAPTIONS: [&str; 12] = [
    "two planes",
    "many planes",
    "a boat",
    "many boats",
    "a bridge",
    "a road",
    "trees",
    "a park",
    "a gray roof",
    "a red roof",
    "some cars",
    "a field",
];

/// Longest that anything here may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Twelve images with captions, four of them to validate, tiny models, and the configurations of the stages with as many
/// workers as their names say.
fn write(folder: &Path) {
    fs::create_dir(folder.join("images")).unwrap();
    let mut rows = "file_name,caption,split\n".to_string();
    for (i, caption) in CAPTIONS.iter().enumerate() {
        let pixel = |x: u32, y: u32| image::Rgb([x * 13, y * 11, (i as u32 * 21 + x * y) % 256].map(|v| v as u8));
        image::RgbImage::from_fn(18, 17, pixel).save(folder.join(format!("images/{i}.png"))).unwrap();
        rows += &format!("{i}.png,{caption},{}\n", if i % 3 == 2 { "val" } else { "train" });
    }
    fs::write(folder.join("data.csv"), rows).unwrap();
    tiny::write_bundle(folder, 1);
    for name in ["open_clip_config.json", "plain.pt"] {
        fs::copy(tests_dir().join("golden/open_clip").join(name), folder.join(name)).unwrap();
    }
    let mut vocab: serde_json::Map<_, _> = ('a'..='z').zip(0u32..).map(|(c, id)| (c.into(), id.into())).collect();
    vocab.extend([("<|startoftext|>".into(), 28.into()), ("<|endoftext|>".into(), 29.into())]);
    let tokenizer = serde_json::json!({
        "version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();

    let write = |name: &str, text: String| fs::write(folder.join(name), text).unwrap();
    let optim = "optim = { lr = 1e-2, beta1 = 0.9, beta2 = 0.95, weight_decay = 0.0, clip = 1.0 }\n";
    let dataset = "dataset = { name = 'own', annotations = 'data.csv', images = 'images' }\n";
    let training = |steps: u64, workers: usize, seconds: f64| {
        format!(
            "training = {{ seed = 1, steps = {steps}, batch = 8, workers = {workers}, validate_every = 5, \
             checkpoint_seconds = {seconds:?} }}\n"
        )
    };
    let bridge = format!(
        "llm = 'llm.gguf'\nclip = 'plain.pt'\nvisual_tokens = 2\njoint_size = 8\nlambda_c = 1.0\nlambda_r = 0.5\n\
         lambda_ret = 0.25\nquery_share = 0.5\nsame_string = 'masked'\nfeature_noise = 0.1\nmax_length = 14\n\
         concatenate = 0.3\n{optim}schedule = {{ warmup = 2, decay = 0.5 }}\n[[data]]\nviews = 2\n{dataset}"
    );
    for workers in [1, 2, 4, 8] {
        write(&format!("train-{workers}.toml"), training(10, workers, 120.0) + &bridge);
        write(&format!("long-{workers}.toml"), training(60, workers, 0.0) + &bridge);
        // Eight pairs two by two: more parts than workers.
        let clip = format!(
            "{}micro_batch = 2\nclip = 'plain.pt'\nsame_string = 'masked'\n{optim}\
             augment = {{ turns = true, area = 0.5, colour = 0.2 }}\n[[data]]\n{dataset}",
            training(10, workers, 120.0)
        );
        write(&format!("clip-{workers}.toml"), clip);
    }
}

/// A run's log, but for how long its steps took.
fn metrics(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let line = |line: &str| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        line.as_object_mut().unwrap().remove("seconds_per_step");
        line
    };
    text.lines().map(line).collect()
}

/// That two runs end with the same bytes, after the same losses and validations.
fn assert_same_runs(folder: &Path, one: &str, other: &str, files: &[&str]) {
    assert_eq!(metrics(&folder.join(one)), metrics(&folder.join(other)), "{one} and {other}");
    for name in files {
        let paths = [one, other].map(|run| folder.join(run).join(name));
        // What a file of weights says of its run, the number of workers among it, is not compared.
        let same = if name.ends_with(".safetensors") {
            let [one, other] = paths.map(|path| tensors(&path));
            one == other
        } else {
            let [one, other] = paths.map(|path| fs::read(path).unwrap());
            one == other
        };
        assert!(same, "{name} of {one} and of {other} differ");
    }
}

const TRAINED: [&str; 4] = ["projections.safetensors", "checkpoint.safetensors", "best.safetensors", "samples.jsonl"];

#[test]
fn processes_train_as_workers_do() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write(folder);
    let train = |config: &str, run: &str, gpus: &str| {
        succeeds(folder, &["train", config, "--run", run, "--gpus", gpus]);
        let log = metrics(&folder.join(run));
        assert!(
            log.iter().any(|line| line["ret"].is_f64()) && log.iter().any(|line| line["score"].is_f64()),
            "{log:?}"
        );
    };
    train("train-2.toml", "one-of-two", "1");
    train("train-1.toml", "two", "2");
    assert_same_runs(folder, "one-of-two", "two", &TRAINED);
    train("train-4.toml", "one-of-four", "1");
    train("train-2.toml", "two-of-two", "2");
    assert_same_runs(folder, "one-of-four", "two-of-two", &TRAINED);
    // Fewer sequences than workers: some processes have nothing to do, and train along.
    train("train-8.toml", "one-of-eight", "1");
    train("train-2.toml", "four-of-two", "4");
    assert_same_runs(folder, "one-of-eight", "four-of-two", &TRAINED);
    // It is not that nothing depends on the workers.
    assert_ne!(metrics(&folder.join("one-of-two")), metrics(&folder.join("one-of-four")));
    // A process alone goes on where two were, and the other way round.
    let longer = |run: &str, workers: &str, gpus: &str| {
        let text = fs::read_to_string(folder.join(format!("train-{workers}.toml"))).unwrap();
        fs::write(folder.join("longer.toml"), text.replace("steps = 10", "steps = 20")).unwrap();
        succeeds(folder, &["train", "longer.toml", "--run", run, "--resume", "--gpus", gpus]);
    };
    longer("two", "2", "1");
    longer("one-of-two", "1", "2");
    assert_same_runs(folder, "one-of-two", "two", &TRAINED);
}

#[test]
fn processes_train_clip_as_workers_do() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write(folder);
    let finetune = |config: &str, run: &str, gpus: &str| {
        succeeds(folder, &["clip", "finetune", config, "--run", run, "--gpus", gpus]);
    };
    let files = ["model/model.safetensors", "checkpoint.safetensors", "best.safetensors"];
    finetune("clip-2.toml", "one", "1");
    finetune("clip-1.toml", "two", "2");
    assert_same_runs(folder, "one", "two", &files);
    // As many parts as workers: each keeps its graph.
    finetune("clip-4.toml", "one-of-four", "1");
    finetune("clip-2.toml", "two-of-two", "2");
    assert_same_runs(folder, "one-of-four", "two-of-two", &files);
    let losses =
        |run: &str| metrics(&folder.join(run)).iter().filter_map(|line| line["loss"].as_f64()).collect::<Vec<_>>();
    let (two, four) = (losses("two"), losses("two-of-two"));
    assert!(!two.is_empty() && two.iter().zip(&four).all(|(a, b)| (a - b).abs() < 1e-4), "{two:?} {four:?}");
}

#[test]
fn processes_make_the_features_of_one() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write(folder);
    let features =
        |out: &str, gpus: &str| succeeds(folder, &["features", "train-1.toml", "--out", out, "--gpus", gpus]);
    let read = |name: &str| fs::read(folder.join(name)).unwrap();
    features("one", "1");
    let said = features("three", "3");
    assert!(said.starts_with("three: 12 images, 12 of them new, "), "{said}");
    assert!(read("one") == read("three"));
    assert_eq!(features("three", "2"), "three: 12 images, 0 of them new\n");

    // A picture that is none is told of before anything is computed.
    fs::write(folder.join("images/2.png"), "no picture").unwrap();
    let output = call(folder, &["features", "train-1.toml", "--out", "broken", "--gpus", "2"]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("found 1 of 12 (8.3 %): `2.png`: unreadable image"), "{error}");
    assert!(!folder.join("broken").exists());
}

#[test]
fn a_seat_that_is_none_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path());
    let mut train = rscapret();
    train.args(["train", "train-1.toml", "--run", "run"]).current_dir(folder.path()).env("RSCAPRET_SEAT", "1 2 here");
    let output = train.output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && error.contains("RSCAPRET_SEAT: expected what `--gpus` sets"), "{error}");
    let usage = call(folder.path(), &["train", "train-1.toml", "--run", "run", "--gpus", "0"]);
    assert_eq!(usage.status.code(), Some(2));
}

/// Waits, but not for ever.
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "waited in vain: {what}");
        sleep(Duration::from_millis(2));
    }
}

/// Ends a run whatever becomes of the test.
struct Run(Child);

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Run {
    /// How it ended, and what it said.
    fn ended(&mut self) -> (Option<i32>, String) {
        until("the end of the run", || self.0.try_wait().unwrap().is_some());
        let mut said = String::new();
        std::io::Read::read_to_string(&mut self.0.stderr.take().unwrap(), &mut said).unwrap();
        (self.0.wait().unwrap().code(), said)
    }
}

/// Two processes that train, with a checkpoint after every step; in a process group of their own.
fn training(folder: &Path, run: &str) -> Run {
    let mut command = rscapret();
    command.args(["train", "long-1.toml", "--run", run, "--gpus", "2"]).current_dir(folder);
    command.env("RAYON_NUM_THREADS", "1").stderr(Stdio::piped());
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let run_folder = folder.join(run);
    let mut training = Run(command.spawn().unwrap());
    until("the first checkpoint", || {
        assert!(training.0.try_wait().unwrap().is_none(), "{:?}", training.ended());
        run_folder.join("checkpoint.safetensors").exists()
    });
    training
}

/// That a run which something befell ends, resumed, as one that nothing did.
fn ends_as_uninterrupted(folder: &Path, run: &str) {
    // A log begins with the tenth step.
    let log = folder.join(run);
    let steps = if log.join("metrics.jsonl").exists() { metrics(&log) } else { Vec::new() };
    assert!(steps.iter().all(|line| line["step"].as_u64() < Some(60)), "it was over before");
    succeeds(folder, &["train", "long-2.toml", "--run", "whole"]);
    succeeds(folder, &["train", "long-1.toml", "--run", run, "--resume", "--gpus", "2"]);
    assert_same_runs(folder, "whole", run, &TRAINED);
}

/// The processes that a run started, as Linux shows them.
#[cfg(target_os = "linux")]
fn started_by(parent: u32) -> Vec<u32> {
    let ids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let own = |id: &u32| {
        let read = |name: &str| fs::read(format!("/proc/{id}/{name}")).unwrap_or_default();
        let stat = String::from_utf8_lossy(&read("stat")).into_owned();
        let of = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)?.parse().ok());
        of == Some(parent) && read("environ").windows(14).any(|name| name == b"RSCAPRET_SEAT=")
    };
    ids.filter(own).collect()
}

#[cfg(unix)]
fn signal(name: &str, to: &str) {
    let status = std::process::Command::new("kill").args(["-s", name, "--", to]).status().unwrap();
    assert!(status.success(), "kill -s {name} {to}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_process_that_is_killed_ends_all() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write(folder);
    let mut run = training(folder, "run");
    let [other] = started_by(run.0.id())[..] else { panic!("expected one process more") };
    signal("KILL", &other.to_string());
    let (code, error) = run.ended();
    assert_eq!(code, Some(1), "{error}");
    let words = "error: process 2 of 2: expected it to go on but found that it ended (signal: 9 (SIGKILL))";
    assert!(error.contains(words) && error.contains("\nwhat was saved last is intact"), "{error}");
    ends_as_uninterrupted(folder, "run");

    // The first one: nobody is left to tell, and the other goes, too.
    fs::remove_dir_all(folder.join("run")).unwrap();
    let mut run = training(folder, "run");
    let [other] = started_by(run.0.id())[..] else { panic!("expected one process more") };
    run.0.kill().unwrap();
    until("the end of the other", || {
        let stat = fs::read_to_string(format!("/proc/{other}/stat")).unwrap_or_default();
        // Gone, or dead and not yet waited for by who has inherited it.
        stat.rsplit(") ").next().is_none_or(|rest| rest.is_empty() || rest.starts_with('Z'))
    });
}

/// Ctrl-C in a terminal reaches all processes at once.
#[cfg(unix)]
#[test]
fn an_interrupt_saves_one_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write(folder);
    let mut run = training(folder, "run");
    signal("INT", &format!("-{}", run.0.id()));
    let (code, error) = run.ended();
    assert!(code == Some(1) && error.contains("found a request to stop"), "{code:?} {error}");
    ends_as_uninterrupted(folder, "run");
}
