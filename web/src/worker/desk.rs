//! The worker's state and what it does with it: the bundle, the pictures, and how requests are answered.

use std::collections::VecDeque;

use js_sys::{ArrayBuffer, Uint8Array};
use rscapret::{
    Context, Error, Result,
    bundle::{Bundle, FileEntry, MANIFEST, Verifier},
    clip::preprocess::{Picture, decode, preview_png},
};

use super::{
    album,
    engine::{Engine, ModelFiles},
    fetch::Fetch,
    inbox::Inbox,
    outbox::{send, send_with},
    tick::{now_ms, pause},
};
use crate::protocol::{Facts, Hit, ImageId, Query, RequestId, Response, Stage};

/// Pictures of the album that are fetched at the same time, as many as browsers keep connections.
const AT_ONCE: usize = 6;
/// Longer side of a preview, in pixels.
const PREVIEW: usize = 768;
/// How often loading is reported, in milliseconds.
const REPORT_EVERY_MS: f64 = 80.0;

/// A loaded bundle with its pictures.
pub struct Desk {
    engine: Engine,
    /// Album pictures that cannot be found yet, with their encoded bytes.
    waiting: VecDeque<(ImageId, Vec<u8>)>,
    pictures: usize,
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
        let mut progress = Progress::new(bundle.files.iter().map(|(_, file)| file.bytes).sum());

        // The pictures first: there is something to look at while the model arrives.
        progress.stage(Stage::Album);
        let mut entries = album::list(base).await?.into_iter();
        let mut coming: VecDeque<_> = VecDeque::new();
        let mut waiting = VecDeque::new();
        for image in 0.. {
            coming.extend(entries.by_ref().take(AT_ONCE - coming.len()).map(|e| (album::picture(base, &e), e.file)));
            let Some((picture, name)) = coming.pop_front() else { break };
            let bytes = picture.whole().await?;
            send_with(&Response::Picture { image, name, mime: "image/jpeg".into(), request: None }, &bytes);
            waiting.push_back((image, bytes));
        }

        let files = ModelFiles {
            llm: file(base, &bundle.files.llm, &mut progress).await?,
            vision: file(base, &bundle.files.vision, &mut progress).await?,
            projections: file(base, &bundle.files.projections, &mut progress).await?,
        };
        progress.stage(Stage::Building);
        pause().await;
        let engine = Engine::load(&manifest, &bundle, files).await?;
        let because = engine.because().map(String::from);
        let facts = Facts { name: bundle.name, runs_on: engine.runs_on(), because, bytes: progress.total };
        send(&Response::Ready(facts));
        Ok(Desk { engine, pictures: waiting.len(), waiting, indexed: 0 })
    }

    /// Whether there is something to do that nobody waits for.
    pub fn has_background_work(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Makes the next picture of the album findable.
    pub async fn background_step(&mut self) {
        if let Some((image, bytes)) = self.waiting.pop_front()
            && let Err(error) = self.index_encoded(image, &bytes).await
        {
            send(&Response::Skipped { image, cause: error.to_string() });
        }
    }

    /// Takes a picture of the user.
    ///
    /// # Errors
    /// When the bytes are no picture that can be read.
    pub async fn add(&mut self, id: RequestId, name: &str, bytes: Option<ArrayBuffer>) -> Result<()> {
        let bytes = bytes.ok_or_else(|| Error::Image("expected a picture but found no bytes".into()))?;
        let picture = decode(&Uint8Array::new(&bytes).to_vec())?;
        let preview = preview_png(&picture, PREVIEW)?;
        let image = ImageId::try_from(self.pictures).map_err(|_| Error::Config("expected fewer pictures".into()))?;
        self.pictures += 1;
        let shown = Response::Picture { image, name: name.into(), mime: "image/png".into(), request: Some(id) };
        send_with(&shown, &preview);
        self.index(image, &picture).await
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
        match self.waiting.iter().position(|(waiting, _)| *waiting == image).and_then(|at| self.waiting.remove(at)) {
            Some((image, bytes)) => self.index_encoded(image, &bytes).await,
            None => Ok(()),
        }
    }

    async fn index_encoded(&mut self, image: ImageId, bytes: &[u8]) -> Result<()> {
        let picture = decode(bytes)?;
        self.index(image, &picture).await
    }

    async fn index(&mut self, image: ImageId, picture: &Picture) -> Result<()> {
        let started = now_ms();
        self.engine.index(image, picture).await?;
        self.indexed += 1;
        let ms = now_ms() - started;
        send(&Response::Indexed { image, done: self.indexed, total: self.pictures, ms });
        Ok(())
    }
}

/// Fetches a file of the bundle and checks its digest as it arrives.
async fn file(base: &str, entry: &FileEntry, progress: &mut Progress) -> Result<Vec<u8>> {
    progress.stage(Stage::Fetching(entry.path.clone()));
    let mut verifier = Verifier::new(entry);
    let mut bytes = Vec::new();
    let fits = usize::try_from(entry.bytes).is_ok_and(|length| bytes.try_reserve_exact(length).is_ok());
    if !fits {
        return Err(Error::Io(format!("expected memory for {} bytes but found less", entry.bytes))).at(&entry.path);
    }
    let sink = |piece: &[u8]| {
        verifier.update(piece)?;
        bytes.extend_from_slice(piece);
        progress.add(piece.len());
        Ok(())
    };
    Fetch::begin(format!("{base}{}", entry.path)).pieces(sink).await?;
    progress.stage(Stage::Verifying(entry.path.clone()));
    verifier.finish()?;
    Ok(bytes)
}

/// Tells the page how far loading is, now and then.
struct Progress {
    stage: Stage,
    bytes: u64,
    total: u64,
    reported: f64,
}

impl Progress {
    fn new(total: u64) -> Self {
        Progress { stage: Stage::Album, bytes: 0, total, reported: 0.0 }
    }

    fn stage(&mut self, stage: Stage) {
        self.stage = stage;
        self.report();
    }

    fn add(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        if now_ms() - self.reported >= REPORT_EVERY_MS {
            self.report();
        }
    }

    fn report(&mut self) {
        self.reported = now_ms();
        send(&Response::Loading { stage: self.stage.clone(), bytes: self.bytes, total: self.total });
    }
}
