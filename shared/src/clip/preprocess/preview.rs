//! A small PNG of a picture, to be shown: no browser shows TIFF.

use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};

use super::{
    Picture,
    resize::{Axis, bicubic},
};
use crate::error::{Error, Result};

/// The whole picture as PNG, made smaller (never larger) so that its longer side is at most `longest` pixels.
///
/// # Errors
/// [`Error::Config`] for a `longest` of 0; [`Error::Image`] for a picture whose buffer does not fit its sides.
pub fn preview_png(picture: &Picture, longest: usize) -> Result<Vec<u8>> {
    if longest == 0 {
        return Err(Error::Config("expected a preview of at least 1 pixel but found 0".into()));
    }
    picture.check()?;
    let side = picture.width.max(picture.height);
    // The shorter side of a long strip keeps at least a pixel.
    let scaled = |length: usize| (length * longest / side).max(1);
    let axis = |length| Axis::new(length, scaled(length), 0..scaled(length));
    let smaller = (side > longest).then(|| bicubic(picture, &axis(picture.width), &axis(picture.height)));
    let shown = smaller.as_ref().unwrap_or(picture);
    let mut png = Vec::new();
    PngEncoder::new(&mut png)
        .write_image(&shown.rgb, shown.width as u32, shown.height as u32, ExtendedColorType::Rgb8)
        .map_err(|e| Error::Image(format!("expected a picture that PNG can hold but found another: {e}")))?;
    Ok(png)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clip::preprocess::decode;

    fn ramp(width: usize, height: usize) -> Picture {
        Picture::new(width, height, (0..3 * width * height).map(|i| (i * 5 % 256) as u8).collect()).unwrap()
    }

    #[test]
    fn small_pictures_stay_as_they_are() {
        let picture = ramp(31, 17);
        assert_eq!(decode(&preview_png(&picture, 31).unwrap()).unwrap(), picture);
    }

    #[test]
    fn large_ones_keep_their_proportions() {
        for ((width, height), expected) in [((400, 200), (100, 50)), ((200, 400), (50, 100)), ((1000, 1), (100, 1))] {
            let small = decode(&preview_png(&ramp(width, height), 100).unwrap()).unwrap();
            assert_eq!((small.width, small.height), expected);
        }
    }

    #[test]
    fn colours_survive() {
        let picture = Picture::new(300, 300, [10, 200, 90].repeat(300 * 300)).unwrap();
        let small = decode(&preview_png(&picture, 64).unwrap()).unwrap();
        assert!(small.rgb.chunks_exact(3).all(|p| p == [10, 200, 90]));
    }

    #[test]
    fn bad_input_is_refused() {
        assert!(preview_png(&ramp(2, 2), 0).is_err());
        for (width, height) in [(3, 3), (300, 300)] {
            let lying = Picture { width, height, rgb: vec![0; 26] };
            assert!(preview_png(&lying, 100).is_err(), "{width}");
        }
    }
}
