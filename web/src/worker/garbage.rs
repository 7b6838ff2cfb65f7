//! Buffers of JavaScript that have been read.

use js_sys::ArrayBuffer;

/// Gives a buffer's memory back at once. The collector of garbage comes by seldom, and meanwhile a hundred megabytes of them
/// would gather; browsers from before 2024 leave it to that.
pub fn free(buffer: &ArrayBuffer) {
    // Its content moves into a buffer of no bytes.
    let _ = buffer.transfer_with_length(0);
}
