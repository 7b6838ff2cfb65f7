//! What commands that run a bundle share: opening it, and reading pictures for it.

use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use pollster::block_on;
use rscapret::{
    Candle, Context, Error, Result,
    caption::Captioner,
    clip::preprocess::{MAX_DECODED_BYTES, Picture, decode},
};

use crate::files::{open_bundle, read_whole};

/// Which bundle.
#[derive(Debug, Clone, clap::Args)]
pub struct BundleArgs {
    /// The bundle's folder
    #[arg(long, value_name = "FOLDER", default_value = "models/demo")]
    pub bundle: PathBuf,
}

impl BundleArgs {
    /// # Errors
    /// [`Error::Io`] where there is no such folder.
    pub(super) fn folder(&self) -> Result<&Path> {
        if self.bundle.is_dir() {
            return Ok(&self.bundle);
        }
        Err(Error::Io("expected a bundle's folder but found none\nname one with --bundle".into()))
            .at(self.bundle.display())
    }

    /// Checks and loads the bundle.
    pub(super) fn load(&self) -> Result<Captioner<Candle>> {
        let folder = self.folder()?;
        let spinner = ProgressBar::new_spinner().with_message(format!("loading {}", folder.display()));
        spinner.enable_steady_tick(std::time::Duration::from_millis(120));
        let bundle = open_bundle(folder)?;
        let (llm, vision, projections) = (bundle.llm, bundle.vision, bundle.projections);
        let loaded = Captioner::load(Candle::cpu(), &bundle.manifest, &bundle.id, llm, vision, projections);
        let captioner = block_on(loaded).at(folder.display());
        spinner.finish_and_clear();
        captioner
    }
}

/// Reads and decodes a picture.
pub(super) fn picture(path: &Path) -> Result<Picture> {
    decode(&read_whole(path, MAX_DECODED_BYTES)?).at(path.display())
}

/// Features of one picture (1, C) and what they embed as.
pub(super) fn image_embedding(captioner: &Captioner<Candle>, path: &Path) -> Result<Vec<f32>> {
    let features = captioner.features(&[picture(path)?])?;
    block_on(captioner.image_embedding(&features))
}

/// A progress bar on standard error, absent where that is no terminal.
pub(super) fn progress(len: usize, what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(len as u64).with_message(what);
    match ProgressStyle::with_template("{msg} {wide_bar} {human_pos}/{human_len} {eta}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Pictures that could not be used: each is told at once, and all together at the end.
#[derive(Default)]
pub(super) struct Refused(usize);

impl Refused {
    /// Tells of one.
    pub(super) fn add(&mut self, bar: &ProgressBar, error: &Error) {
        self.0 += 1;
        bar.suspend(|| eprintln!("error: {error}"));
    }

    /// # Errors
    /// [`Error::Image`] if there was any.
    pub(super) fn finish(self, of: usize) -> Result<()> {
        match self.0 {
            0 => Ok(()),
            count => Err(Error::Image(format!(
                "expected {of} readable pictures but found {count} that are not, named above"
            ))),
        }
    }
}
