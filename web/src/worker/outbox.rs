//! Messages to the page.

use js_sys::Uint8Array;
use wasm_bindgen::{JsValue, UnwrapThrowExt};

use super::scope;
use crate::protocol::{Response, pack, transfer};

/// Sends a message.
pub fn send(response: &Response) {
    post(response, &JsValue::NULL);
}

/// Sends a message with bytes beside it.
pub fn send_with(response: &Response, bytes: &[u8]) {
    post(response, &Uint8Array::from(bytes).buffer());
}

fn post(response: &Response, beside: &JsValue) {
    let message = pack(response, beside).expect_throw("expected a message that JSON can hold");
    scope().post_message_with_transfer(&message, &transfer(beside)).expect_throw("expected a message that can be sent");
}
