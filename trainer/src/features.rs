//! The frozen vision tower over all images once: features that the bridge trains on.

mod store;

pub use store::{FeatureStore, file_hashes, tower_hash};

use std::path::Path;

use candle_core::Tensor;
use rscapret::{
    Backend, Candle, Context, Error, Result,
    clip::{
        ClipVision, ImageFeature, load_vision_checkpoint,
        preprocess::{Picture, PreprocessConfig, decode, normalize, resize_crop},
    },
};

use crate::{
    ahead::{ahead, cores},
    files::{clip::ClipFiles, unreadable},
    parallel::gather_vectors,
    stage::Workers,
    vars::values,
};

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
    /// As [`FeatureStore::open`]; [`Error::Config`] for features of another tower, or of another kind.
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
        store.fits(tower.feature()).at(path.display())?;
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
    feature: ImageFeature,
}

impl Tower {
    /// Opens the tower of a CLIP ([`ClipFiles::open`]); it gives class tokens.
    ///
    /// # Errors
    /// A missing file, or one that is no such tower's.
    pub fn open(backend: &Candle, path: &Path) -> Result<Self> {
        let ClipFiles { config_json, preprocessor_json, weights, .. } = ClipFiles::open(path)?;
        let (vision, preprocess) =
            pollster::block_on(load_vision_checkpoint(backend, &config_json, &weights, &preprocessor_json))
                .at(path.display())?;
        Ok(Tower::new(backend, vision, preprocess))
    }

    /// Of a tower at hand; it gives class tokens.
    pub fn new(backend: &Candle, vision: ClipVision<Candle>, preprocess: PreprocessConfig) -> Self {
        Tower { backend: backend.clone(), vision, preprocess, feature: ImageFeature::Class }
    }

    /// The same, giving `feature`.
    ///
    /// # Errors
    /// As [`ImageFeature::check`].
    pub fn giving(self, feature: ImageFeature) -> Result<Self> {
        feature.check(self.vision.config())?;
        Ok(Tower { feature, ..self })
    }

    /// What it gives.
    pub fn feature(&self) -> ImageFeature {
        self.feature
    }

    /// The tower and its preprocessing.
    pub fn into_parts(self) -> (ClipVision<Candle>, PreprocessConfig) {
        (self.vision, self.preprocess)
    }

    /// Width C of a vector of its features.
    pub fn feature_size(&self) -> usize {
        self.vision.config().hidden_size
    }

    /// Width of the features of a view: C, or as many times that as [`ImageFeature::vectors`] says.
    pub fn width(&self) -> usize {
        self.feature.vectors() * self.feature_size()
    }

    /// Features of pictures in their first `views` of the eight flips and quarter turns (1: as they are):
    /// `views` rows of [`Tower::width`] an image. The workers of all processes share the pictures, and all have all features.
    ///
    /// # Errors
    /// An unreadable picture, named.
    pub fn features(&self, paths: &[&Path], views: usize, workers: &Workers) -> Result<Vec<Vec<f32>>> {
        let bar = match workers.group().rank() {
            0 => crate::progress::bar(paths.len(), "features"),
            _ => indicatif::ProgressBar::hidden(),
        };
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
        let share = paths.len().div_ceil(workers.count()).max(1);
        let readers = cores().div_ceil(workers.count());
        let parts = workers.run(workers.own(paths.chunks(share)), |_, paths: &[&Path]| {
            self.encode(paths, views.clamp(1, 8), readers, bar)
        })?;
        gather_vectors(workers.group(), parts.into_iter().flatten().collect())
    }

    /// Features of pictures that `readers` threads decode and preprocess ahead of the tower. A GPU takes many at once. The CPU
    /// takes one: sums of more rows are added in another order there, and features would depend on their neighbours.
    fn encode(
        &self,
        paths: &[&Path],
        views: usize,
        readers: usize,
        bar: &indicatif::ProgressBar,
    ) -> Result<Vec<Vec<f32>>> {
        let at_once = if self.backend.device().is_cpu() { 1 } else { (ON_GPU / views).max(1) };
        ahead(
            paths,
            readers,
            |path| self.views(path, views),
            |pictures| {
                let (mut features, mut computing) = (Vec::with_capacity(paths.len()), None);
                loop {
                    let pixels = (&mut *pictures).take(at_once).collect::<Result<Vec<_>>>()?;
                    if pixels.is_empty() {
                        break;
                    }
                    // The next ones are given to a GPU before it is waited for.
                    let next = self.computed(&pixels.concat(), pixels.len() * views)?;
                    self.take(computing.replace(next), views, &mut features, bar)?;
                }
                self.take(computing, views, &mut features, bar)?;
                if features.len() < paths.len() {
                    return Err(Error::Backend("expected a picture but its reader died".into()));
                }
                Ok(features)
            },
        )
    }

    /// The normalised pixels of a picture's views, (views, 3, side, side).
    fn views(&self, path: &Path, views: usize) -> Result<Vec<f32>> {
        let bytes = std::fs::read(path).map_err(unreadable).at(path.display())?;
        let picture = decode(&bytes).and_then(|p| resize_crop(&p, &self.preprocess)).at(path.display())?;
        Ok((0..views).flat_map(|turn| normalize(&turned(&picture, turn), &self.preprocess)).collect())
    }

    /// Features (count, width) of `count` views.
    fn computed(&self, pixels: &[f32], count: usize) -> Result<Tensor> {
        let side = self.preprocess.crop_size;
        let pixels = self.backend.upload(pixels, &[count, 3, side, side])?;
        self.vision.features(&self.backend, &pixels, self.feature)
    }

    /// Waits for what was computed: (pictures views, width) into a vector a picture.
    fn take(
        &self,
        computed: Option<Tensor>,
        views: usize,
        features: &mut Vec<Vec<f32>>,
        bar: &indicatif::ProgressBar,
    ) -> Result<()> {
        let Some(computed) = computed else { return Ok(()) };
        let computed = values(&computed)?;
        for picture in computed.chunks_exact(views * self.width()) {
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

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use rscapret::{clip::ClipConfig, nn::Checkpoint, weights::safetensors::SafetensorsFile};

    use super::*;
    use crate::cli::device::of_tests;

    #[test]
    fn pictures_read_ahead_have_the_features_that_they_have_alone() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
        let read = |name: &str| std::fs::read(golden.join("models/clip-quick-gelu").join(name)).unwrap();
        let backend = of_tests().unwrap();
        let weights = pollster::block_on(SafetensorsFile::open(read("model.safetensors"))).unwrap();
        let config = ClipConfig::from_json(&read("config.json")).unwrap().vision_config;
        let checkpoint = Checkpoint::new(&backend, &weights);
        let vision = pollster::block_on(ClipVision::load(&checkpoint, &config)).unwrap();
        let tower = Tower::new(&backend, vision, PreprocessConfig::clip(config.image_size));
        let names = ["61x97.png", "64x64.png", "97x61.png", "300x200.png", "photo-97x61.jpg"];
        let paths: Vec<PathBuf> = names.iter().map(|name| golden.join("preprocess").join(name)).collect();
        let paths: Vec<&Path> = paths.iter().map(PathBuf::as_path).cycle().take(19).collect();
        for views in [1, 3, 8] {
            let alone = |path: &&Path| {
                let picture = decode(&std::fs::read(path).unwrap()).unwrap();
                let picture = resize_crop(&picture, &tower.preprocess).unwrap();
                let pixels = (0..views).flat_map(|turn| normalize(&turned(&picture, turn), &tower.preprocess));
                let pixels: Vec<f32> = pixels.collect();
                let pixels = backend.upload(&pixels, &[views, 3, picture.height, picture.width]).unwrap();
                values(&tower.vision.forward(&backend, &pixels).unwrap().pooled).unwrap()
            };
            let expected: Vec<Vec<f32>> = paths.iter().map(alone).collect();
            for workers in [1, 2] {
                let found =
                    tower.features(&paths, views, &Workers::new(workers, &candle_core::Device::Cpu).unwrap()).unwrap();
                // A GPU adds in another order for another number of pictures.
                let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-4 * (1.0 + b.abs());
                let same = match backend.device().is_cpu() {
                    true => found == expected,
                    false => found.concat().iter().zip(&expected.concat()).all(near),
                };
                assert!(same, "{views} views, {workers} workers");
            }
        }
        // The first that cannot be read is named.
        let broken = [paths[0], Path::new("gone.png"), paths[1]];
        let error =
            tower.features(&broken, 1, &Workers::new(1, &candle_core::Device::Cpu).unwrap()).unwrap_err().to_string();
        assert!(error.starts_with("gone.png: "), "{error}");
    }
}
