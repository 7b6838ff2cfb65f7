//! Every message between the page and its worker.
//!
//! A message crosses as `[JSON text, what comes beside]`: the content of a picture, an `ArrayBuffer` that is transferred and
//! not copied; the files of a model, an array; or null. Every answer carries the id of its request, so that late answers find their place or none.

use js_sys::{Array, ArrayBuffer};
pub use rscapret::caption::Need;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use wasm_bindgen::{JsCast, JsValue};

/// A picture of this session, given by the worker.
pub type ImageId = u32;
/// A request, given by the page.
pub type RequestId = u32;

/// Page to worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Request {
    /// Loads the bundle and its album; the first message, once.
    Load {
        /// Absolute address of the bundle's folder, with a slash at the end.
        base: String,
        /// What is to compute.
        device: Device,
    },
    /// Captions a picture: [`Response::Piece`]s, then [`Response::Captioned`].
    Caption {
        /// Id of the request.
        id: RequestId,
        /// Which picture.
        image: ImageId,
        /// Somebody waits for it: it goes before the others.
        urgent: bool,
    },
    /// Ranks all indexed pictures: [`Response::Ranked`].
    Search {
        /// Id of the request.
        id: RequestId,
        /// By what.
        query: Query,
    },
    /// Takes a picture of the user, whose bytes come beside: [`Response::Picture`], or [`Response::Refused`].
    Add {
        /// Id of the request.
        id: RequestId,
        /// File name, for display.
        name: String,
    },
    /// Takes another model, the files of whose bundle come beside: [`Response::Replaced`], or [`Response::Refused`], and
    /// the model before stays; where there was no room for two it comes again, with [`Response::Recovered`]. Meanwhile
    /// [`Response::Loading`], at the end [`Response::Ready`].
    Open {
        /// Id of the request.
        id: RequestId,
    },
    /// Removes the model that came with the page from the browser's storage: [`Response::Kept`], or [`Response::Refused`].
    Discard {
        /// Id of the request.
        id: RequestId,
    },
    /// Stops a request, running or waiting. It is answered nevertheless.
    Cancel {
        /// Which.
        id: RequestId,
    },
}

/// What is to compute: in the page's address, `?device=`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Device {
    /// A GPU, if there is one, else the processor.
    #[default]
    Auto,
    /// The same, and a program that plays a GPU is one.
    Webgpu,
    /// The processor.
    Cpu,
}

impl Device {
    /// Of its word, as on the command line.
    ///
    /// # Errors
    /// In words, for another.
    pub fn named(word: &str) -> Result<Self, String> {
        match word {
            "auto" => Ok(Device::Auto),
            "webgpu" => Ok(Device::Webgpu),
            "cpu" => Ok(Device::Cpu),
            other => Err(format!(
                "?device=: expected `auto`, `webgpu` or `cpu` but found `{other}`\nchange it in the page's address"
            )),
        }
    }
}

/// What pictures are ranked by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Query {
    /// A sentence.
    Text(String),
    /// A picture.
    Image(ImageId),
}

/// Worker to page.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Response {
    /// The worker listens. What was sent before is lost.
    Awake,
    /// The bundle is on its way.
    Loading {
        /// What happens now.
        stage: Stage,
        /// Bytes of the whole bundle that have arrived.
        bytes: u64,
        /// Bytes of the whole bundle; 0 while unknown.
        total: u64,
    },
    /// Where the bundle's files are kept, as soon as that is known and whenever it changes.
    Kept(Kept),
    /// The model answers from now on.
    Ready(Facts),
    /// The model was lost or had to go; it is there again, the pictures are looked at again.
    Recovered {
        /// Why it was gone.
        cause: String,
    },
    /// A caption begins from its beginning once more.
    Again {
        /// The request.
        id: RequestId,
    },
    /// There is another model: all pictures are to be found and described anew.
    Replaced {
        /// The request.
        id: RequestId,
    },
    /// There will be no model; all requests are refused from now on.
    Failed {
        /// Why, with the remedy on a second line where it is known.
        cause: String,
    },
    /// A picture to show, its encoded bytes beside.
    Picture {
        /// Its id.
        image: ImageId,
        /// File name.
        name: String,
        /// Media type of the bytes.
        mime: String,
        /// The request, for a picture of the user.
        request: Option<RequestId>,
    },
    /// A picture can be found.
    Indexed {
        /// Which.
        image: ImageId,
        /// Pictures that can be found.
        done: usize,
        /// Pictures in all.
        total: usize,
        /// What it took, in milliseconds.
        ms: f64,
    },
    /// A picture cannot be found, for it could not be read.
    Skipped {
        /// Which.
        image: ImageId,
        /// Why.
        cause: String,
    },
    /// The next piece of a caption.
    Piece {
        /// The request.
        id: RequestId,
        /// Text to append.
        text: String,
    },
    /// A caption has ended.
    Captioned {
        /// The request.
        id: RequestId,
        /// The whole caption, or what there was of it when it was stopped.
        text: String,
        /// Tokens written.
        tokens: usize,
        /// Time for all of them and for reading the picture's visual tokens, in milliseconds.
        ms: f64,
        /// Stopped by [`Request::Cancel`].
        stopped: bool,
    },
    /// Pictures by descending score.
    Ranked {
        /// The request.
        id: RequestId,
        /// Best first.
        hits: Vec<Hit>,
        /// What it took, in milliseconds.
        ms: f64,
    },
    /// A request came to nothing; all others go on.
    Refused {
        /// The request.
        id: RequestId,
        /// Why.
        cause: String,
    },
}

/// One found picture.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Hit {
    /// Which.
    pub image: ImageId,
    /// Cosine similarity to the query.
    pub score: f32,
}

/// Stages of loading, in their order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The album's pictures.
    Album,
    /// Bytes of this file, from the server.
    Fetching(String),
    /// Bytes of this file, from the browser's storage.
    Stored(String),
    /// The digest of this file.
    Verifying(String),
    /// From files to a model.
    Building {
        /// What it needs of the GPU's memory, where there is a GPU.
        need: Option<Need>,
        /// Largest piece of memory that the GPU gives.
        offer: Option<u64>,
    },
}

/// Where the bundle's files are kept between two visits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kept {
    /// In the browser's storage.
    Stored {
        /// Bytes that it would take, at the beginning of loading, by its own estimate.
        offer: Option<u64>,
    },
    /// Some of them, in the browser's storage.
    Partly {
        /// Why not all; ends the sentence "this browser does not keep the model: …".
        because: String,
    },
    /// Nowhere: the next visit fetches them again.
    Nowhere {
        /// Why; ends the same sentence.
        because: String,
    },
}

/// What the status line may claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Name of the bundle.
    pub name: String,
    /// What computes.
    pub runs_on: String,
    /// Why that is not a GPU, where it is none.
    pub because: Option<String>,
    /// Bytes of the model's files.
    pub bytes: u64,
    /// What it needs of the GPU's memory, where it is on one.
    pub need: Option<Need>,
}

/// A message and what comes beside it, as `postMessage` takes them.
///
/// # Errors
/// When the message cannot be written as JSON.
pub fn pack(message: &impl Serialize, beside: &JsValue) -> Result<Array, serde_json::Error> {
    let json = JsValue::from(serde_json::to_string(message)?);
    Ok(Array::of2(&json, beside))
}

/// The list of what is transferred of what comes beside.
pub fn transfer(beside: &JsValue) -> Array {
    if beside.is_instance_of::<ArrayBuffer>() { Array::of1(beside) } else { Array::new() }
}

/// The message and what came beside it from the data of an event.
///
/// # Errors
/// When it is no message of this protocol.
pub fn unpack<T: DeserializeOwned>(data: JsValue) -> Result<(T, JsValue), String> {
    let parts: Array = data.dyn_into().map_err(|_| "expected a message to be an array")?;
    let json = parts.get(0).as_string().ok_or("expected a message to begin with text")?;
    let message = serde_json::from_str(&json).map_err(|e| format!("expected a message of this page but found {e}"))?;
    Ok((message, parts.get(1)))
}
