//! The demo bundle on a device, for tests.

use std::path::PathBuf;

use pollster::block_on;
use rscapret::{
    Backend, Result, WebGpu,
    backend::webgpu::Options,
    caption::Captioner,
    clip::preprocess::{Picture, decode},
};
use rscapret_trainer::files::open_bundle;

use crate::{skipped, tests_dir};

/// A GPU. `None` without one, and then it is [`skipped`].
///
/// # Panics
/// When there is none and `CI=true`.
pub fn open_gpu(options: Options) -> Option<WebGpu> {
    match block_on(WebGpu::open(options)) {
        Ok(gpu) => Some(gpu),
        Err(error) => {
            skipped(&format!("{error} (install mesa-vulkan-drivers)"));
            None
        }
    }
}

/// The folder of the demo bundle.
///
/// # Panics
/// Never.
pub fn demo() -> PathBuf {
    tests_dir().parent().unwrap().join("models/demo")
}

/// The demo bundle on a device.
///
/// # Errors
/// What the device answers, such as too little memory.
///
/// # Panics
/// When the bundle cannot be opened.
pub fn load_demo<B: Backend>(backend: B) -> Result<Captioner<B>> {
    let bundle = open_bundle(&demo()).unwrap();
    let (llm, vision, projections) = (bundle.llm, bundle.vision, bundle.projections);
    block_on(Captioner::load(backend, &bundle.manifest, &bundle.id, llm, vision, projections))
}

/// Every `step`th picture of the album.
///
/// # Panics
/// When the album is not there.
pub fn album(step: usize) -> Vec<Picture> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(demo().join("album")).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "jpg"));
    files.sort();
    assert!(files.len() >= 20, "the album has pictures");
    files.iter().step_by(step).map(|f| decode(&std::fs::read(f).unwrap()).unwrap()).collect()
}
