//! Finding special tokens in a text.

/// Spellings with their ids, longest first.
#[derive(Default)]
pub(super) struct Specials(Vec<(String, u32)>);

/// A part of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fragment<'a> {
    /// To be encoded; not empty.
    Text(&'a str),
    /// A special token that stood there.
    Token(u32),
}

impl Specials {
    pub(super) fn new(mut spellings: Vec<(String, u32)>) -> Self {
        spellings.retain(|(text, _)| !text.is_empty());
        spellings.sort_by(|a, b| b.0.len().cmp(&a.0.len()).then(a.1.cmp(&b.1)));
        Self(spellings)
    }

    /// Splits a text; longer tokens win over shorter ones wherever they stand, as in llama.cpp.
    pub(super) fn split<'a>(&self, text: &'a str) -> Vec<Fragment<'a>> {
        let mut fragments = if text.is_empty() { Vec::new() } else { vec![Fragment::Text(text)] };
        for (spelling, id) in self.0.iter().filter(|(spelling, _)| text.contains(spelling.as_str())) {
            let mut next = Vec::with_capacity(fragments.len() + 2);
            for fragment in fragments {
                let Fragment::Text(part) = fragment else {
                    next.push(fragment);
                    continue;
                };
                for (i, between) in part.split(spelling.as_str()).enumerate() {
                    if i > 0 {
                        next.push(Fragment::Token(*id));
                    }
                    if !between.is_empty() {
                        next.push(Fragment::Text(between));
                    }
                }
            }
            fragments = next;
        }
        fragments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longest_wins_and_nothing_is_lost() {
        let specials = Specials::new(vec![("<s>".into(), 1), ("<s><s>".into(), 2), (String::new(), 3)]);
        assert_eq!(
            specials.split("a<s><s><s>b"),
            [Fragment::Text("a"), Fragment::Token(2), Fragment::Token(1), Fragment::Text("b")]
        );
        assert_eq!(specials.split(""), []);
        assert_eq!(Specials::default().split("<s>"), [Fragment::Text("<s>")]);
    }
}
