//! Where the bundle's files come from: the browser's storage if they are there and whole, else the server; and where they
//! stay: in that storage if it takes them, else in memory.

use js_sys::{Array, Uint8Array};
use rscapret::{
    Context, Error, Result,
    bundle::{Bundle, FileEntry, Verifier},
    weights::ByteSource,
};
use wasm_bindgen::JsCast;

use super::{blob::BlobSource, fetch::Fetch, garbage, outbox::send, progress::Progress};
use crate::{
    protocol::{Kept, Response, Stage},
    storage::{Refusable, Store, Writer, room},
};

/// Bytes of a fetched file that go into a blob together.
const BLOB: usize = 8 << 20;
/// Bytes of a file that are hashed at a time.
const PIECE: u64 = 4 << 20;

/// The files of the bundle that is served with the page.
pub struct Shelf {
    base: String,
    entries: Vec<FileEntry>,
    /// `None` where this browser has none for us.
    store: Option<Store>,
    /// Why nothing more is stored, where that is so.
    refusal: Option<String>,
}

impl Shelf {
    /// Looks what the browser's storage takes of the bundle at `base`, and tells the page.
    pub async fn open(base: &str, bundle: &Bundle) -> Self {
        let entries = bundle.files.iter().map(|(_, entry)| entry.clone()).collect();
        let mut shelf = Shelf { base: base.into(), entries, store: None, refusal: None };
        match opened(base, bundle).await {
            Ok(store) => shelf.store = Some(store),
            Err(because) => shelf.refusal = Some(because),
        }
        let (offer, missing) = (room().await, shelf.missing().await);
        if shelf.refusal.is_none() && offer.is_some_and(|offer| offer < missing) {
            let megabytes = |bytes: u64| bytes as f64 / 1e6;
            let (offer, missing) = (megabytes(offer.unwrap_or_default()), megabytes(missing));
            shelf.refusal = Some(format!("its storage offers {offer:.1} MB for {missing:.1} MB"));
        }
        shelf.tell(offer).await;
        shelf
    }

    /// A file of the bundle, its digest checked.
    ///
    /// # Errors
    /// When it cannot be had or is not the one that the manifest names.
    pub async fn take(&mut self, entry: &FileEntry, progress: &mut Progress) -> Result<BlobSource> {
        let before = progress.bytes();
        if let Some(store) = &self.store {
            if let Some(file) = stored(store, entry, progress).await {
                return Ok(file);
            }
            // It was not there, or damaged.
            progress.back_to(before);
            if self.refusal.is_none() {
                match fetched_into(store, &self.base, entry, progress).await? {
                    Ok(file) => return Ok(file),
                    Err(because) => {
                        store.remove(entry).await;
                        self.refusal = Some(because);
                        self.tell(None).await;
                        progress.back_to(before);
                    }
                }
            }
        }
        fetched(&self.base, entry, progress).await
    }

    /// Removes the files from the browser's storage. What has not been read of them is lost.
    ///
    /// # Errors
    /// [`Error::Io`] when the browser does not.
    pub async fn clear(&mut self) -> Result<()> {
        if let Some(store) = &self.store {
            let stays = |because| Error::Io(format!("expected this browser to remove the model but {because}"));
            store.clear().await.map_err(stays)?;
        }
        self.store = None;
        self.refusal = Some("it was removed".into());
        self.tell(None).await;
        Ok(())
    }

    /// Bytes that are not in the storage.
    async fn missing(&self) -> u64 {
        let mut bytes = 0;
        for entry in &self.entries {
            let there = match &self.store {
                Some(store) => store.find(entry).await.is_some(),
                None => false,
            };
            bytes += if there { 0 } else { entry.bytes };
        }
        bytes
    }

    /// Tells the page what is kept.
    async fn tell(&self, offer: Option<u64>) {
        let all: u64 = self.entries.iter().map(|entry| entry.bytes).sum();
        let kept = match self.refusal.clone() {
            None => Kept::Stored { offer },
            Some(because) if self.missing().await < all => Kept::Partly { because },
            Some(because) => Kept::Nowhere { because },
        };
        send(&Response::Kept(kept));
    }
}

/// The store, without what is of other versions.
async fn opened(base: &str, bundle: &Bundle) -> Refusable<Store> {
    let store = Store::open(base).await?;
    store.keep_only(bundle).await?;
    Ok(store)
}

/// A file from the browser's storage; `None` if it is not there, or not whole.
async fn stored(store: &Store, entry: &FileEntry, progress: &mut Progress) -> Option<BlobSource> {
    let file = BlobSource(store.find(entry).await?.into());
    progress.stage(Stage::Stored(entry.path.clone()));
    let verifier = hash(entry, &file, progress).await.ok()?;
    progress.stage(Stage::Verifying(entry.path.clone()));
    verifier.finish().ok()?;
    Some(file)
}

/// A file from the server into the browser's storage, or why that takes it not.
async fn fetched_into(
    store: &Store,
    base: &str,
    entry: &FileEntry,
    progress: &mut Progress,
) -> Result<Refusable<BlobSource>> {
    let mut writer: Writer = match store.create(entry).await {
        Ok(writer) => writer,
        Err(because) => return Ok(Err(because)),
    };
    let mut refusal = None;
    // The browser need not keep it a second time, in its cache.
    let fetch = Fetch::begin_uncached(format!("{base}{}", entry.path));
    let whole = download(fetch, entry, progress, |piece| {
        writer.write(piece).map_err(|because| Error::Io(refusal.insert(because).clone()))
    });
    let whole = whole.await;
    if let Some(because) = refusal {
        return Ok(Err(because));
    }
    let file = writer.finish().await;
    if whole.is_err() {
        store.remove(entry).await;
    }
    whole.map(|()| file.map(|file| BlobSource(file.into())))
}

/// A file from the server into memory: outside of this module's, which never shrinks, and soon outside of the script's, for
/// browsers keep blobs on disk.
async fn fetched(base: &str, entry: &FileEntry, progress: &mut Progress) -> Result<BlobSource> {
    let (blobs, mut pieces, mut bytes) = (Array::new(), Array::new(), 0);
    let fetch = Fetch::begin(format!("{base}{}", entry.path));
    let keep = |piece: &[u8]| {
        pieces.push(&Uint8Array::from(piece));
        bytes += piece.len();
        if bytes >= BLOB {
            blobs.push(&together(&std::mem::take(&mut pieces))?.0);
            bytes = 0;
        }
        Ok(())
    };
    download(fetch, entry, progress, keep).await?;
    blobs.push(&together(&pieces)?.0);
    BlobSource::of(&blobs)
}

/// A blob of arrays, which are empty afterwards.
fn together(pieces: &Array) -> Result<BlobSource> {
    let blob = BlobSource::of(pieces)?;
    pieces.iter().for_each(|piece| garbage::free(&piece.unchecked_into::<Uint8Array>().buffer()));
    Ok(blob)
}

/// Hands the pieces of a file to `keep` as they arrive, and checks its digest.
async fn download(
    fetch: Fetch,
    entry: &FileEntry,
    progress: &mut Progress,
    mut keep: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    progress.stage(Stage::Fetching(entry.path.clone()));
    let mut verifier = Verifier::new(entry);
    let sink = |piece: &[u8]| {
        verifier.update(piece)?;
        keep(piece)?;
        progress.add(piece.len());
        Ok(())
    };
    fetch.pieces(sink).await?;
    progress.stage(Stage::Verifying(entry.path.clone()));
    verifier.finish()
}

/// Reads all of a file, for its digest.
///
/// # Errors
/// As [`ByteSource::read`]; as soon as it is longer than its entry says.
pub async fn hash(entry: &FileEntry, file: &BlobSource, progress: &mut Progress) -> Result<Verifier> {
    let mut verifier = Verifier::new(entry);
    for start in (0..file.len()).step_by(PIECE as usize) {
        let piece = file.read(start, PIECE.min(file.len() - start) as usize).await.at(&entry.path)?;
        verifier.update(&piece)?;
        progress.add(piece.len());
    }
    Ok(verifier)
}
