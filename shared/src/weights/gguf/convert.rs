//! A checkpoint's tensors on their way into a GGUF.

use std::collections::HashSet;

use super::{GgufWriter, gguf_name};
use crate::{
    error::{Context, Error, Result},
    weights::{Dtype, RawTensor, TensorSource, quant},
};

/// Puts tensors of a checkpoint, asked for by its names, into a [`GgufWriter`] under GGUF's names.
pub(crate) struct Converter<'a, S> {
    source: &'a S,
    dtype: Dtype,
    writer: GgufWriter,
    taken: HashSet<String>,
}

impl<'a, S: TensorSource> Converter<'a, S> {
    /// Matrices become `dtype`; what else llama.cpp wants of a file of that type stands in [`stored_dtype`].
    pub(crate) fn new(source: &'a S, dtype: Dtype) -> Self {
        Converter { source, dtype, writer: GgufWriter::new(), taken: HashSet::new() }
    }

    /// The file so far.
    pub(crate) fn writer(&mut self) -> &mut GgufWriter {
        &mut self.writer
    }

    /// Whether the checkpoint has a tensor.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.source.info(name).is_some()
    }

    /// Moves a tensor over.
    pub(crate) async fn put(&mut self, name: &str, shape: &[usize]) -> Result<()> {
        self.put_arranged(name, shape, None::<fn(Vec<f32>) -> Vec<f32>>).await
    }

    /// Moves a tensor over whose values `arrange` brings into another order.
    pub(crate) async fn put_arranged(
        &mut self,
        name: &str,
        shape: &[usize],
        arrange: Option<impl FnOnce(Vec<f32>) -> Vec<f32>>,
    ) -> Result<()> {
        let target = gguf_name(name).ok_or_else(|| {
            Error::Unsupported(format!("expected a tensor that GGUF has a name for but found `{name}`"))
        })?;
        let raw = self.fetch(name, shape).await?;
        let dtype = stored_dtype(&target, shape, self.dtype);
        let raw = if raw.dtype == dtype && arrange.is_none() {
            raw
        } else {
            let mut values = quant::dequantize(&raw).at(format_args!("`{name}`"))?;
            if let Some(arrange) = arrange {
                values = arrange(values);
            }
            RawTensor { shape: raw.shape, dtype, bytes: quant::quantize(&values, dtype).at(format_args!("`{name}`"))? }
        };
        self.writer.tensor(target, raw)?;
        Ok(())
    }

    /// A tensor as it stands, which counts as used.
    pub(crate) async fn fetch(&mut self, name: &str, shape: &[usize]) -> Result<RawTensor> {
        let info = self.source.info(name).ok_or_else(|| Error::MissingTensor(name.to_string()))?;
        if info.shape != shape {
            return Err(Error::Shape { name: name.to_string(), expected: shape.to_vec(), found: info.shape.clone() });
        }
        self.taken.insert(name.to_string());
        self.source.fetch(name).await
    }

    /// The file, once every tensor whose name passes `own` is in it.
    ///
    /// # Errors
    /// [`Error::ExtraTensors`].
    pub(crate) fn finish(self, own: impl Fn(&str) -> bool) -> Result<GgufWriter> {
        let left = |name: &&String| own(name) && !self.taken.contains(*name);
        let extra: Vec<String> = self.source.tensors().iter().map(|t| &t.name).filter(left).cloned().collect();
        if extra.is_empty() { Ok(self.writer) } else { Err(Error::ExtraTensors(extra)) }
    }
}

/// Type of a tensor in a file whose matrices are `dtype`. llama.cpp computes with norms, biases and position tables in
/// F32 only, convolves with F16 or F32, and falls back to F16 where rows are no whole blocks.
fn stored_dtype(gguf: &str, shape: &[usize], dtype: Dtype) -> Dtype {
    let row = shape.last().copied().unwrap_or_default();
    match shape.len() {
        0 | 1 => Dtype::F32,
        _ if gguf == "v.position_embd.weight" => Dtype::F32,
        2 if row.is_multiple_of(dtype.block_size()) => dtype,
        2 => Dtype::F16,
        _ if matches!(dtype, Dtype::F32 | Dtype::BF16) => Dtype::F32,
        _ => Dtype::F16,
    }
}

/// `general.file_type`: llama.cpp's number of the type that most tensors have.
///
/// # Errors
/// [`Error::Unsupported`] for types that are not written.
pub(crate) fn file_type(dtype: Dtype) -> Result<u32> {
    match dtype {
        Dtype::F32 => Ok(0),
        Dtype::F16 => Ok(1),
        Dtype::Q4_0 => Ok(2),
        Dtype::Q8_0 => Ok(7),
        Dtype::BF16 => Ok(32),
        other => {
            Err(Error::Unsupported(format!("expected F32, F16, BF16, Q8_0 or Q4_0 to export to but found {other}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_those_that_llama_cpp_takes() {
        for (name, shape, wanted) in [
            ("blk.0.attn_norm.weight", &[64][..], Dtype::F32),
            ("token_embd.weight", &[100, 64], Dtype::Q8_0),
            ("blk.0.attn_q.weight", &[64, 48], Dtype::F16),
            ("v.patch_embd.weight", &[64, 3, 32, 32], Dtype::F16),
            ("v.position_embd.weight", &[50, 64], Dtype::F32),
        ] {
            assert_eq!(stored_dtype(name, shape, Dtype::Q8_0), wanted, "{name}");
        }
        assert_eq!(stored_dtype("v.patch_embd.weight", &[64, 3, 32, 32], Dtype::BF16), Dtype::F32);
    }
}
