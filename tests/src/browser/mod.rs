//! A browser for tests: headless Chromium behind chromedriver, spoken to over plain HTTP.
//!
//! What fails here panics with what was expected: it is part of a test. Nothing passes by skipping.

mod client;
mod devtools;
mod driver;
mod log;
mod page;
mod workbench;

pub use client::{Element, Session};
pub use devtools::{Heap, Worker};
pub use driver::{Browser, own_gpu};
pub use log::Requests;
pub use page::{Page, dist};
pub use workbench::Workbench;
