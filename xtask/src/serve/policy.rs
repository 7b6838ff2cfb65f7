//! The Content-Security-Policy.

use std::fmt::Write;

use sha2::{Digest, Sha256};

/// Policy for a document: its own origin and nothing else, and of inline scripts exactly the ones in `html` (Trunk
/// writes one that starts the page), by their hashes.
pub(super) fn for_html(html: &str) -> String {
    let mut hashes = String::new();
    for script in inline_scripts(html) {
        let _ = write!(hashes, " 'sha256-{}'", base64(&Sha256::digest(script)));
    }
    format!(
        "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'{hashes}; style-src 'self'; img-src 'self' blob: data:; \
         connect-src 'self'; worker-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'"
    )
}

/// Contents of the `<script>` elements without `src`, byte for byte as the browser hashes them.
fn inline_scripts(html: &str) -> Vec<&str> {
    // ASCII lower case keeps every byte's place.
    let lower = html.to_ascii_lowercase();
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(open) = lower[at..].find("<script").map(|i| at + i) {
        let Some(start) = lower[open..].find('>').map(|i| open + i + 1) else { break };
        let Some(end) = lower[start..].find("</script").map(|i| start + i) else { break };
        let attributes = lower[open + "<script".len()..start - 1].split_whitespace();
        if !attributes.into_iter().any(|a| a == "src" || a.starts_with("src=")) {
            found.push(&html[start..end]);
        }
        at = end;
    }
    found
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let mut word = [0; 3];
        word[..chunk.len()].copy_from_slice(chunk);
        let word = u32::from_be_bytes([0, word[0], word[1], word[2]]);
        for i in 0..4 {
            let letter = LETTERS[(word >> (18 - 6 * i)) as usize & 63];
            out.push(if i <= chunk.len() { char::from(letter) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_rfc_4648() {
        let cases = [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")];
        for (plain, coded) in cases {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
        assert_eq!(base64(&[0xfb, 0xff]), "+/8=");
    }

    #[test]
    fn inline_scripts_are_found_as_written_and_external_ones_are_not() {
        let html = "<Script type=module>\nA('ü');</SCRIPT><script src=\"/x.js\"></script><script>b</script ><script async src='y'>c</script>";
        assert_eq!(inline_scripts(html), ["\nA('ü');", "b"]);
        assert!(inline_scripts("<script>never closed").is_empty());
    }

    #[test]
    fn the_policy_allows_this_origin_and_hashed_scripts_only() {
        // The example of the CSP Level 2 recommendation, section 7.15.2 ("Hash usage for script elements").
        let policy = for_html("<script>alert('Hello, world.');</script>");
        assert!(policy.contains("'sha256-qznLcsROx4GACP2dm0UCKCzCG+HiZ1guq6ZZDob/Tng='"), "{policy}");
        assert!(policy.starts_with("default-src 'none';"));
        for forbidden in ["unsafe-inline", "'unsafe-eval'", "http:", "https:", "*"] {
            assert!(!policy.contains(forbidden), "{forbidden}");
        }
        assert!(!for_html("").contains("sha256"));
    }
}
