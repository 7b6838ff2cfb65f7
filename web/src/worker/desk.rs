//! The worker's state and what it does with it: the bundle, the pictures, and how requests are answered.

use std::collections::{BTreeMap, VecDeque};

use js_sys::{Array, ArrayBuffer, Uint8Array};
use rscapret::{
    Context, Error, Result,
    bundle::{Bundle, MANIFEST},
    clip::preprocess::{Picture, decode, preview_png},
    weights::ByteSource,
};
use wasm_bindgen::{JsCast, JsValue};
use web_sys::File;

use super::{
    album,
    blob::BlobSource,
    engine::{Engine, ModelFiles, Source},
    fetch::Fetch,
    inbox::Inbox,
    outbox::{send, send_with},
    progress::Progress,
    shelf::{Shelf, hash},
    tick::{now_ms, pause},
};
use crate::protocol::{Device, Facts, Hit, ImageId, Query, RequestId, Response, Stage};

/// Pictures of the album that are fetched at the same time, as many as browsers keep connections.
const AT_ONCE: usize = 6;
/// Longer side of a preview, in pixels.
const PREVIEW: usize = 768;
/// Most bytes of a manifest that is read.
const MAX_MANIFEST: u64 = 4 << 20;

/// A loaded bundle with its pictures.
pub struct Desk {
    /// Of the bundle that came with the page.
    shelf: Shelf,
    device: Device,
    source: Source,
    /// `None` once it was let go of and another could not be built.
    engine: Option<Engine>,
    facts: Facts,
    /// Encoded bytes of all pictures: another model looks at them again.
    pictures: Vec<BlobSource>,
    /// Pictures that cannot be found yet.
    waiting: VecDeque<ImageId>,
    /// Pictures that this model could not look at, and why.
    skipped: BTreeMap<ImageId, String>,
    indexed: usize,
}

impl Desk {
    /// Loads the bundle at `base` and tells the page how that goes, until it is ready.
    ///
    /// # Errors
    /// When a file cannot be had, is not the one that the manifest names, or is no model.
    pub async fn open(base: &str, device: Device) -> Result<Desk> {
        let manifest = Fetch::begin(format!("{base}{MANIFEST}")).whole().await?;
        let bundle = Bundle::parse(&manifest)?;
        let mut progress = Progress::new(&bundle);
        let mut shelf = Shelf::open(base, &bundle).await;

        // The pictures first: there is something to look at while the model arrives.
        progress.stage(Stage::Album);
        let mut entries = album::list(base).await?.into_iter();
        let mut coming: VecDeque<_> = VecDeque::new();
        let mut pictures = Vec::new();
        for image in 0.. {
            coming.extend(entries.by_ref().take(AT_ONCE - coming.len()).map(|e| (album::picture(base, &e), e.file)));
            let Some((picture, name)) = coming.pop_front() else { break };
            let bytes = picture.whole().await?;
            pictures.push(BlobSource::of(&Array::of1(&Uint8Array::from(bytes.as_slice())))?);
            send_with(&Response::Picture { image, name, mime: "image/jpeg".into(), request: None }, &bytes);
        }

        let files = ModelFiles {
            llm: shelf.take(&bundle.files.llm, &mut progress).await?,
            vision: shelf.take(&bundle.files.vision, &mut progress).await?,
            projections: shelf.take(&bundle.files.projections, &mut progress).await?,
        };
        let source = Source { manifest, bundle, files };
        let (engine, facts) = build(&source, device, &mut None, &mut progress).await?;
        send(&Response::Ready(facts.clone()));
        let waiting = (0..pictures.len() as ImageId).collect();
        let (engine, skipped) = (Some(engine), BTreeMap::new());
        Ok(Desk { shelf, device, source, engine, facts, pictures, waiting, skipped, indexed: 0 })
    }

    /// Takes the model of a bundle whose files a person chose. Until it answers, the one before stays, or comes again where
    /// there was no room for both.
    ///
    /// # Errors
    /// As [`Desk::open`]; files that are missing.
    pub async fn replace(&mut self, id: RequestId, files: JsValue) -> Result<()> {
        match self.open_chosen(&files).await {
            Ok((source, engine, facts)) => {
                self.source = source;
                self.take(engine, facts);
                send(&Response::Replaced { id });
                send(&Response::Ready(self.facts.clone()));
                Ok(())
            }
            Err(error) => {
                if self.has_model() {
                    send(&Response::Ready(self.facts.clone()));
                } else {
                    self.rebuild("it had to make room for yours".into()).await?;
                }
                Err(error)
            }
        }
    }

    async fn open_chosen(&mut self, files: &JsValue) -> Result<(Source, Engine, Facts)> {
        let (source, mut progress) = chosen(files).await?;
        let (engine, facts) = build(&source, self.device, &mut self.engine, &mut progress).await?;
        Ok((source, engine, facts))
    }

    /// Loads the model again where the GPU was lost. What failed may be tried again after `true`.
    ///
    /// # Errors
    /// As [`Desk::open`]; then there is no model any more.
    pub async fn recover(&mut self) -> Result<bool> {
        let Err(cause) = self.engine()?.check().await else { return Ok(false) };
        // Where memory was short, there is none for two.
        if let Some(engine) = self.engine.take() {
            engine.close();
        }
        self.rebuild(cause.to_string().lines().next().unwrap_or_default().to_string()).await?;
        Ok(true)
    }

    /// Builds the model that there was, from its files.
    async fn rebuild(&mut self, cause: String) -> Result<()> {
        let mut progress = Progress::new(&self.source.bundle);
        let (engine, facts) = build(&self.source, self.device, &mut self.engine, &mut progress).await?;
        self.take(engine, facts);
        send(&Response::Recovered { cause });
        send(&Response::Ready(self.facts.clone()));
        Ok(())
    }

    /// Whether there is a model. Where there is none, no other will come.
    pub fn has_model(&self) -> bool {
        self.engine.is_some()
    }

    fn engine(&self) -> Result<&Engine> {
        self.engine.as_ref().ok_or_else(no_model)
    }

    /// Removes the model that came with the page from the browser's storage. It goes on, until it has to be loaded again.
    ///
    /// # Errors
    /// When the browser does not.
    pub async fn discard(&mut self) -> Result<()> {
        self.shelf.clear().await
    }

    /// All pictures are to be looked at by a new engine.
    fn take(&mut self, engine: Engine, facts: Facts) {
        (self.engine, self.facts) = (Some(engine), facts);
        (self.waiting, self.indexed) = ((0..self.pictures.len() as ImageId).collect(), 0);
        self.skipped.clear();
    }

    /// Whether there is something to do that nobody waits for.
    pub fn has_background_work(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Makes the next picture of the album findable.
    ///
    /// # Errors
    /// As [`Desk::recover`].
    pub async fn background_step(&mut self) -> Result<()> {
        if let Some(image) = self.waiting.pop_front()
            && let Err(error) = self.index_encoded(image).await
            && !self.recover().await?
        {
            self.skip(image, &error);
        }
        Ok(())
    }

    /// Takes a picture of the user.
    ///
    /// # Errors
    /// When the bytes are no picture that can be read; as [`Desk::recover`].
    pub async fn add(&mut self, id: RequestId, name: &str, bytes: JsValue) -> Result<()> {
        let bytes: ArrayBuffer =
            bytes.dyn_into().map_err(|_| Error::Image("expected a picture but found no bytes".into()))?;
        let bytes = Uint8Array::new(&bytes);
        let picture = decode(&bytes.to_vec())?;
        let preview = preview_png(&picture, PREVIEW)?;
        let image =
            ImageId::try_from(self.pictures.len()).map_err(|_| Error::Config("expected fewer pictures".into()))?;
        self.pictures.push(BlobSource::of(&Array::of1(&bytes))?);
        let shown = Response::Picture { image, name: name.into(), mime: "image/png".into(), request: Some(id) };
        send_with(&shown, &preview);
        // A model that was loaded again looks at all pictures, this one with them.
        if let Err(error) = self.index(image, &picture).await
            && !self.recover().await?
        {
            self.skip(image, &error);
        }
        Ok(())
    }

    /// Captions a picture, token by token, until its end or a cancel.
    ///
    /// # Errors
    /// When there is no such picture, or the model's.
    pub async fn caption(&mut self, id: RequestId, image: ImageId, inbox: &Inbox) -> Result<()> {
        if inbox.is_cancelled(id) {
            send(&Response::Captioned { id, text: String::new(), tokens: 0, ms: 0.0, stopped: true });
            return Ok(());
        }
        self.index_now(image).await?;
        let mut text = String::new();
        let started = now_ms();
        let mut caption = self.engine()?.caption(image)?;
        let stopped = loop {
            if inbox.is_cancelled(id) {
                break true;
            }
            let Some(piece) = caption.next().await? else { break false };
            if !piece.is_empty() {
                text.push_str(&piece);
                send(&Response::Piece { id, text: piece });
            }
            pause().await;
        };
        let (tokens, ms) = (caption.stats().tokens, now_ms() - started);
        send(&Response::Captioned { id, text: text.trim().to_string(), tokens, ms, stopped });
        Ok(())
    }

    /// Ranks the pictures that are indexed by now.
    ///
    /// # Errors
    /// When there is no such picture, or the model's.
    pub async fn search(&mut self, id: RequestId, query: &Query) -> Result<()> {
        let started = now_ms();
        let hits = match query {
            Query::Text(text) => self.engine()?.rank_by_text(text).await?,
            Query::Image(image) => {
                self.index_now(*image).await?;
                self.engine()?.rank_by_image(*image).await?
            }
        };
        let hits = hits.into_iter().map(|(image, score)| Hit { image, score }).collect();
        send(&Response::Ranked { id, hits, ms: now_ms() - started });
        Ok(())
    }

    /// Indexes a picture whose turn has not come.
    async fn index_now(&mut self, image: ImageId) -> Result<()> {
        if let Some(cause) = self.skipped.get(&image) {
            return Err(Error::Image(cause.clone()));
        }
        let Some(at) = self.waiting.iter().position(|&waiting| waiting == image) else { return Ok(()) };
        self.waiting.remove(at);
        let indexed = self.index_encoded(image).await;
        if let Err(error) = &indexed {
            let sound = self.engine()?.check().await.is_ok();
            if sound {
                self.skip(image, error);
            } else {
                // Not the picture's fault: the next model looks at it.
                self.waiting.push_front(image);
            }
        }
        indexed
    }

    /// A picture that cannot be looked at is told of once, and waits no more.
    fn skip(&mut self, image: ImageId, error: &Error) {
        let cause = error.to_string();
        self.skipped.insert(image, cause.clone());
        send(&Response::Skipped { image, cause });
    }

    async fn index_encoded(&mut self, image: ImageId) -> Result<()> {
        let Some(bytes) = self.pictures.get(image as usize).cloned() else { return Ok(()) };
        let picture = decode(&bytes.whole().await?)?;
        self.index(image, &picture).await
    }

    async fn index(&mut self, image: ImageId, picture: &Picture) -> Result<()> {
        let started = now_ms();
        self.engine.as_mut().ok_or_else(no_model)?.index(image, picture).await?;
        self.indexed += 1;
        let ms = now_ms() - started;
        send(&Response::Indexed { image, done: self.indexed, total: self.pictures.len(), ms });
        Ok(())
    }
}

fn no_model() -> Error {
    Error::Config("expected a model but found none\nload the page again".into())
}

/// Builds the models and tells the page how that goes; what becomes of the one `before` is said at [`Engine::load`].
async fn build(
    source: &Source,
    device: Device,
    before: &mut Option<Engine>,
    progress: &mut Progress,
) -> Result<(Engine, Facts)> {
    progress.stage(Stage::Building { need: None, offer: None });
    pause().await;
    let engine = Engine::load(source, device, before, |need, offer| {
        progress.stage(Stage::Building { need: Some(need), offer: Some(offer) });
    })
    .await?;
    let facts = Facts {
        name: source.bundle.name.clone(),
        runs_on: engine.runs_on(),
        because: engine.because().map(String::from),
        bytes: progress.total(),
        need: engine.need(),
    };
    Ok((engine, facts))
}

/// A bundle whose files a person chose, their digests checked.
async fn chosen(files: &JsValue) -> Result<(Source, Progress)> {
    let files: Vec<File> = Array::from(files).iter().filter_map(|file| file.dyn_into().ok()).collect();
    let named = |name: &str| {
        let file = files.iter().find(|file| file.name() == name).map(|file| BlobSource(file.clone().into()));
        file.ok_or_else(|| {
            let found: Vec<String> = files.iter().map(File::name).collect();
            Error::Config(format!(
                "expected `{name}` among the files but found {}\nchoose all files of the bundle's folder",
                if found.is_empty() { "none".to_string() } else { found.join(", ") }
            ))
        })
    };
    let manifest = named(MANIFEST)?;
    if manifest.len() > MAX_MANIFEST {
        return Err(Error::Malformed(format!("expected a manifest but found {} bytes", manifest.len()))).at(MANIFEST);
    }
    let manifest = manifest.whole().await?;
    let bundle = Bundle::parse(&manifest)?;
    let [llm, vision, projections] = [&bundle.files.llm, &bundle.files.vision, &bundle.files.projections];
    let files =
        ModelFiles { llm: named(&llm.path)?, vision: named(&vision.path)?, projections: named(&projections.path)? };
    let mut progress = Progress::new(&bundle);
    for (entry, file) in [(llm, &files.llm), (vision, &files.vision), (projections, &files.projections)] {
        progress.stage(Stage::Verifying(entry.path.clone()));
        hash(entry, file, &mut progress).await?.finish()?;
    }
    Ok((Source { manifest, bundle, files }, progress))
}
