//! The model behind the desk, and what it remembers of each picture.

use std::collections::BTreeMap;

use rscapret::{
    Backend, Candle, Context, Error, Result, WebGpu,
    bundle::{Bundle, bundle_id},
    caption::{CaptionStream, Captioner, DecodeOptions, DecodeStats, Need},
    clip::preprocess::Picture,
    retrieval::RetrievalIndex,
};

use super::{blob::BlobSource, gpu, tick::pause};
use crate::protocol::{Device, ImageId};

/// A bundle's files.
#[derive(Clone)]
pub struct ModelFiles {
    /// Language model and tokenizer.
    pub llm: BlobSource,
    /// Vision tower.
    pub vision: BlobSource,
    /// Trained maps.
    pub projections: BlobSource,
}

/// A bundle that was checked: whatever happens to a GPU, the model can be built from it again.
#[derive(Clone)]
pub struct Source {
    /// The manifest's text.
    pub manifest: Vec<u8>,
    /// The manifest.
    pub bundle: Bundle,
    /// The files, whose digests are the manifest's.
    pub files: ModelFiles,
}

/// Most bytes of all models on the processor: wasm's memory ends at four gigabytes.
const MOST_ON_CPU: u64 = 2_500_000_000;

/// A model and the pictures that it has seen, on what computes here.
pub enum Engine {
    /// The browser's GPU.
    WebGpu {
        /// The model.
        model: Model<WebGpu>,
        /// What it needs of the GPU's memory.
        need: Need,
    },
    /// The processor.
    Cpu {
        /// The model.
        model: Model<Candle>,
        /// Why it is not on a GPU.
        because: String,
        /// The same in a word.
        without: Without,
        /// Of its files: about what it takes of wasm's memory.
        bytes: u64,
    },
}

/// What is missing for a GPU.
#[derive(Clone, Copy)]
pub enum Without {
    /// One that is no program.
    Gpu,
    /// Its own: there is one, and it does not take the model.
    Consent,
    /// The user's.
    Choice,
}

/// A caption while it is written.
pub enum Writing<'e> {
    /// By the GPU.
    WebGpu(CaptionStream<'e, WebGpu>),
    /// By the processor.
    Cpu(CaptionStream<'e, Candle>),
}

/// The same with a model whatever computes.
macro_rules! with_model {
    ($engine:expr, |$model:ident| $body:expr) => {
        match $engine {
            Engine::WebGpu { model: $model, .. } => $body,
            Engine::Cpu { model: $model, .. } => $body,
        }
    };
}

impl Engine {
    /// Builds the models: on what `device` says, where the browser gives a GPU and it takes them, else on the processor. Before a GPU is filled, `tell` hears
    /// what is needed of its memory, and the largest piece that it gives. Where there is no room beside the model `before`,
    /// that one is let go of; there may be none afterwards.
    ///
    /// # Errors
    /// When the files are no models or do not belong together, or are too large for the processor and there is no GPU that
    /// takes them.
    pub async fn load(
        source: &Source,
        device: Device,
        before: &mut Option<Self>,
        mut tell: impl FnMut(Need, u64),
    ) -> Result<Self> {
        // What is wrong with the files is wrong on every device.
        let ModelFiles { llm, vision, projections } = source.files.clone();
        let need = Need::of(llm, vision, projections).await?;
        let bytes: u64 = source.bundle.files.iter().map(|(_, file)| file.bytes).sum();
        let (because, without) = loop {
            if device == Device::Cpu {
                break ("the page's address says `device=cpu`".into(), Without::Choice);
            }
            let gpu = match gpu::open().await {
                Ok(gpu) => gpu,
                Err(error) => break (error.to_string(), Without::Gpu),
            };
            // The processor is many times as fast as when it plays a GPU.
            if gpu.adapter().is_software && device == Device::Auto && bytes <= MOST_ON_CPU {
                gpu.close();
                let because =
                    "what the browser offers for a GPU is a program on the processor; `?device=webgpu` takes it";
                break (because.into(), Without::Gpu);
            }
            tell(need, gpu.adapter().max_binding);
            pause().await;
            let error = match Self::load_on_gpu(gpu, source, need).await {
                Ok(model) => return Ok(Engine::WebGpu { model, need }),
                Err(error) => error,
            };
            // Devices tell want of memory in many ways. What is wrong with a file is wrong in an empty one, too.
            let by_device = error.is_of_device();
            match before.take_if(|before| by_device && matches!(before, Engine::WebGpu { .. })) {
                Some(before) => before.close(),
                None => break (error.to_string(), Without::Consent),
            }
        };
        if bytes > MOST_ON_CPU {
            return Err(Error::Unsupported(format!(
                "expected a GPU for a model of {:.1} GB but found none that takes it: {because}\nuse a browser with \
                 WebGPU, or a model of at most {:.1} GB",
                bytes as f64 / 1e9,
                MOST_ON_CPU as f64 / 1e9
            )));
        }
        // Each may fit alone, and both together not.
        drop(before.take_if(|before| before.bytes_on_cpu() + bytes > MOST_ON_CPU));
        let model = Model::load(Candle::cpu(), source).await?;
        Ok(Engine::Cpu { model, because, without, bytes })
    }

    async fn load_on_gpu(gpu: WebGpu, source: &Source, need: Need) -> Result<Model<WebGpu>> {
        let tried = async {
            let model = Model::load(gpu.clone(), source).await?;
            // A GPU without the memory, or whose compiler refuses a kernel, says so late.
            gpu.check().await?;
            model.try_out().await?;
            Ok(model)
        };
        let tried: Result<Model<WebGpu>> = tried.await;
        if tried.is_err() {
            // What is on it would be in the way of whatever comes next.
            gpu.close();
        }
        need.told_with(tried)
    }

    /// What computes, in words.
    pub fn runs_on(&self) -> String {
        match self {
            Engine::WebGpu { model, .. } => {
                let adapter = model.captioner.backend().adapter();
                let name = if adapter.name.is_empty() { "GPU" } else { &adapter.name };
                format!("WebGPU on {name}")
            }
            // wasm-bindgen's modules have no threads, and .cargo/config.toml switches SIMD on for all of them.
            Engine::Cpu { without, .. } => {
                let why = match without {
                    Without::Gpu => " (no GPU here)",
                    Without::Consent => " (the GPU does not take this model)",
                    Without::Choice => "",
                };
                format!("CPU SIMD, 1 thread{why}")
            }
        }
    }

    /// Why it is not on the GPU, for people who wonder; `None` on it.
    pub fn because(&self) -> Option<&str> {
        match self {
            Engine::WebGpu { .. } => None,
            Engine::Cpu { because, .. } => Some(because),
        }
    }

    /// What it needs of the GPU's memory; `None` on the processor.
    pub fn need(&self) -> Option<Need> {
        match self {
            Engine::WebGpu { need, .. } => Some(*need),
            Engine::Cpu { .. } => None,
        }
    }

    fn bytes_on_cpu(&self) -> u64 {
        match self {
            Engine::WebGpu { .. } => 0,
            Engine::Cpu { bytes, .. } => *bytes,
        }
    }

    /// Whether what computes still does; a GPU that failed once answers no more.
    ///
    /// # Errors
    /// What happened to it.
    pub async fn check(&self) -> Result<()> {
        match self {
            Engine::WebGpu { model, .. } => model.captioner.backend().check().await,
            Engine::Cpu { .. } => Ok(()),
        }
    }

    /// Gives a GPU's memory back. What is asked from now on fails there.
    pub fn close(&self) {
        match self {
            Engine::WebGpu { model, .. } => model.captioner.backend().close(),
            Engine::Cpu { .. } => {}
        }
    }

    /// See [`Model::index`].
    pub async fn index(&mut self, image: ImageId, picture: &Picture) -> Result<()> {
        with_model!(self, |model| model.index(image, picture).await)
    }

    /// See [`Model::caption`].
    pub fn caption(&self, image: ImageId) -> Result<Writing<'_>> {
        Ok(match self {
            Engine::WebGpu { model, .. } => Writing::WebGpu(model.caption(image)?),
            Engine::Cpu { model, .. } => Writing::Cpu(model.caption(image)?),
        })
    }

    /// See [`Model::rank_by_text`].
    pub async fn rank_by_text(&self, text: &str) -> Result<Vec<(ImageId, f32)>> {
        with_model!(self, |model| model.rank_by_text(text).await)
    }

    /// See [`Model::rank_by_image`].
    pub async fn rank_by_image(&self, image: ImageId) -> Result<Vec<(ImageId, f32)>> {
        with_model!(self, |model| model.rank_by_image(image).await)
    }
}

impl Writing<'_> {
    /// See [`CaptionStream::next`].
    pub async fn next(&mut self) -> Result<Option<String>> {
        match self {
            Writing::WebGpu(stream) => stream.next().await,
            Writing::Cpu(stream) => stream.next().await,
        }
    }

    /// See [`CaptionStream::stats`].
    pub fn stats(&self) -> DecodeStats {
        match self {
            Writing::WebGpu(stream) => stream.stats(),
            Writing::Cpu(stream) => stream.stats(),
        }
    }
}

/// A model and the pictures that it has seen.
pub struct Model<B: Backend> {
    captioner: Captioner<B>,
    /// Image features, those of one picture.
    features: BTreeMap<ImageId, B::Tensor>,
    index: RetrievalIndex,
    /// Pictures by the rows of the index.
    rows: Vec<ImageId>,
}

impl<B: Backend> Model<B> {
    async fn load(backend: B, source: &Source) -> Result<Self> {
        let ModelFiles { llm, vision, projections } = source.files.clone();
        let id = bundle_id(&source.manifest);
        let captioner = Captioner::load(backend, &source.bundle, &id, llm, vision, projections).await?;
        let index = RetrievalIndex::new(id, captioner.projections().config().joint_size)?;
        Ok(Model { captioner, features: BTreeMap::new(), index, rows: Vec::new() })
    }

    /// Does once what will be asked for: looks at a picture, writes a word, reads a text.
    async fn try_out(&self) -> Result<()> {
        let picture = Picture::new(8, 8, vec![127; 3 * 8 * 8])?;
        let features = self.captioner.features(&[picture])?;
        self.captioner.image_embedding(&features).await?;
        let mut caption = self.captioner.stream(&features, &DecodeOptions::default())?;
        caption.next().await?;
        caption.next().await?;
        self.captioner.text_embedding("trees").await.map(drop)
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
    pub fn caption(&self, image: ImageId) -> Result<CaptionStream<'_, B>> {
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

    fn seen(&self, image: ImageId) -> Result<&B::Tensor> {
        self.features
            .get(&image)
            .ok_or_else(|| Error::Config(format!("expected a picture but found none of id {image}")))
    }
}
