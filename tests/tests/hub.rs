//! Models by name, from a Hub that is a server on this machine, and from its cache.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    extract::Request,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use rscapret_trainer::{
    files::clip::ClipFiles,
    hub::{Hub, Kind},
};
use tokio::{
    net::TcpListener,
    runtime::{Builder, Runtime},
};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A Hub of some files; models of the owner `gated` ask for the token `secret`.
struct Mock {
    url: String,
    asked: Arc<Mutex<Vec<String>>>,
    /// Dropping it ends the server.
    _runtime: Runtime,
}

impl Mock {
    fn start(files: BTreeMap<String, Vec<u8>>) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let (log, files) = (asked.clone(), Arc::new(files));
        let app = Router::new().fallback(move |request: Request| {
            log.lock().unwrap().push(request.uri().to_string());
            let response = answer(&request, &files);
            async { response }
        });
        runtime.spawn(async { axum::serve(listener, app).await });
        Mock { url, asked, _runtime: runtime }
    }

    fn hub(&self, cache: &Path, token: Option<&str>) -> Hub {
        let token = token.map(String::from);
        Hub { cache: cache.to_path_buf(), endpoint: self.url.clone(), token, offline: false }
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

/// As huggingface.co answers: the list of a repository's files, and parts of a file.
fn answer(request: &Request, files: &BTreeMap<String, Vec<u8>>) -> Response {
    let header = |name: &str| request.headers().get(name).map(|value| value.to_str().unwrap());
    let url = request.uri().path();
    if url.contains("/gated/") && header("Authorization") != Some("Bearer secret") {
        StatusCode::FORBIDDEN.into_response()
    } else if let Some(repo) = url.strip_prefix("/api/models/").and_then(|rest| rest.strip_suffix("/revision/main")) {
        let of_repo: Vec<_> = files.keys().filter_map(|path| path.strip_prefix(&format!("{repo}/"))).collect();
        let siblings: Vec<_> = of_repo.iter().map(|name| serde_json::json!({ "rfilename": name })).collect();
        let status = if siblings.is_empty() { StatusCode::NOT_FOUND } else { StatusCode::OK };
        (status, serde_json::json!({ "sha": COMMIT, "siblings": siblings }).to_string()).into_response()
    } else if let Some(body) = files.get(&url[1..].replacen("/resolve/main/", "/", 1)) {
        let range = header("Range").unwrap_or_default();
        let range = range.trim_start_matches("bytes=").split_once('-').unwrap();
        let start: usize = range.0.parse().unwrap();
        let end = range.1.parse().map_or(body.len(), |end: usize| end + 1);
        let headers = [
            ("x-repo-commit", COMMIT.to_string()),
            ("etag", format!("\"etag-of-{}\"", url.rsplit('/').next().unwrap())),
            ("Content-Range", format!("bytes {start}-{}/{}", end - 1, body.len())),
        ];
        (StatusCode::PARTIAL_CONTENT, headers, body[start..end].to_vec()).into_response()
    } else {
        StatusCode::NOT_FOUND.into_response()
    }
}

fn llama(repo: &str) -> BTreeMap<String, Vec<u8>> {
    let index = r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
    let files = [
        ("README.md", "not asked for"),
        ("config.json", "{}"),
        ("tokenizer.json", "{}"),
        ("pytorch_model.bin", "not asked for"),
        ("model.safetensors.index.json", index),
        ("model-1.safetensors", "first"),
        ("model-2.safetensors", "second"),
    ];
    files.map(|(name, text)| (format!("{repo}/{name}"), text.as_bytes().to_vec())).into()
}

#[test]
fn a_name_is_fetched_once_and_then_lies_in_the_cache() {
    let (mock, folder) = (Mock::start(llama("someone/llama")), tempfile::tempdir().unwrap());
    let hub = mock.hub(folder.path(), None);
    let found = hub.resolve(Path::new("someone/llama"), Kind::Llm).unwrap();
    let expected = folder.path().join("models--someone--llama/snapshots").join(COMMIT);
    assert_eq!(found, expected);
    let mut names: Vec<_> =
        fs::read_dir(&found).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let wanted =
        ["config.json", "model-1.safetensors", "model-2.safetensors", "model.safetensors.index.json", "tokenizer.json"];
    assert_eq!(names, wanted);
    assert_eq!(fs::read(found.join("model-2.safetensors")).unwrap(), b"second");
    assert!(mock.asked().len() > wanted.len());
    // Again: from the cache, without a word to the server; and without a server.
    assert_eq!(hub.resolve(Path::new("someone/llama"), Kind::Llm).unwrap(), expected);
    let offline = Hub { offline: true, ..hub.clone() };
    assert_eq!(offline.resolve(Path::new("someone/llama"), Kind::Llm).unwrap(), expected);
    assert_eq!(mock.asked(), Vec::<String>::new());
    // A download that was cut goes on: only what is missing is asked for.
    fs::remove_file(found.join("model-2.safetensors")).unwrap();
    assert_eq!(hub.resolve(Path::new("someone/llama"), Kind::Llm).unwrap(), expected);
    let asked = mock.asked();
    assert!(asked.iter().all(|url| url.starts_with("/api/") || url.ends_with("model-2.safetensors")), "{asked:?}");
}

#[test]
fn what_is_on_disk_asks_nobody() {
    let (mock, folder) = (Mock::start(BTreeMap::new()), tempfile::tempdir().unwrap());
    let hub = mock.hub(folder.path(), None);
    let there = folder.path().join("owner/name");
    fs::create_dir_all(&there).unwrap();
    for path in [there.as_path(), Path::new("src"), Path::new("src/nothing"), Path::new("./a/b"), Path::new("nothing")]
    {
        assert_eq!(hub.resolve(path, Kind::Clip).unwrap(), path);
    }
    assert_eq!(mock.asked(), Vec::<String>::new());
}

#[test]
fn gated_models_want_the_token() {
    let (mock, folder) = (Mock::start(llama("gated/llama")), tempfile::tempdir().unwrap());
    let error = mock.hub(folder.path(), None).resolve(Path::new("gated/llama"), Kind::Llm).unwrap_err().to_string();
    assert!(error.starts_with("gated/llama: expected the right to read the model but found status 403\n"), "{error}");
    assert!(error.contains(&format!("{}/gated/llama, then set HF_TOKEN or run `hf auth login`", mock.url)), "{error}");
    mock.hub(folder.path(), Some("secret")).resolve(Path::new("gated/llama"), Kind::Llm).unwrap();
}

#[test]
fn errors_tell_what_to_do() {
    let (mock, folder) = (Mock::start(llama("someone/llama")), tempfile::tempdir().unwrap());
    let hub = mock.hub(folder.path(), None);
    let error = |hub: &Hub, name: &str, kind| hub.resolve(Path::new(name), kind).unwrap_err().to_string();
    assert!(error(&hub, "someone/lama", Kind::Llm).contains("expected a folder, or a model on http://127.0.0.1"));
    let found = error(&hub, "someone/llama", Kind::Clip);
    assert!(found.contains("expected config.json, preprocessor_config.json and model.safetensors"), "{found}");
    let offline = Hub { offline: true, ..hub.clone() };
    let found = error(&offline, "someone/llama", Kind::Llm);
    assert!(found.contains("HF_HUB_OFFLINE is set\ndownload the model where there is a connection"), "{found}");
    // A port on which nobody listens.
    let address = mock.url.clone();
    drop(mock);
    let found = error(&Hub { endpoint: address.clone(), ..hub }, "someone/llama", Kind::Llm);
    assert!(found.contains(&format!("expected {address} to answer but found: ")), "{found}");
    assert!(found.contains("copy the cache (HF_HOME)"), "{found}");
}

#[test]
fn an_open_clip_repository_is_opened_by_name() {
    let golden = rscapret_tests::tests_dir().join("golden/open_clip");
    let read = |name: &str| fs::read(golden.join(name)).unwrap();
    let files = [
        ("someone/clip/open_clip_config.json", read("open_clip_config.json")),
        ("someone/clip/open_clip_pytorch_model.bin", read("plain.pt")),
        ("someone/clip/RemoteCLIP.pt", read("plain.pt")),
        ("someone/clip/tokenizer.json", b"{}".to_vec()),
    ];
    let mock = Mock::start(files.map(|(name, bytes)| (name.to_string(), bytes)).into());
    let folder = tempfile::tempdir().unwrap();
    let hub = mock.hub(folder.path(), None);
    for name in ["someone/clip", "someone/clip/RemoteCLIP.pt"] {
        let path = hub.resolve(Path::new(name), Kind::Clip).unwrap();
        let files = ClipFiles::open(&path).unwrap();
        assert!(files.folder.join("tokenizer.json").exists(), "{name}");
        assert!(String::from_utf8(files.config_json).unwrap().contains("\"quick_gelu\""), "{name}");
    }
}
