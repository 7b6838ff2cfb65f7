//! Everything that reads a GGUF; one that opens must give each of its tensors.

use pollster::block_on;
use rscapret::{
    Result,
    weights::{
        TensorSource,
        gguf::{GgufFile, HfNames},
        inspect::inspect_gguf,
        quant::dequantize,
    },
};

pub fn read(bytes: &[u8]) -> Result<()> {
    let file = HfNames::new(block_on(GgufFile::open(bytes))?)?;
    for info in file.tensors() {
        let raw = block_on(file.fetch(&info.name)).unwrap();
        assert_eq!(info.dtype.bytes_of(&info.shape), Some(raw.bytes.len() as u64));
        dequantize(&raw).unwrap();
    }
    let _ = inspect_gguf(file.inner()).unwrap().to_string();
    Ok(())
}
