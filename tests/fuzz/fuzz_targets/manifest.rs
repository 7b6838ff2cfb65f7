#![no_main]

#[path = "../readers/manifest.rs"]
mod reader;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| drop(reader::read(bytes)));
