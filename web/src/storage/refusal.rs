//! Why a browser does not store something, in words.

use js_sys::{Promise, Reflect};
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::JsFuture;

/// A result, or the reason why there is none.
pub type Refusable<T> = Result<T, String>;

/// What the browser answers, an object of the type that its specification names.
pub(super) async fn answer<T: JsCast>(promise: Promise) -> Refusable<T> {
    JsFuture::from(promise).await.map(JsCast::unchecked_into).map_err(|error| reason(&error))
}

/// A `DOMException` in words.
pub(super) fn reason(error: &JsValue) -> String {
    let field = |key: &str| Reflect::get(error, &key.into()).ok().and_then(|value| value.as_string());
    match field("name").unwrap_or_default().as_str() {
        "QuotaExceededError" => "its storage is full".into(),
        "NoModificationAllowedError" => "another tab is using its storage".into(),
        // Private windows, in Firefox and Safari.
        "SecurityError" | "NotAllowedError" => "it refuses storage to this window".into(),
        name => format!("its storage fails ({})", field("message").filter(|m| !m.is_empty()).unwrap_or(name.into())),
    }
}
