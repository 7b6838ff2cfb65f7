//! The GPU in headless Chromium, played by the processor: SwiftShader.

use std::{
    fs,
    io::BufWriter,
    path::Path,
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
    bundle::sha256_hex,
    llama::{LlamaConfig, load_llama_gguf},
    weights::{Dtype, gguf::GgufFile},
};
use rscapret_tests::{
    browser::{Browser, Page, Workbench, Worker, own_gpu},
    models::load_demo,
};
use rscapret_trainer::files::FileSource;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    agree_with_the_command_line, assert_quiet_console, bundle_files, change_manifest, stopped_caption,
    storage::{few_pictures, with_script},
    tampered, wait_notice,
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

/// A GPU that is a program would be slower than the processor by itself; the page's address can ask for it, or for none.
#[test]
fn a_program_that_plays_a_gpu_is_taken_where_it_is_asked_for() {
    let folder = tampered(few_pictures);
    let page = Page::open_in(folder.path(), Browser::start_with_gpu());
    let runs_on = || {
        page.wait_ready();
        let because = page.script("return document.querySelector('[data-testid=runs-on]').title");
        (page.text("runs-on"), because.as_str().unwrap().to_string())
    };
    let (on, because) = runs_on();
    assert_eq!(on, "CPU SIMD, 1 thread (no GPU here)");
    assert!(because.contains("is a program on the processor"), "{because}");
    assert!(!page.caption_of(0).is_empty());

    page.open(&format!("{}?device=cpu", page.url()));
    assert_eq!(runs_on(), ("CPU SIMD, 1 thread".into(), "the page's address says `device=cpu`".into()));
    page.open(&format!("{}?device=webgpu", page.url()));
    assert!(runs_on().0.starts_with("WebGPU on "), "{:?}", runs_on());

    page.open(&format!("{}?device=gpu", page.url()));
    page.wait_for("the failure to be told", "return !!document.querySelector('[data-testid=failure]')");
    let failure = page.text("failure");
    assert!(failure.contains("?device=: expected `auto`, `webgpu` or `cpu` but found `gpu`"), "{failure}");
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

/// What runs before the worker: tells a channel of each answer that is read, its bytes, and how often something was sent between
/// asking for it and hearing it.
const SENT_MEANWHILE: &str = "
    const channel = new BroadcastChannel('gpu');
    let sent = 0;
    const submit = GPUQueue.prototype.submit;
    GPUQueue.prototype.submit = function (...buffers) {
      sent += 1;
      return submit.apply(this, buffers);
    };
    const map = GPUBuffer.prototype.mapAsync;
    GPUBuffer.prototype.mapAsync = function (mode, offset, bytes) {
      const before = sent;
      return map.call(this, mode, offset, bytes).then(() => channel.postMessage([bytes, sent - before]));
    };";

#[test]
fn the_next_step_is_sent_before_the_answer_of_this_one_is_read() {
    let page = listening(with_script(SENT_MEANWHILE).path());
    page.script("heard.length = 0");
    let caption = page.caption_of(0);
    let heard: Vec<(u64, u64)> = serde_json::from_value(page.script("return heard")).unwrap();
    let tokens: Vec<u64> = heard.iter().filter(|(bytes, _)| *bytes == 4).map(|(_, sent)| *sent).collect();
    assert!(tokens.len() > caption.split_whitespace().count(), "{heard:?}");
    // After the last one there is none.
    assert!(tokens[..tokens.len() - 1].iter().all(|&sent| sent >= 1), "{heard:?}");
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
        // SwiftShader has none.
        assert!(own_gpu() || adapter.contains("shader_f16: false"), "{adapter}");
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
    let indexed = indexed_in(&page);

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
    assert_eq!(indexed_in(&page), indexed);
    assert_eq!(page.caption_of(first), caption);
    page.search("a beach");
    assert_eq!((page.images(), page.scores()), (images, scores));

    // The weights came from the browser's storage.
    let origin = page.url();
    let requests = page.into_requests().of(&origin);
    let weights = requests.0.iter().filter(|request| request.url.ends_with("/llm.gguf"));
    assert_eq!(weights.count(), 1, "{requests:#?}");
}

/// How many pictures are indexed, of how many.
fn indexed_in(page: &Page) -> String {
    page.text("indexed").split(',').next().unwrap().to_string()
}

#[test]
fn where_a_lost_model_cannot_be_loaded_again_the_page_says_so_and_offers_to_try_again() {
    let folder = tampered(few_pictures);
    let page = Page::ready_on_gpu_at(folder.path());
    page.wait_idle();
    page.click("[data-testid=discard]");
    page.wait_for("the removal", "return !document.querySelector('[data-testid=discard]')");
    page.kill_gpu_process();
    page.click("[data-image='0'] [data-testid=open]");
    page.wait_for("the failure to be told", "return !!document.querySelector('[data-testid=failure]')");
    assert_eq!(page.text("doing"), "Stopped");
    let why = "expected to read the file but found it changed or gone";
    assert!(page.text("failure").contains(why), "{}", page.text("failure"));

    // Whoever asked hears it too, and whoever asks now.
    let refused = "return document.querySelector('dialog[open] [data-testid=caption]')?.dataset.state === 'failed'";
    for image in [0, 1] {
        page.wait_for("the refusal", refused);
        assert!(page.text("caption").contains(why), "{image}: {}", page.text("caption"));
        page.click("[data-testid=close]");
        page.wait_for("the large view to close", "return !document.querySelector('[data-testid=caption]')");
        if image == 0 {
            page.click("[data-image='1'] [data-testid=open]");
        }
    }
    page.click("[data-testid=failure] button");
    page.wait_ready();
    assert!(!page.caption_of(0).is_empty());
}

/// The page on a GPU, all pictures indexed, which keeps in `heard` what the worker's channel tells.
fn listening(folder: &Path) -> Page {
    let browser = Browser::start_with_gpu();
    let listen = "window.heard = [];
        window.channel = new BroadcastChannel('gpu');
        channel.onmessage = ({data}) => heard.push(data);";
    browser.devtools("Page.addScriptToEvaluateOnNewDocument", &json!({ "source": listen }));
    let page = Page::open_on_gpu(folder, browser);
    page.wait_ready();
    page.wait_idle();
    page
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
    let page = listening(folder.path());
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

/// What runs before the worker: a GPU that has no more than 8 MB for a device as long as there is another, and tells a channel
/// what it refuses and which devices end.
const ROOM_FOR_ONE: &str = "
    const channel = new BroadcastChannel('gpu');
    const make = GPUDevice.prototype.createBuffer;
    const end = GPUDevice.prototype.destroy;
    const living = new Map();
    GPUDevice.prototype.destroy = function () {
      if (living.delete(this)) channel.postMessage('ended');
      return end.call(this);
    };
    GPUDevice.prototype.createBuffer = function (description) {
      const before = living.get(this) ?? 0;
      const after = before + description.size;
      living.set(this, after);
      if (living.size > 1 && after > 8e6) {
        if (before <= 8e6) channel.postMessage('refused');
        const error = new GPUOutOfMemoryError('no more');
        this.dispatchEvent(new GPUUncapturedErrorEvent('uncapturederror', {error, cancelable: true}));
      }
      return make.call(this, description);
    };";

#[test]
fn where_a_gpu_has_no_room_for_two_models_the_one_before_makes_room() {
    let folder = with_script(ROOM_FOR_ONE);
    let page = listening(folder.path());
    let (model, indexed) = (page.text("model"), indexed_in(&page));
    let caption = page.caption_of(0);

    // The digests are right, the maps are another model's, which is seen last: the one before comes again.
    let bad = TempDir::new().unwrap();
    let files = bundle_files(bad.path(), |folder| {
        let path = folder.join("projections.safetensors");
        let (mut bytes, key) = (fs::read(&path).unwrap(), b"\"llm_sha256\":\"");
        let digest = bytes.windows(key.len()).position(|part| part == key).unwrap() + key.len();
        bytes[digest] = if bytes[digest] == b'0' { b'1' } else { b'0' };
        change_manifest(folder, |bundle| bundle["files"]["projections"]["sha256"] = sha256_hex(&bytes).into());
        fs::write(path, bytes).unwrap();
    });
    page.type_into("[data-testid=open-model]", &files);
    wait_notice(&page, "Your model: projections.safetensors: expected projections with llm_sha256 = ");
    wait_notice(&page, "The model: it had to make room for yours; it was loaded again and goes on");
    page.wait_idle();
    assert_eq!(page.script("return heard.splice(0)"), json!(["refused", "ended", "ended", "ended"]));
    assert_eq!((page.text("model"), indexed_in(&page)), (model, indexed.clone()));
    assert!(page.text("runs-on").starts_with("WebGPU on "), "{}", page.text("runs-on"));
    assert_eq!(page.text("tile-caption"), caption);

    // A good one takes the place.
    let good = TempDir::new().unwrap();
    let files = bundle_files(good.path(), |folder| change_manifest(folder, |bundle| bundle["name"] = "mine".into()));
    page.type_into("[data-testid=open-model]", &files);
    page.wait_for(
        "the other model",
        "return document.querySelector('[data-testid=model]')?.textContent.startsWith('mine, ')",
    );
    page.wait_idle();
    assert_eq!(page.script("return heard.splice(0)"), json!(["refused", "ended", "ended"]));
    assert!(page.text("runs-on").starts_with("WebGPU on "), "{}", page.text("runs-on"));
    assert_eq!(indexed_in(&page), indexed);
    assert_eq!(page.caption_of(0), caption);
    assert_quiet_console(&page);
}
