//! The wire to the worker.

use js_sys::{Array, ArrayBuffer};
use leptos::prelude::*;
use wasm_bindgen::{JsCast, JsValue, UnwrapThrowExt, closure::Closure};
use web_sys::{
    Blob, BlobPropertyBag, ErrorEvent, MessageEvent, Url, UrlSearchParams, Worker, WorkerOptions, WorkerType,
};

use super::state::{Phase, State};
use crate::protocol::{self, Device, Request, Response};

/// The module that Trunk makes of the binary `worker`.
const WORKER: &str = "worker_loader.js";
/// Where Trunk copies the bundle to.
const BUNDLE: &str = "models/demo/";

thread_local! {
    static WIRE: std::cell::OnceCell<Worker> = const { std::cell::OnceCell::new() };
}

/// Starts the worker and hands its messages to `state`.
pub fn connect(state: State) {
    let options = WorkerOptions::new();
    options.set_type(WorkerType::Module);
    let Ok(worker) = Worker::new_with_options(&resolve(WORKER), &options) else {
        state.phase.set(Phase::Failed("expected a worker but this browser cannot start one".into()));
        return;
    };

    let receive = Closure::<dyn FnMut(MessageEvent)>::new(move |event: MessageEvent| {
        match protocol::unpack::<Response>(event.data()) {
            Ok((response, beside)) => {
                let url = beside.dyn_into().ok().and_then(|bytes| object_url(&bytes, &response));
                state.receive(response, url);
            }
            Err(cause) => state.phase.set(Phase::Failed(cause)),
        }
    });
    worker.set_onmessage(Some(receive.as_ref().unchecked_ref()));
    receive.forget();

    // The worker's code did not arrive, or it panicked: nothing more will come from it.
    let fail = Closure::<dyn FnMut(ErrorEvent)>::new(move |event: ErrorEvent| {
        let cause = match event.message() {
            text if text.is_empty() => "the worker could not be started".into(),
            text => format!("the worker stopped: {text}"),
        };
        state.phase.set(Phase::Failed(cause));
    });
    worker.set_onerror(Some(fail.as_ref().unchecked_ref()));
    fail.forget();

    WIRE.with(|wire| wire.set(worker)).expect_throw("expected one worker");
}

/// Sends a request.
pub fn send(request: &Request) {
    send_with(request, &JsValue::NULL);
}

/// Sends a request and what belongs to it; an `ArrayBuffer` is moved, not copied.
pub fn send_with(request: &Request, beside: &JsValue) {
    let message = protocol::pack(request, beside).expect_throw("expected a message that JSON can hold");
    WIRE.with(|wire| {
        if let Some(worker) = wire.get() {
            worker
                .post_message_with_transfer(&message, &protocol::transfer(beside))
                .expect_throw("expected a message that can be sent");
        }
    });
}

/// Absolute address of the embedded bundle.
pub fn bundle_base() -> String {
    resolve(BUNDLE)
}

/// What the page's address wants to compute.
///
/// # Errors
/// In words, for a device that there is not.
pub fn device() -> Result<Device, String> {
    let search = window().location().search().unwrap_or_default();
    let word = UrlSearchParams::new_with_str(&search).ok().and_then(|parameters| parameters.get("device"));
    word.map_or(Ok(Device::default()), |word| Device::named(&word))
}

fn resolve(relative: &str) -> String {
    document()
        .base_uri()
        .ok()
        .flatten()
        .and_then(|base| Url::new_with_base(relative, &base).ok())
        .map_or_else(|| relative.to_string(), |url| url.href())
}

/// An address for the bytes of a picture that only this tab knows.
fn object_url(bytes: &ArrayBuffer, response: &Response) -> Option<String> {
    let Response::Picture { mime, .. } = response else { return None };
    let options = BlobPropertyBag::new();
    options.set_type(mime);
    let blob = Blob::new_with_buffer_source_sequence_and_options(&Array::of1(bytes), &options).ok()?;
    Url::create_object_url_with_blob(&blob).ok()
}
