//! `rscapret chat`: pictures and texts in turns, on the command line.

use std::{
    io::{BufRead, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
};

use pollster::block_on;
use rscapret::{
    Backend, Context, Error, Result,
    caption::{Captioner, DecodeOptions},
    dialogue::Dialogue,
    retrieval::RetrievalIndex,
};

use super::{
    bundle::{BundleArgs, picture, with_captioner},
    output::{self, printable},
    search::MAX_INDEX,
    values::{at_least_one, seed},
};
use crate::files::{read_manifest, read_whole};

/// Longest line of a turn, bytes.
const MAX_LINE: u64 = 1 << 20;

/// Show images and say texts in turns: the model answers, and finds images of an index
///
/// Each line is a turn. A line of text is said to the model, which goes on from there; lines that begin with / are
/// commands. What was shown, said and answered stays in the dialogue, and is read by the model once. The models of this
/// field are trained on captions: expect descriptions, not conversation.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "Commands:
  /image FILE   show an image (JPEG, PNG, WebP, TIFF)
  /answer       let the model speak: after an image, its description
  /find TEXT    say TEXT and find the images of --index that fit best what was shown and said
  /find         the same without saying anything
  /reset        forget everything and begin anew
  /room         tell how much of the context is used
  /help         tell the commands
  /quit         end; so does the end of the input

Examples:
  rscapret chat
  rscapret chat --bundle my-bundle --index album.idx --top 3
  printf '/image photo.jpg\\n/answer\\n' | rscapret chat

A first /image and /answer give what `rscapret caption` does, a first /find what `rscapret search` does. The input may be a
file or a pipe: then a turn that fails is told on standard error, the next ones are done, and the exit code is 1.")]
pub struct Args {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub bundle: BundleArgs,

    /// What `rscapret index` wrote, for /find
    #[arg(long, value_name = "FILE")]
    pub index: Option<PathBuf>,

    /// How many images /find shows, best first
    #[arg(long, value_name = "K", value_parser = at_least_one, allow_negative_numbers = true, default_value_t = 5)]
    pub top: usize,

    /// Most tokens of an answer
    #[arg(long, value_name = "N", value_parser = super::caption::max_tokens, allow_negative_numbers = true,
        default_value_t = DecodeOptions::default().max_tokens)]
    pub max_tokens: usize,

    /// Draw words by chance: 1 takes the model's own probabilities, 0 always the likeliest word
    #[arg(long, value_name = "T", value_parser = super::caption::temperature, allow_negative_numbers = true,
        default_value_t = 0.0)]
    pub temperature: f32,

    /// Seed of the chance
    #[arg(long, value_name = "S", value_parser = seed, allow_negative_numbers = true, default_value_t = 0)]
    pub seed: u64,

    /// Most tokens of the dialogue, images and answers among them; less takes less memory [default: 1024, or what the
    /// model was made for if that is less]
    #[arg(long, value_name = "N", value_parser = at_least_one, allow_negative_numbers = true)]
    pub context: Option<usize>,
}

/// Reads turns until the end of the input.
///
/// # Errors
/// A bundle or an index that cannot be used; at the end of piped input, turns that failed.
pub fn run(args: &Args) -> Result<()> {
    let index = args.index.as_deref().map(|path| open_index(args, path)).transpose()?;
    with_captioner!(args.bundle, |captioner| chat(args, index.as_ref(), &captioner))
}

fn open_index(args: &Args, path: &Path) -> Result<RetrievalIndex> {
    let index = RetrievalIndex::load(&read_whole(path, MAX_INDEX)?).at(path.display())?;
    // Before the weights are loaded.
    let (_, id) = read_manifest(args.bundle.folder()?)?;
    index.expect_bundle(&id).at(path.display())?;
    Ok(index)
}

fn chat<B: Backend>(args: &Args, index: Option<&RetrievalIndex>, captioner: &Captioner<B>) -> Result<()> {
    let most = captioner.llama().config().max_position_embeddings;
    let dialogue = Dialogue::new(captioner, args.context.unwrap_or(most.min(1024))).at("--context")?;
    let mut session = Session { args, index, captioner, dialogue, turns: 0 };
    let terminal = std::io::stdin().is_terminal();
    let (mut turns, mut failed) = (0, 0);
    let mut input = std::io::stdin().lock();
    loop {
        if terminal {
            eprint!("> ");
        }
        let Some(line) = read_line(&mut input)? else { break };
        if line.is_empty() {
            continue;
        }
        turns += 1;
        match session.turn(&line) {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) => {
                failed += 1;
                eprintln!("error: {error}");
            }
        }
    }
    // A person has seen it and gone on; a script asks the exit code.
    if failed > 0 && !terminal {
        return Err(Error::Config(format!(
            "expected {turns} turns to be done but found {failed} that are not, told above"
        )));
    }
    Ok(())
}

/// A line without white space around it; `None` at the end.
fn read_line(input: &mut impl BufRead) -> Result<Option<String>> {
    let mut bytes = Vec::new();
    let io = |e: std::io::Error| Error::Io(format!("expected to read standard input but found: {e}"));
    std::io::Read::take(&mut *input, MAX_LINE).read_until(b'\n', &mut bytes).map_err(io)?;
    if bytes.is_empty() {
        return Ok(None);
    }
    if bytes.len() as u64 == MAX_LINE {
        return Err(Error::Config(format!("expected lines of less than {MAX_LINE} bytes but found a longer one")));
    }
    let line = String::from_utf8(bytes)
        .map_err(|e| Error::Malformed(format!("expected text in UTF-8 but found {}", e.utf8_error())));
    Ok(Some(line?.trim().to_string()))
}

/// What a line asks for.
#[derive(Debug, PartialEq)]
enum Turn<'l> {
    Say(&'l str),
    Image(&'l Path),
    Answer,
    Find(&'l str),
    Reset,
    Room,
    Help,
    Quit,
}

impl<'l> Turn<'l> {
    fn parse(line: &'l str) -> Result<Self> {
        let Some(command) = line.strip_prefix('/') else { return Ok(Turn::Say(line)) };
        let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let rest = rest.trim();
        match (name, rest.is_empty()) {
            ("image", false) => Ok(Turn::Image(Path::new(rest))),
            ("image", true) => Err(Error::Config("/image: expected a file but found none".into())),
            ("find", _) => Ok(Turn::Find(rest)),
            ("answer", true) => Ok(Turn::Answer),
            ("reset", true) => Ok(Turn::Reset),
            ("room", true) => Ok(Turn::Room),
            ("help", true) => Ok(Turn::Help),
            ("quit" | "exit", true) => Ok(Turn::Quit),
            ("answer" | "reset" | "room" | "help" | "quit" | "exit", false) => {
                Err(Error::Config(format!("/{name}: expected nothing after it but found `{}`", printable(rest))))
            }
            _ => Err(Error::Config(format!("expected a command but found `/{}`\n/help tells them", printable(name)))),
        }
    }
}

struct Session<'a, B: Backend> {
    args: &'a Args,
    index: Option<&'a RetrievalIndex>,
    captioner: &'a Captioner<B>,
    dialogue: Dialogue<'a, B>,
    /// Answers so far: each draws by a seed of its own.
    turns: u64,
}

impl<B: Backend> Session<'_, B> {
    /// Does one turn; false ends the dialogue.
    fn turn(&mut self, line: &str) -> Result<bool> {
        match Turn::parse(line)? {
            Turn::Say(text) => {
                self.dialogue.say(text)?;
                self.answer()?;
            }
            Turn::Image(path) => {
                let features = self.captioner.features(&[picture(path)?])?;
                self.dialogue.see(&features).at(path.display())?;
            }
            Turn::Answer => self.answer()?,
            Turn::Find(text) => self.find(text)?,
            Turn::Reset => self.dialogue.reset(),
            Turn::Room => {
                let (used, room) = (self.dialogue.len(), self.dialogue.room());
                output::text(&format!("{used} of {} tokens", used + room))?;
            }
            Turn::Help => output::text(&help())?,
            Turn::Quit => return Ok(false),
        }
        Ok(true)
    }

    /// Prints the answer as it comes.
    fn answer(&mut self) -> Result<()> {
        let (max_tokens, temperature) = (self.args.max_tokens, self.args.temperature);
        let seed = self.args.seed.wrapping_add(self.turns);
        let options = DecodeOptions { max_tokens, temperature, seed, ..DecodeOptions::default() };
        let mut answer = self.dialogue.answer(&options)?;
        self.turns += 1;
        let mut out = std::io::stdout().lock();
        let mut print = |text: &str| match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
                Err(Error::Io(format!("expected to write to standard output but found: {e}")))
            }
            _ => Ok(()),
        };
        while let Some(piece) = block_on(answer.next())? {
            print(&printable(&piece))?;
        }
        print("\n")
    }

    fn find(&mut self, text: &str) -> Result<()> {
        let index = self.index.ok_or_else(|| {
            Error::Config(
                "/find: expected an index but found none\nname one with --index; `rscapret index` makes it".into(),
            )
        })?;
        let query = block_on(self.dialogue.find(text))?;
        let line = |hit: &rscapret::retrieval::Hit| format!("{:>7.4}  {}\n", hit.score, printable(hit.id));
        output::text(&index.top_k(&query, self.args.top)?.iter().map(line).collect::<String>())
    }
}

/// The commands, as --help tells them.
fn help() -> String {
    let command = <Args as clap::Args>::augment_args(clap::Command::new("chat"));
    let help = command.get_after_long_help().map(ToString::to_string).unwrap_or_default();
    help.split("\n\n").next().unwrap_or_default().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_turns() {
        let parse = |line| Turn::parse(line).unwrap();
        assert_eq!(parse("how many planes?"), Turn::Say("how many planes?"));
        assert_eq!(parse("/image  my photo.jpg"), Turn::Image(Path::new("my photo.jpg")));
        assert_eq!((parse("/find"), parse("/find two boats")), (Turn::Find(""), Turn::Find("two boats")));
        assert_eq!((parse("/answer"), parse("/exit")), (Turn::Answer, Turn::Quit));
        for (line, words) in [
            ("/image", "/image: expected a file"),
            ("/reset now", "nothing after it but found `now`"),
            ("/imag a.jpg", "expected a command but found `/imag`\n/help tells them"),
            ("/", "expected a command but found `/`"),
        ] {
            let error = Turn::parse(line).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn input_ends_and_is_trimmed() {
        let mut input = &b"  one \r\n\ntwo"[..];
        let mut next = || read_line(&mut input).unwrap();
        assert_eq!(
            (next(), next(), next(), next()),
            (Some("one".into()), Some(String::new()), Some("two".into()), None)
        );
        assert!(read_line(&mut &b"\xff\n"[..]).unwrap_err().to_string().contains("UTF-8"));
        assert!(read_line(&mut &vec![b'a'; MAX_LINE as usize + 1][..]).is_err());
    }

    #[test]
    fn help_tells_every_command() {
        for command in ["image", "answer", "find", "reset", "room", "help", "quit"] {
            assert!(help().contains(&format!("\n  /{command}")), "{command}");
        }
    }
}
