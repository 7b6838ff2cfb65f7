//! The index as bytes, little-endian:
//!
//! ```text
//! magic "RSCAPIDX"   version u32   J u32   rows u64
//! bundle: length u32, UTF-8        each id: length u32, UTF-8
//! embeddings f32 (rows, J)         SHA-256 of all before
//! ```

use sha2::{Digest, Sha256};

use super::RetrievalIndex;
use crate::error::{Error, Result};

const MAGIC: &[u8; 8] = b"RSCAPIDX";
const VERSION: u32 = 1;
const DIGEST: usize = 32;
/// How far a stored row's squared length may be from 1.
const UNIT_TOLERANCE: f32 = 1e-3;

impl RetrievalIndex {
    /// Everything, to be read by [`RetrievalIndex::load`].
    pub fn save(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((self.dimension as u32).to_le_bytes());
        bytes.extend((self.ids.len() as u64).to_le_bytes());
        for text in std::iter::once(&self.bundle).chain(&self.ids) {
            bytes.extend((text.len() as u32).to_le_bytes());
            bytes.extend(text.as_bytes());
        }
        bytes.extend(self.rows.iter().flat_map(|v| v.to_le_bytes()));
        let digest = Sha256::digest(&bytes);
        bytes.extend(digest);
        bytes
    }

    /// Reads what [`RetrievalIndex::save`] wrote.
    ///
    /// # Errors
    /// [`Error::Malformed`] for other or damaged bytes, [`Error::Unsupported`] for another version.
    pub fn load(bytes: &[u8]) -> Result<Self> {
        let Some((body, digest)) = bytes.split_at_checked(bytes.len().saturating_sub(DIGEST)) else {
            return Err(too_short(bytes.len()));
        };
        let mut rest = body;
        if take(&mut rest, MAGIC.len())? != MAGIC {
            return Err(Error::Malformed("expected a retrieval index but found other bytes".into()));
        }
        let version = take_u32(&mut rest)?;
        if version != VERSION {
            return Err(Error::Unsupported(format!(
                "expected a retrieval index of version {VERSION} but found version {version}\nindex the pictures again"
            )));
        }
        if Sha256::digest(body).as_slice() != digest {
            return Err(Error::Malformed(
                "expected the retrieval index to match its checksum but found it damaged\nindex the pictures again"
                    .into(),
            ));
        }
        let dimension = take_u32(&mut rest)? as usize;
        let count = u64::from_le_bytes(take_array(&mut rest)?);
        let row_bytes = dimension.checked_mul(size_of::<f32>());
        // A row takes its values and at least the length of its name.
        let count = usize::try_from(count)
            .ok()
            .filter(|&n| row_bytes.and_then(|b| b.checked_add(4)?.checked_mul(n)).is_some_and(|b| b <= rest.len()))
            .ok_or_else(|| {
                Error::Malformed(format!("expected {count} rows of {dimension} but found {} bytes", rest.len()))
            })?;
        let mut index = Self::new(take_text(&mut rest)?, dimension)?;
        for _ in 0..count {
            index.ids.push(take_text(&mut rest)?);
        }
        if Some(rest.len()) != row_bytes.and_then(|b| b.checked_mul(count)) {
            return Err(Error::Malformed(format!(
                "expected {count} rows of {dimension} values but found {} bytes of them",
                rest.len()
            )));
        }
        index.rows = rest.as_chunks::<4>().0.iter().map(|value| f32::from_le_bytes(*value)).collect();
        for (row, id) in index.rows.chunks_exact(dimension).zip(&index.ids) {
            let square: f32 = row.iter().map(|v| v * v).sum();
            // NaN is not within any bounds.
            let unit = (1.0 - UNIT_TOLERANCE..=1.0 + UNIT_TOLERANCE).contains(&square);
            if !unit {
                return Err(Error::Malformed(format!("expected `{id}` to have length 1 but found squared {square}")));
            }
        }
        Ok(index)
    }
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> Result<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(len).ok_or_else(|| too_short(rest.len()))?;
    *rest = after;
    Ok(taken)
}

fn take_array<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N]> {
    let taken = take(rest, N)?;
    taken.try_into().map_err(|_| too_short(taken.len()))
}

fn take_u32(rest: &mut &[u8]) -> Result<u32> {
    Ok(u32::from_le_bytes(take_array(rest)?))
}

fn take_text(rest: &mut &[u8]) -> Result<String> {
    let len = take_u32(rest)? as usize;
    String::from_utf8(take(rest, len)?.to_vec())
        .map_err(|e| Error::Malformed(format!("expected names in UTF-8 but found {e}")))
}

fn too_short(found: usize) -> Error {
    Error::Malformed(format!("expected a whole retrieval index but found its end {found} bytes on"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample(ids: &[String]) -> RetrievalIndex {
        let mut index = RetrievalIndex::new("0123abcd", 3).unwrap();
        for (i, id) in ids.iter().enumerate() {
            index.push(id.clone(), &[i as f32, 1.0, -0.5]).unwrap();
        }
        index
    }

    /// Bytes whose checksum is right, so that the checks behind it are reached.
    fn sealed(mut body: Vec<u8>) -> Vec<u8> {
        let digest = Sha256::digest(&body);
        body.extend(digest);
        body
    }

    #[test]
    fn forged_counts_are_refused_before_memory_is() {
        let body = sample(&["a".into()]).save();
        let body = &body[..body.len() - DIGEST];
        for (at, bytes) in
            [(12, vec![0xff; 4]), (16, vec![0xff; 8]), (24, vec![0xff; 4]), (12, vec![0; 4]), (36, vec![9; 4])]
        {
            let mut forged = body.to_vec();
            forged[at..at + bytes.len()].copy_from_slice(&bytes);
            assert!(RetrievalIndex::load(&sealed(forged)).is_err(), "{at}");
        }
        let mut nan = body.to_vec();
        let at = nan.len() - 4;
        nan[at..].copy_from_slice(&f32::NAN.to_le_bytes());
        assert!(RetrievalIndex::load(&sealed(nan)).unwrap_err().to_string().contains("length 1"));
    }

    #[test]
    fn another_version_is_named() {
        let mut body = sample(&[]).save();
        body.truncate(body.len() - DIGEST);
        body[8] = 7;
        assert!(matches!(RetrievalIndex::load(&sealed(body)), Err(Error::Unsupported(m)) if m.contains("version 7")));
    }

    proptest! {
        #[test]
        fn round_trip(ids in prop::collection::vec(any::<String>(), 0..6)) {
            let index = sample(&ids);
            prop_assert_eq!(RetrievalIndex::load(&index.save()).unwrap(), index);
        }

        #[test]
        fn truncated_and_flipped_bytes_err(at in any::<prop::sample::Index>(), bit in 0..8u32) {
            let bytes = sample(&["one".into(), "två".into()]).save();
            let at = at.index(bytes.len());
            prop_assert!(RetrievalIndex::load(&bytes[..at]).is_err());
            let mut flipped = bytes;
            flipped[at] ^= 1 << bit;
            prop_assert!(RetrievalIndex::load(&flipped).is_err());
        }

        #[test]
        fn sealed_rubbish_does_not_panic(edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
            let mut body = sample(&["one".into(), "två".into()]).save();
            body.truncate(body.len() - DIGEST);
            for (at, with) in edits {
                let at = at.index(body.len());
                body[at] = with;
            }
            let _ = RetrievalIndex::load(&sealed(body));
        }
    }
}
