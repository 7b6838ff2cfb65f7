//! ROUGE-L (Lin, 2004) as pycocoevalcap has it: the longest common subsequence against each reference; the best
//! precision and the best recall, which may come from two references, in an F-measure with beta = 1.2; the mean over
//! captions.

use super::Caption;

/// Recall counts beta squared times as much as precision.
const BETA: f64 = 1.2;

/// ROUGE-L of the corpus, and of each caption.
pub fn rouge_l(captions: &[Caption]) -> (f64, Vec<f64>) {
    let each: Vec<f64> = captions.iter().map(score).collect();
    (super::mean(&each), each)
}

fn score(caption: &Caption) -> f64 {
    // Split at plain spaces only: an empty caption is one empty word here, as in the reference.
    let hypothesis: Vec<&str> = caption.hypothesis.split(' ').collect();
    let (mut precision, mut recall) = (0.0f64, 0.0f64);
    for reference in &caption.references {
        let reference: Vec<&str> = reference.split(' ').collect();
        let common = longest_common_subsequence(&hypothesis, &reference) as f64;
        precision = precision.max(common / hypothesis.len() as f64);
        recall = recall.max(common / reference.len() as f64);
    }
    if precision == 0.0 || recall == 0.0 {
        return 0.0;
    }
    (1.0 + BETA * BETA) * precision * recall / (recall + BETA * BETA * precision)
}

fn longest_common_subsequence(a: &[&str], b: &[&str]) -> usize {
    // row[j]: length for what was seen of `a` and the first j words of `b`.
    let mut row = vec![0; b.len() + 1];
    for word in a {
        let mut diagonal = 0;
        for (j, other) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if word == other { diagonal + 1 } else { above.max(row[j]) };
            diagonal = above;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subsequences_may_have_gaps() {
        let split = |text: &'static str| text.split(' ').collect::<Vec<_>>();
        assert_eq!(longest_common_subsequence(&split("a b c d e"), &split("x a c y e")), 3);
        assert_eq!(longest_common_subsequence(&split("a b"), &split("b a")), 1);
    }

    #[test]
    fn precision_and_recall_may_come_from_two_references() {
        // Precision 1 from the first, recall 1 from the second: a perfect score that neither gives alone.
        let (corpus, _) = rouge_l(&[Caption::new("a b", &["a b c d", "a"])]);
        assert!((corpus - 1.0).abs() < 1e-12, "{corpus}");
    }
}
