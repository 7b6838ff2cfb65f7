//! Messages to the page.

use js_sys::{ArrayBuffer, Uint8Array};
use wasm_bindgen::UnwrapThrowExt;

use super::scope;
use crate::protocol::{Response, pack, transfer};

/// Sends a message.
pub fn send(response: &Response) {
    post(response, None);
}

/// Sends a message with bytes beside it.
pub fn send_with(response: &Response, bytes: &[u8]) {
    post(response, Some(&Uint8Array::from(bytes).buffer()));
}

fn post(response: &Response, bytes: Option<&ArrayBuffer>) {
    let message = pack(response, bytes).expect_throw("expected a message that JSON can hold");
    scope().post_message_with_transfer(&message, &transfer(bytes)).expect_throw("expected a message that can be sent");
}
