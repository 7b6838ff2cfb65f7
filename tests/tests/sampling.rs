//! Beam search against Hugging Face's `generate`.

use rscapret::caption::sampling::{BeamSearch, argmax, log_softmax};
use rscapret_tests::tests_dir;
use serde::Deserialize;

const EOS: u32 = 0;
const BOS: u32 = 1;

#[derive(Deserialize)]
struct Case {
    chain: usize,
    beams: usize,
    length_penalty: f32,
    max_tokens: usize,
    tokens: Vec<u32>,
    ended: bool,
    score: Option<f64>,
    /// Logits of what follows each token; with a chain's last case.
    table: Option<Vec<Vec<f32>>>,
}

#[test]
fn beam_search_is_hugging_faces() {
    let json = std::fs::read(tests_dir().join("golden/sampling/beam_search.json")).unwrap();
    let cases: Vec<Case> = serde_json::from_slice(&json).unwrap();
    assert!(cases.len() >= 50 && cases.iter().any(|c| c.ended) && cases.iter().any(|c| !c.ended));
    for case in &cases {
        let of_chain = |c: &&Case| c.chain == case.chain;
        let table = cases.iter().filter(of_chain).find_map(|c| c.table.as_ref()).unwrap();
        let mut search = BeamSearch::new(case.beams, case.length_penalty, Some(EOS), case.max_tokens).unwrap();
        let mut last = vec![BOS];
        while !search.done() {
            let rows: Vec<Vec<f32>> = last.iter().map(|&t| log_softmax(&table[t as usize]).unwrap()).collect();
            last = search.advance(&rows).unwrap().tokens;
        }
        let best = search.best().unwrap();
        let name = format!(
            "chain {} beams {} penalty {} tokens {}",
            case.chain, case.beams, case.length_penalty, case.max_tokens
        );
        assert_eq!((&best.tokens, best.ended), (&case.tokens, case.ended), "{name}");
        if let Some(score) = case.score {
            assert!((best.score - score).abs() <= 1e-4 * score.abs().max(1.0), "{name}: {} for {score}", best.score);
        }
    }
}

#[test]
fn one_beam_is_hugging_faces_greedy() {
    let json = std::fs::read(tests_dir().join("golden/sampling/beam_search.json")).unwrap();
    let cases: Vec<Case> = serde_json::from_slice(&json).unwrap();
    for case in cases.iter().filter(|c| c.beams == 1) {
        let table = cases.iter().filter(|c| c.chain == case.chain).find_map(|c| c.table.as_ref()).unwrap();
        let (mut tokens, mut last) = (Vec::new(), BOS);
        while tokens.len() < case.max_tokens {
            last = argmax(&table[last as usize]).unwrap();
            if last == EOS {
                break;
            }
            tokens.push(last);
        }
        assert_eq!(tokens, case.tokens);
    }
}
