//! Ids of images, which some publishers number and others name.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, Visitor};
use serde::{Serialize, Serializer};

/// An image's id. Text that is a plain decimal number is that number, so that `"80"` in a results file finds image 80.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ImageId {
    /// Karpathy, NWPU and COCO.
    Number(u64),
    /// Datasets of one's own.
    Text(String),
}

impl From<&str> for ImageId {
    fn from(text: &str) -> Self {
        match text.parse::<u64>() {
            Ok(number) if number.to_string() == text => ImageId::Number(number),
            _ => ImageId::Text(text.to_string()),
        }
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            ImageId::Number(number) => write!(f, "{number}"),
            ImageId::Text(text) => write!(f, "\"{text}\""),
        }
    }
}

impl Serialize for ImageId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            ImageId::Number(number) => serializer.serialize_u64(*number),
            ImageId::Text(text) => serializer.serialize_str(text),
        }
    }
}

impl<'de> Deserialize<'de> for ImageId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumberOrText;
        impl Visitor<'_> for NumberOrText {
            type Value = ImageId;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a whole number or a string")
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<ImageId, E> {
                Ok(ImageId::Number(number))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<ImageId, E> {
                Ok(text.into())
            }
        }
        deserializer.deserialize_any(NumberOrText)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_canonical_decimals_are_numbers() {
        assert_eq!(ImageId::from("80"), ImageId::Number(80));
        for text in ["080", "+80", "", "80.tif", "99999999999999999999"] {
            assert_eq!(ImageId::from(text), ImageId::Text(text.to_string()));
        }
    }

    #[test]
    fn json_round_trip_and_refusal() {
        let ids: Vec<ImageId> = serde_json::from_str(r#"[7, "7", "a"]"#).unwrap();
        assert_eq!(serde_json::to_string(&ids).unwrap(), r#"[7,7,"a"]"#);
        let error = serde_json::from_str::<ImageId>("1.5").unwrap_err().to_string();
        assert!(error.contains("expected a whole number or a string"), "{error}");
    }
}
