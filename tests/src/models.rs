//! The demo bundle on a device, for tests.

use std::{io::Write, path::PathBuf};

use pollster::block_on;
use rscapret::{
    Backend, Result, WebGpu,
    backend::webgpu::Options,
    caption::Captioner,
    clip::preprocess::{Picture, decode},
};
use rscapret_trainer::files::open_bundle;

use crate::tests_dir;

/// A GPU. `None` without one, with a visible line.
///
/// # Panics
/// When there is none and `CI=true`: there no test passes by skipping.
pub fn open_gpu(options: Options) -> Option<WebGpu> {
    match block_on(WebGpu::open(options)) {
        Ok(gpu) => Some(gpu),
        Err(error) => {
            assert!(
                std::env::var("CI").as_deref() != Ok("true"),
                "{error}\nCI must not skip: install mesa-vulkan-drivers"
            );
            // Not `eprintln!`, which the harness keeps to itself.
            let line = format!("SKIPPED: {error} (install mesa-vulkan-drivers)\n");
            std::io::stderr().write_all(line.as_bytes()).unwrap();
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
