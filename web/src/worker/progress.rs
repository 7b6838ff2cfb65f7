//! How far loading is.

use rscapret::bundle::Bundle;

use super::{outbox::send, tick::now_ms};
use crate::protocol::{Response, Stage};

/// How often loading is reported, in milliseconds.
const REPORT_EVERY_MS: f64 = 80.0;

/// Tells the page how far loading is, now and then.
pub struct Progress {
    stage: Stage,
    bytes: u64,
    total: u64,
    reported: f64,
}

impl Progress {
    /// Nothing of the bundle is here.
    pub fn new(bundle: &Bundle) -> Self {
        let total = bundle.files.iter().map(|(_, file)| file.bytes).sum();
        Progress { stage: Stage::Album, bytes: 0, total, reported: 0.0 }
    }

    /// Bytes of the whole bundle.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Bytes that are here.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Another stage begins.
    pub fn stage(&mut self, stage: Stage) {
        self.stage = stage;
        self.report();
    }

    /// So many bytes more are here.
    pub fn add(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        if now_ms() - self.reported >= REPORT_EVERY_MS {
            self.report();
        }
    }

    /// What came after the first `bytes` has to come again.
    pub fn back_to(&mut self, bytes: u64) {
        self.bytes = bytes;
    }

    fn report(&mut self) {
        self.reported = now_ms();
        send(&Response::Loading { stage: self.stage.clone(), bytes: self.bytes, total: self.total });
    }
}
