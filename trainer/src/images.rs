//! Images in memory, and the views of them that training sees.

use std::path::Path;

use rand::{Rng, seq::SliceRandom as _};
use rayon::prelude::*;
use rscapret::{
    Context, Result,
    clip::preprocess::{Picture, PreprocessConfig, decode, resize_crop},
};
use serde::{Deserialize, Serialize};

use crate::files::unreadable;

/// `[augment]` of a stage's TOML: changes that keep a view from above a view from above.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Augment {
    /// Flips and quarter turns.
    pub turns: bool,
    /// Smallest share of the area that a crop keeps; 1 for the whole.
    pub area: f32,
    /// Largest relative change of brightness, contrast and saturation.
    pub colour: f32,
}

impl Default for Augment {
    fn default() -> Self {
        Augment { turns: true, area: 0.4, colour: 0.3 }
    }
}

/// Reads a picture and brings it to `side` by `side` pixels, with the browser's own code.
///
/// # Errors
/// An unreadable file, named.
pub fn read_square(path: &Path, side: usize) -> Result<Picture> {
    let bytes = std::fs::read(path).map_err(unreadable).at(path.display())?;
    let picture = decode(&bytes).at(path.display())?;
    resize_crop(&picture, &PreprocessConfig::clip(side)).at(path.display())
}

/// A random view of each square picture, of the tower's size and normalised as the tower wants it: (B, 3, side, side). All of
/// chance is drawn first, in the pictures' order; then they are made on all of the pool's threads.
pub fn views(pictures: &[&Picture], tower: &PreprocessConfig, augment: &Augment, rng: &mut impl Rng) -> Vec<f32> {
    let drawn: Vec<(&Picture, View)> =
        pictures.iter().map(|p| (*p, View::draw(p.width as f32, augment, rng))).collect();
    let size = 3 * tower.crop_size * tower.crop_size;
    let mut pixels = vec![0.0; drawn.len() * size];
    pixels.par_chunks_mut(size).zip(drawn).for_each(|(out, (picture, view))| view.render(picture, tower, out));
    pixels
}

/// What chance makes of a picture.
struct View {
    /// The crop's corner, width and height, pixels.
    crop: [f32; 4],
    /// Of eight: bits for two flips and the swap of the axes.
    turn: u32,
    brightness: f32,
    contrast: f32,
    saturation: f32,
}

impl View {
    /// Of a picture `whole` pixels wide and high.
    fn draw(whole: f32, augment: &Augment, rng: &mut impl Rng) -> Self {
        let area = if augment.area < 1.0 { rng.random_range(augment.area..1.0) } else { 1.0 };
        let ratio = if augment.area < 1.0 { rng.random_range(-0.2877f32..0.2877).exp() } else { 1.0 };
        let (w, h) = ((area * ratio).sqrt().min(1.0) * whole, (area / ratio).sqrt().min(1.0) * whole);
        let (x0, y0) = (rng.random::<f32>() * (whole - w), rng.random::<f32>() * (whole - h));
        let turn = if augment.turns { rng.random_range(0..8u32) } else { 0 };
        let mut change = || 1.0 + augment.colour * rng.random_range(-1.0f32..1.0);
        let (brightness, contrast, saturation) = (change(), change(), change());
        View { crop: [x0, y0, w, h], turn, brightness, contrast, saturation }
    }

    /// Into (3, side, side).
    fn render(&self, picture: &Picture, tower: &PreprocessConfig, out: &mut [f32]) {
        let &View { crop: [x0, y0, w, h], turn, brightness, contrast, saturation } = self;
        let side = tower.crop_size;
        let n = side * side;
        let last = picture.width - 1;
        for y in 0..side {
            for x in 0..side {
                let (mut u, mut v) = ((x as f32 + 0.5) / side as f32, (y as f32 + 0.5) / side as f32);
                if turn & 1 == 1 {
                    u = 1.0 - u;
                }
                if turn & 2 == 2 {
                    v = 1.0 - v;
                }
                if turn & 4 == 4 {
                    std::mem::swap(&mut u, &mut v);
                }
                let px = (x0 + u * w - 0.5).clamp(0.0, last as f32);
                let py = (y0 + v * h - 0.5).clamp(0.0, last as f32);
                let (xi, yi) = (px as usize, py as usize);
                let (fx, fy) = (px - xi as f32, py - yi as f32);
                let (xj, yj) = ((xi + 1).min(last), (yi + 1).min(last));
                let at = |x: usize, y: usize, c: usize| f32::from(picture.rgb[(y * picture.width + x) * 3 + c]);
                let mut rgb = [0f32; 3];
                for (c, value) in rgb.iter_mut().enumerate() {
                    let top = at(xi, yi, c) * (1.0 - fx) + at(xj, yi, c) * fx;
                    let bottom = at(xi, yj, c) * (1.0 - fx) + at(xj, yj, c) * fx;
                    *value = (top * (1.0 - fy) + bottom * fy) / 255.0 * brightness;
                }
                let gray = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2];
                for (c, value) in rgb.iter().enumerate() {
                    let value = gray + (value - gray) * saturation;
                    let value = ((value - 0.45) * contrast + 0.45).clamp(0.0, 1.0);
                    out[c * n + y * side + x] = (value - tower.image_mean[c]) / tower.image_std[c];
                }
            }
        }
    }
}

/// Which `keep` of `patches` each image of a batch shows, in order: rows of (batch * patches).
pub fn kept_patches(batch: usize, patches: usize, keep: usize, rng: &mut impl Rng) -> Vec<u32> {
    let mut rows = Vec::with_capacity(batch * keep);
    let mut order: Vec<u32> = (0..patches as u32).collect();
    for b in 0..batch as u32 {
        order.shuffle(rng);
        let mut chosen = order[..keep].to_vec();
        chosen.sort_unstable();
        rows.extend(chosen.iter().map(|p| b * patches as u32 + p));
    }
    rows
}
