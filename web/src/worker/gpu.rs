//! Opening the browser's GPU.

use rscapret::{Result, WebGpu, backend::webgpu::Options};
use wasm_bindgen::prelude::wasm_bindgen;

#[wasm_bindgen(module = "/src/worker/subgroups.js")]
extern "C" {
    #[wasm_bindgen(js_name = askForSubgroups, catch)]
    async fn ask_for_subgroups() -> std::result::Result<wasm_bindgen::JsValue, wasm_bindgen::JsValue>;
}

/// Opens the most powerful GPU that the browser offers, with what it can do.
///
/// # Errors
/// As [`WebGpu::open`].
pub async fn open() -> Result<WebGpu> {
    // Whatever goes wrong here goes wrong again below, with its reason.
    let subgroups = ask_for_subgroups().await.is_ok_and(|granted| granted.is_truthy());
    WebGpu::open(Options { subgroups, ..Options::default() }).await
}
