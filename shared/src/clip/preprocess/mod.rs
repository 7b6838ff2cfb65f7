//! Picture bytes to pixel values: the only preprocessing in the tree, so trainer and page see the same pixels.
//!
//! Follows Hugging Face's PIL-based `CLIPImageProcessor`: shortest edge to `size` by Pillow's bicubic filter, centre
//! crop, rescale by 1/255, normalise. From equal pixels it gives equal bits.

mod config;
mod decode;
mod preview;
mod resize;

pub use config::{CLIP_MEAN, CLIP_STD, PreprocessConfig};
pub use decode::{MAX_DECODED_BYTES, MAX_SIDE, decode};
pub use preview::preview_png;

use crate::error::{Error, Result};
use resize::Axis;

/// An RGB picture, 8 bits a channel, rows from the top, channels innermost: `rgb` is (height, width, 3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Pixels a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Values, `3 * width * height` of them.
    pub rgb: Vec<u8>,
}

impl Picture {
    /// Pictures of no pixels, and buffers of another length than the sides say, are refused.
    ///
    /// # Errors
    /// [`Error::Image`].
    pub fn new(width: usize, height: usize, rgb: Vec<u8>) -> Result<Self> {
        let picture = Self { width, height, rgb };
        picture.check()?;
        Ok(picture)
    }

    /// The fields are public: whoever reads pixels by the sides looks first.
    fn check(&self) -> Result<()> {
        let Self { width, height, ref rgb } = *self;
        let expected = width.checked_mul(height).and_then(|n| n.checked_mul(3));
        if width == 0 || height == 0 || expected != Some(rgb.len()) {
            return Err(Error::Image(format!(
                "expected 3 bytes for each pixel of a picture of {width}x{height} but found {} bytes",
                rgb.len()
            )));
        }
        Ok(())
    }
}

/// The 8-bit stage: shortest edge to `config.size`, then the centre `config.crop_size` square, padded with black where
/// the resized picture is smaller. What a trainer caches.
///
/// # Errors
/// [`Error::Config`] for sizes out of range, [`Error::Image`] for a picture whose buffer does not fit its sides.
pub fn resize_crop(picture: &Picture, config: &PreprocessConfig) -> Result<Picture> {
    config.check()?;
    let (width, height) = (picture.width, picture.height);
    picture.check()?;
    let (resized_width, resized_height) = resized(width, height, config.size);
    let crop = config.crop_size;
    let (columns, left) = window(resized_width, crop);
    let (rows, top) = window(resized_height, crop);
    // Only what the crop keeps is computed: a strip of 1x16384 would else become 224x3670016.
    let kept = resize::bicubic(
        picture,
        &Axis::new(width, resized_width, columns.clone()),
        &Axis::new(height, resized_height, rows.clone()),
    );
    if kept.width == crop && kept.height == crop {
        return Ok(kept);
    }
    let mut rgb = vec![0; 3 * crop * crop];
    for (from, to) in kept.rgb.chunks_exact(3 * kept.width).zip(rgb.chunks_exact_mut(3 * crop).skip(top)) {
        to[3 * left..3 * (left + kept.width)].copy_from_slice(from);
    }
    Ok(Picture { width: crop, height: crop, rgb })
}

/// Pixel values (3, crop, crop) as the vision tower expects them.
///
/// # Errors
/// As [`resize_crop`].
pub fn preprocess(picture: &Picture, config: &PreprocessConfig) -> Result<Vec<f32>> {
    Ok(normalize(&resize_crop(picture, config)?, config))
}

/// Rescales and normalises an 8-bit picture: (height, width, 3) bytes -> (3, height, width).
pub fn normalize(picture: &Picture, config: &PreprocessConfig) -> Vec<f32> {
    let plane = picture.rgb.len() / 3;
    let mut values = vec![0.0; 3 * plane];
    for (channel, to) in values.chunks_exact_mut(plane.max(1)).enumerate() {
        let (mean, std) = (config.image_mean[channel], config.image_std[channel]);
        // The reference multiplies in f64, stores f32, and normalises in f32.
        let table: [f32; 256] = std::array::from_fn(|v| ((v as f64 * (1.0 / 255.0)) as f32 - mean) / std);
        for (to, pixel) in to.iter_mut().zip(picture.rgb.chunks_exact(3)) {
            *to = table[usize::from(pixel[channel])];
        }
    }
    values
}

/// Width and height when the shorter side becomes `size`. The longer one is cut, not rounded, as the reference does.
fn resized(width: usize, height: usize, size: usize) -> (usize, usize) {
    let (short, long) = (width.min(height), width.max(height));
    let new_long = (((size * long) as f64) / short as f64) as usize;
    if width <= height { (size, new_long) } else { (new_long, size) }
}

/// What a centre crop of `crop` keeps of a side of `len`, and how much padding stands before it.
fn window(len: usize, crop: usize) -> (std::ops::Range<usize>, usize) {
    if len >= crop {
        let start = (len - crop) / 2;
        (start..start + crop, 0)
    } else {
        (0..len, pad_before(len, crop))
    }
}

/// Padding before a side of `len` inside `crop > len`: the reference pads by the upper half, then crops from
/// `floor((len - crop) / 2) + upper half`, which is 0.
fn pad_before(len: usize, crop: usize) -> usize {
    (crop - len).div_ceil(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grey(width: usize, height: usize) -> Picture {
        Picture::new(width, height, (0..3 * width * height).map(|i| (i * 7 % 256) as u8).collect()).unwrap()
    }

    #[test]
    fn longer_side_is_cut() {
        assert_eq!(resized(97, 61, 224), (356, 224));
        assert_eq!(resized(61, 97, 224), (224, 356));
        assert_eq!(resized(256, 256, 224), (224, 224));
        assert_eq!(resized(1, 16384, 224), (224, 3_670_016));
    }

    #[test]
    fn same_size_is_the_same_picture() {
        let picture = grey(64, 64);
        assert_eq!(resize_crop(&picture, &PreprocessConfig::clip(64)).unwrap(), picture);
    }

    #[test]
    fn long_strip_costs_only_its_crop() {
        let out = resize_crop(&grey(1, 16384), &PreprocessConfig::clip(224)).unwrap();
        assert_eq!((out.width, out.height), (224, 224));
    }

    #[test]
    fn smaller_than_the_crop_is_padded_with_black() {
        let config = PreprocessConfig { crop_size: 9, ..PreprocessConfig::clip(4) };
        let picture = Picture::new(4, 4, vec![200; 48]).unwrap();
        let out = resize_crop(&picture, &config).unwrap();
        let lit: Vec<usize> = (0..81).filter(|i| out.rgb[3 * i] == 200).collect();
        let expected: Vec<usize> = (3..7).flat_map(|y| (3..7).map(move |x| 9 * y + x)).collect();
        assert_eq!(lit, expected);
    }

    #[test]
    fn a_buffer_that_does_not_fit_is_refused() {
        assert!(Picture::new(2, 2, vec![0; 11]).is_err());
        assert!(Picture::new(0, 2, vec![]).is_err());
        let lying = Picture { width: 3, height: 3, rgb: vec![0; 26] };
        assert!(matches!(resize_crop(&lying, &PreprocessConfig::clip(8)), Err(Error::Image(_))));
    }
}
