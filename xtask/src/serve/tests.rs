//! Over a real socket: what a client sees byte for byte.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::*;

struct Reply {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Reply {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (field, value) = line.split_once(": ")?;
            field.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

fn ask(server: &Server, method: &str, target: &str, extra: &str) -> Reply {
    let host = if extra.contains("Host:") { String::new() } else { format!("Host: {}\r\n", server.address()) };
    raw(server, &format!("{method} {target} HTTP/1.1\r\n{host}{extra}Connection: close\r\n\r\n"))
}

fn raw(server: &Server, request: &str) -> Reply {
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let split = bytes.windows(4).position(|w| w == b"\r\n\r\n").expect("a head");
    let head = String::from_utf8(bytes[..split].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Reply { status, head, body: bytes[split + 4..].to_vec() }
}

/// `index.html`, `llm.gguf` (100,000 bytes, above every chunking threshold), `empty.bin`; beside them `secret`.
fn site() -> (tempfile::TempDir, Server, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("dist");
    std::fs::create_dir(&root).unwrap();
    let weights: Vec<u8> = (0..100_000_u32).map(|i| (i % 251) as u8).collect();
    std::fs::write(root.join("index.html"), "<script>alert('Hello, world.');</script>").unwrap();
    std::fs::write(root.join("llm.gguf"), &weights).unwrap();
    std::fs::write(root.join("empty.bin"), "").unwrap();
    std::fs::write(dir.path().join("secret"), "secret").unwrap();
    let server = Server::start(&root, 0).unwrap();
    (dir, server, weights)
}

#[test]
fn every_answer_has_the_security_headers() {
    let (_dir, server, _) = site();
    for (method, target, status) in
        [("GET", "/", 200), ("HEAD", "/llm.gguf", 200), ("GET", "/none", 404), ("POST", "/", 405), ("DELETE", "/", 405)]
    {
        let reply = ask(&server, method, target, "");
        assert_eq!(reply.status, status, "{method} {target}");
        assert_eq!(reply.header("Cross-Origin-Opener-Policy"), Some("same-origin"));
        assert_eq!(reply.header("Cross-Origin-Embedder-Policy"), Some("require-corp"));
        assert_eq!(reply.header("Cross-Origin-Resource-Policy"), Some("same-origin"));
        assert_eq!(reply.header("X-Content-Type-Options"), Some("nosniff"));
        assert!(reply.header("Content-Security-Policy").unwrap().starts_with("default-src 'none'; script-src 'self'"));
    }
    assert_eq!(ask(&server, "PUT", "/", "").header("Allow"), Some("GET, HEAD"));
}

#[test]
fn the_page_may_run_its_own_inline_script_and_no_other_file_has_its_hash() {
    let (_dir, server, _) = site();
    let hash = "'sha256-qznLcsROx4GACP2dm0UCKCzCG+HiZ1guq6ZZDob/Tng='";
    let page = ask(&server, "GET", "/?x=1", "");
    assert_eq!(page.header("Content-Type"), Some("text/html; charset=utf-8"));
    assert!(page.header("Content-Security-Policy").unwrap().contains(hash));
    assert!(!ask(&server, "GET", "/llm.gguf", "").header("Content-Security-Policy").unwrap().contains(hash));
}

#[test]
fn whole_files_have_their_length_and_head_has_no_body() {
    let (_dir, server, weights) = site();
    let reply = ask(&server, "GET", "/llm.gguf", "");
    assert_eq!(reply.header("Content-Length"), Some("100000"));
    assert_eq!(reply.header("Transfer-Encoding"), None);
    assert_eq!(reply.header("Content-Type"), Some("application/octet-stream"));
    assert!(reply.body == weights);
    let head = ask(&server, "HEAD", "/llm.gguf", "");
    assert_eq!((head.header("Content-Length"), head.body.len()), (Some("100000"), 0));
    let empty = ask(&server, "GET", "/empty.bin", "");
    assert_eq!((empty.status, empty.header("Content-Length"), empty.body.len()), (200, Some("0"), 0));
}

#[test]
fn ranges_give_206_and_416() {
    let (_dir, server, weights) = site();
    let part = ask(&server, "GET", "/llm.gguf", "Range: bytes=40000-79999\r\n");
    assert_eq!((part.status, part.header("Content-Range")), (206, Some("bytes 40000-79999/100000")));
    assert_eq!(part.header("Content-Length"), Some("40000"));
    assert!(part.body == weights[40_000..80_000]);
    let tail = ask(&server, "GET", "/llm.gguf", "Range: bytes=-3\r\n");
    assert!(tail.status == 206 && tail.body == weights[99_997..]);
    let beyond = ask(&server, "GET", "/llm.gguf", "Range: bytes=100000-\r\n");
    assert_eq!((beyond.status, beyond.header("Content-Range")), (416, Some("bytes */100000")));
    assert_eq!(ask(&server, "GET", "/empty.bin", "Range: bytes=0-\r\n").status, 416);
    // Ignored, as the standard allows: several ranges, nonsense, and a version we cannot compare.
    for ignored in ["Range: bytes=0-1,5-6\r\n", "Range: x\r\n", "Range: bytes=0-1\r\nIf-Range: \"v1\"\r\n"] {
        let reply = ask(&server, "GET", "/llm.gguf", ignored);
        assert_eq!((reply.status, reply.body.len()), (200, 100_000), "{ignored}");
    }
}

#[test]
fn nothing_outside_of_the_folder_is_served() {
    let (_dir, server, _) = site();
    for target in ["/../secret", "/%2e%2e/secret", "/..%2fsecret", "/x/../../secret", "//etc/passwd", "/..\\secret"] {
        let reply = ask(&server, "GET", target, "");
        assert!(matches!(reply.status, 400 | 404), "{target}: {}", reply.status);
        assert!(!reply.body.windows(6).any(|w| w == b"secret"), "{target}");
    }
}

#[test]
fn connections_that_a_browser_keeps_open_hold_up_nobody() {
    let (_dir, server, weights) = site();
    // A server that gave a thread to each connection left one in ten loads of the page without its script.
    for round in 0..20 {
        let mut open: Vec<_> = (0..12).map(|_| TcpStream::connect(server.address()).unwrap()).collect();
        for stream in &mut open {
            stream.set_read_timeout(Some(std::time::Duration::from_secs(30))).unwrap();
            write!(stream, "GET /llm.gguf HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        }
        for (i, stream) in open.iter_mut().enumerate() {
            let mut reply = vec![0; weights.len()];
            stream.read_exact(&mut reply).unwrap_or_else(|e| panic!("round {round}, connection {i}: {e}"));
            assert!(reply.starts_with(b"HTTP/1.1 200 "));
        }
    }
}

#[test]
fn other_hosts_are_refused() {
    let (_dir, server, _) = site();
    assert_eq!(ask(&server, "GET", "/", "Host: evil.example\r\n").status, 421);
    assert_eq!(ask(&server, "GET", "/", "Host: evil.example:8080\r\n").status, 421);
    assert_eq!(ask(&server, "GET", "/", "Host: localhost:9000\r\n").status, 200);
    assert_eq!(raw(&server, "GET / HTTP/1.1\r\nConnection: close\r\n\r\n").status, 421);
}

#[test]
fn a_taken_port_and_a_missing_folder_are_errors_and_dropping_frees_the_port() {
    let (dir, server, _) = site();
    let port = server.address().port();
    assert!(server.url() == format!("http://127.0.0.1:{port}/"));
    let error = Server::start(dir.path(), port).err().unwrap().to_string();
    assert!(error.contains(&port.to_string()), "{error}");
    assert!(Server::start(&dir.path().join("nowhere"), 0).is_err());
    assert!(Server::start(&dir.path().join("secret"), 0).is_err());
    drop(server);
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "nothing listens on port {port} any more");
}

#[test]
fn where_a_port_is_taken_the_next_free_one_is() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("index.html"), "the page").unwrap();
    // Whatever else runs here: a port that is ours, and above it others.
    let first = Server::start(dir.path(), 0).unwrap();
    let taken = first.address().port();
    let next = start_from(dir.path(), taken).unwrap();
    let port = next.address().port();
    assert!(port > taken && port < taken.saturating_add(100), "{taken} {port}");
    assert_eq!(ask(&next, "GET", "/", "").body, b"the page");
    assert_eq!(ask(&first, "GET", "/", "").body, b"the page");
    // A port that is asked for is that one or none.
    let Err(error) = Server::start(dir.path(), taken) else { panic!("two servers on port {taken}") };
    assert!(
        error.to_string().starts_with(&format!("port {taken} of 127.0.0.1: expected success but found: ")),
        "{error}"
    );
    let Err(error) = start_from(&dir.path().join("none"), taken) else { panic!("a server of no folder") };
    assert!(error.to_string().contains("none: "), "{error}");
}
