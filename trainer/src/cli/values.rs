//! Values of options, refused in the house's words.

/// A whole number of 1 or more.
pub(super) fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(format!("expected a whole number of 1 or more but found `{text}`")),
    }
}

/// Where chance begins.
pub(super) fn seed(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("expected a whole number from 0 to {} but found `{text}`", u64::MAX))
}

/// Words to look for, or to embed.
pub(super) fn words(text: &str) -> Result<String, String> {
    if text.trim().is_empty() {
        return Err("expected words but found none".into());
    }
    Ok(text.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert_eq!((at_least_one("1"), seed("0"), words(" a ")), (Ok(1), Ok(0), Ok(" a ".into())));
        for wrong in ["0", "-1", "1.5", "x", ""] {
            let error = at_least_one(wrong).unwrap_err();
            assert_eq!(error, format!("expected a whole number of 1 or more but found `{wrong}`"));
        }
        for wrong in ["-1", "18446744073709551616", "x"] {
            let error = seed(wrong).unwrap_err();
            assert_eq!(error, format!("expected a whole number from 0 to 18446744073709551615 but found `{wrong}`"));
        }
        for wrong in ["", "   ", "\t\n"] {
            assert_eq!(words(wrong).unwrap_err(), "expected words but found none");
        }
    }
}
