//! As much of WebDriver (W3C, 2018) as the tests speak.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::Worker;

/// Key by which the protocol marks a reference to an element.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";
/// How long anything may take: a machine of two cores may be busy with other tests, and plays the GPU too.
const PATIENCE: Duration = Duration::from_secs(600);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// One window of one browser.
pub struct Session {
    agent: ureq::Agent,
    base: String,
    /// Host and port at which the browser speaks the DevTools protocol.
    debugger: String,
    patience: Cell<Duration>,
}

/// An element of the document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element(String);

impl Session {
    /// Asks the driver at `driver` for a browser with these capabilities.
    pub fn new(driver: &str, capabilities: &Value) -> Session {
        let config = ureq::Agent::config_builder().http_status_as_error(false).proxy(None).build();
        let (agent, base, debugger) = (config.into(), driver.to_string(), String::new());
        let mut session = Session { agent, base, debugger, patience: Cell::new(PATIENCE) };
        let answer = session.call("POST", "/session", &json!({"capabilities": {"alwaysMatch": capabilities}}));
        let id = answer["sessionId"].as_str().expect("expected a session");
        session.base = format!("{driver}/session/{id}");
        let debugger = &answer["capabilities"]["goog:chromeOptions"]["debuggerAddress"];
        session.debugger = debugger.as_str().expect("expected an address for debuggers").to_string();
        session
    }

    fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        self.try_call(method, path, body).unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    fn try_call(&self, method: &str, path: &str, body: &Value) -> Result<Value, String> {
        let url = format!("{}{path}", self.base);
        let answer = match method {
            "POST" => self.agent.post(&url).header("content-type", "application/json").send(body.to_string()),
            "DELETE" => self.agent.delete(&url).call(),
            _ => self.agent.get(&url).call(),
        };
        let text = answer.and_then(|mut a| a.body_mut().with_config().limit(1 << 30).read_to_string());
        let mut answer: Value = serde_json::from_str(&text.map_err(|e| e.to_string())?).map_err(|e| e.to_string())?;
        match answer["value"]["error"].as_str() {
            Some(error) => Err(format!("{error}: {}", answer["value"]["message"].as_str().unwrap_or_default())),
            None => Ok(answer["value"].take()),
        }
    }

    /// Waits longer than usual from now on.
    pub fn be_patient(&self, patience: Duration) {
        self.patience.set(patience);
    }

    /// A wire to the worker of the page that is open.
    pub fn worker(&self) -> Worker {
        Worker::attach(&self.agent, &self.debugger)
    }

    /// Opens an address and waits for the document.
    pub fn open(&self, url: &str) {
        self.call("POST", "/url", &json!({ "url": url }));
    }

    /// Runs a script's body and gives what it returns.
    pub fn script(&self, body: &str) -> Value {
        self.call("POST", "/execute/sync", &json!({"script": body, "args": []}))
    }

    /// Runs a script's body until it returns something truthy.
    pub fn wait_for(&self, what: &str, body: &str) -> Value {
        let start = Instant::now();
        loop {
            let value = self.script(body);
            if !matches!(value, Value::Null | Value::Bool(false)) && value != json!(0) && value != json!("") {
                return value;
            }
            let page = "return document.body.innerText.slice(0, 2000)";
            assert!(start.elapsed() < self.patience.get(), "expected {what} but found: {}", self.script(page));
            std::thread::sleep(PAUSE);
        }
    }

    /// The first element that a CSS selector matches.
    pub fn find(&self, selector: &str) -> Element {
        let found = self.call("POST", "/element", &json!({"using": "css selector", "value": selector}));
        Element(found[ELEMENT].as_str().expect("expected an element").to_string())
    }

    /// Clicks as a person does: at the element's middle, in view and not under the status line, on whatever lies on top.
    pub fn click(&self, selector: &str) {
        let Element(id) = self.find(selector);
        let scroll = "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})";
        self.call("POST", "/execute/sync", &json!({"script": scroll, "args": [{ELEMENT: id}]}));
        self.call("POST", &format!("/element/{id}/click"), &json!({}));
    }

    /// Types into an element; into a file field, paths by lines.
    pub fn type_into(&self, selector: &str, text: &str) {
        let Element(id) = self.find(selector);
        self.call("POST", &format!("/element/{id}/value"), &json!({ "text": text }));
    }

    /// Presses and releases a key wherever the focus is.
    pub fn press(&self, key: &str) {
        let keys = json!([{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]);
        self.call("POST", "/actions", &json!({"actions": [{"type": "key", "id": "keys", "actions": keys}]}));
    }

    /// A command of the DevTools protocol.
    pub fn devtools(&self, command: &str, params: &Value) -> Value {
        self.call("POST", "/goog/cdp/execute", &json!({"cmd": command, "params": params}))
    }

    /// Takes what the browser's console has shown since the last time.
    pub fn console(&self) -> Vec<String> {
        let entries = self.call("POST", "/se/log", &json!({"type": "browser"}));
        let line = |e: &Value| format!("{} {}", e["level"].as_str().unwrap_or_default(), e["message"]);
        entries.as_array().into_iter().flatten().map(line).collect()
    }

    /// Closes the browser and waits until it is gone.
    pub fn close(&self) {
        // A test that already fails must not fail again on the way out.
        let _ = self.try_call("DELETE", "", &Value::Null);
    }
}
