//! The workbench's worker: measures the models as the page runs them, and compares the GPU's operations with the CPU's.
//! `cargo xtask bench` and `cargo xtask test` build and serve it; the page does not contain it.

use js_sys::{Array, ArrayBuffer, JSON, Reflect, Uint8Array, WebAssembly::Memory};
use rscapret::{
    Backend, Candle, Error, Result, WebGpu,
    backend::webgpu::{GROUPS, Options, check},
    bench::{Demo, Place, Row, greedy, run, run_gpu},
    llama::load_llama_gguf,
    weights::gguf::GgufFile,
};
use rscapret_web::worker::{blob::BlobSource, gpu};
use serde::Deserialize;
use wasm_bindgen::{JsCast, JsValue, closure::Closure};
use wasm_bindgen_futures::{JsFuture, spawn_local};
use web_sys::{Blob, DedicatedWorkerGlobalScope, MessageEvent, Response};

fn main() {
    console_error_panic_hook::set_once();
    // One message begins it.
    let begin = |event: MessageEvent| {
        let message: Array = event.data().unchecked_into();
        let (order, file) = (message.get(0).as_string().unwrap_or_default(), message.get(1));
        spawn_local(async move {
            if let Err(error) = obey(&order, file).await {
                let answer = js_sys::Object::new();
                let _ = Reflect::set(&answer, &"error".into(), &error.to_string().into());
                post(&answer);
            }
        });
    };
    let begin = Closure::<dyn FnMut(MessageEvent)>::new(begin);
    scope().set_onmessage(Some(begin.as_ref().unchecked_ref()));
    begin.forget();
    post(&"awake".into());
}

/// What to do, as JSON.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Order {
    /// Benchmarks by their names, all where there are none; on the GPU, `short` where a program plays it, or the processor.
    Measure { names: Vec<String>, gpu: bool, short: bool },
    /// The operations of the GPU, with subgroups or without.
    Check { subgroups: bool },
    /// The ids that follow `ids` in the chosen GGUF, on the GPU or the processor; `timed`, a second time by the clock.
    Decode { ids: Vec<u32>, steps: usize, gpu: bool, timed: bool },
}

async fn obey(order: &str, file: JsValue) -> Result<()> {
    match serde_json::from_str(order).map_err(|e| Error::Malformed(e.to_string()))? {
        Order::Measure { names, gpu: true, short } => measure_on_gpu(&names, short).await?,
        Order::Measure { names, gpu: false, .. } => {
            run(&place(Candle::cpu(), "/chromium", "wasm SIMD, 1 thread"), &names, demo().await, emit).await?;
        }
        Order::Check { subgroups } => compare(subgroups).await?,
        Order::Decode { ids, steps, gpu, timed } => {
            let file: Blob = file.dyn_into().map_err(|_| Error::Config("expected a file but found none".into()))?;
            match gpu {
                true => decode(&gpu::open().await?, file, &ids, steps, timed).await?,
                false => decode(&Candle::cpu(), file, &ids, steps, timed).await?,
            }
        }
    }
    post(&JsValue::NULL);
    Ok(())
}

/// Sends the adapter, then each group of operations that is right; the first that is wrong is the error.
async fn compare(subgroups: bool) -> Result<()> {
    let gpu = match subgroups {
        true => gpu::open().await?,
        false => WebGpu::open(Options { subgroups: false, ..Options::default() }).await?,
    };
    post(&format!("{:?}", gpu.adapter()).into());
    for group in GROUPS {
        check(&gpu, group).await?;
        post(&(*group).into());
    }
    Ok(())
}

/// Sends the ids, the seconds of loading and, from the start, of each id, and by how many bytes the memory of wasm grew.
async fn decode<B: Backend>(backend: &B, file: Blob, ids: &[u32], steps: usize, timed: bool) -> Result<()> {
    let (begun, before) = (clock(), wasm_bytes());
    let llama = load_llama_gguf(backend, GgufFile::open(BlobSource(file)).await?).await?;
    // What is still on its way to a GPU is part of loading.
    backend.read(&backend.upload(&[0.0], &[1])?).await?;
    let loaded = clock();
    let found = greedy(backend, &llama, ids, steps, || {}).await?;
    let mut times = vec![clock()];
    if timed {
        // The first time compiled kernels.
        let again = greedy(backend, &llama, ids, steps, || times.push(clock())).await?;
        if again != found {
            return Err(Error::Backend(format!("expected {found:?} again but found {again:?}")));
        }
    }
    let answer = serde_json::json!({
        "ids": found,
        "load_seconds": loaded - begun,
        "seconds": times.iter().map(|time| time - times[0]).collect::<Vec<_>>(),
        "wasm_growth": wasm_bytes() - before,
    });
    post(&answer.to_string().into());
    Ok(())
}

fn wasm_bytes() -> f64 {
    let memory: Memory = wasm_bindgen::memory().unchecked_into();
    f64::from(memory.buffer().unchecked_into::<ArrayBuffer>().byte_length())
}

async fn measure_on_gpu(names: &[String], short: bool) -> Result<()> {
    // A browser does not tell by itself that the processor plays the GPU.
    let place = place(gpu::open().await?, "/chromium/webgpu", "WebGPU");
    // Weights go through the memory of wasm in pieces.
    let place = Place { patience: if short { 1 } else { place.patience }, short, room: true, ..place };
    run_gpu(&place, names, emit).await?;
    run(&place, names, demo().await, emit).await
}

fn place<B>(backend: B, suffix: &'static str, conditions: &str) -> Place<B> {
    Place { backend, clock, suffix, conditions: conditions.to_string(), patience: 3, short: false, room: false }
}

async fn demo() -> Demo {
    Demo { llm: fetch("llm.gguf").await, vision: fetch("vision.gguf").await }
}

fn emit(row: Row) -> Result<()> {
    post(&serde_json::to_string(&row).map_err(|e| Error::Io(e.to_string()))?.into());
    Ok(())
}

/// A file beside the page; `None` where it is absent.
async fn fetch(name: &str) -> Option<Vec<u8>> {
    let response: Response = JsFuture::from(scope().fetch_with_str(name)).await.ok()?.dyn_into().ok()?;
    let bytes = JsFuture::from(response.array_buffer().ok()?).await.ok()?;
    response.ok().then(|| Uint8Array::new(&bytes).to_vec())
}

/// Seconds since the worker began.
fn clock() -> f64 {
    scope().performance().map_or(f64::NAN, |performance| performance.now() / 1e3)
}

fn post(message: &JsValue) {
    if let Err(cause) = scope().post_message(message) {
        let cause = JSON::stringify(&cause).map(String::from).unwrap_or_default();
        wasm_bindgen::throw_str(&cause);
    }
}

fn scope() -> DedicatedWorkerGlobalScope {
    JsValue::from(js_sys::global()).unchecked_into()
}
