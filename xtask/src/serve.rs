//! A server of static files for this machine only, with the headers that the page is meant to run under.
//!
//! COOP and COEP make the page cross-origin isolated; the Content-Security-Policy lets it talk to its own origin and
//! to nothing else, which is what "nothing leaves the machine" stands on.

mod files;
mod policy;
mod range;

use std::io::{Seek, SeekFrom};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{
    ACCEPT_RANGES, ALLOW, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_SECURITY_POLICY, HOST, HeaderName, IF_RANGE, RANGE,
};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio_util::io::ReaderStream;

use crate::args::Args;
use crate::error::{Context, Error, Result};
use files::Root;
use range::Range;

pub(crate) const HELP: &str = "\
Serves a folder to this machine only, with the headers of the demo (cross-origin isolation, a strict
Content-Security-Policy). Ctrl-C ends it.

Usage: cargo xtask serve DIR [options]

Options:
  --port N   port of 127.0.0.1; without it 8080 or the next free one
";

/// Where the search for a free port starts.
const PORT: u16 = 8080;
/// Workers of the server; they find files, whose contents are read on other threads.
const WORKERS: usize = 2;
/// Bytes of a file that are read at once.
const PIECE: usize = 256 << 10;

pub(crate) fn run(mut args: Args) -> Result<()> {
    let port = args.port()?;
    match args.positional()?.as_slice() {
        [dir] => forever(Path::new(dir), port, "Serving at"),
        other => Err(Error::Usage(format!("expected one folder but found {}\ntry --help", other.len()))),
    }
}

/// Serves until the process ends; `what` stands before the address that is printed.
pub(crate) fn forever(dir: &Path, port: Option<u16>, what: &str) -> Result<()> {
    let server = match port {
        Some(port) => Server::start(dir, port)?,
        None => start_from(dir, PORT)?,
    };
    println!("{what} {} (Ctrl-C ends it)", server.url());
    server.wait();
    Ok(())
}

/// Serves on a port or, where that is taken, on the next free one.
fn start_from(dir: &Path, port: u16) -> Result<Server> {
    let mut ports = port..=port.saturating_add(99);
    // Says of the first why, should no port have been the reason.
    ports.find_map(|port| Server::start(dir, port).ok()).map_or_else(|| Server::start(dir, port), Ok)
}

/// What the pages that are served may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Their own origin and nothing else, scripts from it alone: the demo.
    Strict,
    /// What they like: programs of others, which the benchmarks compare with.
    Open,
}

/// A running server; dropping it ends it, with all of its connections.
pub struct Server {
    runtime: Runtime,
    address: SocketAddr,
}

impl Server {
    /// Serves `dir` on `port` of 127.0.0.1; 0 takes any free port.
    ///
    /// # Errors
    /// When `dir` is no folder or the port is taken.
    pub fn start(dir: &Path, port: u16) -> Result<Server> {
        Server::start_with(dir, port, Policy::Strict)
    }

    /// The same under a policy; the pages are cross-origin isolated under each.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn start_with(dir: &Path, port: u16, policy: Policy) -> Result<Server> {
        let root = Arc::new(Root::new(dir)?);
        let runtime = Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build().at("server")?;
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, port)));
        let listener = listener.at(format!("port {port} of 127.0.0.1"))?;
        let address = listener.local_addr().at("server")?;
        let app = Router::new().fallback(move |request: Request| {
            let mut response = answer(&root, &request);
            if policy == Policy::Open {
                response.headers_mut().remove(CONTENT_SECURITY_POLICY);
            }
            async { response }
        });
        runtime.spawn(async { axum::serve(listener, app).await });
        Ok(Server { runtime, address })
    }

    /// Address of the page, with a slash at the end.
    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// Address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits for the end, which only comes with the process.
    fn wait(self) {
        self.runtime.block_on(std::future::pending())
    }
}

fn answer(root: &Root, request: &Request) -> Response {
    let headers = request.headers();
    if !host_is_local(text(headers, HOST)) {
        // A site that resolves its own name to 127.0.0.1 must not read what is served here.
        return plain(StatusCode::MISDIRECTED_REQUEST, "this server answers to 127.0.0.1 and localhost only", None);
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "expected GET or HEAD", Some((ALLOW, "GET, HEAD".to_string())));
    }
    let Some(path) = root.resolve(request.uri().path()) else {
        return plain(StatusCode::NOT_FOUND, "expected a file of that name but found none", None);
    };
    file(&path, text(headers, RANGE), headers.contains_key(IF_RANGE))
        .unwrap_or_else(|error| plain(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string(), None))
}

/// Answers with (a part of) a file. `conditional`: the range holds only for a version that cannot be checked here.
fn file(path: &Path, range: Option<&str>, conditional: bool) -> Result<Response> {
    let mime = files::mime(path);
    let html = if mime.starts_with("text/html") { std::fs::read_to_string(path).at("page")? } else { String::new() };
    let mut file = std::fs::File::open(path).at("file")?;
    let size = file.metadata().at("file")?.len();
    let (status, start, length, part) = match range.filter(|_| !conditional).and_then(|r| Range::parse(r, size)) {
        None => (StatusCode::OK, 0, size, None),
        Some(Range::Unsatisfiable) => {
            let size = (CONTENT_RANGE, format!("bytes */{size}"));
            return Ok(plain(StatusCode::RANGE_NOT_SATISFIABLE, "expected a range inside of the file", Some(size)));
        }
        Some(Range::Part { start, length }) => {
            let part = format!("bytes {start}-{}/{size}", start + length - 1);
            (StatusCode::PARTIAL_CONTENT, start, length, Some([(CONTENT_RANGE, part)]))
        }
    };
    file.seek(SeekFrom::Start(start)).at("file")?;
    let body = Body::from_stream(ReaderStream::with_capacity(tokio::fs::File::from_std(file).take(length), PIECE));
    // A stream does not know its length, by which the page shows its progress.
    let about = [(ACCEPT_RANGES, "bytes".to_string()), (CONTENT_LENGTH, length.to_string())];
    Ok(respond(status, mime, &policy::for_html(&html), (about, part, body)))
}

fn plain(status: StatusCode, text: &str, extra: Option<(HeaderName, String)>) -> Response {
    let body = (extra.map(|header| [header]), format!("{text}\n"));
    respond(status, "text/plain; charset=utf-8", &policy::for_html(""), body)
}

/// `body` may bring headers of its own.
fn respond(status: StatusCode, mime: &str, policy: &str, body: impl IntoResponse) -> Response {
    let always = [
        ("Content-Type", mime),
        ("Content-Security-Policy", policy),
        ("Cross-Origin-Opener-Policy", "same-origin"),
        ("Cross-Origin-Embedder-Policy", "require-corp"),
        ("Cross-Origin-Resource-Policy", "same-origin"),
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "no-referrer"),
        // Revalidated always: a page that was built anew must not meet yesterday's files.
        ("Cache-Control", "no-cache"),
    ];
    (status, always, body).into_response()
}

/// A header of a request, where it is there and is text.
fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

fn host_is_local(host: Option<&str>) -> bool {
    let name = host.map(|h| h.rsplit_once(':').map_or(h, |(name, _port)| name));
    matches!(name, Some("127.0.0.1" | "localhost"))
}

#[cfg(test)]
mod tests;
