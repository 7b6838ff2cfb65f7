//! As much of the DevTools protocol as WebDriver does not pass on: what happens inside of a page's worker. It is spoken over a
//! WebSocket (RFC 6455).

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
};

use serde_json::{Value, json};

/// A wire to the worker of one page.
pub struct Worker {
    stream: BufReader<TcpStream>,
    /// The worker's, of the page's own.
    session: String,
    calls: u64,
}

/// Bytes of a worker's JavaScript.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Heap {
    /// Objects.
    pub objects: f64,
    /// Contents of array buffers, which lie beside the heap.
    pub buffers: f64,
}

impl Heap {
    /// Both.
    pub fn bytes(&self) -> f64 {
        self.objects + self.buffers
    }
}

impl Worker {
    /// Attaches to the worker of the page that is open in the browser at `address`.
    ///
    /// # Panics
    /// Without a page, or a page without a worker.
    pub fn attach(agent: &ureq::Agent, address: &str) -> Worker {
        let mut answer = agent.get(format!("http://{address}/json/list")).call().expect("expected a list of pages");
        let list = answer.body_mut().read_to_string().expect("expected a list of pages");
        let list: Vec<Value> = serde_json::from_str(&list).expect("expected a list of pages");
        let page = list.iter().find(|target| target["type"] == "page").expect("expected a page");
        let url = page["webSocketDebuggerUrl"].as_str().expect("expected an address of the page");
        let path = url.strip_prefix(&format!("ws://{address}")).expect("expected the address of this browser");

        let mut worker = Worker { stream: upgraded(address, path), session: String::new(), calls: 0 };
        worker.send(
            "Target.setAutoAttach",
            &json!({"autoAttach": true, "waitForDebuggerOnStart": false, "flatten": true}),
        );
        worker.session = loop {
            let message = worker.receive();
            if message["method"] == "Target.attachedToTarget" && message["params"]["targetInfo"]["type"] == "worker" {
                break message["params"]["sessionId"].as_str().expect("expected a session").to_string();
            }
        };
        worker
    }

    /// What its JavaScript takes now, garbage included.
    pub fn heap(&mut self) -> Heap {
        let usage = self.call("Runtime.getHeapUsage");
        let bytes = |key: &str| usage[key].as_f64().unwrap_or_else(|| panic!("expected `{key}` in {usage}"));
        Heap { objects: bytes("usedSize"), buffers: bytes("backingStorageSize") }
    }

    /// Has its garbage collected.
    pub fn collect_garbage(&mut self) {
        self.call("HeapProfiler.collectGarbage");
    }

    fn call(&mut self, method: &str) -> Value {
        let id = self.send(method, &json!({}));
        loop {
            let mut message = self.receive();
            if message["id"] == id {
                assert!(message["error"].is_null(), "{method}: {message}");
                return message["result"].take();
            }
        }
    }

    fn send(&mut self, method: &str, params: &Value) -> u64 {
        self.calls += 1;
        let mut message = json!({"id": self.calls, "method": method, "params": params});
        if !self.session.is_empty() {
            message["sessionId"] = self.session.clone().into();
        }
        let text = message.to_string();
        // One frame of text. A client's must be masked; by zeros it stays as it is.
        let mut frame = vec![0x81];
        match u8::try_from(text.len()) {
            Ok(length @ ..126) => frame.push(0x80 | length),
            _ => {
                frame.push(0x80 | 126);
                frame.extend(u16::try_from(text.len()).expect("expected a short message").to_be_bytes());
            }
        }
        frame.extend([0; 4]);
        frame.extend(text.as_bytes());
        self.stream.get_mut().write_all(&frame).expect("expected the browser to listen");
        self.calls
    }

    fn receive(&mut self) -> Value {
        let mut text = Vec::new();
        loop {
            let [first, second] = self.read();
            let length = match second {
                126 => u64::from(u16::from_be_bytes(self.read())),
                127 => u64::from_be_bytes(self.read()),
                length => u64::from(length),
            };
            let mut part = vec![0; usize::try_from(length).expect("expected a message")];
            self.stream.read_exact(&mut part).expect("expected the browser to answer");
            // Pings and the like, whose codes begin at 8, are no part of a message.
            if first & 0x0f < 8 {
                text.extend(part);
                if first & 0x80 != 0 {
                    return serde_json::from_slice(&text).expect("expected JSON");
                }
            }
        }
    }

    fn read<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).expect("expected the browser to answer");
        bytes
    }
}

/// A connection that speaks frames.
fn upgraded(address: &str, path: &str) -> BufReader<TcpStream> {
    let mut stream = BufReader::new(TcpStream::connect(address).expect("expected the browser's port"));
    // The key is the standard's example: nothing hangs on it here.
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    );
    stream.get_mut().write_all(request.as_bytes()).expect("expected the browser to listen");
    let mut line = String::new();
    stream.read_line(&mut line).expect("expected the browser to answer");
    assert!(line.starts_with("HTTP/1.1 101 "), "{line}");
    while line.trim() != "" {
        line.clear();
        stream.read_line(&mut line).expect("expected the browser to answer");
    }
    stream
}
