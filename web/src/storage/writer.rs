//! A file of the browser's storage while it is written.

use web_sys::{File, FileSystemFileHandle, FileSystemReadWriteOptions, FileSystemSyncAccessHandle};

use super::refusal::{Refusable, answer, reason};

/// Writes one file from its beginning. Nobody else can, as long as this lives.
pub struct Writer {
    file: FileSystemFileHandle,
    access: FileSystemSyncAccessHandle,
    /// Bytes written.
    at: f64,
}

impl Writer {
    pub(super) async fn open(file: FileSystemFileHandle) -> Refusable<Self> {
        let access: FileSystemSyncAccessHandle = answer(file.create_sync_access_handle()).await?;
        let writer = Writer { file, access, at: 0.0 };
        writer.access.truncate_with_u32(0).map_err(|error| reason(&error))?;
        Ok(writer)
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// Why that cannot be: the storage is full, for one.
    pub fn write(&mut self, bytes: &[u8]) -> Refusable<()> {
        let place = FileSystemReadWriteOptions::new();
        place.set_at(self.at);
        let written = self.access.write_with_u8_array_and_options(bytes, &place).map_err(|error| reason(&error))?;
        if written != bytes.len() as f64 {
            return Err("its storage is full".into());
        }
        self.at += written;
        Ok(())
    }

    /// Ends the file, for reading.
    ///
    /// # Errors
    /// Why that cannot be.
    pub async fn finish(self) -> Refusable<File> {
        self.access.flush().map_err(|error| reason(&error))?;
        let file = self.file.clone();
        drop(self);
        answer(file.get_file()).await
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.access.close();
    }
}
