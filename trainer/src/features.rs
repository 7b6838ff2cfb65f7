//! The frozen vision tower over all images once: features that the bridge trains on.

mod store;

pub use store::{FeatureStore, file_hashes, tower_hash};

use std::path::Path;

use candle_core::Tensor;
use rayon::prelude::*;
use rscapret::{
    Backend, Candle, Context, Error, Result,
    clip::{
        ClipVision, load_vision_checkpoint,
        preprocess::{Picture, PreprocessConfig, decode, normalize, resize_crop},
    },
};

use crate::{files::clip::ClipFiles, stage::Workers, vars::values};

/// Views that go through the tower at once on a GPU.
const ON_GPU: usize = 64;

/// Where a stage takes features from.
pub enum Features<'a> {
    /// The tower itself, at every start of a run.
    Tower(&'a Tower),
    /// What `rscapret features` wrote.
    Stored(FeatureStore),
}

impl<'a> Features<'a> {
    /// Those of a tower that was opened from the folder `clip`; stored ones where there is a file of them.
    ///
    /// # Errors
    /// As [`FeatureStore::open`]; [`Error::Config`] for features of another tower.
    pub fn open(tower: &'a Tower, clip: &Path, stored: Option<&Path>) -> Result<Self> {
        let Some(path) = stored else { return Ok(Features::Tower(tower)) };
        let (store, hash) = (FeatureStore::open(path)?, tower_hash(clip)?);
        if store.tower() != hash {
            return Err(Error::Config(format!(
                "expected features of the tower {hash} but found those of {}\nmake them anew with `rscapret features`",
                store.tower()
            )))
            .at(path.display());
        }
        Ok(Features::Stored(store))
    }

    /// As [`Tower::features`].
    ///
    /// # Errors
    /// As [`Tower::features`]; [`Error::Config`] for an image that has no stored features, or too few views.
    pub fn of(&self, paths: &[&Path], views: usize, workers: &Workers) -> Result<Vec<Vec<f32>>> {
        let store = match self {
            Features::Tower(tower) => return tower.features(paths, views, workers),
            Features::Stored(store) => store,
        };
        let stored = |(path, hash): (&&Path, String)| {
            let found = store.get(&hash, views.clamp(1, 8)).map(<[f32]>::to_vec);
            let missing = || {
                Error::Config(format!(
                    "expected {views} of its views among the stored features but found fewer\n\
                     the image or `views` has changed: complete the file with `rscapret features`"
                ))
            };
            found.ok_or_else(missing).at(path.display())
        };
        paths.iter().zip(file_hashes(paths)?).map(stored).collect()
    }
}

/// A frozen tower with its preprocessing.
pub struct Tower {
    backend: Candle,
    vision: ClipVision<Candle>,
    preprocess: PreprocessConfig,
}

impl Tower {
    /// Opens the tower of a CLIP ([`ClipFiles::open`]).
    ///
    /// # Errors
    /// A missing file, or one that is no such tower's.
    pub fn open(backend: &Candle, path: &Path) -> Result<Self> {
        let ClipFiles { config_json, preprocessor_json, weights, .. } = ClipFiles::open(path)?;
        let (vision, preprocess) =
            pollster::block_on(load_vision_checkpoint(backend, &config_json, &weights, &preprocessor_json))
                .at(path.display())?;
        Ok(Tower { backend: backend.clone(), vision, preprocess })
    }

    /// The tower and its preprocessing.
    pub fn into_parts(self) -> (ClipVision<Candle>, PreprocessConfig) {
        (self.vision, self.preprocess)
    }

    /// Width C of its features.
    pub fn feature_size(&self) -> usize {
        self.vision.config().hidden_size
    }

    /// Features of pictures in their first `views` of the eight flips and quarter turns (1: as they are):
    /// one vector of `views` times C an image.
    ///
    /// # Errors
    /// An unreadable picture, named.
    pub fn features(&self, paths: &[&Path], views: usize, workers: &Workers) -> Result<Vec<Vec<f32>>> {
        let bar = indicatif::ProgressBar::new(paths.len() as u64).with_message("features");
        let features = self.features_with(paths, views, workers, &bar)?;
        bar.finish_and_clear();
        Ok(features)
    }

    /// As [`Tower::features`], with a progress bar of the caller's.
    ///
    /// # Errors
    /// Likewise.
    pub fn features_with(
        &self,
        paths: &[&Path],
        views: usize,
        workers: &Workers,
        bar: &indicatif::ProgressBar,
    ) -> Result<Vec<Vec<f32>>> {
        let (share, views) = (paths.len().div_ceil(workers.count()).max(1), views.clamp(1, 8));
        // A GPU takes many pictures at once; a core's caches do not.
        let at_once = if self.backend.device().is_cpu() { 1 } else { (ON_GPU / views).max(1) };
        let parts = workers.run(paths.chunks(share).collect(), |_, paths: &[&Path]| {
            let (mut features, mut computing) = (Vec::with_capacity(paths.len()), None);
            for paths in paths.chunks(at_once) {
                // Read on all of the worker's threads, while a GPU computes what was read before.
                let pixels: Vec<Vec<f32>> =
                    paths.par_iter().map(|path| self.pixels(path, views)).collect::<Result<_>>()?;
                self.take(computing.take(), views, &mut features, bar)?;
                computing = Some(self.pooled(&pixels.concat(), paths.len() * views)?);
            }
            self.take(computing, views, &mut features, bar)?;
            Ok(features)
        })?;
        Ok(parts.into_iter().flatten().collect())
    }

    /// A picture's views, normalised.
    fn pixels(&self, path: &Path, views: usize) -> Result<Vec<f32>> {
        let bytes = std::fs::read(path).map_err(|e| Error::Io(e.to_string())).at(path.display())?;
        let picture = decode(&bytes).and_then(|p| resize_crop(&p, &self.preprocess)).at(path.display())?;
        Ok((0..views).flat_map(|turn| normalize(&turned(&picture, turn), &self.preprocess)).collect())
    }

    fn pooled(&self, pixels: &[f32], count: usize) -> Result<Tensor> {
        let side = self.preprocess.crop_size;
        let pixels = self.backend.upload(pixels, &[count, 3, side, side])?;
        Ok(self.vision.forward(&self.backend, &pixels)?.pooled)
    }

    /// Waits for what was computed: (pictures views, C) into a vector a picture.
    fn take(
        &self,
        computed: Option<Tensor>,
        views: usize,
        features: &mut Vec<Vec<f32>>,
        bar: &indicatif::ProgressBar,
    ) -> Result<()> {
        let Some(computed) = computed else { return Ok(()) };
        let computed = values(&computed)?;
        for picture in computed.chunks_exact(views * self.feature_size()) {
            features.push(picture.to_vec());
            bar.inc(1);
        }
        Ok(())
    }
}

/// One of the eight symmetries of a square: bit 0 mirrors x, bit 1 y, bit 2 swaps them.
fn turned(picture: &Picture, turn: usize) -> Picture {
    let n = picture.width;
    let mut out = picture.clone();
    for y in 0..n {
        for x in 0..n {
            let (mut u, mut v) = (x, y);
            if turn & 1 == 1 {
                u = n - 1 - u;
            }
            if turn & 2 == 2 {
                v = n - 1 - v;
            }
            if turn & 4 == 4 {
                std::mem::swap(&mut u, &mut v);
            }
            let (to, from) = ((y * n + x) * 3, (v * n + u) * 3);
            out.rgb[to..to + 3].copy_from_slice(&picture.rgb[from..from + 3]);
        }
    }
    out
}
