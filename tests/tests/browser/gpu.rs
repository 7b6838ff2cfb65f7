//! The GPU in headless Chromium, played by the processor: SwiftShader.

use std::{fs, io::BufWriter};

use pollster::block_on;
use rscapret::{
    Candle,
    backend::webgpu::GROUPS,
    bench::{greedy, q4_k_m_type, random_gguf, seven_b_config},
    llama::{LlamaConfig, load_llama_gguf},
    weights::{Dtype, gguf::GgufFile},
};
use rscapret_tests::browser::{Browser, Page, Workbench};
use rscapret_trainer::files::FileSource;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{agree_with_the_command_line, assert_quiet_console, tampered};

/// What fifty sentences ask for, in three ways.
const WANTED: [&str; 17] = [
    "airplanes",
    "a beach with white waves",
    "cars in a parking lot",
    "a baseball diamond",
    "boats in a harbour",
    "dense houses",
    "a river through a forest",
    "green trees",
    "a golf course",
    "tennis courts",
    "storage tanks",
    "an intersection with cars",
    "a freeway",
    "an overpass",
    "mobile homes",
    "a runway with white lines",
    "fields",
];

/// In the browser on WebGPU, on the command line on the CPU: captions of a picture of every kind, fifty rankings. With
/// `RSCAPRET_WHOLE_ALBUM=1` all captions, which takes the processor that plays the GPU some ten minutes.
#[test]
fn the_page_on_a_gpu_and_the_command_line_agree() {
    let page = Page::ready_on_gpu();
    let runs_on = page.text("runs-on");
    assert!(runs_on.starts_with("WebGPU on "), "{runs_on}");
    let ways = |wanted: &str| [wanted.to_string(), format!("there is {wanted}"), format!("{wanted} next to a road")];
    let sentences: Vec<String> = WANTED.into_iter().flat_map(ways).take(50).collect();
    let pictures = if std::env::var_os("RSCAPRET_WHOLE_ALBUM").is_some() { usize::MAX } else { 21 };
    agree_with_the_command_line(&page, pictures, &sentences);
    assert_quiet_console(&page);
}

/// SwiftShader has no 16-bit floats and subgroups of 4: what the tests on lavapipe do not have.
#[test]
fn the_gpus_operations_are_the_cpus() {
    let folder = Workbench::folder().expect("expected the workbench but found none\n`cargo xtask test` builds it");
    let workbench = Workbench::open_in(&folder, Browser::start_with_gpu());
    for subgroups in [true, false] {
        workbench.order(&json!({ "check": { "subgroups": subgroups } }));
        let adapter = workbench.answer().unwrap().unwrap();
        assert!(adapter.contains(&format!("subgroups: {subgroups}")), "{adapter}");
        assert!(adapter.contains("shader_f16: false"), "{adapter}");
        let mut right = Vec::new();
        while let Some(group) = workbench.answer().unwrap_or_else(|error| panic!("after {right:?}: {error}")) {
            right.push(group);
        }
        assert_eq!(right, GROUPS);
    }
    let console = workbench.browser().console();
    assert!(console.is_empty(), "{console:#?}");
}

/// Two layers of LLaMA-2-7B's shape with made-up weights, in 4 bits, through little of the browser's own memory. All 32 load
/// just so, but the processor plays the GPU too slowly for them.
#[test]
fn weights_go_from_a_file_to_the_gpu_in_pieces() {
    let folder = Workbench::folder().expect("expected the workbench but found none\n`cargo xtask test` builds it");
    let config = LlamaConfig { num_hidden_layers: 2, ..seven_b_config() };
    for name in ["Q4_0", "Q4_K_M"] {
        let dtype = |tensor: &str| match name {
            "Q4_0" => Dtype::Q4_0,
            _ => q4_k_m_type(tensor, config.num_hidden_layers),
        };
        let place = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = place.path().join("7b.gguf");
        let mut out = BufWriter::new(fs::File::create(&path).unwrap());
        random_gguf(&config, dtype, &mut out).unwrap();
        out.into_inner().unwrap();
        let size = fs::metadata(&path).unwrap().len();
        assert!((350_000_000..450_000_000).contains(&size), "{size}");

        let (ids, steps) = ([1, 15_043, 3_186, 29_892, 920], 4);
        let expected = {
            let cpu = Candle::cpu();
            let file = block_on(GgufFile::open(FileSource::open(&path).unwrap())).unwrap();
            let llama = block_on(load_llama_gguf(&cpu, file)).unwrap();
            block_on(greedy(&cpu, &llama, &ids, steps, || {})).unwrap()
        };

        let workbench = Workbench::open_in(&folder, Browser::start_with_gpu());
        workbench.browser().type_into("input", path.to_str().unwrap());
        workbench.order(&json!({ "decode": { "ids": ids, "steps": steps, "gpu": true, "timed": false } }));
        let answer: Value = serde_json::from_str(&workbench.answer().unwrap().unwrap()).unwrap();
        assert_eq!(answer["ids"], json!(expected), "{name}");
        let grown = answer["wasm_growth"].as_f64().unwrap();
        assert!(grown <= 64.0 * 1024.0 * 1024.0, "the memory of wasm grew by {grown} bytes");
    }
}

#[test]
fn a_lost_gpu_is_found_again() {
    // A few pictures: it looks at all of them twice, and the GPU is played by the processor.
    let folder = tampered(|bundle| {
        let list = bundle.join("album/album.json");
        let entries: Vec<Value> = serde_json::from_slice(&fs::read(&list).unwrap()).unwrap();
        fs::write(list, json!(entries[..6]).to_string()).unwrap();
    });
    let page = Page::ready_on_gpu_at(folder.path());
    page.wait_idle();
    let first = page.images()[0];
    let caption = page.caption_of(first);
    page.search("a beach");
    let (images, scores) = (page.images(), page.scores());
    page.click("[data-testid=show-all]");
    let indexed = page.text("indexed");

    // In the middle of a caption.
    let second = page.images()[1];
    page.click(&format!("[data-image='{second}'] [data-testid=open]"));
    page.kill_gpu_process();
    assert!(!page.finished_caption().is_empty());
    page.wait_for(
        "the notice",
        "return document.querySelector('[data-testid=notice]')?.textContent.includes('loaded again')",
    );
    page.click("[data-testid=close]");
    page.wait_idle();
    assert!(page.text("runs-on").starts_with("WebGPU on "), "{}", page.text("runs-on"));
    let count = |text: &str| text.split(',').next().unwrap().to_string();
    assert_eq!(count(&page.text("indexed")), count(&indexed));
    assert_eq!(page.caption_of(first), caption);
    page.search("a beach");
    assert_eq!((page.images(), page.scores()), (images, scores));
}
