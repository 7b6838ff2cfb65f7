//! Curves as SVG.

use std::fmt::Write as _;

use super::Series;

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 220.0;
/// Room for the axes' numbers.
const LEFT: f64 = 58.0;
const BOTTOM: f64 = 24.0;
const TOP: f64 = 8.0;
const RIGHT: f64 = 10.0;
/// More points than this are averaged, or the page would be as large as the log.
const MOST: usize = 400;

/// A figure with one curve: a title, axes with their numbers, the last value. Series without finite points give nothing.
pub fn chart(series: &Series) -> String {
    let points = thinned(&series.points);
    let (Some(&(first, _)), Some(&(last, final_value))) = (points.first(), points.last()) else { return String::new() };
    let low = points.iter().map(|p| p.1).fold(f64::INFINITY, f64::min);
    let high = points.iter().map(|p| p.1).fold(f64::NEG_INFINITY, f64::max);
    // A level curve lies in the middle.
    let room = if high > low { 0.05 * (high - low) } else { low.abs().max(1.0) * 0.5 };
    let (low, high) = (low - room, high + room);
    let x = |step: f64| LEFT + (step - first) / (last - first).max(1.0) * (WIDTH - LEFT - RIGHT);
    let y = |value: f64| TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM);

    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">",
        super::html::escape(&series.name)
    );
    // Writing to a string cannot fail.
    for value in ticks(low, high) {
        let y = y(value);
        let _ = write!(svg, "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{:.1}\"/>", WIDTH - RIGHT);
        let _ = write!(svg, "<text x=\"{:.1}\" y=\"{:.1}\" class=\"y\">{}</text>", LEFT - 6.0, y + 4.0, short(value));
    }
    for step in ticks(first, last).into_iter().filter(|step| *step >= first && *step <= last) {
        let _ = write!(svg, "<text x=\"{:.1}\" y=\"{:.1}\" class=\"x\">{}</text>", x(step), HEIGHT - 6.0, short(step));
    }
    let mut path = String::new();
    for (at, &(step, value)) in points.iter().enumerate() {
        let _ = write!(path, "{}{:.1} {:.1}", if at == 0 { "M" } else { "L" }, x(step), y(value));
    }
    let _ = write!(svg, "<path class=\"curve\" d=\"{path}\"/>");
    let _ = write!(svg, "<circle class=\"end\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\"/></svg>", x(last), y(final_value));
    let title = super::html::escape(&series.name);
    format!("<figure><figcaption>{title} <b>{}</b></figcaption>{svg}</figure>\n", short(final_value))
}

/// Bars in groups under their headings, each group on its own scale: a file by itself.
pub fn bars(groups: &[(&str, Vec<(String, f64)>)]) -> String {
    const ROW: f64 = 22.0;
    let letters = groups.iter().flat_map(|(_, bars)| bars).map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let left = 20.0 + 7.0 * letters as f64;
    let width = left + 420.0;
    let lines: usize = groups.iter().map(|(_, bars)| bars.len() + 2).sum();
    let height = lines as f64 * ROW;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\"><rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>"
    );
    let mut y = 0.0;
    for (heading, bars) in groups {
        y += ROW;
        // Writing to a string cannot fail.
        let _ =
            write!(svg, "<text x=\"{left}\" y=\"{y}\" font-weight=\"bold\">{}</text>", super::html::escape(heading));
        let most = bars.iter().map(|bar| bar.1).filter(|value| value.is_finite()).fold(f64::MIN_POSITIVE, f64::max);
        for (name, value) in bars {
            y += ROW;
            let length = if value.is_finite() { 340.0 * value.max(0.0) / most } else { 0.0 };
            let (name, text) = (super::html::escape(name), short(*value));
            let _ = write!(svg, "<text x=\"{:.1}\" y=\"{y}\" text-anchor=\"end\">{name}</text>", left - 8.0);
            let _ = write!(
                svg,
                "<rect x=\"{left}\" y=\"{}\" width=\"{length:.1}\" height=\"14\" fill=\"#2563eb\"/>",
                y - 11.0
            );
            let _ = write!(svg, "<text x=\"{:.1}\" y=\"{y}\">{text}</text>", left + length + 6.0);
        }
        y += ROW;
    }
    svg + "</svg>\n"
}

/// Finite points, at most [`MOST`], each the mean of its neighbours; the last one stays as it is.
fn thinned(points: &[(u64, f64)]) -> Vec<(f64, f64)> {
    let finite: Vec<(f64, f64)> = points.iter().filter(|p| p.1.is_finite()).map(|p| (p.0 as f64, p.1)).collect();
    let Some((&last, before)) = finite.split_last() else { return Vec::new() };
    let size = before.len().div_ceil(MOST).max(1);
    let mean = |chunk: &[(f64, f64)]| {
        let n = chunk.len() as f64;
        (chunk.iter().map(|p| p.0).sum::<f64>() / n, chunk.iter().map(|p| p.1).sum::<f64>() / n)
    };
    before.chunks(size).map(mean).chain([last]).collect()
}

/// Three to seven round numbers between two.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let span = high - low;
    if !(span > 0.0 && span.is_finite()) {
        return vec![low];
    }
    let power = 10f64.powf((span / 4.0).log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|step| span / step <= 6.0).unwrap_or(10.0 * power);
    let first = (low / step).ceil() as i64;
    let last = (high / step).floor() as i64;
    (first..=last).map(|n| n as f64 * step).collect()
}

/// A number in few letters.
fn short(value: f64) -> String {
    let size = value.abs();
    if size >= 1e6 || (size < 1e-3 && size > 0.0) {
        return format!("{value:.1e}");
    }
    let text = if size >= 100.0 { format!("{value:.0}") } else { format!("{value:.4}") };
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_string() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        assert_eq!(ticks(0.0, 10.0), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(ticks(3.0, 3.0), [3.0]);
        for (low, high) in [(0.13, 0.17), (-5.0, 2000.0), (1e-9, 2e-9), (99.0, 100.0)] {
            let count = ticks(low, high).len();
            assert!((3..=7).contains(&count), "{low}..{high}: {count}");
        }
    }

    #[test]
    fn numbers_are_short() {
        let text = [0.0, 1.5, 1234.0, 1e-5, 2e7, -0.25].map(short);
        assert_eq!(text, ["0", "1.5", "1234", "1.0e-5", "2.0e7", "-0.25"]);
    }

    #[test]
    fn long_logs_are_thinned_and_odd_ones_drawn() {
        let points = (0..5000).map(|step| (step, if step == 7 { f64::NAN } else { step as f64 })).collect();
        let thin = thinned(&Series { name: "x".into(), points }.points);
        assert!(thin.len() <= MOST + 1 && thin.last() == Some(&(4999.0, 4999.0)), "{}", thin.len());
        let draw = |points: &[(u64, f64)]| chart(&Series { name: "a<b".into(), points: points.to_vec() });
        assert_eq!(draw(&[(1, f64::NAN)]), "");
        for svg in [draw(&[(5, 1.0)]), draw(&[(1, 2.0), (2, 2.0)])] {
            assert!(svg.contains("a&lt;b") && !svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }
}
