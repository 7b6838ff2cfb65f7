//! A safetensors file that opens gives each of its tensors.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pollster::block_on;
use rscapret::weights::{
    TensorSource,
    inspect::inspect_safetensors,
    quant::dequantize,
    safetensors::{SafetensorsFile, ShardIndex},
};

fuzz_target!(|bytes: &[u8]| {
    let _ = ShardIndex::parse(bytes);
    let Ok(file) = block_on(SafetensorsFile::open(bytes)) else { return };
    for info in file.tensors() {
        dequantize(&block_on(file.fetch(&info.name)).unwrap()).unwrap();
    }
    let _ = inspect_safetensors(&file).unwrap().to_string();
});
