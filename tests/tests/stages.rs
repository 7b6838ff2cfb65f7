//! The stages one after the other on eight images: tower, language model, features, bridge, report. Training on stored
//! features is training on the tower's own.

use std::{fs, path::Path};

use rscapret_tests::{
    command::{call, rscapret, succeeds},
    java, tensors, tests_dir,
};
use serde_json::Value;

/// Images in pairs of a training and a validation one, with captions, and the configurations of all stages.
fn write(folder: &Path) {
    fs::create_dir(folder.join("images")).unwrap();
    let mut rows = "file_name,caption,split\n".to_string();
    for (at, photo) in ["61x97", "64x64", "97x61", "300x200"].into_iter().enumerate() {
        for split in ["train", "val"] {
            // A byte more, which no decoder looks at, makes it another file.
            let mut bytes = fs::read(tests_dir().join(format!("golden/preprocess/{photo}.png"))).unwrap();
            bytes.extend(split.bytes());
            fs::write(folder.join(format!("images/{split}{at}.png")), bytes).unwrap();
            rows += &format!("{split}{at}.png,there are {at} trees beside a river .,{split}\n");
        }
    }
    fs::write(folder.join("data.csv"), rows).unwrap();
    let common = "training = { seed = 1, steps = 2, batch = 4, workers = 1, validate_every = 1 }\n";
    let optim = "optim = { lr = 1e-3, beta1 = 0.9, beta2 = 0.98, weight_decay = 0.0, clip = 1.0 }\n";
    let dataset = "dataset = { name = 'own', annotations = 'data.csv', images = 'images' }\n";
    let write = |name: &str, text: String| fs::write(folder.join(name), text).unwrap();
    let clip = format!(
        "{common}tokenizer = 'tokenizer.json'\ncache_size = 24\ndrop_until = 0.0\npatch_keep = 1.0\nclass_weight = 0.0\n\
             label_smoothing = 0.0\nsame_string = 'positive'\nCAPTIONING\
             vision = {{ image_size = 16, patch_size = 8, hidden_size = 16, intermediate_size = 32, num_hidden_layers = 1, num_attention_heads = 2, projection_dim = 8 }}\n\
             text = {{ hidden_size = 16, intermediate_size = 32, num_hidden_layers = 1, num_attention_heads = 2, max_position_embeddings = 16, vocab_size = 258, eos_token_id = 1, projection_dim = 8 }}\n\
             {optim}[[data]]\nclasses = 'none'\n{dataset}"
    );
    write("clip.toml", clip.replace("CAPTIONING", ""));
    let captioning = |rest: &str| clip.replace("CAPTIONING", &format!("captioning = {{ llm = 'lm/model', {rest} }}\n"));
    write("captioned.toml", captioning("weight = 0.5, visual_tokens = 2"));
    write("negative.toml", captioning("weight = -0.5"));
    write("long.toml", captioning("weight = 0.5, visual_tokens = 90"));
    write(
        "lm.toml",
        format!(
            "{common}tokenizer = 'tokenizer.json'\nmax_length = 48\n\
             model = {{ vocab_size = 258, hidden_size = 16, intermediate_size = 32, num_hidden_layers = 1, num_attention_heads = 2, max_position_embeddings = 96 }}\n\
             {optim}[[data]]\nname = 'own'\nannotations = 'data.csv'\n"
        ),
    );
    let bridge = format!(
        "{common}llm = 'lm/model'\nclip = 'clip/model'\nFEATURESvisual_tokens = 2\njoint_size = 8\nlambda_c = 1.0\nlambda_r = 0.5\n\
         same_string = 'positive'\nfeature_noise = 0.1\nmax_length = 48\n{optim}[[data]]\nviews = VIEWS\n{dataset}"
    );
    let finetune = format!(
        "{common}micro_batch = MICRO\nclip = 'clip/model'\nsame_string = 'masked'\n{optim}\
         schedule = {{ warmup = 1, decay = 1.0, shape = 'cosine' }}\n[[data]]\n{dataset}"
    );
    write("finetune.toml", finetune.replace("MICRO", "1"));
    write("whole.toml", finetune.replace("MICRO", "2").replace("workers = 1", "workers = 2"));
    write("bridge.toml", bridge.replace("FEATURES", "").replace("VIEWS", "2"));
    let stored = bridge.replace("FEATURES", "features = 'features.safetensors'\n");
    write("stored.toml", stored.replace("VIEWS", "2"));
    write("views.toml", stored.replace("VIEWS", "4"));
}

/// One and three visual tokens, with the tower's own retrieval beside them; what is trained is not trained again.
fn sweep(folder: &Path) {
    let text = "base = 'stored.toml'\neval = 'eval.toml'\nclip_baseline = true\n\
        [[variant]]\nname = 'k=1'\nset = { visual_tokens = 1 }\n[[variant]]\nname = 'k=3'\nset = { visual_tokens = 3 }\n";
    fs::write(folder.join("sweep.toml"), text).unwrap();
    fs::write(folder.join("eval.toml"), "name = 'own'\nannotations = 'data.csv'\nimages = 'images'\n").unwrap();
    let table = succeeds(folder, &["sweep", "sweep.toml", "--out", "sweep"]);
    let models: Vec<&str> = table.lines().skip(2).filter_map(|line| Some(line.split('|').nth(1)?.trim())).collect();
    assert_eq!(models, ["k=1", "CLIP clip", "k=3"]);
    let read = |name: &str| fs::read(folder.join("sweep").join(name)).unwrap();
    assert_eq!(String::from_utf8(read("results.md")).unwrap(), table);
    assert_eq!(String::from_utf8(read("results.svg")).unwrap().matches("<rect").count(), 1 + 2 + 3);
    let before = read("k=3/metrics.jsonl");
    assert_eq!(succeeds(folder, &["sweep", "sweep.toml", "--out", "sweep"]), table);
    assert_eq!(read("k=3/metrics.jsonl"), before);
    // Stopped at the second variant: what the first one's model said is kept, and taken, until all is scored.
    let file = |name: &str| folder.join("stopped").join(name);
    for name in ["k=1", "k=3"] {
        fs::create_dir_all(file(name)).unwrap();
        for part in ["config.toml", "metrics.jsonl"] {
            fs::write(file(name).join(part), read(&format!("k=1/{part}"))).unwrap();
        }
    }
    fs::write(file("k=1/projections.safetensors"), read("k=1/projections.safetensors")).unwrap();
    let error = String::from_utf8(call(folder, &["sweep", "sweep.toml", "--out", "stopped"]).stderr).unwrap();
    assert!(error.contains("k=3: stopped/k=3: expected a run of this variant"), "{error}");
    let answers = fs::read_to_string(file("k=1/begun.jsonl")).unwrap();
    assert!(answers.lines().count() > 1, "{answers}");
    let other = |line: &str| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        if line.get("captions").is_some() {
            line["captions"] = serde_json::json!(["there are trees beside a river ."]);
        }
        format!("{line}\n")
    };
    fs::write(file("k=1/begun.jsonl"), answers.lines().map(other).collect::<String>()).unwrap();
    fs::remove_dir_all(file("k=3")).unwrap();
    let again = succeeds(folder, &["sweep", "sweep.toml", "--out", "stopped"]);
    let row = |table: &str, at: usize| table.lines().nth(at).map(str::to_string);
    assert!(row(&again, 2) != row(&table, 2) && row(&again, 4) == row(&table, 4), "{again}\n{table}");
    assert!(!file("k=1/begun.jsonl").exists() && !folder.join("sweep/k=1/begun.jsonl").exists());
    // METEOR by its program, which a script plays; SPICE lacks its parser. Nothing is trained again.
    let path = java::write(folder);
    fs::write(folder.join("sweep.toml"), format!("jars = 'jars'\n{text}")).unwrap();
    let mut command = rscapret();
    command.args(["sweep", "sweep.toml", "--out", "sweep"]).current_dir(folder).env("RAYON_NUM_THREADS", "1");
    let output = command.env("PATH", path).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && said.contains("not run: ") && said.contains("stanford-corenlp"), "{said}");
    let results: Value = serde_json::from_slice(&read("results.json")).unwrap();
    let meteor = |at: usize| results["rows"][at]["METEOR"].as_f64();
    assert!(meteor(0).is_some() && meteor(1).is_none() && meteor(2).is_some(), "{results}");
    assert_eq!(read("k=3/metrics.jsonl"), before);
    // A folder of another sweep, and a key that training does not have.
    for (from, to, words) in [
        (
            "visual_tokens = 3",
            "visual_tokens = 5",
            "k=3: sweep/k=3: expected a run of this variant but found one of another",
        ),
        (
            "visual_tokens = 3",
            "visual_token = 5",
            "variant `k=3`: expected a configuration but found: unknown field `visual_token`",
        ),
        ("'k=3'", "'k=1'", "expected variants of different names"),
    ] {
        fs::write(folder.join("sweep.toml"), text.replace(from, to)).unwrap();
        let output = call(folder, &["sweep", "sweep.toml", "--out", "sweep"]);
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && error.contains(words), "{error}");
    }
}

/// What is logged as the rate is the optimiser's step times the schedule's factor.
fn rates(run: &Path) {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let line = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).find(|line| line["loss"].is_f64());
    let line = line.unwrap();
    let (factor, rate) = (line["rate"].as_f64().unwrap(), line["learning_rate"].as_f64().unwrap());
    assert!(factor > 0.0 && (rate - 1e-3 * factor).abs() < 1e-12, "{line}");
}

/// A tower that learns by the captions of the frozen language model, too: its folder is as the other's, its weights are not.
fn captioned(folder: &Path) {
    succeeds(folder, &["pretrain-clip", "captioned.toml", "--run", "captioned"]);
    let lines = |run: &str| {
        let text = fs::read_to_string(folder.join(run).join("metrics.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect::<Vec<_>>()
    };
    let losses = |run: &str| {
        let of = |line: &Value| line["caption"].as_f64().or(line["validation"]["caption"].as_f64());
        lines(run).iter().filter_map(of).collect::<Vec<f64>>()
    };
    // Of steps and of both validations.
    let (found, none) = (losses("captioned"), losses("clip"));
    assert!(found.len() >= 3 && found.iter().all(|loss| *loss > 0.0 && loss.is_finite()), "{found:?}");
    assert!(none.is_empty(), "{none:?}");
    let weights = |run: &str| tensors(&folder.join(run).join("model/model.safetensors"));
    let (captioned, plain) = (weights("captioned"), weights("clip"));
    assert!(captioned.keys().eq(plain.keys()) && captioned != plain);
    for (name, words) in [
        ("negative.toml", "captioning: expected `weight` to be 0 or more but found -0.5"),
        ("long.toml", "captioning: expected a language model with a context of at least "),
    ] {
        let output = call(folder, &["pretrain-clip", name, "--run", "refused"]);
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && error.contains(words), "{error}");
    }
}

#[test]
fn from_images_to_a_report() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write(folder);
    let checked: Value = serde_json::from_str(&succeeds(folder, &["data", "check", "stored.toml", "--json"])).unwrap();
    assert_eq!(checked["datasets"][0]["splits"][0]["images"], 4);
    succeeds(folder, &["pretrain-clip", "clip.toml", "--run", "clip"]);
    succeeds(folder, &["pretrain-lm", "lm.toml", "--run", "lm"]);

    captioned(folder);

    // Every image once; called again, nothing is left to do and the file is the same.
    let features = ["features", "stored.toml", "--out", "features.safetensors"];
    let said = succeeds(folder, &features);
    assert!(said.starts_with("features.safetensors: 8 images, 8 of them new, "), "{said}");
    let bytes = fs::read(folder.join("features.safetensors")).unwrap();
    assert_eq!(succeeds(folder, &features), "features.safetensors: 8 images, 0 of them new\n");
    assert_eq!(fs::read(folder.join("features.safetensors")).unwrap(), bytes);

    // The configurations, in the metadata, are others.
    let projections = |run: &str| tensors(&folder.join(run).join("projections.safetensors"));
    succeeds(folder, &["train", "bridge.toml", "--run", "plain"]);
    succeeds(folder, &["train", "stored.toml", "--run", "stored"]);
    assert!(projections("plain") == projections("stored"), "stored features are not the tower's");
    rates(&folder.join("stored"));

    succeeds(folder, &["report", "stored"]);
    let page = fs::read_to_string(folder.join("stored/report.html")).unwrap();
    assert!(page.contains("validation/CIDEr") && page.contains("there are 0 trees beside a river ."), "{page}");
    // Four images, shown once each, at two times.
    assert_eq!((page.matches("<img").count(), page.matches("<th>step").count()), (4, 2));

    // The small tower is a CLIP folder like others: its training goes on, in parts of the batch, and its folder is whole.
    let said =
        String::from_utf8(call(folder, &["clip", "finetune", "finetune.toml", "--run", "finetuned"]).stderr).unwrap();
    let names = |run: &str| {
        let mut names: Vec<_> =
            fs::read_dir(folder.join(run).join("model")).expect(&said).map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names("finetuned"), names("clip"));
    let weights = |run: &str| fs::read(folder.join(run).join("model/model.safetensors")).unwrap();
    assert!(weights("finetuned") != weights("clip"));
    let metrics = fs::read_to_string(folder.join("finetuned/metrics.jsonl")).unwrap();
    assert!(metrics.contains("\"pairs\":4") && metrics.contains("\"mean_recall\""), "{metrics}");
    // In other parts and by other workers, the same training.
    succeeds(folder, &["clip", "finetune", "whole.toml", "--run", "whole"]);
    let losses = |run: &str| {
        let lines = fs::read_to_string(folder.join(run).join("metrics.jsonl")).unwrap();
        lines.lines().filter_map(|l| serde_json::from_str::<Value>(l).unwrap()["loss"].as_f64()).collect::<Vec<_>>()
    };
    let (parts, whole) = (losses("finetuned"), losses("whole"));
    assert!(!parts.is_empty() && parts.iter().zip(&whole).all(|(a, b)| (a - b).abs() < 1e-4), "{parts:?} {whole:?}");

    sweep(folder);

    // More views than are stored; another image; another tower.
    let fails = |arguments: &[&str]| {
        let output = call(folder, arguments);
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    let error = fails(&["train", "views.toml", "--run", "views"]);
    assert!(error.contains("train0.png: expected 4 of its views among the stored features but found fewer"), "{error}");
    assert_eq!(succeeds(folder, &["features", "views.toml", "--out", "features.safetensors"]).lines().count(), 1);
    succeeds(folder, &["train", "views.toml", "--run", "views-again"]);
    let tower = folder.join("clip/model/preprocessor_config.json");
    fs::write(&tower, fs::read_to_string(&tower).unwrap() + " ").unwrap();
    let error = fails(&["train", "stored.toml", "--run", "other"]);
    assert!(error.contains("features.safetensors: expected features of the tower "), "{error}");
}
