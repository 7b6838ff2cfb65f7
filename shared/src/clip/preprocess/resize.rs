//! Pillow's bicubic resampling of 8-bit pictures, bit for bit (its `Resample.c`): the filter widens with the reduction,
//! weights are fixed-point numbers, and the picture between the two passes is 8-bit again.

use std::ops::Range;

use super::Picture;

/// Fractional bits of a weight: 32 less 8 of the pixel and 2 of head room.
const PRECISION: u32 = 32 - 8 - 2;
/// Reach of the filter in source pixels when it does not reduce.
const SUPPORT: f64 = 2.0;

/// The weights of one direction, for the wanted range of output positions.
pub(super) struct Axis {
    /// First source pixel and number of weights of each output pixel.
    bounds: Vec<(usize, usize)>,
    /// Weights, `stride` for each output pixel.
    weights: Vec<i32>,
    stride: usize,
}

impl Axis {
    /// From `source` pixels to `target`, of which only `wanted` are computed.
    pub(super) fn new(source: usize, target: usize, wanted: Range<usize>) -> Self {
        let scale = source as f64 / target as f64;
        let filter_scale = scale.max(1.0);
        let support = SUPPORT * filter_scale;
        let stride = support.ceil() as usize * 2 + 1;
        let mut bounds = Vec::with_capacity(wanted.len());
        let mut weights = vec![0; wanted.len() * stride];
        let mut exact = Vec::with_capacity(stride);
        for (x, weights) in wanted.zip(weights.chunks_exact_mut(stride)) {
            let center = (x as f64 + 0.5) * scale;
            // Casts cut towards zero, and below zero saturate, as the reference's do.
            let first = (center - support + 0.5) as usize;
            let end = ((center + support + 0.5) as usize).min(source);
            exact.clear();
            exact.extend((first..end).map(|i| bicubic_filter((i as f64 - center + 0.5) * (1.0 / filter_scale))));
            let sum: f64 = exact.iter().sum();
            for (to, &w) in weights.iter_mut().zip(&exact) {
                let w = if sum == 0.0 { w } else { w / sum } * f64::from(1u32 << PRECISION);
                *to = (if w < 0.0 { w - 0.5 } else { w + 0.5 }) as i32;
            }
            bounds.push((first, exact.len()));
        }
        Self { bounds, weights, stride }
    }

    /// First source pixel and weights of each output pixel.
    fn taps(&self) -> impl Iterator<Item = (usize, &[i32])> {
        self.bounds.iter().zip(self.weights.chunks_exact(self.stride)).map(|(&(first, n), w)| (first, &w[..n]))
    }

    /// Source pixels that any output pixel reads.
    fn sources(&self) -> Range<usize> {
        let start = self.bounds.iter().map(|b| b.0).min().unwrap_or(0);
        start..self.bounds.iter().map(|b| b.0 + b.1).max().unwrap_or(0)
    }
}

/// Keys' cubic with a = -0.5 (Keys, 1981).
fn bicubic_filter(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// Resamples columns, then rows.
pub(super) fn bicubic(picture: &Picture, columns: &Axis, rows: &Axis) -> Picture {
    let (width, height) = (columns.bounds.len(), rows.bounds.len());
    let needed = rows.sources();
    let row_bytes = 3 * picture.width;
    let mut between = Vec::with_capacity(needed.len() * width * 3);
    for row in picture.rgb[needed.start * row_bytes..needed.end * row_bytes].chunks_exact(row_bytes) {
        for (first, weights) in columns.taps() {
            let mut sum = [1i32 << (PRECISION - 1); 3];
            for (pixel, &w) in row[3 * first..3 * (first + weights.len())].chunks_exact(3).zip(weights) {
                for (sum, &value) in sum.iter_mut().zip(pixel) {
                    *sum += i32::from(value) * w;
                }
            }
            between.extend(sum.map(to_byte));
        }
    }
    let mut rgb = Vec::with_capacity(3 * width * height);
    let mut sums = vec![0i32; 3 * width];
    for (first, weights) in rows.taps() {
        sums.fill(1 << (PRECISION - 1));
        let from = (first - needed.start) * 3 * width;
        for (row, &w) in between[from..].chunks_exact(3 * width).zip(weights) {
            for (sum, &value) in sums.iter_mut().zip(row) {
                *sum += i32::from(value) * w;
            }
        }
        rgb.extend(sums.iter().copied().map(to_byte));
    }
    Picture { width, height, rgb }
}

fn to_byte(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_of_each_pixel_sum_to_one() {
        for (source, target) in [(97, 224), (224, 97), (1, 50), (5000, 224), (64, 64)] {
            let axis = Axis::new(source, target, 0..target);
            for (first, weights) in axis.taps() {
                let sum: i64 = weights.iter().map(|&w| i64::from(w)).sum();
                // Each weight is rounded by itself.
                assert!((sum - (1 << PRECISION)).unsigned_abs() as usize <= weights.len(), "{source} -> {target}");
                assert!(first + weights.len() <= source);
            }
        }
    }

    #[test]
    fn a_part_is_the_part_of_the_whole() {
        let picture = Picture::new(41, 23, (0..41 * 23 * 3).map(|i| (i * i % 251) as u8).collect()).unwrap();
        let whole = bicubic(&picture, &Axis::new(41, 30, 0..30), &Axis::new(23, 50, 0..50));
        let part = bicubic(&picture, &Axis::new(41, 30, 7..19), &Axis::new(23, 50, 11..40));
        for y in 0..29 {
            assert_eq!(part.rgb[y * 36..][..36], whole.rgb[((y + 11) * 30 + 7) * 3..][..36]);
        }
    }

    #[test]
    fn one_colour_stays_one_colour() {
        let picture = Picture::new(13, 7, vec![201; 13 * 7 * 3]).unwrap();
        let out = bicubic(&picture, &Axis::new(13, 29, 0..29), &Axis::new(7, 3, 0..3));
        assert!(out.rgb.iter().all(|&v| v == 201));
    }
}
