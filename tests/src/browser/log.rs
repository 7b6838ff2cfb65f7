//! Chromium's own network log: every request of the whole browser, of workers too, which DevTools does not show for a
//! page.

use serde_json::Value;

/// What went to the network stack, in its order.
#[derive(Debug)]
pub struct Requests(pub Vec<Request>);

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What was asked for.
    pub url: String,
    /// The origin whose document or worker asked. The browser itself (its list of accounts, hints for its own features) has
    /// none.
    pub initiator: String,
}

impl Requests {
    /// From the file that `--log-net-log` writes.
    pub fn parse(log: &[u8]) -> Requests {
        let log: Value = serde_json::from_slice(log).expect("expected a whole network log");
        let start = log["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"].as_u64();
        assert!(start.is_some(), "expected the log to know the event URL_REQUEST_START_JOB");
        let events = log["events"].as_array().expect("expected events");
        // The begin of each; its end has the same type.
        let starts = events.iter().filter(|e| e["type"].as_u64() == start && e["phase"] == 1);
        let text = |event: &Value, key: &str| {
            let text = event["params"][key].as_str();
            text.unwrap_or_else(|| panic!("expected `{key}` in {event}")).to_string()
        };
        Requests(starts.map(|e| Request { url: text(e, "url"), initiator: text(e, "initiator") }).collect())
    }

    /// Those that the page at `origin` and its workers made, to wherever, and those that anybody made to it.
    pub fn of(&self, origin: &str) -> Requests {
        let origin = origin.trim_end_matches('/');
        let here = |url: &str| url.strip_prefix(origin).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        Requests(self.0.iter().filter(|r| here(&r.url) || here(&r.initiator)).cloned().collect())
    }

    /// Those after the request for `marker`, which the test made itself; `None` if it is not there.
    pub fn after(&self, marker: &str) -> Option<&[Request]> {
        let at = self.0.iter().rposition(|request| request.url.ends_with(marker))?;
        Some(&self.0[at + 1..])
    }
}
