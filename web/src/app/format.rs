//! Numbers as people read them.

use crate::protocol::Query;

/// Megabytes with one decimal.
pub fn megabytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / 1e6)
}

/// Milliseconds; below ten with one decimal.
pub fn milliseconds(ms: f64) -> String {
    if ms < 10.0 { format!("{ms:.1} ms") } else { format!("{ms:.0} ms") }
}

/// Tokens a second; below ten with one decimal.
pub fn speed(tokens_per_second: f64) -> String {
    if tokens_per_second < 10.0 {
        format!("{tokens_per_second:.1} tokens/s")
    } else {
        format!("{tokens_per_second:.0} tokens/s")
    }
}

/// A count with its noun.
pub fn count(n: usize, one: &str, many: &str) -> String {
    if n == 1 { format!("1 {one}") } else { format!("{n} {many}") }
}

/// A query in words.
pub fn query(query: &Query, name: impl Fn(u32) -> String) -> String {
    match query {
        Query::Text(text) => format!("“{text}”"),
        Query::Image(id) => format!("similarity to {}", name(*id)),
    }
}
