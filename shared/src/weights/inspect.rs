//! What is in a file of weights, as a page or as JSON.

use std::fmt;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{
    ByteSource, TensorInfo,
    gguf::{GgufFile, MetadataArray, MetadataValue},
    safetensors::SafetensorsFile,
};
use crate::error::Result;

/// Arrays longer than this are shown by their first items and their count.
const SHOWN_ITEMS: usize = 6;
/// Strings longer than this (chat templates, whole licences) are cut on the page; JSON has them whole.
const SHOWN_CHARS: usize = 100;

/// A file's content. `Display` prints it as a readable page.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inspection {
    /// `GGUF v3` or `safetensors`.
    pub kind: String,
    /// Elements of all tensors.
    pub parameters: u64,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Metadata in the file's order; long arrays are `{"count": n, "first": [...]}`.
    pub metadata: Map<String, Value>,
    /// Tensors in the file's order.
    pub tensors: Vec<InspectedTensor>,
}

/// One tensor of an [`Inspection`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InspectedTensor {
    /// Name in the file.
    pub name: String,
    /// Shape, outermost first.
    pub shape: Vec<usize>,
    /// The file's name of its type.
    #[serde(rename = "type")]
    pub dtype: String,
    /// Bytes.
    pub bytes: u64,
}

impl InspectedTensor {
    fn of(info: &TensorInfo) -> Result<Self> {
        Ok(InspectedTensor {
            name: info.name.clone(),
            shape: info.shape.clone(),
            dtype: info.dtype.to_string(),
            bytes: info.bytes()?,
        })
    }
}

impl Inspection {
    fn new(kind: String, metadata: Map<String, Value>, tensors: Vec<InspectedTensor>) -> Self {
        let elements = |t: &InspectedTensor| t.shape.iter().map(|&d| d as u64).product::<u64>();
        Inspection {
            kind,
            parameters: tensors.iter().map(elements).sum(),
            bytes: tensors.iter().map(|t| t.bytes).sum(),
            metadata,
            tensors,
        }
    }
}

/// Looks into an open GGUF, under the file's own names.
///
/// # Errors
/// None for a file that opened.
pub fn inspect_gguf<S: ByteSource>(file: &GgufFile<S>) -> Result<Inspection> {
    let header = file.header();
    let metadata = header.metadata.iter().map(|(key, value)| (key.to_string(), show(value))).collect();
    let tensors = header.tensors.iter().map(InspectedTensor::of).collect::<Result<_>>()?;
    Ok(Inspection::new(format!("GGUF v{}", header.version), metadata, tensors))
}

/// Looks into an open safetensors file; tensors that cannot be fetched are listed last.
///
/// # Errors
/// None for a file that opened.
pub fn inspect_safetensors<S: ByteSource>(file: &SafetensorsFile<S>) -> Result<Inspection> {
    let header = file.header();
    let metadata = header.metadata.iter().map(|(k, v)| (k.clone(), Value::from(v.as_str()))).collect();
    let mut tensors = header.tensors.iter().map(InspectedTensor::of).collect::<Result<Vec<_>>>()?;
    tensors.extend(header.skipped.iter().map(|t| InspectedTensor {
        name: t.name.clone(),
        shape: t.shape.clone(),
        dtype: t.dtype.clone(),
        bytes: t.bytes,
    }));
    Ok(Inspection::new("safetensors".into(), metadata, tensors))
}

fn show(value: &MetadataValue) -> Value {
    match value {
        MetadataValue::U8(v) => json!(v),
        MetadataValue::I8(v) => json!(v),
        MetadataValue::U16(v) => json!(v),
        MetadataValue::I16(v) => json!(v),
        MetadataValue::U32(v) => json!(v),
        MetadataValue::I32(v) => json!(v),
        MetadataValue::U64(v) => json!(v),
        MetadataValue::I64(v) => json!(v),
        MetadataValue::Bool(v) => json!(v),
        MetadataValue::String(v) => json!(v),
        // The shortest decimal that reads back as this f32, not the f64 beside it; JSON has no NaN.
        MetadataValue::F32(v) => v.to_string().parse::<f64>().map_or(Value::Null, number),
        MetadataValue::F64(v) => number(*v),
        MetadataValue::Array(a) => show_array(a),
    }
}

fn number(v: f64) -> Value {
    if v.is_finite() { json!(v) } else { json!(v.to_string()) }
}

fn show_array(array: &MetadataArray) -> Value {
    let items = |n: usize| (0..n).filter_map(|i| array.get(i)).map(|v| show(&v)).collect::<Vec<_>>();
    match array.len() {
        n if n <= SHOWN_ITEMS => Value::Array(items(n)),
        n => json!({"count": n, "first": items(SHOWN_ITEMS)}),
    }
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}: {} tensors, {} parameters, {}",
            self.kind,
            self.tensors.len(),
            self.parameters,
            size(self.bytes)
        )?;
        if !self.metadata.is_empty() {
            writeln!(f, "\nmetadata")?;
        }
        let width = self.metadata.keys().map(String::len).max().unwrap_or(0).min(48);
        for (key, value) in &self.metadata {
            writeln!(f, "  {key:width$}  {}", line(value))?;
        }
        if !self.tensors.is_empty() {
            writeln!(f, "\ntensors")?;
        }
        let width = self.tensors.iter().map(|t| t.name.len()).max().unwrap_or(0).min(64);
        for t in &self.tensors {
            let shape = format!("{:?}", t.shape);
            writeln!(f, "  {:width$}  {:5}  {shape:20}  {}", t.name, t.dtype, size(t.bytes))?;
        }
        Ok(())
    }
}

/// A value on one line of the page.
fn line(value: &Value) -> String {
    match (value, value.get("first").and_then(Value::as_array)) {
        (Value::Object(shown), Some(first)) => {
            let items: Vec<String> = first.iter().map(line).collect();
            format!("[{}, ... {} in all]", items.join(", "), shown.get("count").unwrap_or(&Value::Null))
        }
        (Value::String(text), _) => {
            // Control characters of a hostile file must not reach a terminal.
            let mut shown: String = text.chars().take(SHOWN_CHARS).flat_map(char::escape_debug).collect();
            if text.chars().nth(SHOWN_CHARS).is_some() {
                shown += &format!("... ({} bytes)", text.len());
            }
            shown
        }
        (other, _) => other.to_string(),
    }
}

/// Bytes, readable.
fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.2} GiB", bytes as f64 / 1_073_741_824.0),
    }
}
