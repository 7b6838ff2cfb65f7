//! What a caption never holds: begin of text, control tokens, the unknown one, rows beyond the vocabulary; however it is
//! decoded, and however much the model would like to.

use pollster::block_on;
use rscapret::{
    Backend, Candle,
    caption::{Captioner, DecodeOptions, sequence},
    clip::preprocess::Picture,
    tokenizer::GgufVocab,
};
use rscapret_tests::tiny::{vocabulary, write_bundle_of};
use rscapret_trainer::files::open_bundle;

/// Rows of the embedding table: some more than there are tokens.
const ROWS: usize = 280;
const BOS: u32 = 259;
const EOS: u32 = 0;

/// The tiny vocabulary with a begin of text of its own, an unknown token, and two control tokens.
fn with_controls() -> GgufVocab {
    let mut vocab = vocabulary();
    let mut types = vocab.token_types.take().unwrap();
    // GGUF's numbers: 2 is unknown, 3 control.
    for (name, kind) in [("<s>", 3), ("<unk>", 2), ("<|user|>", 3), ("<|pad|>", 3)] {
        vocab.tokens.push(name.into());
        types.push(kind);
    }
    GgufVocab { token_types: Some(types), bos: Some(BOS), eos: Some(EOS), ..vocab }
}

/// By the vocabulary above: `<s>`, `<unk>`, `<|user|>`, `<|pad|>` and the rows after them.
fn never() -> Vec<u32> {
    (259..ROWS as u32).collect()
}

/// The token that the model likes best after these, by one forward pass over everything.
fn favourite(c: &Captioner<Candle>, features: &<Candle as Backend>::Tensor, ids: &[u32]) -> u32 {
    let b = c.backend();
    let visual = c.projections().visual_tokens(b, features).unwrap();
    let input = sequence::captioning_input(b, c.llama(), &visual, &[[&[BOS], ids].concat()]).unwrap();
    let hidden = c.llama().forward(b, &input, None).unwrap();
    let logits = block_on(b.read(&c.llama().logits(b, &hidden).unwrap())).unwrap();
    let last = &logits[logits.len() - ROWS..];
    (0..ROWS as u32).max_by(|&a, &b| last[a as usize].total_cmp(&last[b as usize])).unwrap()
}

#[test]
fn no_banned_token_is_ever_emitted() {
    let folder = tempfile::tempdir().unwrap();
    write_bundle_of(folder.path(), 5, &with_controls(), ROWS, &never());
    let bundle = open_bundle(folder.path()).unwrap();
    let (llm, vision, maps) = (bundle.llm, bundle.vision, bundle.projections);
    let loaded = Captioner::load(Candle::cpu(), &bundle.manifest, &bundle.id, llm, vision, maps);
    let c = block_on(loaded).unwrap();
    assert_eq!(c.banned(), never());

    let picture =
        |seed: usize| Picture::new(20, 24, (0..3 * 20 * 24).map(|i| (i * seed % 251) as u8).collect()).unwrap();
    let default = DecodeOptions::default();
    let mut kinds = vec![default];
    kinds.extend((0..6).map(|seed| DecodeOptions { temperature: 1.5, seed, ..default }));
    kinds.extend((0..3).map(|seed| DecodeOptions { temperature: 0.8, top_p: 0.9, seed, ..default }));
    kinds.extend([2, 5].map(|beams| DecodeOptions { beams, ..default }));
    let (mut tokens, mut tempted) = (0, 0);
    for seed in [7, 13, 31] {
        let features = c.features(&[picture(seed)]).unwrap();
        for options in &kinds {
            let mut stream = c.stream(&features, options).unwrap();
            while block_on(stream.next()).unwrap().is_some() {}
            let ids = stream.ids();
            assert_eq!(ids.len(), stream.stats().tokens, "{options:?}");
            assert!(ids.iter().all(|id| *id != EOS && !never().contains(id)), "{options:?}: {ids:?}");
            tokens += ids.len();
            tempted += (0..ids.len()).filter(|&at| never().contains(&favourite(&c, &features, &ids[..at]))).count();
        }
    }
    // It was not for want of temptation.
    assert!(tokens > 100 && 2 * tempted > tokens, "{tempted} of {tokens}");
}
