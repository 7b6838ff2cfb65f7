//! Chromium's own network log: every request of the whole browser, of workers too, which DevTools does not show for a
//! page.

use serde_json::Value;

/// Addresses that went to the network stack, in their order.
#[derive(Debug)]
pub struct Requests(pub Vec<String>);

impl Requests {
    /// From the file that `--log-net-log` writes.
    pub fn parse(log: &[u8]) -> Requests {
        let log: Value = serde_json::from_slice(log).expect("expected a whole network log");
        let start = log["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"].as_u64();
        assert!(start.is_some(), "expected the log to know the event URL_REQUEST_START_JOB");
        let events = log["events"].as_array().expect("expected events");
        let starts = events.iter().filter(|e| e["type"].as_u64() == start);
        Requests(starts.filter_map(|e| e["params"]["url"].as_str()).map(String::from).collect())
    }

    /// Those after the request for `marker`, which the test made itself; `None` if it is not there.
    pub fn after(&self, marker: &str) -> Option<&[String]> {
        let at = self.0.iter().rposition(|url| url.ends_with(marker))?;
        Some(&self.0[at + 1..])
    }
}
