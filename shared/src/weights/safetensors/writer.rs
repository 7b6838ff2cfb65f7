//! Writes safetensors.

use std::{collections::BTreeMap, io::Write};

use serde_json::{Map, Value, json};

use crate::{
    error::{Error, Result},
    weights::{Dtype, RawTensor},
};

/// Writes float tensors and string metadata, both sorted by name: the same content, the same bytes.
///
/// # Errors
/// [`Error::Config`] for quantised tensors and bytes that are not those of shape and type; [`Error::Io`] if `out`
/// fails.
pub fn write_safetensors(
    tensors: &BTreeMap<String, RawTensor>,
    metadata: &BTreeMap<String, String>,
    out: &mut impl Write,
) -> Result<()> {
    let mut header = Map::new();
    if !metadata.is_empty() {
        header.insert(
            "__metadata__".into(),
            metadata.iter().map(|(k, v)| (k.clone(), Value::from(v.as_str()))).collect(),
        );
    }
    let mut end = 0u64;
    for (name, tensor) in tensors {
        if !matches!(tensor.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) || name == "__metadata__" {
            return Err(Error::Config(format!("expected `{name}` to be F32, F16 or BF16 but found {}", tensor.dtype)));
        }
        let bytes = tensor.bytes.len() as u64;
        if tensor.dtype.bytes_of(&tensor.shape) != Some(bytes) {
            return Err(Error::Config(format!(
                "expected `{name}` to have the bytes of {} {:?} but found {bytes}",
                tensor.dtype, tensor.shape
            )));
        }
        let entry = json!({"dtype": tensor.dtype.name(), "shape": tensor.shape, "data_offsets": [end, end + bytes]});
        header.insert(name.clone(), entry);
        end += bytes;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    // Spaces, so that the data begin at a multiple of eight.
    header.resize(header.len().next_multiple_of(8), b' ');

    let io = |e: std::io::Error| Error::Io(e.to_string());
    out.write_all(&(header.len() as u64).to_le_bytes()).map_err(io)?;
    out.write_all(&header).map_err(io)?;
    tensors.values().try_for_each(|t| out.write_all(&t.bytes)).map_err(io)
}
