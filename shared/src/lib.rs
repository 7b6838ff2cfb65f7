//! RS-CapRet in Rust: captions of remote-sensing images and their retrieval by text, with a frozen Llama and a frozen
//! CLIP tower that small learned linear maps join (Silva et al., arXiv 2402.06475).
//!
//! ```text
//! picture bytes -> clip::preprocess -> ClipVision -> features (C)
//!       -> Projections::visual_tokens (N, D) -> Llama -> logits -> sampling -> DecodeStream -> caption
//!       -> Projections::image_embedding (J) -> RetrievalIndex <- query embedding
//! sentence -> Tokenizer -> Llama(embed(ids) ++ ret_embedding) -> hidden state at [RET]
//!       -> Projections::text_embedding (J) -> RetrievalIndex::top_k
//! ```
//!
//! Letters of shapes: B batch, T tokens now, S tokens seen, D hidden, F intermediate, H query heads, G key/value heads,
//! K head dim, V vocabulary, L layers, P patches, C image feature, N visual tokens of a picture (k of each vector
//! of features, of which there is one or a grid of g g patches), J joint space.

pub mod backend;
#[cfg(feature = "bench")]
pub mod bench;
pub mod bundle;
pub mod caption;
pub mod clip;
pub mod dialogue;
pub mod error;
pub mod llama;
pub mod nn;
pub mod projection;
pub mod retrieval;
pub mod tokenizer;
pub mod weights;

#[cfg(feature = "webgpu")]
pub use backend::WebGpu;
pub use backend::{Backend, Candle};
pub use error::{Context, Error, Result};
