//! Bytes from the page's own server.

use js_sys::{Promise, Reflect, Uint8Array};
use rscapret::{Context, Error, Result};
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::JsFuture;
use web_sys::{ReadableStreamDefaultReader, RequestCache, RequestInit, Response};

use super::{garbage, scope};

/// Largest file of which no size is known beforehand.
const MAX_UNKNOWN: usize = 16 << 20;

/// A file that is on its way. Several at once spare the round trips.
pub struct Fetch {
    url: String,
    answer: Promise,
}

impl Fetch {
    /// Asks for a file.
    pub fn begin(url: String) -> Self {
        let answer = scope().fetch_with_str(&url);
        Fetch { url, answer }
    }

    /// Asks for a file of which the browser's cache takes no copy.
    pub fn begin_uncached(url: String) -> Self {
        let options = RequestInit::new();
        options.set_cache(RequestCache::NoStore);
        let answer = scope().fetch_with_str_and_init(&url, &options);
        Fetch { url, answer }
    }

    /// Hands on the file's pieces as they arrive.
    ///
    /// # Errors
    /// [`Error::Io`] when the server cannot be reached or answers with another status than 200; the sink's own errors.
    pub async fn pieces(self, sink: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        stream(self.answer, sink).await.at(&self.url)
    }

    /// The bytes of a small file.
    ///
    /// # Errors
    /// As [`Fetch::pieces`]; [`Error::Io`] when it is larger than any file of this kind.
    pub async fn whole(self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let sink = |piece: &[u8]| {
            if bytes.len().saturating_add(piece.len()) > MAX_UNKNOWN {
                return Err(Error::Io(format!("expected at most {MAX_UNKNOWN} bytes but found more")));
            }
            bytes.extend_from_slice(piece);
            Ok(())
        };
        self.pieces(sink).await?;
        Ok(bytes)
    }
}

async fn stream(answer: Promise, mut sink: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let response: Response = wait(answer).await?.unchecked_into();
    if !response.ok() {
        return Err(Error::Io(format!(
            "expected status 200 but found {} {}\nis the page served whole? `cargo xtask demo` builds and serves it",
            response.status(),
            response.status_text()
        )));
    }
    let Some(body) = response.body() else {
        return Err(Error::Io("expected a body but found none".into()));
    };
    let reader: ReadableStreamDefaultReader = body.get_reader().unchecked_into();
    loop {
        let step = wait(reader.read()).await?;
        if get(&step, "done").is_truthy() {
            return Ok(());
        }
        let piece: Uint8Array = get(&step, "value").unchecked_into();
        let bytes = piece.to_vec();
        garbage::free(&piece.buffer());
        if let Err(error) = sink(&bytes) {
            // Nobody reads on; whether the server hears of it changes nothing here.
            let _ = reader.cancel();
            return Err(error);
        }
    }
}

async fn wait(promise: impl Into<JsFuture>) -> Result<JsValue> {
    promise.into().await.map_err(|e| {
        let cause = get(&e, "message").as_string().unwrap_or_else(|| "no reason given".into());
        Error::Io(format!("expected an answer but found: {cause}\nis the server still running?"))
    })
}

fn get(object: &JsValue, key: &str) -> JsValue {
    Reflect::get(object, &JsValue::from_str(key)).unwrap_or(JsValue::UNDEFINED)
}
