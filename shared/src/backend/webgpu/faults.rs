//! Errors of the device arrive late and elsewhere: they are kept here until somebody waits for a result.

use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, Result};

/// The first thing that went wrong, if anything did.
#[derive(Default)]
pub(super) struct Faults(Mutex<Option<String>>);

impl Faults {
    /// Hears of every error that nobody else takes, and of the loss of the device.
    pub fn watch(self: &Arc<Self>, device: &wgpu::Device) {
        let faults = Arc::clone(self);
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            let what = match &error {
                wgpu::Error::OutOfMemory { .. } => "expected enough memory on the GPU but found less".to_string(),
                other => format!("expected the GPU to take an operation but found: {}", chain(other)),
            };
            faults.add(what);
        }));
        let faults = Arc::clone(self);
        device.set_device_lost_callback(move |reason, text| {
            // Dropping a device is no loss.
            if !matches!(reason, wgpu::DeviceLostReason::Destroyed) || !text.is_empty() {
                faults.add(format!("expected the GPU to stay but lost it: {text}\nload the model again"));
            }
        });
    }

    pub fn add(&self, what: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(what);
    }

    /// # Errors
    /// [`Error::Backend`] if anything went wrong since the device was opened.
    pub fn check(&self) -> Result<()> {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(what) => Err(Error::Backend(what.clone())),
            None => Ok(()),
        }
    }
}

/// An error with its causes, which name the kernel or the buffer by its label, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
