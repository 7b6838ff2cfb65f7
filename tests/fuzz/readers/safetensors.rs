//! Everything that reads a safetensors file; one that opens must give each of its tensors.

use pollster::block_on;
use rscapret::{
    Result,
    weights::{TensorSource, inspect::inspect_safetensors, quant::dequantize, safetensors::SafetensorsFile},
};

pub fn read(bytes: &[u8]) -> Result<()> {
    let file = block_on(SafetensorsFile::open(bytes))?;
    for info in file.tensors() {
        dequantize(&block_on(file.fetch(&info.name)).unwrap()).unwrap();
    }
    let _ = inspect_safetensors(&file).unwrap().to_string();
    Ok(())
}
