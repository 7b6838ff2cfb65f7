//! Time: the clock, and pauses in which the browser delivers messages.

use js_sys::Promise;
use wasm_bindgen::{JsValue, UnwrapThrowExt};
use wasm_bindgen_futures::JsFuture;
use web_sys::MessageChannel;

use super::scope;

thread_local! {
    static CHANNEL: MessageChannel = MessageChannel::new().expect_throw("expected a message channel");
}

/// Returns to the event loop once. By a message to oneself: timers wait 4 ms from the fifth on.
pub async fn pause() {
    let promise = CHANNEL.with(|channel| {
        Promise::new(&mut |resolve, _| {
            channel.port1().set_onmessage(Some(&resolve));
            channel.port2().post_message(&JsValue::NULL).expect_throw("expected an open port");
        })
    });
    // It is never rejected.
    let _ = JsFuture::from(promise).await;
}

/// Milliseconds since the worker began.
pub fn now_ms() -> f64 {
    scope().performance().map_or(0.0, |p| p.now())
}
