//! GGUF, versions 2 and 3 (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>).
//!
//! ```text
//! magic "GGUF" | version u32 | tensors u64 | metadata entries u64
//! | entries: key, type, value | tensor infos: name, dimensions (innermost first), type, offset
//! | padding to the alignment | tensor data
//! ```
//!
//! All little-endian. A file is opened from a prefix that grows until the header fits; tensors are fetched one by one.

mod convert;
mod cursor;
mod metadata;
mod names;
mod reader;
mod writer;

pub(crate) use convert::{Converter, file_type};
pub use metadata::{FromMetadata, Metadata, MetadataArray, MetadataValue, ValueType};
pub use names::{HfNames, gguf_name, hf_name};
pub use reader::{GgufFile, GgufHeader, Parsed};
pub use writer::GgufWriter;

use super::Dtype;
use crate::error::{Error, Result};

/// First bytes of a file.
pub const MAGIC: [u8; 4] = *b"GGUF";
const ALIGNMENT_KEY: &str = "general.alignment";
const DEFAULT_ALIGNMENT: u64 = 32;
/// GGML's tensors have at most four dimensions.
const MAX_DIMS: usize = 4;

/// GGML's number of a tensor type, its name, and what this library calls it.
const TENSOR_TYPES: &[(u32, &str, Option<Dtype>)] = &[
    (0, "F32", Some(Dtype::F32)),
    (1, "F16", Some(Dtype::F16)),
    (2, "Q4_0", Some(Dtype::Q4_0)),
    (3, "Q4_1", Some(Dtype::Q4_1)),
    (6, "Q5_0", Some(Dtype::Q5_0)),
    (7, "Q5_1", Some(Dtype::Q5_1)),
    (8, "Q8_0", Some(Dtype::Q8_0)),
    (9, "Q8_1", None),
    (10, "Q2_K", Some(Dtype::Q2_K)),
    (11, "Q3_K", Some(Dtype::Q3_K)),
    (12, "Q4_K", Some(Dtype::Q4_K)),
    (13, "Q5_K", Some(Dtype::Q5_K)),
    (14, "Q6_K", Some(Dtype::Q6_K)),
    (15, "Q8_K", None),
    (16, "IQ2_XXS", None),
    (17, "IQ2_XS", None),
    (18, "IQ3_XXS", None),
    (19, "IQ1_S", None),
    (20, "IQ4_NL", None),
    (21, "IQ3_S", None),
    (22, "IQ2_S", None),
    (23, "IQ4_XS", None),
    (24, "I8", None),
    (25, "I16", None),
    (26, "I32", None),
    (27, "I64", None),
    (28, "F64", None),
    (29, "IQ1_M", None),
    (30, "BF16", Some(Dtype::BF16)),
    (34, "TQ1_0", None),
    (35, "TQ2_0", None),
    (39, "MXFP4", None),
    (40, "NVFP4", None),
];

/// The type of this number, or an error that names it.
fn dtype_from_ggml(number: u32) -> Result<Dtype> {
    match TENSOR_TYPES.iter().find(|(n, ..)| *n == number) {
        Some((_, _, Some(dtype))) => Ok(*dtype),
        Some((_, name, None)) => Err(Error::Unsupported(format!(
            "expected a tensor type of F32, F16, BF16, Q4_0 to Q8_0 or Q2_K to Q6_K but found {name}\nconvert the \
             model to one of these, for example Q8_0 or Q4_K_M"
        ))),
        None => Err(Error::Unsupported(format!("expected a known tensor type but found number {number}"))),
    }
}

/// GGML's number of a type.
fn ggml_from_dtype(dtype: Dtype) -> u32 {
    // Every `Dtype` stands in the table (a unit test holds it).
    TENSOR_TYPES.iter().find(|(.., d)| *d == Some(dtype)).map_or(u32::MAX, |(n, ..)| *n)
}

/// The next multiple of `alignment`, a power of two.
fn align_up(offset: u64, alignment: u64) -> Option<u64> {
    offset.checked_next_multiple_of(alignment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dtype_has_its_number() {
        for dtype in Dtype::ALL {
            let number = ggml_from_dtype(dtype);
            assert_eq!(dtype_from_ggml(number).unwrap(), dtype);
            let (_, name, _) = TENSOR_TYPES.iter().find(|(n, ..)| *n == number).unwrap();
            assert_eq!(*name, dtype.name());
        }
    }

    #[test]
    fn other_types_are_named() {
        assert!(dtype_from_ggml(20).unwrap_err().to_string().contains("IQ4_NL"));
        assert!(dtype_from_ggml(4242).unwrap_err().to_string().contains("4242"));
    }
}
