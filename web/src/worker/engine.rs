//! The model behind the desk, and what it remembers of each picture.

use std::collections::BTreeMap;

use rscapret::{
    Backend, Candle, Context, Error, Result,
    bundle::{Bundle, bundle_id},
    caption::{CaptionStream, Captioner, DecodeOptions},
    clip::preprocess::Picture,
    retrieval::RetrievalIndex,
};

use crate::protocol::ImageId;

/// What computes: the one backend of this page so far.
type Device = Candle;

/// The bytes of a bundle's files.
pub struct ModelFiles {
    /// Language model and tokenizer.
    pub llm: Vec<u8>,
    /// Vision tower.
    pub vision: Vec<u8>,
    /// Trained maps.
    pub projections: Vec<u8>,
}

/// A model and the pictures that it has seen.
pub struct Engine {
    captioner: Captioner<Device>,
    /// Image features (1, C).
    features: BTreeMap<ImageId, <Device as Backend>::Tensor>,
    index: RetrievalIndex,
    /// Pictures by the rows of the index.
    rows: Vec<ImageId>,
}

impl Engine {
    /// Builds the models from files whose digests have been checked against `bundle`, whose text is `manifest`.
    ///
    /// # Errors
    /// When the files are no models or do not belong together.
    pub async fn load(manifest: &[u8], bundle: &Bundle, files: ModelFiles) -> Result<Self> {
        let ModelFiles { llm, vision, projections } = files;
        let id = bundle_id(manifest);
        let captioner = Captioner::load(Device::cpu(), bundle, &id, llm, vision, projections).await?;
        let index = RetrievalIndex::new(id, captioner.projections().config().joint_size)?;
        Ok(Engine { captioner, features: BTreeMap::new(), index, rows: Vec::new() })
    }

    /// What computes, in words.
    pub fn runs_on(&self) -> String {
        // wasm-bindgen's modules have no threads, and .cargo/config.toml switches SIMD on for all of them.
        "CPU SIMD, 1 thread".into()
    }

    /// Looks at a picture: from here on it can be captioned and found.
    ///
    /// # Errors
    /// The model's.
    pub async fn index(&mut self, image: ImageId, picture: &Picture) -> Result<()> {
        let features = self.captioner.features(std::slice::from_ref(picture))?;
        let embedding = self.captioner.image_embedding(&features).await?;
        self.index.push(image.to_string(), &embedding)?;
        self.rows.push(image);
        self.features.insert(image, features);
        Ok(())
    }

    /// Begins a caption, decoded as the command line does by default.
    ///
    /// # Errors
    /// [`Error::Config`] when there is no such picture; the model's.
    pub fn caption(&self, image: ImageId) -> Result<CaptionStream<'_, Device>> {
        self.captioner.stream(self.seen(image)?, &DecodeOptions::default())
    }

    /// All indexed pictures by their similarity to a sentence, best first.
    ///
    /// # Errors
    /// When the sentence is too long for the model.
    pub async fn rank_by_text(&self, text: &str) -> Result<Vec<(ImageId, f32)>> {
        let query = self.captioner.text_embedding(text).await?;
        self.rank(&query)
    }

    /// All indexed pictures by their similarity to one of them, best first.
    ///
    /// # Errors
    /// [`Error::Config`] when there is no such picture; the model's.
    pub async fn rank_by_image(&self, image: ImageId) -> Result<Vec<(ImageId, f32)>> {
        let query = self.captioner.image_embedding(self.seen(image)?).await?;
        self.rank(&query)
    }

    fn rank(&self, query: &[f32]) -> Result<Vec<(ImageId, f32)>> {
        let hits = self.index.top_k(query, self.index.len()).at("search")?;
        Ok(hits.iter().filter_map(|hit| Some((*self.rows.get(hit.index)?, hit.score))).collect())
    }

    fn seen(&self, image: ImageId) -> Result<&<Device as Backend>::Tensor> {
        self.features
            .get(&image)
            .ok_or_else(|| Error::Config(format!("expected a picture but found none of id {image}")))
    }
}
