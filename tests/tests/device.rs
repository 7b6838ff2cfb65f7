//! `--device` as a person gives it: what is refused and how, and that `auto` computes wherever it is.

use std::{fs, path::Path, process::Output};

use rscapret_tests::command::rscapret;
use rscapret_trainer::cli::device::cuda;

/// Commands that train and score, with arguments of which nothing is read before the device is opened.
const COMMANDS: [&str; 8] = [
    "pretrain-lm lm.toml --run lm",
    "perplexity --llm lm/model captions.csv",
    "pretrain-clip clip.toml --run clip",
    "clip finetune finetune.toml --run finetune",
    "features train.toml --out features.safetensors",
    "train train.toml --run run",
    "eval --data data.toml --bundle run",
    "sweep sweep.toml --out sweep",
];

fn call(folder: &Path, arguments: &str, device: &str) -> Output {
    let mut call = rscapret();
    call.args(arguments.split(' ')).args(["--device", device]).current_dir(folder).env("RAYON_NUM_THREADS", "1");
    call.output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn every_command_that_trains_or_scores_takes_a_device() {
    let folder = tempfile::tempdir().unwrap();
    for command in COMMANDS {
        // What is no such device is wrong usage, whatever the files.
        for (device, found) in [("gpu", "gpu"), ("webgpu", "webgpu"), ("cuda:one", "cuda:one")] {
            let output = call(folder.path(), command, device);
            assert_eq!(output.status.code(), Some(2), "{command}");
            let expected = format!("expected `cpu`, `cuda`, `cuda:N` or `auto` but found `{found}`");
            assert!(text(&output.stderr).contains(&expected), "{command}: {}", text(&output.stderr));
        }
        let words = if command.starts_with("clip") { 2 } else { 1 };
        let help = rscapret().args(command.split(' ').take(words)).arg("--help").output().unwrap();
        assert!(text(&help.stdout).contains("--device <DEVICE>"), "{command}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// These tests' program is built without CUDA.
#[test]
fn cuda_is_refused_with_the_remedy_and_auto_goes_on_without() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let rows = ["a river", "two roads", "green trees", "a river"].map(|caption| format!("0.png,{caption},train\n"));
    fs::write(folder.join("captions.csv"), format!("file_name,caption,split\n{}", rows.concat())).unwrap();
    let config = "training = { seed = 1, steps = 3, batch = 4, workers = 1, validate_every = 10 }\n\
                  tokenizer = 'tokenizer.json'\nmax_length = 16\n\
                  model = { vocab_size = 264, hidden_size = 16, intermediate_size = 32, num_hidden_layers = 1, \
                  num_attention_heads = 2, max_position_embeddings = 16 }\noptim = { lr = 1e-2 }\n\
                  [[data]]\nname = 'own'\nannotations = 'captions.csv'\n";
    fs::write(folder.join("lm.toml"), config).unwrap();
    for (command, device) in COMMANDS.into_iter().zip(["cuda", "cuda:1"].into_iter().cycle()) {
        let output = call(folder, command, device);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{command}: {error}");
        let ordinal = device.strip_prefix("cuda:").unwrap_or("0");
        let expected = format!("error: cuda:{ordinal}: expected a program with CUDA but found one without\n");
        assert!(error.starts_with(&expected) && error.contains("build with --features cuda"), "{command}: {error}");
    }
    // Nothing was begun.
    assert_eq!(fs::read_dir(folder).unwrap().count(), 2);
    let weights = ["cpu", "auto"].map(|device| {
        let output = call(folder, &format!("pretrain-lm lm.toml --run {device}"), device);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        let told = text(&output.stderr).contains("on the processor: cuda:0: expected a program with CUDA");
        assert_eq!(told, device == "auto", "{}", text(&output.stderr));
        fs::read(folder.join(device).join("model/model.safetensors")).unwrap()
    });
    assert!(weights[0] == weights[1]);
    assert!(cuda(0).is_err());
}
