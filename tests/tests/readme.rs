//! What the documents say exists: commands, their options, and the files that they link to.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rscapret_tests::command::rscapret;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// Path and text of the documents. One that is missing is found by the links to it.
fn documents() -> Vec<(String, String)> {
    let names = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "models/README.md", "tests/golden/README.md"];
    names.iter().filter_map(|n| Some((n.to_string(), std::fs::read_to_string(root().join(n)).ok()?))).collect()
}

/// Commands in the ```sh blocks of a document, one a line, as words; a line that ends with `\` goes on.
fn commands(markdown: &str) -> Vec<Vec<String>> {
    let mut inside = false;
    let mut code = String::new();
    for line in markdown.lines() {
        if line.trim_start().starts_with("```") {
            inside = !inside && line.trim_start() == "```sh";
        } else if inside {
            code.push_str(line);
            code.push('\n');
        }
    }
    code.replace("\\\n", " ").lines().map(words).filter(|words| !words.is_empty()).collect()
}

/// Words as a shell splits them, as far as our documents need: double and single quotes, comments.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in line.chars() {
        match quote {
            Some(q) if c == q => quote = None,
            Some(_) => word.get_or_insert_default().push(c),
            None if c == '"' || c == '\'' => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            None if c == '#' && word.is_none() => break,
            None if c.is_whitespace() => words.extend(word.take()),
            None => word.get_or_insert_default().push(c),
        }
    }
    assert!(quote.is_none(), "expected a closing quote: {line}");
    words.extend(word);
    words
}

/// Does a help text know `option` (`--name` or `--name=value`)?
fn knows(help: &str, option: &str) -> bool {
    let name = option.split('=').next().unwrap_or(option);
    help.split(|c: char| !(c.is_alphanumeric() || c == '-')).any(|word| word == name)
}

#[test]
fn every_cargo_command_of_the_documents_exists() {
    let mut seen = 0;
    for (document, text) in documents() {
        for command in commands(&text).iter().filter(|c| c[0] == "cargo") {
            seen += 1;
            let line = command.join(" ");
            match command[1].as_str() {
                "xtask" => {
                    let help =
                        xtask::help(&command[2]).unwrap_or_else(|| panic!("{document}: no such command: {line}"));
                    for option in command[3..].iter().filter(|w| w.starts_with("--")) {
                        assert!(knows(help, option), "{document}: no option {option}: {line}");
                    }
                }
                "build" | "install" | "run" | "test" => {}
                other => panic!("{document}: expected a command of cargo but found `{other}`: {line}"),
            }
        }
    }
    assert!(seen >= 2, "the README has its two commands");
}

#[test]
fn every_rscapret_command_of_the_documents_exists() {
    let help = |arguments: &[&str]| {
        let output = rscapret().args(arguments).arg("--help").output().unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    };
    let mut helps: BTreeMap<String, String> = BTreeMap::new();
    for (document, text) in documents() {
        for command in commands(&text).iter().filter(|c| c[0] == "rscapret") {
            let line = command.join(" ");
            let help = helps.entry(command[1].clone()).or_insert_with_key(|name| {
                help(&[name]).unwrap_or_else(|| panic!("{document}: no such command: {line}"))
            });
            for option in command[2..].iter().filter(|w| w.starts_with('-') && w.as_str() != "--help") {
                assert!(knows(help, option), "{document}: no option {option}: {line}");
            }
        }
    }
    let promised = [
        "caption",
        "index",
        "search",
        "chat",
        "inspect",
        "tokenize",
        "embed",
        "perplexity",
        "score",
        "data",
        "clip",
        "features",
        "report",
        "sweep",
        "pretrain-lm",
        "pretrain-clip",
        "train",
        "eval",
        "export",
        "merge",
    ];
    let overview = help(&[]).expect("rscapret --help");
    for name in promised {
        assert!(helps.contains_key(name), "the documents show `rscapret {name}`");
        assert!(knows(&overview, name), "rscapret --help lists `{name}`");
    }
}

#[test]
fn links_lead_to_files() {
    let mut seen = 0;
    for (document, text) in documents() {
        let folder = root().join(&document).parent().unwrap().to_path_buf();
        for (at, _) in text.match_indices("](") {
            let target = text[at + 2..].split(')').next().unwrap();
            if target.contains("://") || target.starts_with('#') {
                continue;
            }
            seen += 1;
            let file = target.split('#').next().unwrap();
            assert!(folder.join(file).exists(), "{document}: expected {target} but found no such file");
        }
    }
    assert!(seen > 5, "the documents link to each other");
}

#[test]
fn commands_are_read_as_a_shell_reads_them() {
    let text = "```sh\n# no command\na \"b c\" --d=1 # e\nf \\\n  'g # h'\n```\n```\nnot this\n```\n";
    assert_eq!(commands(text), [vec!["a", "b c", "--d=1"], vec!["f", "g # h"]]);
    assert!(knows("  --top-p <P>  nucleus", "--top-p") && knows("[--json]", "--json=x") && !knows("--top-p", "--top"));
}
