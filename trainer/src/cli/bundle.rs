//! What commands that run a bundle share: opening it, and reading pictures for it.

use std::path::{Path, PathBuf};

use indicatif::ProgressBar;
use pollster::block_on;
use rscapret::{
    Backend, Candle, Context, Error, Result, WebGpu,
    backend::webgpu::Options,
    caption::{Captioner, Need},
    clip::preprocess::{MAX_DECODED_BYTES, Picture, decode},
};

use super::device::{self, Device};
use crate::files::{FileSource, open_bundle, read_manifest, read_whole};

/// Which bundle.
#[derive(Debug, Clone, clap::Args)]
pub struct BundleArgs {
    /// The bundle's folder
    #[arg(long, value_name = "FOLDER", default_value = "models/demo")]
    pub bundle: PathBuf,

    /// What computes: cpu, all cores; webgpu, a GPU through Vulkan, Metal or DX12; cuda or cuda:N, an NVIDIA GPU; auto, a
    /// GPU if there is one, else the processor
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub device: Device,
}

/// A bundle on its device.
pub(super) enum Loaded {
    Candle(Box<Captioner<Candle>>),
    WebGpu(Box<Captioner<WebGpu>>),
}

/// Loads a bundle and does the same with it whatever computes.
macro_rules! with_captioner {
    ($bundle:expr, |$captioner:ident| $body:expr) => {
        match $bundle.load()? {
            $crate::cli::bundle::Loaded::Candle($captioner) => $body,
            $crate::cli::bundle::Loaded::WebGpu($captioner) => $body,
        }
    };
}
pub(super) use with_captioner;

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
    pub(super) fn load(&self) -> Result<Loaded> {
        // Before the weights are read: a device that is not there is told at once.
        let gpu = match self.device {
            Device::Cpu => None,
            Device::Webgpu => Some(block_on(WebGpu::open(Options::default()))?),
            Device::Cuda(ordinal) => return self.on_candle(device::cuda(ordinal)?),
            Device::Auto => match device::cuda(0) {
                Ok(cuda) => return self.or_on_cpu(self.on_candle(cuda)),
                // A GPU that is a program on the processor would be slower than the processor.
                Err(_) => block_on(WebGpu::open(Options::default())).ok().filter(|gpu| !gpu.adapter().is_software),
            },
        };
        match gpu {
            Some(gpu) => {
                let loaded = self.on_gpu(gpu).map(|captioner| Loaded::WebGpu(Box::new(captioner)));
                if self.device == Device::Auto { self.or_on_cpu(loaded) } else { loaded }
            }
            None => self.on_candle(Candle::cpu()),
        }
    }

    /// Where nobody asked for this GPU, what it refuses the processor takes. A bundle that is damaged is so everywhere.
    fn or_on_cpu(&self, loaded: Result<Loaded>) -> Result<Loaded> {
        match loaded {
            Err(error) if error.is_of_device() => {
                eprintln!("not on the GPU but on the processor: {error}");
                self.on_candle(Candle::cpu())
            }
            loaded => loaded,
        }
    }

    fn on_candle(&self, backend: Candle) -> Result<Loaded> {
        Ok(Loaded::Candle(Box::new(self.load_on(backend)?)))
    }

    /// A GPU that refuses the model, for want of memory above all, is told beside what the model needs.
    fn on_gpu(&self, gpu: WebGpu) -> Result<Captioner<WebGpu>> {
        // It may say so late.
        let checked = |captioner| block_on(gpu.check()).map(|()| captioner);
        let loaded = self.load_on(gpu.clone()).and_then(checked);
        if loaded.as_ref().err().is_none_or(|error| !error.is_of_device()) {
            return loaded;
        }
        let files = read_manifest(self.folder()?)?.0.files;
        let [llm, vision, maps] =
            [files.llm, files.vision, files.projections].map(|file| FileSource::open(self.bundle.join(file.path)));
        block_on(Need::of(llm?, vision?, maps?))?.told_with(loaded)
    }

    fn load_on<B: Backend>(&self, backend: B) -> Result<Captioner<B>> {
        let folder = self.folder()?;
        let spinner = ProgressBar::new_spinner().with_message(format!("loading {}", folder.display()));
        spinner.enable_steady_tick(std::time::Duration::from_millis(120));
        let bundle = open_bundle(folder)?;
        let (llm, vision, projections) = (bundle.llm, bundle.vision, bundle.projections);
        let loaded = Captioner::load(backend, &bundle.manifest, &bundle.id, llm, vision, projections);
        let captioner = block_on(loaded).at(folder.display());
        spinner.finish_and_clear();
        captioner
    }
}

/// Reads and decodes a picture.
pub(super) fn picture(path: &Path) -> Result<Picture> {
    decode(&read_whole(path, MAX_DECODED_BYTES)?).at(path.display())
}

/// What one picture's features embed as.
pub(super) fn image_embedding<B: Backend>(captioner: &Captioner<B>, path: &Path) -> Result<Vec<f32>> {
    let features = captioner.features(&[picture(path)?])?;
    block_on(captioner.image_embedding(&features))
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
            count => {
                let expected = if of == 1 { "a readable picture".into() } else { format!("{of} readable pictures") };
                let found = if count == 1 { "one that is not".into() } else { format!("{count} that are not") };
                Err(Error::Image(format!("expected {expected} but found {found}, named above")))
            }
        }
    }

    /// How many.
    pub(super) fn count(&self) -> usize {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_without_the_memory_is_told_how_much_is_needed() {
        let bundle = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo");
        let args = BundleArgs { bundle, device: Device::Webgpu };
        let open = |max_memory| block_on(WebGpu::open(Options { max_memory, ..Options::default() })).unwrap();
        args.on_gpu(open(None)).unwrap();
        let error = args.on_gpu(open(Some(4 << 20))).err().unwrap().to_string();
        let needs = error.strip_prefix("a model that needs ").and_then(|rest| rest.split(' ').next());
        assert!(needs.is_some_and(|needs| needs.parse::<u64>().unwrap() > 10), "{error}");
        assert!(error.contains("MB of the GPU's memory: ") && error.contains("memory"), "{error}");

        let refused = args.on_gpu(open(Some(4 << 20))).map(|captioner| Loaded::WebGpu(Box::new(captioner)));
        assert!(matches!(args.or_on_cpu(refused), Ok(Loaded::Candle(_))));
        let damaged = Err(Error::Malformed("a file".into()));
        assert!(matches!(args.or_on_cpu(damaged), Err(Error::Malformed(_))));
    }
}
