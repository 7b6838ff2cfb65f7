//! A server of static files for this machine only, with the headers that the page is meant to run under.
//!
//! COOP and COEP make the page cross-origin isolated; the Content-Security-Policy lets it talk to its own origin and
//! to nothing else, which is what "nothing leaves the machine" stands on.

mod files;
mod policy;
mod range;

use std::io::{Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use tiny_http::{Header, Method, Request, Response, ResponseBox, StatusCode};

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
/// Requests that are answered at the same time; a browser opens six connections.
const THREADS: usize = 32;

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
        None => (PORT..PORT + 100).find_map(|port| Server::start(dir, port).ok()).map_or_else(
            // Says why, should no port have been the reason.
            || Server::start(dir, PORT),
            Ok,
        )?,
    };
    println!("{what} {} (Ctrl-C ends it)", server.url());
    server.wait();
    Ok(())
}

/// A running server; dropping it ends it.
pub struct Server {
    http: Arc<tiny_http::Server>,
    address: SocketAddr,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// Serves `dir` on `port` of 127.0.0.1; 0 takes any free port.
    ///
    /// # Errors
    /// When `dir` is no folder or the port is taken.
    pub fn start(dir: &Path, port: u16) -> Result<Server> {
        let root = Arc::new(Root::new(dir)?);
        let http = tiny_http::Server::http((Ipv4Addr::LOCALHOST, port)).at(format!("port {port} of 127.0.0.1"))?;
        let address = http.server_addr().to_ip().ok_or_else(|| Error::Failed("expected an IP address".to_string()))?;
        let http = Arc::new(http);
        let threads = (0..THREADS).map(|_| {
            let (http, root) = (Arc::clone(&http), Arc::clone(&root));
            std::thread::spawn(move || {
                for request in http.incoming_requests() {
                    let response = answer(&root, &request);
                    // The client may have gone: that is its own affair.
                    let _ = request.respond(response);
                }
            })
        });
        let threads = threads.collect();
        Ok(Server { http, address, threads })
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
    fn wait(mut self) {
        for thread in std::mem::take(&mut self.threads) {
            let _ = thread.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for _ in &self.threads {
            self.http.unblock();
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn answer(root: &Root, request: &Request) -> ResponseBox {
    if !host_is_local(header(request, "Host")) {
        // A site that resolves its own name to 127.0.0.1 must not read what is served here.
        return plain(421, "this server answers to 127.0.0.1 and localhost only", None);
    }
    if !matches!(request.method(), Method::Get | Method::Head) {
        return plain(405, "expected GET or HEAD", Some(("Allow", "GET, HEAD")));
    }
    let Some(path) = root.resolve(request.url()) else {
        return plain(404, "expected a file of that name but found none", None);
    };
    file(&path, header(request, "Range"), header(request, "If-Range").is_some())
        .unwrap_or_else(|error| plain(500, &error.to_string(), None))
}

/// Answers with (a part of) a file. `conditional`: the range holds only for a version that cannot be checked here.
fn file(path: &Path, range: Option<&str>, conditional: bool) -> Result<ResponseBox> {
    let mime = files::mime(path);
    let mut headers: Vec<(&str, String)> =
        vec![("Content-Type", mime.to_string()), ("Accept-Ranges", "bytes".to_string())];
    let policy = if mime.starts_with("text/html") {
        policy::for_html(&std::fs::read_to_string(path).at("page")?)
    } else {
        policy::for_html("")
    };
    headers.push(("Content-Security-Policy", policy));

    let mut file = std::fs::File::open(path).at("file")?;
    let size = file.metadata().at("file")?.len();
    let (status, start, length) = match range.filter(|_| !conditional).and_then(|r| Range::parse(r, size)) {
        None => (200, 0, size),
        Some(Range::Unsatisfiable) => {
            return Ok(plain(
                416,
                "expected a range inside of the file",
                Some(("Content-Range", &format!("bytes */{size}"))),
            ));
        }
        Some(Range::Part { start, length }) => {
            headers.push(("Content-Range", format!("bytes {start}-{}/{size}", start + length - 1)));
            (206, start, length)
        }
    };
    file.seek(SeekFrom::Start(start)).at("file")?;
    Ok(respond(status, &headers, Box::new(file.take(length)), length))
}

fn plain(status: u16, text: &str, extra: Option<(&'static str, &str)>) -> ResponseBox {
    let body = format!("{text}\n").into_bytes();
    let length = body.len() as u64;
    let mut headers = vec![("Content-Type", "text/plain; charset=utf-8".to_string())];
    headers.push(("Content-Security-Policy", policy::for_html("")));
    headers.extend(extra.map(|(name, value)| (name, value.to_string())));
    respond(status, &headers, Box::new(std::io::Cursor::new(body)), length)
}

fn respond(status: u16, headers: &[(&str, String)], body: Box<dyn Read + Send>, length: u64) -> ResponseBox {
    let always = [
        ("Cross-Origin-Opener-Policy", "same-origin"),
        ("Cross-Origin-Embedder-Policy", "require-corp"),
        ("Cross-Origin-Resource-Policy", "same-origin"),
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "no-referrer"),
        // Revalidated always: a page that was built anew must not meet yesterday's files.
        ("Cache-Control", "no-cache"),
    ];
    let given = headers.iter().map(|(name, value)| (*name, value.as_str()));
    let headers = always.into_iter().chain(given).filter_map(|(n, v)| Header::from_bytes(n, v).ok()).collect();
    Response::new(StatusCode(status), headers, body, usize::try_from(length).ok(), None)
        // Above its threshold tiny_http would drop Content-Length, by which the page shows its progress.
        .with_chunked_threshold(usize::MAX)
}

fn header<'r>(request: &'r Request, name: &'static str) -> Option<&'r str> {
    request.headers().iter().find(|h| h.field.equiv(name)).map(|h| h.value.as_str())
}

fn host_is_local(host: Option<&str>) -> bool {
    let name = host.map(|h| h.rsplit_once(':').map_or(h, |(name, _port)| name));
    matches!(name, Some("127.0.0.1" | "localhost"))
}

#[cfg(test)]
mod tests;
