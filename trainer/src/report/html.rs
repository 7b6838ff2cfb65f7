//! The page: one file, without scripts, that shows in any browser and needs nothing beside it.

use std::{collections::BTreeMap, fmt::Write as _, path::Path};

use rscapret::{
    Result,
    clip::preprocess::{MAX_DECODED_BYTES, Picture, PreprocessConfig, decode, resize_crop},
};

use super::{Metrics, Sample, Series, chart::chart};
use crate::files::read_whole;

/// Side of the samples' images, pixels.
const THUMBNAIL: usize = 128;
/// Columns of the samples' table: the first times, the last ones, and some between.
const TIMES: usize = 6;

const STYLE: &str = "
:root { color-scheme: light dark; --line: #2563eb; --grid: #8884; --quiet: #888; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1000px; padding: 0 1rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 440px), 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption b { float: right; } svg { width: 100%; height: auto; }
svg text { font: 11px system-ui, sans-serif; fill: var(--quiet); } .y { text-anchor: end; } .x { text-anchor: middle; }
.grid { stroke: var(--grid); } .curve { fill: none; stroke: var(--line); stroke-width: 1.6; } .end { fill: var(--line); }
table { border-collapse: collapse; } td, th { padding: .4rem .6rem; text-align: left; vertical-align: top; border-top: 1px solid var(--grid); }
img { width: 128px; height: 128px; } .scroll { overflow-x: auto; } .quiet { color: var(--quiet); } pre { overflow-x: auto; }
";

/// The page of a run: its name, its configuration as TOML, its numbers, its samples.
///
/// # Errors
/// A sample's image that was readable once and cannot be made a thumbnail of. One that is gone is left blank.
pub fn page(name: &str, config: &str, metrics: &Metrics, samples: &[Sample]) -> Result<String> {
    let name = escape(name);
    let mut text = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>{name}</title>\n<style>{STYLE}</style>\n<h1>{name}</h1>\n"
    );
    if let Some(last) = metrics.series.iter().flat_map(|series| series.points.last()).map(|point| point.0).max() {
        let _ = writeln!(text, "<p class=\"quiet\">{last} steps</p>");
    }
    let validation = |series: &&Series| series.name.starts_with("validation/") || series.name == "score";
    section("Validation", metrics.series.iter().filter(validation), &mut text);
    section("Training", metrics.series.iter().filter(|series| !validation(series)), &mut text);
    if !samples.is_empty() {
        table(samples, &mut text)?;
    }
    let _ = writeln!(text, "<h2>Configuration</h2>\n<pre>{}</pre>\n</html>", escape(config));
    Ok(text)
}

fn section<'a>(title: &str, series: impl Iterator<Item = &'a Series>, text: &mut String) {
    let charts: String = series.map(chart).collect();
    if !charts.is_empty() {
        let _ = writeln!(text, "<h2>{title}</h2>\n<div class=\"charts\">\n{charts}</div>");
    }
}

/// A row for each image, a column for each time.
fn table(samples: &[Sample], text: &mut String) -> Result<()> {
    let mut images: Vec<&Path> = Vec::new();
    let mut said: BTreeMap<u64, BTreeMap<&Path, &Sample>> = BTreeMap::new();
    for sample in samples {
        if !images.contains(&sample.image.as_path()) {
            images.push(&sample.image);
        }
        said.entry(sample.step).or_default().insert(&sample.image, sample);
    }
    let steps: Vec<u64> = said.keys().copied().collect();
    let shown: Vec<u64> = match steps.len() {
        n if n <= TIMES => steps,
        n => (0..TIMES).map(|at| steps[at * (n - 1) / (TIMES - 1)]).collect(),
    };
    text.push_str(
        "<h2>Samples of the validation split</h2>\n<div class=\"scroll\"><table>\n<tr><th>image<th>people wrote",
    );
    shown.iter().for_each(|step| {
        let _ = write!(text, "<th>step {step}");
    });
    text.push('\n');
    for image in images {
        let references =
            samples.iter().rfind(|sample| sample.image == image).map(|sample| sample.references.join("<br>"));
        // The separator is markup, the captions are not.
        let references = escape(&references.unwrap_or_default()).replace("&lt;br&gt;", "<br>");
        let _ = write!(text, "<tr><td>{}<td class=\"quiet\">{references}", thumbnail(image)?);
        for step in &shown {
            let caption = said.get(step).and_then(|of| of.get(image)).map_or("", |sample| &sample.caption);
            let _ = write!(text, "<td>{}", escape(caption));
        }
        text.push('\n');
    }
    text.push_str("</table></div>\n");
    Ok(())
}

/// The image as markup: small, inside of the page, in a format that every browser draws.
fn thumbnail(path: &Path) -> Result<String> {
    let name = escape(&path.file_name().unwrap_or_default().to_string_lossy());
    let Ok(bytes) = read_whole(path, MAX_DECODED_BYTES) else { return Ok(name) };
    let picture = resize_crop(&decode(&bytes)?, &PreprocessConfig::clip(THUMBNAIL))?;
    Ok(format!("<img alt=\"{name}\" title=\"{name}\" src=\"data:image/bmp;base64,{}\">", base64(&bmp(&picture))))
}

/// An uncompressed bitmap: rows from the bottom, blue first, each a multiple of four bytes.
fn bmp(picture: &Picture) -> Vec<u8> {
    let row = (picture.width * 3).next_multiple_of(4);
    let size = row * picture.height;
    let mut out = b"BM".to_vec();
    let mut put = |value: usize| out.extend((value as u32).to_le_bytes());
    // File header: size, reserved, where the pixels begin. Then the 40 bytes of the picture's header.
    [54 + size, 0, 54, 40, picture.width, picture.height].into_iter().for_each(&mut put);
    // One plane of 24 bits; no compression; size; pixels a metre (2); colours in a palette (2).
    [1 | 24 << 16, 0, size, 0, 0, 0, 0].into_iter().for_each(&mut put);
    for line in picture.rgb.chunks_exact(picture.width * 3).rev() {
        let start = out.len();
        out.extend(line.chunks_exact(3).flat_map(|rgb| [rgb[2], rgb[1], rgb[0]]));
        out.resize(start + row, 0);
    }
    out
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let value = (0..3).fold(0u32, |value, at| value << 8 | u32::from(chunk.get(at).copied().unwrap_or_default()));
        for at in 0..4 {
            let letter = LETTERS[(value >> (18 - 6 * at) & 63) as usize];
            out.push(if at <= chunk.len() { char::from(letter) } else { '=' });
        }
    }
    out
}

/// Text that is no markup.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_the_standard() {
        // RFC 4648, section 10.
        let text = ["", "f", "fo", "foo", "foob", "fooba", "foobar"].map(|text| base64(text.as_bytes()));
        assert_eq!(text, ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"]);
    }

    #[test]
    fn a_bitmap_byte_by_byte() {
        let picture = Picture::new(1, 2, vec![1, 2, 3, 4, 5, 6]).unwrap();
        let bytes = bmp(&picture);
        assert_eq!(
            (bytes.len(), &bytes[..2], bytes[2], bytes[10], bytes[18], bytes[22], bytes[28]),
            (62, &b"BM"[..], 62, 54, 1, 2, 24)
        );
        assert_eq!(bytes[54..], [6, 5, 4, 0, 3, 2, 1, 0]);
    }

    #[test]
    fn what_people_and_models_write_is_no_markup() {
        let sample = |step: u64, caption: &str| Sample {
            step,
            image: "gone.jpg".into(),
            caption: caption.into(),
            references: vec!["a < b".into(), "<script>".into()],
        };
        let samples: Vec<Sample> = (1..=20).map(|step| sample(step, &format!("<i>said at {step}</i>"))).collect();
        let text = page("run & more", "seed = \"1\"", &Metrics::default(), &samples).unwrap();
        assert!(text.contains("<title>run &amp; more</title>") && text.contains("seed = &quot;1&quot;"));
        assert!(text.contains("a &lt; b<br>&lt;script&gt;") && !text.contains("<script>") && !text.contains("<i>"));
        assert_eq!(text.matches("<th>step").count(), TIMES);
        assert!(text.contains("<th>step 1<") && text.contains("<th>step 20\n"));
    }
}
