//! Files that a person chose or the browser stores: read where they lie, piece by piece.

use js_sys::{Array, ArrayBuffer, Uint8Array};
use rscapret::{Error, Result, weights::ByteSource};
use wasm_bindgen::JsCast;
use wasm_bindgen_futures::JsFuture;
use web_sys::Blob;

use super::garbage;

/// A file, or bytes outside of this module's memory, that the browser reads when it is asked to.
#[derive(Clone)]
pub struct BlobSource(pub Blob);

impl BlobSource {
    /// Of pieces that were put together, each a `Uint8Array` or a `Blob`.
    ///
    /// # Errors
    /// [`Error::Io`] when the browser has no room for them.
    pub fn of(pieces: &Array) -> Result<Self> {
        let no_room = |_| Error::Io("expected room for a file but found none\nclose other tabs".into());
        Blob::new_with_u8_array_sequence(pieces).map(BlobSource).map_err(no_room)
    }

    /// All of it.
    ///
    /// # Errors
    /// As [`ByteSource::read`].
    pub async fn whole(&self) -> Result<Vec<u8>> {
        self.read(0, ByteSource::len(self) as usize).await
    }
}

impl ByteSource for BlobSource {
    fn len(&self) -> u64 {
        self.0.size() as u64
    }

    async fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let (size, end) = (ByteSource::len(self), offset.saturating_add(len as u64));
        // Before memory is taken for it.
        if end > size {
            return Err(Error::Malformed(format!(
                "expected {len} bytes at offset {offset} but found the end at {size}"
            )));
        }
        let unreadable = |_| {
            Error::Io(
                "expected to read the file but found it changed or gone\nchoose it again, or load the page again"
                    .into(),
            )
        };
        let slice = self.0.slice_with_f64_and_f64(offset as f64, end as f64).map_err(unreadable)?;
        let buffer: ArrayBuffer = JsFuture::from(slice.array_buffer()).await.map_err(unreadable)?.unchecked_into();
        let bytes = Uint8Array::new(&buffer).to_vec();
        garbage::free(&buffer);
        Ok(bytes)
    }
}
