//! The worker's state and what it does with it: the bundle, the pictures, and how requests are answered.

use std::collections::VecDeque;

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
use crate::protocol::{Facts, Hit, ImageId, Query, RequestId, Response, Stage};

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
    source: Source,
    engine: Engine,
    facts: Facts,
    /// Encoded bytes of all pictures: another model looks at them again.
    pictures: Vec<BlobSource>,
    /// Pictures that cannot be found yet.
    waiting: VecDeque<ImageId>,
    indexed: usize,
}

impl Desk {
    /// Loads the bundle at `base` and tells the page how that goes, until it is ready.
    ///
    /// # Errors
    /// When a file cannot be had, is not the one that the manifest names, or is no model.
    pub async fn open(base: &str) -> Result<Desk> {
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
        let (engine, facts) = build(&source, &mut progress).await?;
        send(&Response::Ready(facts.clone()));
        let waiting = (0..pictures.len() as ImageId).collect();
        Ok(Desk { shelf, source, engine, facts, pictures, waiting, indexed: 0 })
    }

    /// Takes the model of a bundle whose files a person chose. Until it answers, the one before stays.
    ///
    /// # Errors
    /// As [`Desk::open`]; files that are missing.
    pub async fn replace(&mut self, id: RequestId, files: JsValue) -> Result<()> {
        let opened = open_chosen(&files).await;
        match opened {
            Ok((source, engine, facts)) => {
                self.source = source;
                self.take(engine, facts);
                send(&Response::Replaced { id });
                send(&Response::Ready(self.facts.clone()));
                Ok(())
            }
            Err(error) => {
                send(&Response::Ready(self.facts.clone()));
                Err(error)
            }
        }
    }

    /// Loads the model again where the GPU was lost. What failed may be tried again after `true`.
    ///
    /// # Errors
    /// As [`Desk::open`].
    pub async fn recover(&mut self) -> Result<bool> {
        let Err(cause) = self.engine.check().await else { return Ok(false) };
        // Where memory was short, there is none for two.
        self.engine.close();
        let mut progress = Progress::new(&self.source.bundle);
        let (engine, facts) = build(&self.source, &mut progress).await?;
        self.take(engine, facts);
        let cause = cause.to_string().lines().next().unwrap_or_default().to_string();
        send(&Response::Recovered { cause });
        send(&Response::Ready(self.facts.clone()));
        Ok(true)
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
        (self.engine, self.facts) = (engine, facts);
        (self.waiting, self.indexed) = ((0..self.pictures.len() as ImageId).collect(), 0);
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
            send(&Response::Skipped { image, cause: error.to_string() });
        }
        Ok(())
    }

    /// Takes a picture of the user.
    ///
    /// # Errors
    /// When the bytes are no picture that can be read.
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
        let indexed = self.index(image, &picture).await;
        // A model that was loaded again looks at all pictures, this one with them.
        if indexed.is_err() && self.recover().await? { Ok(()) } else { indexed }
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
        let mut caption = self.engine.caption(image)?;
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
            Query::Text(text) => self.engine.rank_by_text(text).await?,
            Query::Image(image) => {
                self.index_now(*image).await?;
                self.engine.rank_by_image(*image).await?
            }
        };
        let hits = hits.into_iter().map(|(image, score)| Hit { image, score }).collect();
        send(&Response::Ranked { id, hits, ms: now_ms() - started });
        Ok(())
    }

    /// Indexes a picture whose turn has not come.
    async fn index_now(&mut self, image: ImageId) -> Result<()> {
        match self.waiting.iter().position(|&waiting| waiting == image).and_then(|at| self.waiting.remove(at)) {
            Some(image) => self.index_encoded(image).await,
            None => Ok(()),
        }
    }

    async fn index_encoded(&mut self, image: ImageId) -> Result<()> {
        let Some(bytes) = self.pictures.get(image as usize).cloned() else { return Ok(()) };
        let picture = decode(&bytes.whole().await?)?;
        self.index(image, &picture).await
    }

    async fn index(&mut self, image: ImageId, picture: &Picture) -> Result<()> {
        let started = now_ms();
        self.engine.index(image, picture).await?;
        self.indexed += 1;
        let ms = now_ms() - started;
        send(&Response::Indexed { image, done: self.indexed, total: self.pictures.len(), ms });
        Ok(())
    }
}

/// Builds the models and tells the page how that goes.
async fn build(source: &Source, progress: &mut Progress) -> Result<(Engine, Facts)> {
    progress.stage(Stage::Building { need: None, offer: None });
    pause().await;
    let engine = Engine::load(source, |need, offer| {
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

/// The model of a bundle whose files a person chose.
async fn open_chosen(files: &JsValue) -> Result<(Source, Engine, Facts)> {
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
    let source = Source { manifest, bundle, files };
    let (engine, facts) = build(&source, &mut progress).await?;
    Ok((source, engine, facts))
}
