//! A GGUF's metadata: an ordered map of typed values.

use std::collections::HashMap;

use super::cursor::{Cursor, Step, Stop};
use crate::error::{Error, Result};

/// Arrays within arrays deeper than this are refused: no known file nests even twice.
const MAX_DEPTH: usize = 4;

macro_rules! value_types {
    ($($variant:ident($type:ty), $number:literal, $size:literal, $label:literal, $read:ident;)*) => {
        /// Types of metadata values.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[allow(missing_docs)] // the format's own names
        pub enum ValueType { $($variant,)* Array }

        /// One value.
        #[derive(Debug, Clone, PartialEq)]
        #[allow(missing_docs)] // the format's own names
        pub enum MetadataValue { $($variant($type),)* Array(MetadataArray) }

        /// Values of one type, packed.
        #[derive(Debug, Clone, PartialEq)]
        #[allow(missing_docs)] // the format's own names
        pub enum MetadataArray { $($variant(Vec<$type>),)* Array(Vec<MetadataArray>) }

        impl ValueType {
            pub(super) fn from_number(number: u32) -> Result<Self> {
                match number {
                    $($number => Ok(ValueType::$variant),)*
                    9 => Ok(ValueType::Array),
                    other => Err(Error::Malformed(format!("expected a value type of 0 to 12 but found {other}"))),
                }
            }

            pub(super) fn number(self) -> u32 {
                match self { $(ValueType::$variant => $number,)* ValueType::Array => 9 }
            }

            /// The least number of bytes that a value takes in a file.
            fn least_bytes(self) -> u64 {
                // An array is at least its element type and its length.
                match self { $(ValueType::$variant => $size,)* ValueType::Array => 12 }
            }

            /// Name in messages.
            pub fn label(self) -> &'static str {
                match self { $(ValueType::$variant => $label,)* ValueType::Array => "array" }
            }
        }

        impl MetadataValue {
            /// The value's type.
            pub fn value_type(&self) -> ValueType {
                match self {
                    $(MetadataValue::$variant(_) => ValueType::$variant,)*
                    MetadataValue::Array(_) => ValueType::Array,
                }
            }

            pub(super) fn read(cursor: &mut Cursor, value_type: ValueType) -> Step<Self> {
                Ok(match value_type {
                    $(ValueType::$variant => MetadataValue::$variant(cursor.$read()?),)*
                    ValueType::Array => MetadataValue::Array(MetadataArray::read(cursor, 0)?),
                })
            }
        }

        impl MetadataArray {
            /// The elements' type.
            pub fn element_type(&self) -> ValueType {
                match self {
                    $(MetadataArray::$variant(_) => ValueType::$variant,)*
                    MetadataArray::Array(_) => ValueType::Array,
                }
            }

            /// Number of elements.
            pub fn len(&self) -> usize {
                match self { $(MetadataArray::$variant(v) => v.len(),)* MetadataArray::Array(v) => v.len() }
            }

            /// The element at `index`, as a value of its own.
            pub fn get(&self, index: usize) -> Option<MetadataValue> {
                match self {
                    $(MetadataArray::$variant(v) => v.get(index).cloned().map(MetadataValue::$variant),)*
                    MetadataArray::Array(v) => v.get(index).cloned().map(MetadataValue::Array),
                }
            }

            fn read(cursor: &mut Cursor, depth: usize) -> Step<Self> {
                let element = ValueType::from_number(cursor.u32()?)?;
                let count = cursor.u64()?;
                cursor.justify("array elements", count, element.least_bytes())?;
                if depth >= MAX_DEPTH {
                    return Err(Stop::Bad(Error::Malformed(format!(
                        "expected arrays nested at most {MAX_DEPTH} deep but found more"
                    ))));
                }
                Ok(match element {
                    $(ValueType::$variant => MetadataArray::$variant(read_all(count, || cursor.$read())?),)*
                    ValueType::Array => {
                        MetadataArray::Array(read_all(count, || MetadataArray::read(cursor, depth + 1))?)
                    }
                })
            }
        }

        $(
            impl From<$type> for MetadataValue {
                fn from(value: $type) -> Self { MetadataValue::$variant(value) }
            }

            impl From<Vec<$type>> for MetadataValue {
                fn from(values: Vec<$type>) -> Self { MetadataValue::Array(MetadataArray::$variant(values)) }
            }

            impl<'a> FromMetadata<'a> for &'a [$type] {
                const WANTED: &'static str = concat!("array of ", $label);
                fn from_value(value: &'a MetadataValue) -> Option<Self> {
                    match value {
                        MetadataValue::Array(MetadataArray::$variant(v)) => Some(v),
                        _ => None,
                    }
                }
            }
        )*
    };
}

value_types! {
    U8(u8), 0, 1, "u8", u8;
    I8(i8), 1, 1, "i8", i8;
    U16(u16), 2, 2, "u16", u16;
    I16(i16), 3, 2, "i16", i16;
    U32(u32), 4, 4, "u32", u32;
    I32(i32), 5, 4, "i32", i32;
    F32(f32), 6, 4, "f32", f32;
    Bool(bool), 7, 1, "bool", bool;
    String(String), 8, 8, "string", string;
    U64(u64), 10, 8, "u64", u64;
    I64(i64), 11, 8, "i64", i64;
    F64(f64), 12, 8, "f64", f64;
}

impl From<&str> for MetadataValue {
    fn from(value: &str) -> Self {
        MetadataValue::String(value.to_string())
    }
}

impl MetadataArray {
    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Grows as elements arrive, so that a count alone allocates nothing.
fn read_all<T>(count: u64, mut read: impl FnMut() -> Step<T>) -> Step<Vec<T>> {
    let mut out = Vec::new();
    for _ in 0..count {
        out.push(read()?);
    }
    Ok(out)
}

impl MetadataValue {
    /// Any integer, whatever its width.
    fn integer(&self) -> Option<i128> {
        Some(match *self {
            MetadataValue::U8(v) => v.into(),
            MetadataValue::I8(v) => v.into(),
            MetadataValue::U16(v) => v.into(),
            MetadataValue::I16(v) => v.into(),
            MetadataValue::U32(v) => v.into(),
            MetadataValue::I32(v) => v.into(),
            MetadataValue::U64(v) => v.into(),
            MetadataValue::I64(v) => v.into(),
            _ => return None,
        })
    }

    /// What a message shows: the type and, where it is short, the value.
    fn describe(&self) -> String {
        match self {
            MetadataValue::Array(a) => format!("array of {} {}", a.len(), a.element_type().label()),
            MetadataValue::String(s) if s.len() <= 40 => format!("string `{s}`"),
            MetadataValue::F32(v) => format!("f32 {v}"),
            MetadataValue::F64(v) => format!("f64 {v}"),
            MetadataValue::Bool(v) => format!("bool {v}"),
            other => match other.integer() {
                Some(v) => format!("{} {v}", other.value_type().label()),
                None => other.value_type().label().to_string(),
            },
        }
    }
}

/// A Rust type that a metadata value can be had as. Integers convert between widths where the value fits (writers
/// differ in the width that they choose); f64 narrows to f32; nothing else converts.
pub trait FromMetadata<'a>: Sized {
    /// Name in messages.
    const WANTED: &'static str;
    /// The value, or `None` where the type is another or the number does not fit.
    fn from_value(value: &'a MetadataValue) -> Option<Self>;
}

macro_rules! integers {
    ($($type:ty),*) => {$(
        impl FromMetadata<'_> for $type {
            const WANTED: &'static str = concat!("integer that fits ", stringify!($type));
            fn from_value(value: &MetadataValue) -> Option<Self> {
                value.integer()?.try_into().ok()
            }
        }
    )*};
}
integers!(u8, i8, u16, i16, u32, i32, u64, i64, usize);

impl FromMetadata<'_> for f32 {
    const WANTED: &'static str = "f32";
    fn from_value(value: &MetadataValue) -> Option<Self> {
        f64::from_value(value).map(|v| v as f32)
    }
}

impl FromMetadata<'_> for f64 {
    const WANTED: &'static str = "f64";
    fn from_value(value: &MetadataValue) -> Option<Self> {
        match *value {
            MetadataValue::F32(v) => Some(v.into()),
            MetadataValue::F64(v) => Some(v),
            _ => None,
        }
    }
}

impl FromMetadata<'_> for bool {
    const WANTED: &'static str = "bool";
    fn from_value(value: &MetadataValue) -> Option<Self> {
        match *value {
            MetadataValue::Bool(v) => Some(v),
            _ => None,
        }
    }
}

impl<'a> FromMetadata<'a> for &'a str {
    const WANTED: &'static str = "string";
    fn from_value(value: &'a MetadataValue) -> Option<Self> {
        match value {
            MetadataValue::String(v) => Some(v),
            _ => None,
        }
    }
}

impl<'a> FromMetadata<'a> for &'a MetadataArray {
    const WANTED: &'static str = "array";
    fn from_value(value: &'a MetadataValue) -> Option<Self> {
        match value {
            MetadataValue::Array(v) => Some(v),
            _ => None,
        }
    }
}

/// Metadata in the file's order, keys unique.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Metadata {
    entries: Vec<(String, MetadataValue)>,
    index: HashMap<String, usize>,
}

impl Metadata {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends an entry.
    ///
    /// # Errors
    /// [`Error::Malformed`] if there is one of that key.
    pub fn insert(&mut self, key: impl Into<String>, value: impl Into<MetadataValue>) -> Result<()> {
        let key = key.into();
        if self.index.contains_key(&key) {
            return Err(Error::Malformed(format!("expected metadata keys to be unique but found `{key}` twice")));
        }
        self.index.insert(key.clone(), self.entries.len());
        self.entries.push((key, value.into()));
        Ok(())
    }

    /// All entries.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &MetadataValue)> {
        self.entries.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The value as it stands.
    pub fn value(&self, key: &str) -> Option<&MetadataValue> {
        self.index.get(key).map(|&i| &self.entries[i].1)
    }

    /// A value that may be absent.
    ///
    /// # Errors
    /// [`Error::Malformed`] if it is there in another type.
    pub fn find<'a, T: FromMetadata<'a>>(&'a self, key: &str) -> Result<Option<T>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        T::from_value(value).map(Some).ok_or_else(|| {
            Error::Malformed(format!("expected metadata `{key}` to be {} but found {}", T::WANTED, value.describe()))
        })
    }

    /// A value that must be there.
    ///
    /// # Errors
    /// [`Error::Malformed`] if it is absent or of another type.
    pub fn get<'a, T: FromMetadata<'a>>(&'a self, key: &str) -> Result<T> {
        self.find(key)?.ok_or_else(|| {
            Error::Malformed(format!("expected metadata `{key}` ({}) but found none of that key", T::WANTED))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Metadata {
        let mut m = Metadata::new();
        m.insert("count", 7u8).unwrap();
        m.insert("minus", -1i64).unwrap();
        m.insert("eps", 1e-5f32).unwrap();
        m.insert("name", "a").unwrap();
        m.insert("tokens", vec!["x".to_string(), "y".to_string()]).unwrap();
        m
    }

    #[test]
    fn integers_convert_where_they_fit() {
        let m = sample();
        assert_eq!(m.get::<usize>("count").unwrap(), 7);
        assert_eq!(m.get::<i8>("minus").unwrap(), -1);
        let error = m.get::<u32>("minus").unwrap_err().to_string();
        assert_eq!(error, "expected metadata `minus` to be integer that fits u32 but found i64 -1");
    }

    #[test]
    fn types_do_not_mix() {
        let m = sample();
        assert_eq!(m.get::<&[String]>("tokens").unwrap().len(), 2);
        assert_eq!(m.find::<u32>("absent").unwrap(), None);
        let error = m.get::<&str>("tokens").unwrap_err().to_string();
        assert_eq!(error, "expected metadata `tokens` to be string but found array of 2 string");
        let error = m.get::<bool>("absent").unwrap_err().to_string();
        assert_eq!(error, "expected metadata `absent` (bool) but found none of that key");
        assert!(m.get::<u32>("eps").is_err() && m.get::<f32>("count").is_err());
    }

    #[test]
    fn keys_are_unique_and_ordered() {
        let mut m = sample();
        assert!(m.insert("eps", 1u8).unwrap_err().to_string().contains("`eps` twice"));
        let keys: Vec<&str> = m.iter().map(|(k, _)| k).collect();
        assert_eq!(keys, ["count", "minus", "eps", "name", "tokens"]);
    }
}
