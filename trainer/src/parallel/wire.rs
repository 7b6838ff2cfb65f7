//! What processes exchange, as bytes: parts with their lengths before them, all numbers little-endian.

use rscapret::{Error, Result};

use super::Host;

/// Bytes of a length.
const LENGTH: usize = size_of::<u64>();

/// Parts, each with its length.
pub fn pack<B: AsRef<[u8]>>(parts: impl IntoIterator<Item = B>) -> Vec<u8> {
    let mut out = Vec::new();
    for part in parts {
        let part = part.as_ref();
        out.extend((part.len() as u64).to_le_bytes());
        out.extend(part);
    }
    out
}

/// The parts of [`pack`].
///
/// # Errors
/// [`Error::Malformed`] for a length beyond the end.
pub fn unpack(mut bytes: &[u8]) -> Result<Vec<&[u8]>> {
    let mut parts = Vec::new();
    while !bytes.is_empty() {
        let (part, rest) = split(bytes).ok_or_else(|| {
            Error::Malformed(format!("expected a part with its length but found {} bytes", bytes.len()))
        })?;
        parts.push(part);
        bytes = rest;
    }
    Ok(parts)
}

fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<LENGTH>()?;
    rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)
}

/// f32 values.
pub fn from_floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// The values of [`from_floats`].
///
/// # Errors
/// [`Error::Malformed`] for bytes that are no whole numbers of values.
pub fn to_floats(bytes: &[u8]) -> Result<Vec<f32>> {
    match bytes.as_chunks::<4>() {
        (values, []) => Ok(values.iter().map(|value| f32::from_le_bytes(*value)).collect()),
        _ => Err(Error::Malformed(format!("expected values of 4 bytes but found {} bytes", bytes.len()))),
    }
}

/// Vectors of values.
pub fn from_vectors(vectors: &[Vec<f32>]) -> Vec<u8> {
    pack(vectors.iter().map(|values| from_floats(values)))
}

/// The vectors of [`from_vectors`].
///
/// # Errors
/// As [`unpack`] and [`to_floats`].
pub fn to_vectors(bytes: &[u8]) -> Result<Vec<Vec<f32>>> {
    unpack(bytes)?.into_iter().map(to_floats).collect()
}

/// Host with their names.
pub fn from_gradients(gradients: &Host) -> Vec<u8> {
    pack(gradients.iter().flat_map(|(name, values)| [name.as_bytes().to_vec(), from_floats(values)]))
}

/// The gradients of [`from_gradients`].
///
/// # Errors
/// As [`unpack`] and [`to_floats`]; [`Error::Malformed`] for a name without values, or one that is no text.
pub fn to_gradients(bytes: &[u8]) -> Result<Host> {
    let parts = unpack(bytes)?;
    let entry = |two: &[&[u8]]| match two {
        [name, values] => Ok((String::from_utf8(name.to_vec()).map_err(no_name)?, to_floats(values)?)),
        _ => Err(Error::Malformed("expected a gradient after its name but found the end".into())),
    };
    parts.chunks(2).map(entry).collect()
}

fn no_name(error: std::string::FromUtf8Error) -> Error {
    Error::Malformed(format!("expected a variable's name but found: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_comes_back() {
        let gradients = Host::from([
            ("a".to_string(), vec![1.5, -0.0, f32::MIN_POSITIVE / 8.0]),
            ("empty".to_string(), Vec::new()),
        ]);
        let back = to_gradients(&from_gradients(&gradients)).unwrap();
        assert_eq!(back.keys().collect::<Vec<_>>(), ["a", "empty"]);
        let bits = |gradients: &Host| gradients["a"].iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&back), bits(&gradients));
        let vectors = vec![vec![1.0], vec![], vec![2.0, 3.0]];
        assert_eq!(to_vectors(&from_vectors(&vectors)).unwrap(), vectors);
    }

    #[test]
    fn what_is_cut_is_refused() {
        let whole = from_gradients(&Host::from([("a".to_string(), vec![1.0, 2.0])]));
        for end in 1..whole.len() {
            assert!(to_gradients(&whole[..end]).is_err(), "{end}");
        }
        let long = u64::MAX.to_le_bytes();
        assert!(unpack(&long).is_err());
        assert!(to_floats(&[0; 5]).is_err());
    }
}
