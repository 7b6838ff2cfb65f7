//! The same model in other programs for the browser: wllama (llama.cpp) and onnxruntime-web.
//!
//! Needs `target/compare`, which holds what they are and the models that `tests/golden/make_compared.py` makes.

use std::{fs, path::PathBuf};

use rscapret::{
    Error, Result,
    bench::{Row, chosen},
};
use serde_json::{Value, json};
use xtask::serve::{Policy, Server};

use super::{chromium, on_disk};
use crate::{
    browser::{Browser, Workbench},
    tests_dir,
};

/// What all names begin with.
const PREFIX: &str = "compare";

/// A model as its maker makes it, and what is asked of it.
struct Model {
    name: &'static str,
    layers: usize,
    /// Key/value heads.
    groups: usize,
    head_dim: usize,
    /// Tokens of the prompt.
    prompt: usize,
    /// Tokens that follow.
    steps: usize,
}

const MODELS: [Model; 2] = [
    Model { name: "110M", layers: 12, groups: 12, head_dim: 64, prompt: 128, steps: 8 },
    // A GPU that is a program takes a minute for some of these tokens.
    Model { name: "1.1B", layers: 22, groups: 4, head_dim: 64, prompt: 32, steps: 2 },
];

/// A program and what it runs on.
struct Runner {
    name: &'static str,
    program: Program,
    gpu: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Program {
    Ours,
    Wllama,
    Onnx,
}

const RUNNERS: [Runner; 5] = [
    Runner { name: "rscapret/cpu", program: Program::Ours, gpu: false },
    Runner { name: "wllama/cpu", program: Program::Wllama, gpu: false },
    Runner { name: "onnxruntime-web/cpu", program: Program::Onnx, gpu: false },
    Runner { name: "rscapret/webgpu", program: Program::Ours, gpu: true },
    Runner { name: "onnxruntime-web/webgpu", program: Program::Onnx, gpu: true },
];

fn folder() -> PathBuf {
    tests_dir().join("../target/compare")
}

/// Names of the rows of all models.
pub(super) fn names() -> impl Iterator<Item = String> {
    MODELS.iter().flat_map(|model| RUNNERS.iter().flat_map(|runner| rows_of(model, runner)))
}

fn rows_of(model: &Model, runner: &Runner) -> [String; 2] {
    ["prefill", "decode"].map(|what| format!("{PREFIX}/{}/{what}/{}", model.name, runner.name))
}

/// Rows of the models that are there. Nothing where none is, unless they are asked for by name.
///
/// # Errors
/// A program that fails; tokens of ours that are not those of onnxruntime-web; what `emit` answers.
pub(super) fn run(names: &[String], emit: &mut dyn FnMut(Row) -> Result<()>) -> Result<()> {
    let there = MODELS.iter().filter(|model| folder().join(format!("models/{}.gguf", model.name)).is_file());
    let models: Vec<_> = there.filter(|_| folder().join("node_modules").is_dir()).collect();
    if models.is_empty() && names.iter().any(|name| name.contains(PREFIX)) {
        return Err(Error::Config(
            "expected other programs and models in target/compare but found none\n\
             npm install --prefix target/compare @wllama/wllama@3.8.1 onnxruntime-web@1.30.0\n\
             python tests/golden/make_compared.py 110M target/compare/models"
                .into(),
        ));
    }
    for model in models {
        let mut ids: Option<(&str, Value)> = None;
        for runner in &RUNNERS {
            let [prefill, decode] = rows_of(model, runner);
            if !chosen(names, &prefill) && !chosen(names, &decode) {
                continue;
            }
            let found = match runner.program {
                Program::Ours => ours(model, runner.gpu),
                _ => theirs(model, runner),
            }?;
            let rows = [(prefill, found.prompt, found.prefill), (decode, model.steps, found.decode)];
            for (name, tokens, seconds) in rows.into_iter().filter(|(name, ..)| chosen(names, name)) {
                let note = format!("{}, {}; {tokens} tokens", found.about, chromium::conditions(runner.gpu));
                emit(Row { name, value: tokens as f64 / seconds, unit: "tokens/s".into(), note })?;
            }
            let Some(found) = found.ids else { continue };
            match &ids {
                None => ids = Some((runner.name, found)),
                Some((_, expected)) if *expected == found => {}
                Some((first, expected)) => {
                    let text = format!("{}: expected {expected}, as {first}, but found {found}", runner.name);
                    return Err(Error::Backend(text));
                }
            }
        }
    }
    Ok(())
}

/// Seconds of a prompt and of the tokens after it.
struct Found {
    prompt: usize,
    prefill: f64,
    decode: f64,
    /// The tokens, where the program tells them.
    ids: Option<Value>,
    about: String,
}

/// Letters, of which the made-up vocabularies have a token for each byte only.
fn prompt(model: &Model) -> String {
    (0..model.prompt as u32 - 4).filter_map(|i| char::from_u32(97 + i * 7 % 26)).collect()
}

/// The beginning of text, then the bytes of the mark that stands for a space, and of the letters.
fn prompt_ids(model: &Model) -> Vec<u32> {
    let text = format!("\u{2581}{}", prompt(model));
    std::iter::once(1).chain(text.bytes().map(|byte| 3 + u32::from(byte))).collect()
}

fn ours(model: &Model, gpu: bool) -> Result<Found> {
    let workbench = Workbench::open_in(&chromium::workbench_folder()?, Browser::start_with_gpu());
    let file = on_disk(folder().join(format!("models/{}.gguf", model.name)).canonicalize(), model.name)?;
    workbench.browser().type_into("input", &file.display().to_string());
    let order = json!({ "ids": prompt_ids(model), "steps": model.steps + 1, "gpu": gpu, "timed": true });
    workbench.order(&json!({ "decode": order }));
    let answer = workbench.answer().map_err(Error::Backend)?.unwrap_or_default();
    let answer: Value = serde_json::from_str(&answer).map_err(|e| Error::Malformed(e.to_string()))?;
    let seconds: Vec<f64> = (0..model.steps + 2).filter_map(|i| answer["seconds"][i].as_f64()).collect();
    let [_, first, .., last] = seconds[..] else {
        return Err(Error::Malformed(format!("expected a time of each token but found {answer}")));
    };
    let about = "the same GGUF".to_string();
    Ok(Found { prompt: model.prompt, prefill: first, decode: last - first, ids: Some(answer["ids"].clone()), about })
}

fn theirs(model: &Model, runner: &Runner) -> Result<Found> {
    for (name, text) in [("index.html", include_str!("index.html")), ("page.js", include_str!("page.js"))] {
        on_disk(fs::write(folder().join(name), text), name)?;
    }
    let server = Server::start_with(&folder(), 0, Policy::Open).map_err(|e| Error::Io(e.to_string()))?;
    let browser = Browser::start_with_gpu();
    browser.open(&server.url());
    let (provider, Model { layers, groups, head_dim, .. }) = (if runner.gpu { "webgpu" } else { "wasm" }, model);
    let order = match runner.program {
        Program::Wllama => json!({ "program": "wllama", "prompt": prompt(model) }),
        _ => json!({
            "program": "onnx", "provider": provider, "ids": prompt_ids(model), "layers": layers, "groups": groups,
            "head_dim": head_dim,
        }),
    };
    browser.wait_for("the page", "return !!window.order");
    browser.script(&format!("window.order({order}, '{}', {})", model.name, model.steps));
    let answer = &browser.wait_for("an answer", "return window.answers.length && [window.answers.shift()]")[0];
    let number = |key: &str| {
        answer[key]
            .as_f64()
            .ok_or_else(|| Error::Backend(format!("{}: expected {key} but found {answer}", runner.name)))
    };
    Ok(Found {
        prompt: number("prompt_tokens")? as usize,
        prefill: number("prefill_ms")? / 1e3,
        decode: number("decode_ms")? / 1e3 / number("decoded")? * model.steps as f64,
        ids: answer.get("ids").cloned(),
        about: format!("{} {}", runner.name.split('/').next().unwrap_or_default(), answer["version"]),
    })
}
