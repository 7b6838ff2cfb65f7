//! The walls of ARCHITECTURE.md that can be seen by reading the tree. Each test says its wall and where it is broken.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A file of the repository: path from the root with `/`, and its text.
struct File {
    path: String,
    text: String,
}

impl File {
    fn extension(&self) -> &str {
        self.path.rsplit_once('.').map_or("", |(_, e)| e)
    }

    /// Lines that are compiled into the product: no comments, nothing from the first `#[cfg(test)]` on.
    fn product_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let tests = self.path.ends_with("/tests.rs") || self.path.contains("/tests/");
        let code = self.text.lines().enumerate().map(|(i, line)| (i + 1, line));
        code.take_while(move |(_, line)| !tests && !line.trim_start().starts_with("#[cfg(test)]"))
            .filter(|(_, line)| !line.trim_start().starts_with("//"))
    }

    /// `path:line: text` for each product line on which `found` is true.
    fn offences<'a>(&'a self, found: impl Fn(&str) -> bool + 'a) -> impl Iterator<Item = String> + 'a {
        let hits = self.product_lines().filter(move |(_, line)| found(line));
        hits.map(|(number, line)| format!("{}:{number}: {}", self.path, line.trim()))
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// All text files of the repository; what .gitignore names is no part of it.
fn files() -> Vec<File> {
    fn walk(dir: &Path, prefix: &str, out: &mut Vec<File>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let path = format!("{prefix}{name}");
            if name == ".git" {
                // A folder, or a file in a second work tree.
                continue;
            }
            if entry.file_type().unwrap().is_dir() {
                let ignored = matches!(name.as_str(), "target" | "dist" | "runs" | "__pycache__" | "node_modules");
                if !ignored && !name.starts_with("target-") {
                    walk(&entry.path(), &format!("{path}/"), out);
                }
            } else if !name.ends_with(".log")
                && let Ok(text) = std::fs::read(entry.path()).map(String::from_utf8)
                && let Ok(text) = text
            {
                out.push(File { path, text });
            }
        }
    }
    let mut out = Vec::new();
    walk(&root(), "", &mut out);
    out.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(out.iter().any(|f| f.path == "tests/tests/walls.rs"), "the walk found this file");
    out
}

fn rust_below<'a>(files: &'a [File], folder: &'a str) -> impl Iterator<Item = &'a File> {
    files.iter().filter(move |f| f.extension() == "rs" && f.path.starts_with(folder))
}

/// Is `word` on the line, and not as a part of a longer name?
fn names(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        !line[..at].chars().next_back().is_some_and(part) && !line[at + word.len()..].chars().next().is_some_and(part)
    })
}

fn hold(wall: &str, broken: impl IntoIterator<Item = String>) {
    let broken: Vec<String> = broken.into_iter().collect();
    assert!(broken.is_empty(), "broken wall: {wall}\n  {}", broken.join("\n  "));
}

/// Names of all dependencies in a manifest, whatever their kind and target.
fn dependencies(member: &str) -> BTreeSet<String> {
    fn collect(table: &toml::Table, out: &mut BTreeSet<String>) {
        for (key, value) in table {
            let Some(inner) = value.as_table() else { continue };
            match key.as_str() {
                "dependencies" | "dev-dependencies" | "build-dependencies" => out.extend(inner.keys().cloned()),
                "target" => inner.values().filter_map(toml::Value::as_table).for_each(|t| collect(t, out)),
                _ => {}
            }
        }
    }
    let text = std::fs::read_to_string(root().join(member).join("Cargo.toml")).unwrap();
    let mut out = BTreeSet::new();
    collect(&text.parse().unwrap(), &mut out);
    assert!(!out.is_empty(), "{member} has dependencies");
    out
}

#[test]
fn shared_knows_no_browser_file_system_network_clock_or_environment() {
    let std = ["fs", "net", "env", "process", "thread::sleep", "time::Instant", "time::SystemTime"];
    let others = ["web_sys", "js_sys", "wasm_bindgen", "Instant", "SystemTime"];
    let files = files();
    let broken = rust_below(&files, "shared/src/").flat_map(|f| {
        f.offences(move |line| {
            // `use std::{fs, …}` as well as `std::fs::…`.
            let group = line.split_once("std::{").is_some_and(|(_, rest)| std[..4].iter().any(|w| names(rest, w)));
            group || std.iter().any(|w| names(line, &format!("std::{w}"))) || others.iter().any(|w| names(line, w))
        })
    });
    hold("shared knows no browser, file system, network, clock or environment; bytes come through ByteSource", broken);
}

#[test]
fn arrows_between_crates_point_to_shared_only() {
    let ours = ["rscapret", "rscapret-trainer", "rscapret-web", "rscapret-tests", "xtask"];
    let allowed: [(&str, &[&str]); 5] = [
        ("shared", &[]),
        ("trainer", &["rscapret"]),
        ("web", &["rscapret"]),
        ("tests", &["rscapret", "rscapret-trainer", "xtask"]),
        ("xtask", &[]),
    ];
    let broken = allowed.iter().flat_map(|(member, allowed)| {
        let wrong =
            dependencies(member).into_iter().filter(|d| ours.contains(&d.as_str()) && !allowed.contains(&d.as_str()));
        wrong.map(move |d| format!("{member}/Cargo.toml: {d}"))
    });
    hold("trainer -> shared <- web; tests may see shared and trainer; nobody depends on tests", broken);
}

#[test]
fn arrows_inside_shared_point_to_the_left() {
    // Modules of one rank do not know each other.
    let ranks: [&[&str]; 9] = [
        &["error"],
        &["weights"],
        &["backend", "bundle", "tokenizer"],
        &["nn"],
        &["clip", "llama"],
        &["projection"],
        &["caption", "retrieval"],
        &["dialogue"],
        &["bench"],
    ];
    let rank = |module: &str| ranks.iter().position(|r| r.contains(&module));
    let files = files();
    let mut broken = Vec::new();
    for file in rust_below(&files, "shared/src/").filter(|f| f.path != "shared/src/lib.rs") {
        let own = file.path["shared/src/".len()..].split(['/', '.']).next().unwrap();
        let Some(own_rank) = rank(own) else {
            broken.push(format!("{}: module `{own}` has no rank in this test", file.path));
            continue;
        };
        let code: Vec<&str> = file.product_lines().map(|(_, line)| line).collect();
        for used in crate_modules(&code.join("\n")).into_iter().filter(|used| used != own) {
            // `crate::Backend` and the like: the names that lib.rs re-exports.
            let used_rank = match used.as_str() {
                "Error" | "Result" | "Context" => Some(0),
                "Backend" | "Candle" => Some(2),
                module => rank(module),
            };
            if used_rank.is_none_or(|u| u >= own_rank) {
                broken.push(format!("{}: `crate::{used}`", file.path));
            }
        }
    }
    hold("inside shared, modules know only what stands to their left in ARCHITECTURE.md", broken);
}

/// First segments after `crate::`, groups in braces taken apart.
fn crate_modules(code: &str) -> BTreeSet<String> {
    let word =
        |text: &str| -> String { text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect() };
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let Some(group) = rest.strip_prefix('{') else {
            found.insert(word(rest));
            continue;
        };
        let mut depth = 1;
        found.insert(word(group));
        for (i, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 1 => drop(found.insert(word(&group[i + 1..]))),
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
    }
    found.remove("");
    found
}

#[test]
fn web_holds_no_arithmetic_on_tensors_or_pixels() {
    let mathematics = ["candle-core", "candle-nn", "image", "half", "ndarray", "rayon", "tokenizers", "wgpu"];
    let in_manifest = dependencies("web").into_iter().filter(|d| mathematics.contains(&d.as_str()));
    let mut broken: Vec<String> = in_manifest.map(|d| format!("web/Cargo.toml: {d}")).collect();
    let files = files();
    broken.extend(rust_below(&files, "web/").flat_map(|f| {
        f.offences(|line| ["candle_core", "rscapret::nn", "matmul", "rscapret_trainer"].iter().any(|w| names(line, w)))
    }));
    hold("web holds no arithmetic on tensors or pixels", broken);
}

#[test]
fn only_the_webgpu_backend_names_wgpu() {
    let files = files();
    let outside = ["shared/", "trainer/", "web/"].into_iter().flat_map(|folder| rust_below(&files, folder));
    let broken = outside
        .filter(|f| !f.path.starts_with("shared/src/backend/webgpu/"))
        .flat_map(|f| f.offences(|line| names(line, "wgpu")));
    hold("only backend/webgpu names wgpu", broken);
}

#[test]
fn there_is_one_preprocessing() {
    // Mean of the red channel of CLIP, written so that this file does not count.
    let mean = ["0.", "48145466"].concat();
    let files = files();
    let places: Vec<&str> =
        rust_below(&files, "").filter(|f| f.text.replace('_', "").contains(&mean)).map(|f| f.path.as_str()).collect();
    assert!(
        matches!(places.as_slice(), [one] if one.starts_with("shared/src/clip/")),
        "broken wall: CLIP's mean stands once in the tree, in shared/src/clip\n  found in {places:?}"
    );
}

#[test]
fn each_model_exists_once_generic_over_its_backend() {
    let models = [
        ("Llama", "shared/src/llama/"),
        ("ClipVision", "shared/src/clip/"),
        ("ClipText", "shared/src/clip/"),
        ("Projections", "shared/src/projection/"),
    ];
    let files = files();
    let mut broken = Vec::new();
    for (model, home) in models {
        let defined: Vec<String> = rust_below(&files, "")
            .flat_map(|f| f.offences(move |line| names(line, &format!("struct {model}"))))
            .collect();
        let generic = format!("pub struct {model}<B: Backend>");
        if !matches!(defined.as_slice(), [one] if one.starts_with(home) && one.contains(&generic)) {
            broken.push(format!("expected `{generic}` once, in {home}, but found {defined:?}"));
        }
    }
    // A layer is computed where any backend can do it: what trains and what runs in the page only calls it.
    let layers = ["softmax", "softmax_last_dim", "rms_norm", "layer_norm", "rope", "self_attention", "conv2d"];
    let called = move |line: &str| layers.iter().any(|layer| names(line, layer) && line.contains(&format!("{layer}(")));
    let outside = ["trainer/src/", "web/src/"].into_iter().flat_map(|folder| rust_below(&files, folder));
    let own = outside.flat_map(|f| f.offences(move |line| line.contains("fn forward") || called(line)));
    broken.extend(own);
    hold(
        "each model exists once, generic over Backend: the trainer trains through the forward that the page runs",
        broken,
    );
}

#[test]
fn models_are_frozen() {
    // State that changes while a model runs belongs to the caller (the key-value cache), weights never do.
    let files = files();
    let models = ["shared/src/clip/", "shared/src/llama/", "shared/src/nn/"];
    let broken = models
        .into_iter()
        .flat_map(|folder| rust_below(&files, folder))
        .filter(|f| !["cache", "tokenizer", "preprocess"].iter().any(|part| f.path.contains(part)))
        .flat_map(|f| f.offences(|line| line.contains("&mut self")));
    hold("frozen models offer no &mut", broken);
}

#[test]
fn python_only_makes_golden_files() {
    let files = files();
    let python = files.iter().filter(|f| {
        let first = f.text.lines().next().unwrap_or_default();
        matches!(f.extension(), "py" | "ipynb" | "pyi") || (first.starts_with("#!") && first.contains("python"))
    });
    let broken = python.filter(|f| !f.path.starts_with("tests/golden/")).map(|f| f.path.clone());
    hold("Python only makes golden files, under tests/golden", broken);
}

#[test]
fn no_source_file_is_longer_than_500_lines() {
    let files = files();
    let lines = |f: &File| f.text.lines().count();
    let long = rust_below(&files, "").filter(|f| lines(f) > 500);
    hold("no Rust file is longer than 500 lines", long.map(|f| format!("{}: {} lines", f.path, lines(f))));
}

#[test]
fn no_file_names_a_place_on_somebodys_machine() {
    let places = ["home", "root", "work", "Users", "opt", "tmp"].map(|dir| format!("/{dir}/"));
    let files = files();
    // After a letter, a dot or a slash it is the middle of a longer path or of an address.
    let starts = |line: &str, at: usize| {
        !line[..at]
            .chars()
            .next_back()
            .is_some_and(|c| c.is_alphanumeric() || matches!(c, '.' | '/' | '_' | '-' | '}' | '*'))
    };
    let mut broken = Vec::new();
    for file in files.iter().filter(|f| f.path != "Cargo.lock") {
        for (i, line) in file.text.lines().enumerate() {
            if places.iter().any(|p| line.match_indices(p.as_str()).any(|(at, _)| starts(line, at))) {
                let shown: String = line.trim().chars().take(120).collect();
                broken.push(format!("{}:{}: {shown}", file.path, i + 1));
            }
        }
    }
    hold("no file names a place on somebody's machine", broken);
}

#[test]
fn dependencies_come_from_crates_io() {
    let lock: toml::Table = std::fs::read_to_string(root().join("Cargo.lock")).unwrap().parse().unwrap();
    let sources = lock["package"].as_array().unwrap().iter().filter_map(|p| p.get("source")?.as_str());
    let others = sources.filter(|s| *s != "registry+https://github.com/rust-lang/crates.io-index").map(String::from);
    hold("every dependency comes from crates.io", others.collect::<BTreeSet<_>>());
}

#[test]
fn text_enters_the_page_as_text_only() {
    let ways = [
        "innerHTML",
        "inner_html",
        "set_inner_html",
        "outerHTML",
        "outer_html",
        "set_outer_html",
        "insertAdjacentHTML",
        "insert_adjacent_html",
        "document.write",
        "eval",
        "create_contextual_fragment",
        "DOMParser",
        "DomParser",
    ];
    let files = files();
    let page = files.iter().filter(|f| f.path.starts_with("web/") && matches!(f.extension(), "rs" | "html" | "js"));
    hold(
        "text enters the page as text only",
        page.flat_map(|f| f.offences(move |line| ways.iter().any(|w| names(line, w)))),
    );
}

#[test]
fn every_crate_takes_the_lints_of_the_workspace_and_none_is_switched_off() {
    let mut broken = Vec::new();
    for member in ["shared", "trainer", "web", "xtask"] {
        let text = std::fs::read_to_string(root().join(member).join("Cargo.toml")).unwrap();
        let manifest: toml::Table = text.parse().unwrap();
        if manifest.get("lints").and_then(|l| l.get("workspace")).and_then(toml::Value::as_bool) != Some(true) {
            broken.push(format!("{member}/Cargo.toml: expected `[lints] workspace = true`"));
        }
    }
    let denied = ["unsafe_code", "clippy::unwrap_used", "clippy::expect_used", "clippy::panic", "clippy::todo"];
    let files = files();
    let allows = |line: &str| {
        ["#[allow(", "#![allow(", "#[expect("].iter().any(|a| line.contains(a))
            && denied.iter().any(|d| line.contains(d))
    };
    // What a CUDA kernel does with its memory no compiler sees.
    let starts_kernels = |f: &&File| f.path == "shared/src/backend/candle/cuda/launch.rs";
    let (starts, others): (Vec<&File>, Vec<&File>) = rust_below(&files, "").partition(starts_kernels);
    broken.extend(others.into_iter().flat_map(|f| f.offences(allows)));
    let more = |line: &str| allows(line) && line.trim() != "#![allow(unsafe_code)]";
    broken.extend(starts.into_iter().flat_map(|f| f.offences(more)));
    hold("unsafe, unwrap, expect, panic and todo are denied everywhere outside of tests", broken);
}

#[test]
fn no_test_is_ignored() {
    let attribute = ["#[", "ignore"].concat();
    let files = files();
    let broken = rust_below(&files, "").flat_map(|f| {
        let lines = f.text.lines().enumerate().filter(|(_, line)| line.trim_start().starts_with(&attribute));
        lines.map(|(i, line)| format!("{}:{}: {}", f.path, i + 1, line.trim())).collect::<Vec<_>>()
    });
    hold("no test passes by not being run", broken);
}

#[test]
fn these_tests_see_what_they_look_for() {
    assert!(names("use wgpu::Device;", "wgpu") && !names("use my_wgpu;", "wgpu") && !names("wgpus", "wgpu"));
    let code = "use crate::{error::{A, B}, nn::linear,\n    llama};\nlet x = crate::clip::f(); pub(crate) fn g() {}";
    assert_eq!(crate_modules(code), ["clip", "error", "llama", "nn"].map(String::from).into());
    let file = File {
        path: "shared/src/a.rs".to_string(),
        text: "// std::fs\nuse std::fs;\n#[cfg(test)]\nmod tests { use std::fs; }\n".to_string(),
    };
    assert_eq!(file.offences(|l| names(l, "std::fs")).collect::<Vec<_>>(), ["shared/src/a.rs:2: use std::fs;"]);
    assert!(dependencies("shared").contains("getrandom"), "dependencies of single targets count");
}
