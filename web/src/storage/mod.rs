//! The bundle's files in the browser's own storage (the Origin Private File System), each under its digest's name.
//!
//! What lies there is never believed: whoever reads it compares length and digest first, at every visit, for a tab may be
//! closed amid a download and a disk may fail. So no file needs a mark that it is whole. The worker alone uses this; a
//! reason why something is not stored ends the sentence "this browser does not keep the model: …".

mod refusal;
mod writer;

use js_sys::Reflect;
use rscapret::bundle::{Bundle, FileEntry, sha256_hex};
use wasm_bindgen::{JsCast, JsValue};
use web_sys::{
    DedicatedWorkerGlobalScope, File, FileSystemDirectoryHandle, FileSystemFileHandle, FileSystemGetDirectoryOptions,
    FileSystemGetFileOptions, FileSystemRemoveOptions, StorageEstimate, StorageManager,
};

pub use refusal::Refusable;
use refusal::{answer, reason};
pub use writer::Writer;

/// The folder of one bundle.
pub struct Store {
    root: FileSystemDirectoryHandle,
    name: String,
    folder: FileSystemDirectoryHandle,
}

impl Store {
    /// The folder of the bundle that is served at `base`: pages of one origin share its storage, and leave each other alone.
    ///
    /// # Errors
    /// Why this browser stores nothing.
    pub async fn open(base: &str) -> Refusable<Self> {
        let root: FileSystemDirectoryHandle = answer(manager()?.get_directory()).await?;
        let name = format!("rscapret-{}", &sha256_hex(base.as_bytes())[..16]);
        let create = FileSystemGetDirectoryOptions::new();
        create.set_create(true);
        let folder = answer(root.get_directory_handle_with_options(&name, &create)).await?;
        Ok(Store { root, name, folder })
    }

    /// Removes what is of other versions of the bundle, or of nothing.
    ///
    /// # Errors
    /// Why that cannot be.
    pub async fn keep_only(&self, bundle: &Bundle) -> Refusable<()> {
        let (listed, mut others) = (self.folder.keys(), Vec::new());
        loop {
            let step: JsValue = answer(listed.next().map_err(|e| reason(&e))?).await?;
            let field = |key: &str| Reflect::get(&step, &key.into()).unwrap_or(JsValue::UNDEFINED);
            let Some(name) = field("value").as_string().filter(|_| !field("done").is_truthy()) else { break };
            if !bundle.files.iter().any(|(_, file)| file.sha256 == name) {
                others.push(name);
            }
        }
        for name in others {
            answer::<JsValue>(self.folder.remove_entry(&name)).await?;
        }
        Ok(())
    }

    /// The file of this digest, if there is one of its length. Its content is still to be checked.
    pub async fn find(&self, entry: &FileEntry) -> Option<File> {
        let handle: FileSystemFileHandle = answer(self.folder.get_file_handle(&entry.sha256)).await.ok()?;
        let file: File = answer(handle.get_file()).await.ok()?;
        (file.size() == entry.bytes as f64).then_some(file)
    }

    /// Begins the file of this digest, empty; what was there is gone.
    ///
    /// # Errors
    /// Why that cannot be: another tab writes it, for one.
    pub async fn create(&self, entry: &FileEntry) -> Refusable<Writer> {
        let create = FileSystemGetFileOptions::new();
        create.set_create(true);
        let file = answer(self.folder.get_file_handle_with_options(&entry.sha256, &create)).await?;
        Writer::open(file).await
    }

    /// Removes the file of this digest, if it can be.
    pub async fn remove(&self, entry: &FileEntry) {
        // It would not be believed either.
        let _: Refusable<JsValue> = answer(self.folder.remove_entry(&entry.sha256)).await;
    }

    /// Removes everything.
    ///
    /// # Errors
    /// Why that cannot be.
    pub async fn clear(&self) -> Refusable<()> {
        let all = FileSystemRemoveOptions::new();
        all.set_recursive(true);
        answer::<JsValue>(self.root.remove_entry_with_options(&self.name, &all)).await.map(drop)
    }
}

/// Bytes that the browser would store beyond those that it does, by its own estimate; `None` where it makes none.
pub async fn room() -> Option<u64> {
    let estimate: StorageEstimate = answer(manager().ok()?.estimate().ok()?).await.ok()?;
    Some((estimate.get_quota()? - estimate.get_usage()?).max(0.0) as u64)
}

/// The browser's storage, where it has one that a worker can write to.
fn manager() -> Refusable<StorageManager> {
    let scope: DedicatedWorkerGlobalScope = JsValue::from(js_sys::global()).unchecked_into();
    let manager = Reflect::get(&scope.navigator(), &"storage".into()).unwrap_or(JsValue::UNDEFINED);
    // Absent on pages that come neither through HTTPS nor from this machine, and in browsers from before 2023.
    if has(&manager, "getDirectory") && has(&scope, "FileSystemSyncAccessHandle") {
        return Ok(manager.unchecked_into());
    }
    Err("it has no storage for a page like this".into())
}

fn has(object: &JsValue, key: &str) -> bool {
    object.is_object() && Reflect::has(object, &key.into()).unwrap_or(false)
}
