//! The benchmark's worker: measures the models as the page runs them. `cargo xtask bench` builds and serves it; the page
//! does not contain it.

use js_sys::{JSON, Reflect, Uint8Array};
use rscapret::{
    Candle, Error, Result,
    bench::{Demo, Place, Row, run},
};
use wasm_bindgen::{JsCast, JsValue, closure::Closure};
use wasm_bindgen_futures::{JsFuture, spawn_local};
use web_sys::{DedicatedWorkerGlobalScope, MessageEvent, Response};

fn main() {
    console_error_panic_hook::set_once();
    // One message, a JSON array of names, begins it.
    let begin = |event: MessageEvent| {
        let names = event.data().as_string().unwrap_or_default();
        spawn_local(async move {
            if let Err(error) = measure(&names).await {
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

async fn measure(names: &str) -> Result<()> {
    let names: Vec<String> = serde_json::from_str(names).map_err(|e| Error::Malformed(e.to_string()))?;
    let demo = Demo { llm: fetch("llm.gguf").await, vision: fetch("vision.gguf").await };
    let place = Place {
        backend: Candle::cpu(),
        clock,
        suffix: "/chromium",
        conditions: "wasm SIMD, 1 thread".into(),
        patience: 3,
    };
    let emit = |row: Row| {
        post(&serde_json::to_string(&row).map_err(|e| Error::Io(e.to_string()))?.into());
        Ok(())
    };
    run(&place, &names, demo, emit).await?;
    post(&JsValue::NULL);
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
