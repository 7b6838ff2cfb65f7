//! The `Range` header (RFC 9110, section 14.2).

/// What a `Range` header asks of a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Range {
    /// `length >= 1` bytes from `start`, all inside of the file.
    Part { start: u64, length: u64 },
    /// Nothing that the file has.
    Unsatisfiable,
}

impl Range {
    /// `None` for headers that the standard lets a server ignore: malformed ones and several ranges at once.
    pub(super) fn parse(header: &str, size: u64) -> Option<Range> {
        let (first, last) = header.trim().strip_prefix("bytes=")?.split_once('-')?;
        let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten();
        let (first, last) = (first.trim(), last.trim());
        let (start, end) = match (first.is_empty(), last.is_empty()) {
            (true, true) => return None,
            (true, false) => (size.saturating_sub(number(last)?), size),
            (false, true) => (number(first)?, size),
            (false, false) => {
                let (first, last) = (number(first)?, number(last)?);
                if last < first {
                    return None;
                }
                (first, last.saturating_add(1).min(size))
            }
        };
        Some(if start < end { Range::Part { start, length: end - start } } else { Range::Unsatisfiable })
    }
}

#[cfg(test)]
mod tests {
    use super::Range::{self, *};

    #[test]
    fn ranges_of_ten_bytes() {
        let cases = [
            ("bytes=0-0", Some(Part { start: 0, length: 1 })),
            ("bytes=2-5", Some(Part { start: 2, length: 4 })),
            ("bytes=7-", Some(Part { start: 7, length: 3 })),
            ("bytes=-4", Some(Part { start: 6, length: 4 })),
            ("bytes=-99", Some(Part { start: 0, length: 10 })),
            ("bytes=5-99", Some(Part { start: 5, length: 5 })),
            ("bytes=0-18446744073709551615", Some(Part { start: 0, length: 10 })),
            ("bytes=10-", Some(Unsatisfiable)),
            ("bytes=-0", Some(Unsatisfiable)),
            ("bytes=5-2", None),
            ("bytes=-", None),
            ("bytes=0-1,4-5", None),
            ("bytes=+1-2", None),
            ("bytes=0-99999999999999999999", None),
            ("lines=0-1", None),
            ("", None),
        ];
        for (header, expected) in cases {
            assert_eq!(Range::parse(header, 10), expected, "{header}");
        }
    }

    #[test]
    fn an_empty_file_has_no_ranges() {
        assert_eq!(Range::parse("bytes=0-", 0), Some(Unsatisfiable));
        assert_eq!(Range::parse("bytes=-1", 0), Some(Unsatisfiable));
    }
}
