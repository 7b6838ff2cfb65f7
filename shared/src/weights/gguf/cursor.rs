//! Reads little-endian values off a prefix of a file of known length.

use crate::error::Error;

/// Why a read did not succeed.
pub(super) enum Stop {
    /// The file goes on, the prefix does not: at least this many bytes from the file's start are needed.
    More(u64),
    /// The file is wrong.
    Bad(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Stop::Bad(error)
    }
}

pub(super) type Step<T> = Result<T, Stop>;

/// Keys and tensor names; the format allows 65,535 bytes for keys.
const MAX_NAME: u64 = 65_535;

pub(super) struct Cursor<'a> {
    prefix: &'a [u8],
    at: usize,
    file_len: u64,
}

macro_rules! number {
    ($name:ident, $type:ty) => {
        pub(super) fn $name(&mut self) -> Step<$type> {
            Ok(<$type>::from_le_bytes(self.array()?))
        }
    };
}

impl<'a> Cursor<'a> {
    pub(super) fn new(prefix: &'a [u8], file_len: u64) -> Self {
        Cursor { prefix, at: 0, file_len }
    }

    pub(super) fn position(&self) -> u64 {
        self.at as u64
    }

    /// Bytes of the file that are not yet read.
    pub(super) fn left(&self) -> u64 {
        self.file_len.saturating_sub(self.position())
    }

    /// Refuses `count` things of at least `size` bytes each where the file's rest cannot hold them.
    pub(super) fn justify(&self, what: &str, count: u64, size: u64) -> Step<()> {
        match count.checked_mul(size) {
            Some(bytes) if bytes <= self.left() => Ok(()),
            _ => Err(Stop::Bad(Error::Malformed(format!(
                "expected {count} {what} of at least {size} bytes each but found {} bytes left in the file\nthe file \
                 is damaged or cut short",
                self.left()
            )))),
        }
    }

    pub(super) fn take(&mut self, what: &str, len: u64) -> Step<&'a [u8]> {
        if len > self.left() {
            return Err(Stop::Bad(Error::Malformed(format!(
                "expected {what} of {len} bytes but found {} bytes left in the file\nthe file is damaged or cut short",
                self.left()
            ))));
        }
        let end = self.position() + len; // no overflow: within the file
        match usize::try_from(end).ok().and_then(|end| self.prefix.get(self.at..end)) {
            Some(bytes) => {
                self.at += bytes.len();
                Ok(bytes)
            }
            None => Err(Stop::More(end)),
        }
    }

    pub(super) fn array<const N: usize>(&mut self) -> Step<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take("a header field", N as u64)?);
        Ok(out)
    }

    number!(u8, u8);
    number!(i8, i8);
    number!(u16, u16);
    number!(i16, i16);
    number!(u32, u32);
    number!(i32, i32);
    number!(u64, u64);
    number!(i64, i64);
    number!(f32, f32);
    number!(f64, f64);

    pub(super) fn bool(&mut self) -> Step<bool> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(Stop::Bad(Error::Malformed(format!("expected a bool of 0 or 1 but found {other}")))),
        }
    }

    pub(super) fn string(&mut self) -> Step<String> {
        let len = self.u64()?;
        let bytes = self.take("a string", len)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_string()),
            Err(error) => Err(Stop::Bad(Error::Malformed(format!("expected a string in UTF-8 but found {error}")))),
        }
    }

    /// A key or a tensor's name.
    pub(super) fn name(&mut self) -> Step<String> {
        let before = self.at;
        let len = self.u64()?;
        if len == 0 || len > MAX_NAME {
            return Err(Stop::Bad(Error::Malformed(format!(
                "expected a name of 1 to {MAX_NAME} bytes but found one of {len}"
            ))));
        }
        self.at = before;
        self.string()
    }
}
