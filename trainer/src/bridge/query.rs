//! Captions as someone would type them into a search field.

use rand::Rng;

/// Fewest words of a part.
const SHORTEST: usize = 3;

/// Lower case, without the closing full stop: "There is a Piece of farmland ." -> "there is a piece of farmland".
pub fn plain(caption: &str) -> String {
    caption.trim().trim_end_matches(['.', ' ']).to_lowercase()
}

/// [`plain`]; half of the time a run of its words, at least [`SHORTEST`] of them.
pub fn as_typed(caption: &str, rng: &mut impl Rng) -> String {
    let plain = plain(caption);
    let words: Vec<&str> = plain.split_whitespace().collect();
    if words.len() <= SHORTEST || rng.random::<bool>() {
        return plain;
    }
    let count = rng.random_range(SHORTEST..=words.len());
    let first = rng.random_range(0..=words.len() - count);
    words[first..first + count].join(" ")
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn a_query_is_a_run_of_the_captions_words() {
        let caption = "Many boats docked neatly at the Harbor .";
        let plain = plain(caption);
        assert_eq!(plain, "many boats docked neatly at the harbor");
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        let queries: Vec<String> = (0..50).map(|_| as_typed(caption, &mut rng)).collect();
        assert!(queries.iter().all(|q| plain.contains(q.as_str()) && q.split(' ').count() >= SHORTEST));
        assert!(queries.contains(&plain) && queries.iter().any(|q| *q != plain));
        assert_eq!(as_typed("Trees .", &mut rng), "trees");
    }
}
