//! METEOR 1.5 (Denkowski and Lavie, 2014) and SPICE (Anderson et al., 2016) by the reference programs, which are Java's
//! and come with the Python package pycocoevalcap. Papers report what these very programs print.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::atomic::{AtomicU64, Ordering},
};

use rscapret::{Context, Error, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Caption, mean};
use crate::files::{unreadable, unwritable};

/// How a person comes by the programs.
pub const HOW: &str = "METEOR and SPICE are programs in Java: install a Java runtime, run \
`pip download --no-deps pycocoevalcap==1.2 && unzip pycocoevalcap-1.2-py3-none-any.whl`, and name the folder \
`pycocoevalcap` that this gives with --jars; for SPICE, also put stanford-corenlp-3.6.0.jar and \
stanford-corenlp-3.6.0-models.jar of stanford-corenlp-full-2015-12-09.zip (https://nlp.stanford.edu/software) into its \
spice/lib";

const METEOR: &str = "meteor-1.5.jar";
const SPICE: &str = "spice-1.0.jar";
/// What SPICE parses with; the Python package fetches them on first use.
const PARSER: [&str; 2] = ["stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar"];

/// A program's figure of the corpus and of each caption, in their order.
#[derive(Debug, Clone, PartialEq)]
pub struct JavaScore {
    /// Of all together: METEOR's aggregate, SPICE's mean.
    pub corpus: f64,
    /// Of each.
    pub images: Vec<f64>,
}

/// The folder `pycocoevalcap` of the Python package.
#[derive(Debug, Clone)]
pub struct Jars(PathBuf);

impl Jars {
    /// # Errors
    /// [`Error::Io`] where neither program is inside, with the way to get them.
    pub fn open(folder: &Path) -> Result<Self> {
        // Java is started in the programs' own folders, so that the path must hold from there, too.
        let absolute = fs::canonicalize(folder).map_err(|e| Error::Io(format!("expected a folder but found: {e}")));
        let absolute = absolute.at(folder.display())?;
        if !absolute.join("meteor").join(METEOR).is_file() && !absolute.join("spice").join(SPICE).is_file() {
            return Err(Error::Io(format!("expected meteor/{METEOR} or spice/{SPICE} but found neither\n{HOW}")))
                .at(folder.display());
        }
        Ok(Jars(absolute))
    }

    /// METEOR of tokenised captions.
    ///
    /// # Errors
    /// [`Error::Io`] where Java or the program is absent; what it says when it fails.
    pub fn meteor(&self, captions: &[Caption]) -> Result<JavaScore> {
        let mut meteor = Meteor::start(&self.0.join("meteor"))?;
        match meteor.score(captions) {
            Ok(score) => {
                // Its input ends, and so does it.
                drop(meteor.input);
                let _ = meteor.process.wait();
                Ok(score)
            }
            Err(error) => {
                let _ = meteor.process.kill();
                let _ = meteor.process.wait();
                let mut said = String::new();
                if let Some(mut stderr) = meteor.process.stderr.take() {
                    let _ = stderr.read_to_string(&mut said);
                }
                let said = said.lines().next().unwrap_or("nothing").to_string();
                Err(error).at(format!("{METEOR}, which says `{said}`"))
            }
        }
    }

    /// SPICE of tokenised captions.
    ///
    /// # Errors
    /// As [`Jars::meteor`].
    pub fn spice(&self, captions: &[Caption]) -> Result<JavaScore> {
        let folder = self.0.join("spice");
        for file in [SPICE.to_string(), format!("lib/{}", PARSER[0]), format!("lib/{}", PARSER[1])] {
            if !folder.join(&file).is_file() {
                return Err(Error::Io(format!("expected {file} but found none\n{HOW}"))).at(folder.display());
            }
        }
        let work = Work::new()?;
        let (input, output) = (work.0.join("in.json"), work.0.join("out.json"));
        let write = fs::create_dir_all(work.0.join("cache")).and_then(|()| fs::write(&input, spice_input(captions)));
        write.map_err(unwritable).at(work.0.display())?;
        let mut command = java(&folder, "8G", SPICE);
        command
            .arg(&input)
            .arg("-cache")
            .arg(work.0.join("cache"))
            .arg("-out")
            .arg(&output)
            .args(["-subset", "-silent"]);
        let ended =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).output().map_err(no_java)?;
        if !ended.status.success() {
            let said = String::from_utf8_lossy(&ended.stderr);
            let said = said.lines().next().unwrap_or("nothing");
            return Err(Error::Backend(format!("expected {SPICE} to succeed but it says `{said}`")));
        }
        let bytes = fs::read(&output).map_err(unreadable).at(output.display())?;
        spice_output(&bytes, captions.len()).at(SPICE)
    }
}

/// `java -Xmx… -jar …` in the program's folder, for it looks for its data beside itself.
fn java(folder: &Path, memory: &str, jar: &str) -> Command {
    let mut command = Command::new("java");
    command.current_dir(folder).args([&format!("-Xmx{memory}"), "-jar", jar]);
    command
}

fn no_java(error: std::io::Error) -> Error {
    Error::Io(format!("expected the program `java` but found: {error}\n{HOW}"))
}

/// METEOR as a service: lines in, lines out.
struct Meteor {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Meteor {
    fn start(folder: &Path) -> Result<Self> {
        if !folder.join(METEOR).is_file() {
            return Err(Error::Io(format!("expected {METEOR} but found none\n{HOW}"))).at(folder.display());
        }
        let mut process = java(folder, "2G", METEOR)
            .args(["-", "-", "-stdio", "-l", "en", "-norm"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(no_java)?;
        match (process.stdin.take(), process.stdout.take()) {
            (Some(input), Some(output)) => Ok(Meteor { process, input, output: BufReader::new(output) }),
            _ => Err(Error::Io(format!("{METEOR}: expected its input and output but found none"))),
        }
    }

    /// Statistics of each caption first; then all of them at once, to which it answers with each one's score and the
    /// aggregate.
    fn score(&mut self, captions: &[Caption]) -> Result<JavaScore> {
        let mut eval = "EVAL".to_string();
        for caption in captions {
            let references: Vec<String> = caption.references.iter().map(|text| clean(text)).collect();
            let line = format!("SCORE ||| {} ||| {}", references.join(" ||| "), clean(&caption.hypothesis));
            eval += " ||| ";
            eval += self.ask(&line)?.trim();
        }
        self.say(&eval)?;
        let images = captions.iter().map(|_| self.number()).collect::<Result<_>>()?;
        Ok(JavaScore { images, corpus: self.number()? })
    }

    fn say(&mut self, line: &str) -> Result<()> {
        let written = self.input.write_all(line.as_bytes()).and_then(|()| self.input.write_all(b"\n"));
        written
            .and_then(|()| self.input.flush())
            .map_err(|e| Error::Io(format!("expected it to listen but found: {e}")))
    }

    fn ask(&mut self, line: &str) -> Result<String> {
        self.say(line)?;
        self.hear()
    }

    fn hear(&mut self) -> Result<String> {
        let mut line = String::new();
        match self.output.read_line(&mut line) {
            Ok(0) => Err(Error::Io("expected an answer but it ended".to_string())),
            Ok(_) => Ok(line),
            Err(error) => Err(Error::Io(format!("expected an answer but found: {error}"))),
        }
    }

    fn number(&mut self) -> Result<f64> {
        let line = self.hear()?;
        line.trim().parse().map_err(|_| Error::Malformed(format!("expected a score but found `{}`", line.trim())))
    }
}

/// Without what separates the fields of a line.
fn clean(text: &str) -> String {
    text.replace("|||", "").replace('\n', " ").replace("  ", " ")
}

fn spice_input(captions: &[Caption]) -> String {
    let entry = |(id, caption): (usize, &Caption)| json!({ "image_id": id, "test": caption.hypothesis, "refs": caption.references });
    Value::from(captions.iter().enumerate().map(entry).collect::<Vec<_>>()).to_string()
}

#[derive(Deserialize)]
struct SpiceEntry {
    image_id: usize,
    scores: SpiceScores,
}

#[derive(Deserialize)]
struct SpiceScores {
    #[serde(rename = "All")]
    all: SpiceScore,
}

#[derive(Deserialize)]
struct SpiceScore {
    f: f64,
}

fn spice_output(bytes: &[u8], count: usize) -> Result<JavaScore> {
    let entries: Vec<SpiceEntry> =
        serde_json::from_slice(bytes).map_err(|e| Error::Malformed(format!("expected its scores but found {e}")))?;
    let mut images = vec![None; count];
    for entry in entries {
        match images.get_mut(entry.image_id) {
            Some(score) => *score = Some(entry.scores.all.f),
            None => return Err(Error::Malformed(format!("expected ids below {count} but found {}", entry.image_id))),
        }
    }
    let images: Option<Vec<f64>> = images.into_iter().collect();
    let images =
        images.ok_or_else(|| Error::Malformed(format!("expected the scores of {count} captions but found fewer")))?;
    Ok(JavaScore { corpus: mean(&images), images })
}

/// A folder for one run of SPICE, removed with it.
struct Work(PathBuf);

impl Work {
    fn new() -> Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!("rscapret-spice-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).map_err(unwritable).at(path.display())?;
        Ok(Work(path))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // What stays behind lies where such things are swept away.
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spice_speaks_json() {
        let captions = [Caption::new("a river", &["the river", "water"]), Caption::new("b", &["c"])];
        let input: Value = serde_json::from_str(&spice_input(&captions)).unwrap();
        assert_eq!(input[0], json!({ "image_id": 0, "test": "a river", "refs": ["the river", "water"] }));
        let entry =
            |id: usize, f: f64| json!({ "image_id": id, "scores": { "All": { "f": f, "pr": 1.0 }, "Color": {} } });
        let answer = |entries: Vec<Value>| spice_output(Value::from(entries).to_string().as_bytes(), 2);
        let score = answer(vec![entry(1, 0.25), entry(0, 0.75)]).unwrap();
        assert_eq!(score, JavaScore { corpus: 0.5, images: vec![0.75, 0.25] });
        assert!(answer(vec![entry(0, 0.5)]).unwrap_err().to_string().contains("but found fewer"));
        assert!(answer(vec![entry(2, 0.5)]).unwrap_err().to_string().contains("ids below 2 but found 2"));
    }

    #[test]
    fn lines_keep_their_fields() {
        assert_eq!(clean("a ||| b\nc"), "a b c");
    }

    #[test]
    fn a_folder_without_programs_says_how_to_get_them() {
        let folder = tempfile::tempdir().unwrap();
        let error = Jars::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("but found neither") && error.contains("pip download"), "{error}");
    }
}
