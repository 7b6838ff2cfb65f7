//! The GPU in headless Chromium, played by the processor: SwiftShader.

use std::{
    fs,
    io::BufWriter,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use pollster::block_on;
use rscapret::{
    Candle,
    backend::webgpu::GROUPS,
    bench::{greedy, q4_k_m_type, random_gguf, seven_b_config},
    llama::{LlamaConfig, load_llama_gguf},
    weights::{Dtype, gguf::GgufFile},
};
use rscapret_tests::{
    browser::{Browser, Page, Workbench, Worker},
    models::load_demo,
};
use rscapret_trainer::files::FileSource;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    agree_with_the_command_line, assert_quiet_console, stopped_caption,
    storage::{few_pictures, with_script},
    tampered,
};

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

/// A step is sent before the token of the last one is read: that one, and the one that it makes, may still come.
#[test]
fn a_caption_on_a_gpu_stops_within_two_tokens() {
    let page = Page::ready_on_gpu_at(tampered(few_pictures).path());
    let (stood, part) = stopped_caption(&page);
    let model = load_demo(Candle::cpu()).unwrap();
    let tokens = |text: &str| model.tokenizer().encode(text, false).unwrap().len();
    assert!(!stood.trim().is_empty() && part.starts_with(stood.trim_end()), "{stood:?} {part:?}");
    assert!(tokens(&part) <= tokens(&stood) + 2, "{stood:?} {part:?}");
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

/// Two layers of LLaMA-2-7B's shape with made-up weights, in 4 bits, through little of the browser's own memory. All 32, 3.8 and
/// 4.1 GB, with `RSCAPRET_WHOLE_7B=1`: the processor takes hours to play the GPU, and as much memory twice.
#[test]
fn weights_go_from_a_file_to_the_gpu_in_pieces() {
    let folder = Workbench::folder().expect("expected the workbench but found none\n`cargo xtask test` builds it");
    let whole = std::env::var_os("RSCAPRET_WHOLE_7B").is_some();
    let (layers, sizes) = if whole { (32, 3_800_000_000..4_100_000_000) } else { (2, 390_000_000..450_000_000) };
    let config = LlamaConfig { num_hidden_layers: layers, ..seven_b_config() };
    for name in ["Q4_0", "Q4_K_M"] {
        // llama.cpp keeps the head in 6 bits in both.
        let dtype = |tensor: &str| match name {
            "Q4_0" if tensor != "lm_head.weight" => Dtype::Q4_0,
            _ => q4_k_m_type(tensor, config.num_hidden_layers),
        };
        let place = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = place.path().join("7b.gguf");
        let mut out = BufWriter::new(fs::File::create(&path).unwrap());
        random_gguf(&config, dtype, &mut out).unwrap();
        out.into_inner().unwrap();
        let size = fs::metadata(&path).unwrap().len();
        assert!(sizes.contains(&size), "{name}: {size}");

        let (ids, steps) = ([1, 15_043, 3_186, 29_892, 920], 4);
        let expected = {
            let cpu = Candle::cpu();
            let file = block_on(GgufFile::open(FileSource::open(&path).unwrap())).unwrap();
            let llama = block_on(load_llama_gguf(&cpu, file)).unwrap();
            block_on(greedy(&cpu, &llama, &ids, steps, || {})).unwrap()
        };

        let workbench = Workbench::open_in(&folder, Browser::start_with_gpu());
        if whole {
            workbench.browser().be_patient(Duration::from_secs(6 * 3600));
        }
        workbench.browser().type_into("input", path.to_str().unwrap());
        let heap = Watched::begin(workbench.browser().worker());
        workbench.order(&json!({ "decode": { "ids": ids, "steps": steps, "gpu": true, "timed": false } }));
        let answer: Value = serde_json::from_str(&workbench.answer().unwrap().unwrap()).unwrap();
        let (samples, grown_heap) = heap.end();
        assert_eq!(answer["ids"], json!(expected), "{name}");
        let grown = answer["wasm_growth"].as_f64().unwrap();
        println!("{name}: {size} bytes; wasm grew by {grown}, JavaScript by {grown_heap} in {samples} samples");
        assert!(grown <= 64.0 * MIB, "the memory of wasm grew by {grown} bytes");
        assert!(samples >= 20, "{samples} samples say little");
        assert!(grown_heap <= 32.0 * MIB, "the heap of JavaScript grew by {grown_heap} bytes");
    }
}

const MIB: f64 = 1024.0 * 1024.0;

/// A worker's heap of JavaScript, looked at again and again.
struct Watched {
    end: Arc<AtomicBool>,
    looks: JoinHandle<(usize, f64)>,
}

impl Watched {
    fn begin(mut worker: Worker) -> Watched {
        worker.collect_garbage();
        let before = worker.heap().bytes();
        let end = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&end);
        let looks = thread::spawn(move || {
            let (mut samples, mut most) = (0, before);
            while !ended.load(Ordering::Relaxed) {
                most = f64::max(most, worker.heap().bytes());
                samples += 1;
                thread::sleep(Duration::from_millis(20));
            }
            (samples, most - before)
        });
        Watched { end, looks }
    }

    /// How often it was looked at, and by how many bytes it had grown at the most, garbage included.
    fn end(self) -> (usize, f64) {
        self.end.store(true, Ordering::Relaxed);
        self.looks.join().unwrap()
    }
}

#[test]
fn a_lost_gpu_is_found_again() {
    // A few pictures: it looks at all of them twice, and the GPU is played by the processor.
    let folder = tampered(few_pictures);
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

    // The weights came from the browser's storage.
    let origin = page.url();
    let requests = page.into_requests().of(&origin);
    let weights = requests.0.iter().filter(|request| request.url.ends_with("/llm.gguf"));
    assert_eq!(weights.count(), 1, "{requests:#?}");
}

/// What runs before the worker: a GPU that has no more than 8 MB, and tells a channel of its end and of what comes after.
const SMALL_GPU: &str = "
    const channel = new BroadcastChannel('gpu');
    const make = GPUDevice.prototype.createBuffer;
    const devices = new Map();
    GPUDevice.prototype.createBuffer = function (description) {
      if (!devices.has(this)) {
        devices.set(this, {bytes: 0});
        this.lost.then(({reason}) => {
          devices.get(this).lost = true;
          channel.postMessage(reason);
        });
      }
      const device = devices.get(this);
      if (device.lost) channel.postMessage('a buffer of a lost device');
      device.bytes += description.size;
      if (device.bytes > 8e6) {
        const error = new GPUOutOfMemoryError('no more');
        this.dispatchEvent(new GPUUncapturedErrorEvent('uncapturederror', {error, cancelable: true}));
      }
      return make.call(this, description);
    };";

#[test]
fn a_gpu_without_the_memory_is_given_back_and_the_page_says_what_was_needed() {
    let folder = with_script(SMALL_GPU);
    let browser = Browser::start_with_gpu();
    let listen = "window.heard = [];
        window.channel = new BroadcastChannel('gpu');
        channel.onmessage = ({data}) => heard.push(data);";
    browser.devtools("Page.addScriptToEvaluateOnNewDocument", &json!({ "source": listen }));
    let page = Page::open_in(folder.path(), browser);
    page.wait_ready();
    page.wait_idle();
    assert_eq!(page.text("runs-on"), "CPU SIMD, 1 thread (the GPU does not take this model)");
    let because = page.script("return document.querySelector('[data-testid=runs-on]').title");
    let because = because.as_str().unwrap();
    let told =
        because.split_once("a model that needs ").and_then(|(_, rest)| rest.split_once(" MB of the GPU's memory: "));
    let (need, cause) = told.unwrap_or_else(|| panic!("{because}"));
    assert!(need.parse::<u32>().unwrap() > 8, "{because}");
    // Behind the tensor that there was no room for.
    assert!(cause.contains(": expected enough memory on the GPU but found less"), "{because}");
    // The device was given back, with all that was on it, and nobody asked it for more.
    assert_eq!(page.script("return heard"), json!(["destroyed"]));
    assert!(page.caption_of(0).split_whitespace().count() >= 3);
    assert_quiet_console(&page);
}
