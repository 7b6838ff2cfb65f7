//! Retrieval between images and captions: R@1, R@5, R@10 in both directions and their mean.
//!
//! A query hits at K when one of its own items stands among the K most similar. Equal similarities are counted against
//! the query: a strange item that ties with an own one stands before it, so that a model which gives everything the
//! same score gains nothing, and the order of the files does not matter.

use rscapret::{Error, Result};
use serde::{Deserialize, Serialize};

/// Which captions are an image's own. On datasets that repeat sentences the two give very different figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// Those that were written about it. What papers report; repeated sentences make full marks impossible.
    OwnImage,
    /// Those, and all that read the same to the letter; such a caption owns every image that it was written about.
    SameString,
}

impl Protocol {
    /// As reports name it.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::OwnImage => "own-image",
            Protocol::SameString => "same-string",
        }
    }
}

/// Recall in per cent (0 to 100), as tables print it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Recall {
    /// Share of captions that find their image first.
    #[serde(rename = "t2i_R@1")]
    pub t2i_1: f64,
    /// … among the first five.
    #[serde(rename = "t2i_R@5")]
    pub t2i_5: f64,
    /// … among the first ten.
    #[serde(rename = "t2i_R@10")]
    pub t2i_10: f64,
    /// Share of images that find a caption of theirs first.
    #[serde(rename = "i2t_R@1")]
    pub i2t_1: f64,
    /// … among the first five.
    #[serde(rename = "i2t_R@5")]
    pub i2t_5: f64,
    /// … among the first ten.
    #[serde(rename = "i2t_R@10")]
    pub i2t_10: f64,
    /// Mean of the six.
    pub mean_recall: f64,
}

/// The captions that images are searched by.
#[derive(Debug, Clone, Copy)]
pub struct Caption<'a> {
    /// As written.
    pub text: &'a str,
    /// Row of the image that it was written about.
    pub image: usize,
}

/// The captions of images in their order, by what gives an image's texts.
pub fn captions_of<'a, I, T: AsRef<str> + 'a>(images: &'a [I], texts: impl Fn(&'a I) -> &'a [T]) -> Vec<Caption<'a>> {
    let of = |(image, item)| texts(item).iter().map(move |text: &T| Caption { text: text.as_ref(), image });
    images.iter().enumerate().flat_map(of).collect()
}

/// Recall from similarities, row-major `(images, captions)`: entry `[i * captions.len() + c]` is that of image `i` and
/// caption `c`.
///
/// # Errors When there are no images or captions, the matrix has another size, a caption is of an image beyond the
/// last, an image has no caption, or a similarity is not a number.
pub fn recall(similarities: &[f32], images: usize, captions: &[Caption], protocol: Protocol) -> Result<Recall> {
    check(similarities, images, captions)?;
    let columns = captions.len();
    let own = ownership(images, captions, protocol);
    let at = |image: usize, caption: usize| similarities[image * columns + caption];
    let t2i = hits((0..columns).map(|caption| rank((0..images).map(|i| (at(i, caption), own[i * columns + caption])))));
    let i2t = hits((0..images).map(|image| rank((0..columns).map(|c| (at(image, c), own[image * columns + c])))));
    let mean_recall = (t2i.iter().sum::<f64>() + i2t.iter().sum::<f64>()) / 6.0;
    let ([t2i_1, t2i_5, t2i_10], [i2t_1, i2t_5, i2t_10]) = (t2i, i2t);
    Ok(Recall { t2i_1, t2i_5, t2i_10, i2t_1, i2t_5, i2t_10, mean_recall })
}

fn check(similarities: &[f32], images: usize, captions: &[Caption]) -> Result<()> {
    if images == 0 || captions.is_empty() {
        let found = format!("{images} and {}", captions.len());
        return Err(Error::Config(format!("expected at least one image and one caption but found {found}")));
    }
    if images.checked_mul(captions.len()) != Some(similarities.len()) {
        return Err(Error::Shape {
            name: "similarities".to_string(),
            expected: vec![images, captions.len()],
            found: vec![similarities.len()],
        });
    }
    let mut has_caption = vec![false; images];
    for (index, caption) in captions.iter().enumerate() {
        match has_caption.get_mut(caption.image) {
            Some(seen) => *seen = true,
            None => {
                let image = caption.image;
                return Err(Error::Config(format!(
                    "expected caption {index} to be of one of {images} images but found {image}"
                )));
            }
        }
    }
    if let Some(image) = has_caption.iter().position(|seen| !seen) {
        return Err(Error::Config(format!("expected every image to have a caption but found none of image {image}")));
    }
    match similarities.iter().position(|value| value.is_nan()) {
        Some(at) => Err(Error::Backend(format!("expected similarities to be numbers but found NaN at {at}"))),
        None => Ok(()),
    }
}

/// For each image and caption, row-major, whether they belong together.
fn ownership(images: usize, captions: &[Caption], protocol: Protocol) -> Vec<bool> {
    let columns = captions.len();
    let mut own = vec![false; images * columns];
    match protocol {
        Protocol::OwnImage => {
            captions.iter().enumerate().for_each(|(c, caption)| own[caption.image * columns + c] = true)
        }
        Protocol::SameString => {
            let mut by_text: std::collections::BTreeMap<&str, Vec<usize>> = std::collections::BTreeMap::new();
            captions.iter().enumerate().for_each(|(c, caption)| by_text.entry(caption.text).or_default().push(c));
            for same in by_text.values() {
                for (&a, &b) in same.iter().flat_map(|a| same.iter().map(move |b| (a, b))) {
                    own[captions[a].image * columns + b] = true;
                }
            }
        }
    }
    own
}

/// How many strange items stand before the best own one.
fn rank(items: impl Iterator<Item = (f32, bool)> + Clone) -> usize {
    let best = items.clone().filter(|(_, own)| *own).map(|(value, _)| value).fold(f32::NEG_INFINITY, f32::max);
    items.filter(|(value, own)| !own && *value >= best).count()
}

/// Per cent of ranks below 1, 5 and 10.
fn hits(ranks: impl Iterator<Item = usize>) -> [f64; 3] {
    let (mut found, mut total) = ([0usize; 3], 0usize);
    for rank in ranks {
        total += 1;
        for (hits, k) in found.iter_mut().zip([1, 5, 10]) {
            *hits += usize::from(rank < k);
        }
    }
    found.map(|hits| 100.0 * hits as f64 / total.max(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn captions<'a>(texts: &[(&'a str, usize)]) -> Vec<Caption<'a>> {
        texts.iter().map(|&(text, image)| Caption { text, image }).collect()
    }

    #[test]
    fn both_directions_by_hand() {
        // Image 0 owns captions 0 and 1, image 1 owns caption 2.
        let captions = captions(&[("a", 0), ("b", 0), ("c", 1)]);
        let similarities = [0.9, 0.1, 0.3, 0.2, 0.8, 0.7];
        let recall = recall(&similarities, 2, &captions, Protocol::OwnImage).unwrap();
        // Captions 0 and 2 find their image first, 1 does not. Image 0 finds caption 0, image 1 finds 1 before 2.
        assert!((recall.t2i_1 - 200.0 / 3.0).abs() < 1e-9 && recall.i2t_1 == 50.0, "{recall:?}");
        assert_eq!((recall.t2i_5, recall.i2t_5), (100.0, 100.0));
        assert!((recall.mean_recall - (200.0 / 3.0 + 50.0 + 400.0) / 6.0).abs() < 1e-9);
    }

    #[test]
    fn same_strings_count_under_their_protocol_only() {
        let captions = captions(&[("a field", 0), ("a field", 1)]);
        let similarities = [0.1, 0.9, 0.9, 0.1];
        let at = |protocol| recall(&similarities, 2, &captions, protocol).unwrap();
        assert_eq!((at(Protocol::OwnImage).t2i_1, at(Protocol::OwnImage).i2t_1), (0.0, 0.0));
        assert_eq!((at(Protocol::SameString).t2i_1, at(Protocol::SameString).i2t_1), (100.0, 100.0));
    }

    #[test]
    fn ties_count_against_the_query() {
        let texts: Vec<String> = (0..20).map(|i| i.to_string()).collect();
        let captions: Vec<Caption> = texts.iter().enumerate().map(|(image, text)| Caption { text, image }).collect();
        let recall = recall(&[0.5; 400], 20, &captions, Protocol::OwnImage).unwrap();
        assert_eq!(recall.mean_recall, 0.0);
    }

    #[test]
    fn refuses_what_has_no_meaning() {
        let own = |similarities: &[f32], images, texts: &[(&str, usize)]| {
            recall(similarities, images, &captions(texts), Protocol::OwnImage).unwrap_err().to_string()
        };
        assert_eq!(own(&[], 0, &[]), "expected at least one image and one caption but found 0 and 0");
        assert_eq!(own(&[0.0], 1, &[("a", 0), ("b", 0)]), "expected `similarities` to have shape [1, 2] but found [1]");
        assert_eq!(own(&[0.0], 1, &[("a", 3)]), "expected caption 0 to be of one of 1 images but found 3");
        assert_eq!(own(&[0.0; 2], 2, &[("a", 0)]), "expected every image to have a caption but found none of image 1");
        assert_eq!(own(&[f32::NAN], 1, &[("a", 0)]), "expected similarities to be numbers but found NaN at 0");
    }
}
