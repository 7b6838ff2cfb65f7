//! A GGUF that opens gives each of its tensors.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pollster::block_on;
use rscapret::weights::{
    TensorSource,
    gguf::{GgufFile, HfNames},
    inspect::inspect_gguf,
    quant::dequantize,
};

fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = block_on(GgufFile::open(bytes)) else { return };
    let _ = inspect_gguf(&file).unwrap().to_string();
    let Ok(file) = HfNames::new(file) else { return };
    for info in file.tensors() {
        let raw = block_on(file.fetch(&info.name)).unwrap();
        assert_eq!(info.dtype.bytes_of(&info.shape), Some(raw.bytes.len() as u64));
        dequantize(&raw).unwrap();
    }
});
