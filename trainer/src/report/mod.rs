//! A run as a person looks at it: one page with its curves and sample captions, and event files for TensorBoard.

mod chart;
mod html;
mod metrics;
mod samples;
mod tensorboard;

pub use chart::bars;
pub use html::page;
pub use metrics::{Metrics, Series};
pub use samples::{Sample, read_samples};
pub use tensorboard::events;
