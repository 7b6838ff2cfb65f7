//! Penn Treebank tokenisation as caption scorers do it: Stanford's PTBTokenizer (CoreNLP 3.4.1, `-lowerCase`), then
//! pycocoevalcap's list of punctuation dropped.
//!
//! The rules are written from that program's behaviour and compared with it on `tests/golden/ptb`. Like it, the rule
//! with the longest match wins, the earlier one where two are equally long. Not followed: the repertoire of Unicode
//! where its edition of 2014 and today's differ, and a letter glued to an abbreviation (`inc.b`).

use std::cmp::Reverse;

use regex::Regex;
use rscapret::{Error, Result};

use super::ptb_abbreviations::{BEFORE_NUMBERS, CAPITALISED, WITH_PERIOD};

/// Dropped after tokenisation. The list is pycocoevalcap's, to the letter: since the text is lower-cased before, its
/// `-LRB-` never matches, and brackets stay in as `-lrb-`. Papers' figures have them in, so ours do.
const PUNCTUATION: [&str; 17] =
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"];

/// What to do with a match.
#[derive(Debug, Clone, Copy)]
enum Action {
    /// It is one token.
    Keep,
    /// It is one token, with quotation marks and apostrophes in ASCII.
    Straighten,
    /// Its group is one token; the rest is only looked at.
    Head,
    /// As `Head`, straightened, unless a letter or digit follows the whole match.
    HeadOfWord,
    /// It stands for this token.
    Replace(&'static str),
    /// It separates.
    Skip,
}
use Action::{Head, HeadOfWord, Keep, Replace, Skip, Straighten};

/// A letter of any script, with its marks.
const LETTER: &str = r"[[\p{L}\p{M}\u{AD}]&&[\u{0}-\u{FFFF}]]";
/// A letter or a digit.
const LETDIG: &str = r"[[\p{L}\p{M}\p{Nd}\u{AD}]&&[\u{0}-\u{FFFF}]]";
/// An apostrophe.
const APOS: &str = r"['\u{92}’]";
/// What people type for one.
const APOSLIKE: &str = r"['\u{92}’`\u{91}‘‛]";

/// In order of preference; `{L}`, `{W}`, `{A}` and `{B}` stand for the four classes above.
const RULES: &[(&str, Action)] = &[
    // Mark-up and entities.
    (r#"</?[A-Za-z!?][A-Za-z0-9:.-]*(?: +[A-Za-z][^<>\n]*)? */?>"#, Keep),
    (r"&amp;", Replace("&")),
    (r"&lt;", Replace("<")),
    (r"&gt;", Replace(">")),
    (r"&quot;", Replace("''")),
    (r"&apos;", Replace("'")),
    (r"&nbsp;", Skip),
    (r"&(?:MD|mdash|ndash);|[\u{96}\u{97}–—―]", Replace("--")),
    // Verbs that are written as one word.
    (r"(?i:(can)not|(gon|wan)na|(got)ta|(lem|gim)me|('t)(?:is|was)|(y{A})all)", Head),
    (r"(?i:([a-z]*?[a-mo-z])(?:n{B}t))", Head),
    (r"(?i:({W}+){A}(?:[smd]|re|ve|ll))", HeadOfWord),
    (r"(?i:({A}(?:[smd]|re|ve|ll)))", HeadOfWord),
    (r"(?i:({W}+)’(?:[smd]|re|ve|ll))", Head),
    (r"(?i:’(?:[smd]|re|ve|ll))", Straighten),
    (r"(?i:n{B}t)", Straighten),
    // Words with an apostrophe inside or at an end.
    (r"(?i:{A}n{A})|(?i:[ldj]{A}|ol{A}|{A}em|{A}till?|{A}cause|{A}n)", Keep),
    (r"[dDoOlL]{B}{W}{W}+(?:-{W}+)*|[A-HJ-XZn]{B}{L}{L}+|{L}*[aeiouy]{B}[aeiouA-Z]{L}*", Keep),
    (r"{A}[2-9]0s", Keep),
    (r"({A}[0-9][0-9])(?:[ \u{A0}]|\z)", Head),
    // Words.
    (r"{W}+", Keep),
    (r"{W}+(?:_{W}+)+", Keep),
    (r"{W}[A-Za-z0-9_.,]*(?:-[A-Za-z0-9]+(?:_[A-Za-z0-9]+)*)+", Keep),
    (r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}", Keep),
    (r"[A-Z]+(?:(?:&|&amp;)[A-Z]+)+", Keep),
    (r"{L}{W}*(?:[.?!]{L}{W}*)+", Keep),
    (r"((?:{W}+|{L}{W}*(?:\.{L}{W}*)*|[A-Za-z0-9]+(?:-[A-Za-z0-9]+)+)\.)[,;:]", Head),
    (r"[A-Za-z](?:\.[A-Za-z])*\.?", Keep),
    (r"(?:Canada|Sino|Korean|EU|Japan|non)-U\.S\.?", Keep),
    // Addresses.
    (r#"https?://[^ \t"<>|()]+[^ \t"<>|.!?(){},-]"#, Keep),
    (r#"(www\.(?:[^ \t"<>|.!?(){},]+\.)+[A-Za-z]{2,4}(?:/[^ \t"<>|()]+[^ \t"<>|.!?(){},-])?)"#, HeadOfWord),
    (r#"((?:[^ \t"`'<>|!(){}$,-_]+\.)+(?:com|net|org|edu)(?:/[^ \t"<>|()]+[^ \t"<>|.!?(){},-])?)"#, HeadOfWord),
    (r#"[A-Za-z0-9][^ \t"<>|(){}]*@(?:[^ \t"<>|(){}.]+\.)*[^ \t"<>|(){}.,;:!?]+"#, Keep),
    (r"[@＠][A-Za-z_][A-Za-z_0-9]*|[#＃]{L}+", Keep),
    // Numbers.
    (r"[-+]?(?:\p{Nd}*(?:[.,:]\p{Nd}+)+|\p{Nd}+)", Keep),
    (r"(?:\p{Nd}{1,4}[- \u{A0}])?\p{Nd}{1,4}[/⁄]\p{Nd}{1,4}", Keep),
    (r"\p{Nd}{1,2}[-/]\p{Nd}{1,2}[-/]\p{Nd}{2,4}", Keep),
    (r"\([0-9]{2,3}\)[ \u{A0}]?[0-9]{3,4}[- \u{A0}]?[0-9]{3,5}", Keep),
    (r"\+{0,2}(?:[0-9]{2,4}[- \u{A0}]){1,2}[0-9]{3,4}[- \u{A0}]?[0-9]{3,5}", Keep),
    (r"¼", Replace("1/4")),
    (r"½", Replace("1/2")),
    (r"¾", Replace("3/4")),
    (r"⅓", Replace("1/3")),
    (r"⅔", Replace("2/3")),
    (r"[⁰¹²³⁴-⁹]+|[₀-₉]+", Keep),
    (r"[A-Z]*\$", Keep),
    (r"¢", Replace("cents")),
    (r"£", Replace("#")),
    (r"[\u{80}¤₠€]", Replace("$")),
    // Punctuation.
    (r"\.{3,5}|\.(?:[ \u{A0}]\.){2,4}|…", Replace("...")),
    (r"[?!]+|\*+|@+|#+|_+", Keep),
    (r"--+", Replace("--")),
    (r"\(", Replace("-lrb-")),
    (r"\)", Replace("-rrb-")),
    (r"\[", Replace("-lsb-")),
    (r"\]", Replace("-rsb-")),
    (r"\{", Replace("-lcb-")),
    (r"\}", Replace("-rcb-")),
    (r#"""#, Replace("''")),
    (r"''|``|[\u{91}-\u{94}‘-‟‹›«»]{1,2}", Straighten),
    (r"<<|>>", Keep),
    (r"([<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]])", HeadOfWord),
    (r"[[\p{P}\p{S}\p{No}]&&[\u{0}-\u{FFFF}]]", Keep),
];

/// The tokeniser; its rules are compiled once.
#[derive(Debug)]
pub struct PtbTokenizer {
    rules: Vec<(Regex, Action)>,
}

impl PtbTokenizer {
    /// Compiles the rules.
    ///
    /// # Errors
    /// When a rule is no regular expression, which the tests rule out.
    pub fn new() -> Result<Self> {
        let abbreviations = [
            (format!(r"(?i:{})\.", any_of(WITH_PERIOD)), Keep),
            (r"(?i:((?:etc|sq)\.)[a-z])".to_string(), Head),
            (format!(r"(?:{})\.", any_of(CAPITALISED)), Keep),
            (format!(r"((?i:{})\.)[ \u{{A0}}]?[0-9]", any_of(BEFORE_NUMBERS)), Head),
        ];
        let rules = RULES.iter().map(|(pattern, action)| (pattern.to_string(), *action));
        let rules = abbreviations.into_iter().chain(rules).map(|(pattern, action)| {
            let classes = [("{L}", LETTER), ("{W}", LETDIG), ("{A}", APOS), ("{B}", APOSLIKE)];
            let pattern = classes.iter().fold(pattern, |pattern, (name, class)| pattern.replace(name, class));
            let regex = Regex::new(&format!(r"\A(?:{pattern})"))
                .map_err(|error| Error::Config(format!("expected a rule of tokenisation but found {error}")))?;
            Ok((regex, action))
        });
        Ok(PtbTokenizer { rules: rules.collect::<Result<_>>()? })
    }

    /// The tokens of a caption, lower-cased, without punctuation, joined by single spaces. A token may hold a no-break
    /// space (`1 1/2` is one), at which [BLEU](super::bleu) and [CIDEr](super::cider_d) split and
    /// [ROUGE](super::rouge_l) does not, as in the reference.
    pub fn tokenize(&self, caption: &str) -> String {
        let mut tokens = Vec::new();
        let mut rest = caption;
        while let Some(first) = rest.chars().next() {
            rest = match plain_word(rest) {
                Some(word) => {
                    tokens.push(word.to_lowercase());
                    &rest[word.len()..]
                }
                None => match self.longest(rest) {
                    Some((length, head, action)) => &rest[emit(&rest[..length], head, action, &mut tokens)..],
                    None => &rest[first.len_utf8()..],
                },
            };
        }
        tokens.retain(|token| !token.is_empty() && !PUNCTUATION.contains(&token.as_str()));
        tokens.join(" ")
    }

    /// Length of the longest match, of its group 1, and what to do with it.
    fn longest(&self, rest: &str) -> Option<(usize, usize, Action)> {
        let mut best: Option<(usize, usize, Action)> = None;
        for (regex, action) in &self.rules {
            let Some(found) = regex.find(rest) else { continue };
            let length = found.end();
            if best.is_some_and(|(longest, ..)| length <= longest) {
                continue;
            }
            let head = match action {
                Head | HeadOfWord => regex
                    .captures(rest)
                    .and_then(|groups| groups.iter().skip(1).flatten().next())
                    .map_or(length, |group| group.end()),
                _ => length,
            };
            if matches!(action, HeadOfWord) && rest[length..].chars().next().is_some_and(char::is_alphanumeric) {
                continue;
            }
            best = Some((length, head, *action));
        }
        best
    }
}

/// Alternatives of a regular expression.
fn any_of(words: &str) -> String {
    let mut words: Vec<String> = words.split_whitespace().map(regex::escape).collect();
    words.sort_by_key(|word| Reverse(word.len())); // alternatives are tried in turn, and `ph` would hide `ph.d`
    words.join("|")
}

/// A word of small Latin letters up to a space or the end, which no rule treats in another way: nearly every token.
fn plain_word(rest: &str) -> Option<&str> {
    let length = rest.bytes().take_while(u8::is_ascii_lowercase).count();
    let word = &rest[..length];
    let ends = rest[length..].is_empty() || rest[length..].starts_with(' ');
    let one_word = !matches!(word, "" | "cannot" | "gonna" | "gotta" | "lemme" | "gimme" | "wanna");
    (ends && one_word).then_some(word)
}

/// Adds the tokens of a match and returns how many bytes they took.
fn emit(matched: &str, head: usize, action: Action, tokens: &mut Vec<String>) -> usize {
    match action {
        Keep => tokens.push(normalize(matched)),
        Straighten => tokens.push(straighten(&normalize(matched))),
        Head => tokens.push(normalize(&matched[..head])),
        HeadOfWord => tokens.push(straighten(&normalize(&matched[..head]))),
        Replace(token) => tokens.push(token.to_string()),
        Skip => {}
    }
    head
}

/// Lower case, no soft hyphens, brackets by name, and no space inside.
fn normalize(token: &str) -> String {
    if token == "\u{AD}" {
        return "-".to_string();
    }
    let mut text = String::with_capacity(token.len());
    for character in token.replace("&amp;", "&").to_lowercase().chars() {
        match character {
            '\u{AD}' => {}
            '(' => text.push_str("-lrb-"),
            ')' => text.push_str("-rrb-"),
            ' ' => text.push('\u{A0}'),
            other => text.push(other),
        }
    }
    text
}

/// Quotation marks and apostrophes in ASCII.
fn straighten(token: &str) -> String {
    let mut text = String::with_capacity(token.len());
    for character in token.chars() {
        match character {
            '\u{92}' | '’' | '›' => text.push('\''),
            '\u{91}' | '‘' | '‛' | '‹' => text.push('`'),
            '\u{94}' | '”' | '»' => text.push_str("''"),
            '\u{93}' | '“' | '«' => text.push_str("``"),
            other => text.push(other),
        }
    }
    text
}
