//! Dialogues: what the cache keeps over turns is what one pass over everything says, and `rscapret chat` is that.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use candle_core::Tensor;
use pollster::block_on;
use rscapret::{
    Backend, Candle, Error, Result,
    caption::{Captioner, DecodeOptions, sampling},
    clip::{
        load_vision,
        preprocess::{Picture, decode},
    },
    dialogue::Dialogue,
    llama::load_llama,
    projection::{Conventions, Projections},
};
use rscapret_tests::{
    command::rscapret,
    golden::nmse,
    tests_dir,
    tiny::{CONTEXT, write_bundle},
};
use rscapret_trainer::files::open_bundle;

fn captioner(folder: &Path) -> Captioner<Candle> {
    let b = open_bundle(folder).unwrap();
    block_on(Captioner::load(Candle::cpu(), &b.manifest, &b.id, b.llm, b.vision, b.projections)).unwrap()
}

fn tiny() -> Captioner<Candle> {
    let folder = tempfile::tempdir().unwrap();
    write_bundle(folder.path(), 5);
    captioner(folder.path())
}

#[test]
fn a_dialogue_asks_as_training_did() {
    let folder = tempfile::tempdir().unwrap();
    write_bundle(folder.path(), 5);
    let of = |conventions| {
        let (b, backend) = (open_bundle(folder.path()).unwrap(), Candle::cpu());
        let (llama, tokenizer) = block_on(load_llama(&backend, b.llm)).unwrap();
        let (vision, preprocess) = block_on(load_vision(&backend, b.vision)).unwrap();
        let maps = block_on(Projections::open(&backend, b.projections, 32, 32, &[])).unwrap();
        let maps = maps.with_conventions(conventions);
        Captioner::new(backend, llama, tokenizer, vision, preprocess, maps, b.id).unwrap()
    };
    let usual = of(Conventions::default());
    let own = of(Conventions { hidden_layer: Some(1), prompt: "seen: ".into(), ..Conventions::default() });
    let found = |c: &Captioner<Candle>| block_on(Dialogue::new(c, CONTEXT).unwrap().find("a plane")).unwrap();
    assert!(nmse(&found(&own), &block_on(own.text_embedding("a plane")).unwrap()) < 1e-10);
    assert!(nmse(&found(&own), &found(&usual)) > 1e-4);

    let mut dialogue = Dialogue::new(&own, CONTEXT).unwrap();
    let seen = features(&own, 1);
    dialogue.see(&seen).unwrap();
    let (text, _) = answer(&mut dialogue, &options(8)).unwrap();
    assert_eq!(text, block_on(own.caption(&seen, &options(8))).unwrap());
}

fn demo() -> PathBuf {
    tests_dir().join("../models/demo")
}

fn picture(seed: usize) -> Picture {
    let rgb = (0..16 * 16 * 3).map(|i| ((i * (31 + 7 * seed) + 13 * seed) % 256) as u8).collect();
    Picture { width: 16, height: 16, rgb }
}

fn options(max_tokens: usize) -> DecodeOptions {
    DecodeOptions { max_tokens, ..DecodeOptions::default() }
}

/// The whole answer and its ids.
fn answer(dialogue: &mut Dialogue<'_, Candle>, options: &DecodeOptions) -> Result<(String, Vec<u32>)> {
    let (mut answer, mut text) = (dialogue.answer(options)?, String::new());
    while let Some(piece) = block_on(answer.next())? {
        text.push_str(&piece);
    }
    assert_eq!(block_on(answer.next())?, None);
    Ok((text, answer.ids().to_vec()))
}

fn features(c: &Captioner<Candle>, seed: usize) -> Tensor {
    c.features(&[picture(seed)]).unwrap()
}

#[test]
fn a_first_turn_is_a_caption_or_a_query() {
    let c = tiny();
    for (seed, max_tokens) in [(1, 9), (2, 9), (3, 1)] {
        let mut dialogue = Dialogue::new(&c, CONTEXT).unwrap();
        dialogue.see(&features(&c, seed)).unwrap();
        let caption = block_on(c.caption(&features(&c, seed), &options(max_tokens))).unwrap();
        assert_eq!(answer(&mut dialogue, &options(max_tokens)).unwrap().0, caption);
        // By chance, too.
        let drawn = DecodeOptions { temperature: 1.5, seed: 3, ..options(max_tokens) };
        dialogue.reset();
        assert!(dialogue.is_empty());
        dialogue.see(&features(&c, seed)).unwrap();
        let caption = block_on(c.caption(&features(&c, seed), &drawn)).unwrap();
        assert_eq!(answer(&mut dialogue, &drawn).unwrap().0, caption);
    }
    let mut dialogue = Dialogue::new(&c, CONTEXT).unwrap();
    let found = block_on(dialogue.find("the river")).unwrap();
    assert!(nmse(&found, &block_on(c.text_embedding("the river")).unwrap()) < 1e-10);
}

/// Input embeddings of a dialogue, put together in one piece.
struct Whole<'c>(&'c Captioner<Candle>, Vec<Tensor>);

impl Whole<'_> {
    fn see(&mut self, seed: usize) {
        let visual = self.0.projections().visual_tokens(self.0.backend(), &features(self.0, seed)).unwrap();
        self.1.push(visual.squeeze(0).unwrap());
    }

    fn ids(&mut self, ids: &[u32]) {
        if !ids.is_empty() {
            self.1.push(self.0.llama().embed(self.0.backend(), ids).unwrap());
        }
    }

    /// The last hidden state of one pass without a cache (1, D).
    fn hidden(&self) -> Tensor {
        let x = Tensor::cat(&self.1, 0).unwrap().unsqueeze(0).unwrap();
        let hidden = self.0.llama().forward(self.0.backend(), &x, None).unwrap();
        hidden.narrow(1, hidden.dim(1).unwrap() - 1, 1).unwrap().squeeze(0).unwrap()
    }

    /// What is said next.
    fn answer(&mut self, max_tokens: usize) -> Vec<u32> {
        let mut said = Vec::new();
        while said.len() < max_tokens {
            let logits = self.0.llama().logits(self.0.backend(), &self.hidden()).unwrap();
            let mut logits = logits.flatten_all().unwrap().to_vec1().unwrap();
            sampling::ban(&mut logits, self.0.banned());
            let id = sampling::argmax(&logits).unwrap();
            if Some(id) == self.0.tokenizer().eos() {
                break;
            }
            said.push(id);
            self.ids(&[id]);
        }
        said
    }
}

#[test]
fn turns_are_one_sequence_read_once() {
    let c = tiny();
    let (mut dialogue, mut whole) = (Dialogue::new(&c, CONTEXT).unwrap(), Whole(&c, Vec::new()));
    let encode = |text: &str| c.tokenizer().encode(text, false).unwrap();
    dialogue.see(&features(&c, 1)).unwrap();
    whole.see(1);
    whole.ids(&[c.tokenizer().bos().unwrap()]);
    assert_eq!(answer(&mut dialogue, &options(4)).unwrap().1, whole.answer(4));
    dialogue.see(&features(&c, 2)).unwrap();
    whole.see(2);
    dialogue.say("the").unwrap();
    // Two turns' words are apart, and begin of text is not repeated.
    whole.ids(&encode(" the"));
    assert_eq!(answer(&mut dialogue, &options(5)).unwrap().1, whole.answer(5));

    let query = block_on(dialogue.find("sea")).unwrap();
    whole.ids(&encode(" sea"));
    let ret = c.projections().ret_embedding().reshape((1, 32)).unwrap();
    let asked = Whole(&c, [&whole.1[..], &[ret]].concat()).hidden();
    let expected = c.projections().text_embedding(c.backend(), &asked).unwrap();
    let expected = block_on(c.backend().read(&expected)).unwrap();
    assert!(nmse(&query, &expected) < 1e-8, "{}", nmse(&query, &expected));
    assert!(nmse(&query, &block_on(c.text_embedding("sea")).unwrap()) > 1e-3, "what was said before counts");
    // [RET] was asked and is not there any more; asked again, it says the same.
    let rows: usize = whole.1.iter().map(|rows| rows.dim(0).unwrap()).sum();
    assert_eq!((dialogue.len(), dialogue.room()), (rows, CONTEXT - rows));
    assert!(nmse(&block_on(dialogue.find("")).unwrap(), &query) < 1e-8);
    dialogue.say("x").unwrap();
    whole.ids(&encode(" x"));
    assert_eq!(answer(&mut dialogue, &options(3)).unwrap().1, whole.answer(3));
}

#[test]
fn what_does_not_fit_changes_nothing() {
    let c = tiny();
    assert!(matches!(Dialogue::new(&c, CONTEXT + 1).err(), Some(Error::Config(_))));
    let mut dialogue = Dialogue::new(&c, 12).unwrap();
    let error = answer(&mut dialogue, &options(3)).unwrap_err().to_string();
    assert!(error.contains("but found nothing new"), "{error}");
    assert!(block_on(dialogue.find("")).is_err() && dialogue.say("  ").is_err() && dialogue.is_empty());
    dialogue.see(&features(&c, 1)).unwrap();
    let error = dialogue.say("xxxxxxxxxx").unwrap_err().to_string();
    assert!(error.starts_with("expected room for 11 more tokens but found 10 of 12\nbegin anew"), "{error}");
    // With begin of text these fill it, and leave no room for [RET].
    assert!(block_on(dialogue.find("xxxxxxxxx")).is_err());
    assert_eq!((dialogue.len(), dialogue.room()), (2, 10));
    dialogue.say("xxxxxxx").unwrap();
    let (_, ids) = answer(&mut dialogue, &options(99)).unwrap();
    assert!(ids.len() <= 3, "the context ends an answer");
    assert!(answer(&mut dialogue, &DecodeOptions { beams: 2, ..options(3) }).is_err());
}

// --- the command line ---------------------------------------------------------------------------------------------

fn chat(arguments: &[&str], input: &str) -> Output {
    let mut command = rscapret();
    command.arg("chat").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn a_chat_with_the_demo() {
    let bundle = demo();
    let bundle = bundle.to_str().unwrap();
    let photo = fs::read_dir(demo().join("album")).unwrap().map(|e| e.unwrap().path());
    let mut photos: Vec<PathBuf> = photo.filter(|path| path.extension().is_some_and(|e| e == "jpg")).collect();
    photos.sort();
    let [first, second, ..] = &photos[..] else { panic!("expected pictures in the album") };
    let c = captioner(&demo());
    let caption = |path: &Path| {
        let features = c.features(&[decode(&fs::read(path).unwrap()).unwrap()]).unwrap();
        block_on(c.caption(&features, &DecodeOptions::default())).unwrap()
    };
    let input = format!(
        "/image {}\n/answer\n/room\n\nmany planes\n/reset\n/image {}\n/answer\n/quit\n/answer\n",
        first.display(),
        second.display()
    );
    let output = chat(&["--bundle", bundle], &input);
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
    let lines: Vec<&str> = text(&output.stdout).lines().collect();
    assert_eq!(lines.len(), 4, "{lines:?}");
    assert_eq!((lines[0], lines[3]), (caption(first).as_str(), caption(second).as_str()));
    assert!(lines[1].contains(" of ") && lines[1].ends_with(" tokens"), "{lines:?}");
    // The same input, the same words; with chance, others.
    assert_eq!(chat(&["--bundle", bundle], &input).stdout, output.stdout);
    let drawn = chat(&["--bundle", bundle, "--temperature", "2", "--seed", "4"], &input);
    assert_ne!(drawn.stdout, output.stdout);
}

#[test]
fn finding_in_a_chat_is_searching() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    fs::create_dir(path("bundle")).unwrap();
    write_bundle(Path::new(&path("bundle")), 1);
    fs::create_dir(path("album")).unwrap();
    for seed in 1..4 {
        let Picture { width, height, rgb } = picture(seed);
        let image = image::RgbImage::from_raw(width as u32, height as u32, rgb).unwrap();
        image.save(path(&format!("album/{seed}.png"))).unwrap();
    }
    let (bundle, index) = (path("bundle"), path("album.idx"));
    let run = |arguments: &[&str]| {
        let output = rscapret().args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout).to_string()
    };
    run(&["index", &path("album"), "-o", &index, "--bundle", &bundle]);
    let expected = run(&["search", &index, "the sea", "--top", "2", "--bundle", &bundle]);
    let output = chat(&["--bundle", &bundle, "--index", &index, "--top", "2"], "/find the sea\n");
    assert_eq!((text(&output.stdout), text(&output.stderr)), (expected.as_str(), ""));

    // Turns that fail are told, the others are done.
    let output = chat(&["--bundle", &bundle, "--context", "9"], "/find sea\n/image nothing.jpg\n/find\n/go\nhi\n");
    let error = text(&output.stderr);
    assert_eq!((output.status.code(), text(&output.stdout).lines().count()), (Some(1), 1), "{error}");
    for words in
        ["/find: expected an index", "nothing.jpg: ", "but found `/go`", "expected 5 turns to be done but found 4"]
    {
        assert!(error.contains(words), "{words}: {error}");
    }
    // An index of another bundle is refused before anything is loaded.
    let other = tempfile::tempdir().unwrap();
    write_bundle(other.path(), 9);
    let output = chat(&["--bundle", other.path().to_str().unwrap(), "--index", &index], "");
    assert!(output.status.code() == Some(1) && text(&output.stderr).contains("expected an index of bundle"));
}
