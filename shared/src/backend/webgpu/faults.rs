//! Errors of the device arrive late and elsewhere: they are kept here until somebody waits for a result.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
};

use super::memory::NO_MEMORY;
use crate::error::{Error, Result};

/// The first thing that went wrong, if anything did.
#[derive(Default)]
pub(super) struct Faults(Mutex<Option<String>>);

impl Faults {
    /// Hears of every error that nobody else takes, and of the loss of the device.
    pub fn watch(self: &Arc<Self>, device: &wgpu::Device) {
        let faults = Arc::clone(self);
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| faults.add(told("an operation", &error))));
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

/// What a device has to say, later, of what was asked of it.
pub(super) struct Scope {
    what: String,
    error: Pin<Box<dyn Future<Output = Option<wgpu::Error>>>>,
}

impl Scope {
    pub fn new(what: &str, error: impl Future<Output = Option<wgpu::Error>> + 'static) -> Self {
        Scope { what: what.to_string(), error: Box::pin(error) }
    }

    /// Waits for it, and keeps an error among the faults.
    pub async fn hear(self, faults: &Faults) {
        if let Some(error) = self.error.await {
            faults.add(told(&self.what, &error));
        }
    }
}

fn told(what: &str, error: &wgpu::Error) -> String {
    match error {
        wgpu::Error::OutOfMemory { .. } => NO_MEMORY.to_string(),
        other => format!("expected the GPU to take {what} but found: {}", chain(other)),
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
