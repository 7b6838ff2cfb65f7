//! Progress bars, all of one kind: how far, how fast, how long still, of what. On standard error, absent where that is no
//! terminal.

use std::borrow::Cow;

use indicatif::{ProgressBar, ProgressStyle};

const BAR: &str = "{bar:30} {pos}/{len} {per_sec} left {eta} {msg}";
const COUNT: &str = "{spinner} {pos} {per_sec} {msg}";

/// A bar of `len` steps.
pub fn bar(len: usize, what: impl Into<Cow<'static, str>>) -> ProgressBar {
    styled(ProgressBar::new(len as u64), BAR).with_message(what)
}

/// For what has no known end.
pub fn count(what: impl Into<Cow<'static, str>>) -> ProgressBar {
    styled(ProgressBar::new_spinner(), COUNT).with_message(what)
}

fn styled(bar: ProgressBar, template: &str) -> ProgressBar {
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_of_indicatifs_language() {
        assert!([BAR, COUNT].into_iter().all(|template| ProgressStyle::with_template(template).is_ok()));
        assert_eq!((bar(3, "steps").length(), count("images").length()), (Some(3), None));
    }
}
