//! Candle's pickle machine under guard: a pickle is a program, and a few bytes can ask for any amount of memory and for
//! nesting that no stack survives. So each step is looked at before candle does it.

use std::collections::HashMap;

use candle_core::pickle::{Object, Stack};
use rscapret::{Error, Result};

/// Deepest nesting; a training checkpoint has some ten levels.
const MAX_DEPTH: usize = 64;
/// Objects that copies (candle's memo copies what it keeps and gives) may make altogether.
const MAX_COPIED: usize = 4 << 20;

const PROTO: u8 = 0x80;
const BIN_UNICODE: u8 = b'X';
const BIN_PUT: u8 = b'q';
const LONG_BIN_PUT: u8 = b'r';
const BIN_GET: u8 = b'h';
const LONG_BIN_GET: u8 = b'j';
const LONG1: u8 = 0x8a;
/// Append, Appends, SetItem, SetItems: these put what is above into the container below.
const INTO_CONTAINER: &[u8] = b"aesu";

/// What an object on the stack weighs.
#[derive(Clone, Copy)]
struct Weight {
    objects: usize,
    depth: usize,
}

/// Runs a pickle and gives what it leaves.
///
/// # Errors
/// [`Error::Malformed`] for a program that does not end or does what no state dict needs.
pub(super) fn run(bytes: &[u8]) -> Result<Object> {
    let mut machine = Stack::empty();
    let mut rest = bytes;
    let (mut weights, mut memo): (Vec<Weight>, HashMap<u32, Weight>) = Default::default();
    let mut copied = 0usize;
    loop {
        let Some((&op, argument)) = rest.split_first() else {
            return Err(malformed("expected the end of the pickle's program but found the end of the file"));
        };
        let weight = before(op, argument, &weights, &mut memo)?;
        if [BIN_PUT, LONG_BIN_PUT, BIN_GET, LONG_BIN_GET].contains(&op) {
            copied = copied.saturating_add(weight.objects);
        }
        let (height, length) = (machine.stack().len(), rest.len());
        if machine.read(&mut rest).map_err(|e| malformed(&first_line(&e)))? {
            break;
        }
        let after = machine.stack().len();
        if after > height {
            // Long names are not free either.
            let objects = weight.objects + (length - rest.len()) / 16;
            weights.push(Weight { objects, ..weight });
        } else if ![PROTO, BIN_PUT, LONG_BIN_PUT].contains(&op) {
            // What was taken is in what lies on top now.
            let top = after.checked_sub(1).ok_or_else(|| malformed("expected an object but found none"))?;
            let inside = usize::from(INTO_CONTAINER.contains(&op));
            let objects = weights[top..].iter().fold(1usize, |sum, w| sum.saturating_add(w.objects));
            let below = weights[top..].iter().take(inside).map(|w| w.depth).max().unwrap_or_default();
            let above = weights[top..].iter().skip(inside).map(|w| w.depth + 1).max().unwrap_or_default();
            weights.truncate(top);
            weights.push(Weight { objects, depth: below.max(above) });
        }
        if copied > MAX_COPIED || weights.last().is_some_and(|w| w.depth > MAX_DEPTH) {
            return Err(malformed("expected a state dict but found a program that piles up objects"));
        }
    }
    machine.finalize().map_err(|e| malformed(&first_line(&e)))
}

/// Checks a step that could ask for more than the file has; the weight of what it pushes.
fn before(op: u8, argument: &[u8], weights: &[Weight], memo: &mut HashMap<u32, Weight>) -> Result<Weight> {
    let new = Weight { objects: 1, depth: 1 };
    let id = |wide: bool| match (wide, argument) {
        (false, [id, ..]) => Ok(u32::from(*id)),
        (true, [a, b, c, d, ..]) => Ok(u32::from_le_bytes([*a, *b, *c, *d])),
        _ => Err(malformed("expected a number but found the end of the file")),
    };
    match op {
        BIN_UNICODE if id(true)? as usize > argument.len() => {
            Err(malformed("expected a string within the file but found a longer one"))
        }
        LONG1 if argument.first().is_some_and(|&bytes| bytes > 8) => {
            Err(malformed("expected numbers of at most 64 bits but found a longer one"))
        }
        BIN_PUT | LONG_BIN_PUT => {
            let top = weights.last().copied().unwrap_or(new);
            memo.insert(id(op == LONG_BIN_PUT)?, top);
            Ok(top)
        }
        BIN_GET | LONG_BIN_GET => Ok(memo.get(&id(op == LONG_BIN_GET)?).copied().unwrap_or(new)),
        _ => Ok(new),
    }
}

fn malformed(what: &str) -> Error {
    Error::Malformed(what.to_string())
}

/// Candle adds objects, and a backtrace, to its messages.
fn first_line(error: &candle_core::Error) -> String {
    let text = error.to_string();
    let line: String = text.lines().next().unwrap_or_default().chars().take(120).collect();
    format!("expected a pickle but found: {line}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_come_as_they_were_written() {
        // pickle.dumps({"a": (1, 2), "b": [True]}, 2)
        let object =
            run(b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01K\x01K\x02\x86q\x02X\x01\x00\x00\x00bq\x03]q\x04\x88au.");
        let Object::Dict(entries) = object.unwrap() else { panic!("expected a dictionary") };
        let get = |key: &str| {
            let key = Object::Unicode(key.to_string());
            entries.iter().find(|(k, _)| *k == key).map(|(_, value)| value.clone())
        };
        assert_eq!(get("a"), Some(Object::Tuple(vec![Object::Int(1), Object::Int(2)])));
        assert_eq!(get("b"), Some(Object::List(vec![Object::Bool(true)])));
    }

    #[test]
    fn programs_that_ask_for_too_much_end_in_an_error() {
        // Ten million levels of tuples, which would overflow the stack when they are dropped.
        let nested = [b"\x80\x02N".as_slice(), &vec![0x85; 10_000_000], b"."].concat();
        assert!(run(&nested).unwrap_err().to_string().contains("piles up"));
        // Twice as many objects at each step.
        let mut doubled = b"N".to_vec();
        (0..60).for_each(|_| doubled.extend(b"q\x00h\x00\x86"));
        assert!(run(&doubled).unwrap_err().to_string().contains("piles up"));
        // The same thing again and again, each a copy.
        let mut kept = b"(".to_vec();
        kept.extend([b'N'; 100_000]);
        kept.extend(b"t");
        (0..100).for_each(|i| kept.extend([b'q', i]));
        assert!(run(&kept).unwrap_err().to_string().contains("piles up"));
        // A string of four gigabytes.
        assert!(run(b"X\xff\xff\xff\xffabc.").unwrap_err().to_string().contains("a longer one"));
    }

    #[test]
    fn programs_without_sense_end_in_an_error() {
        for program in [
            &b""[..],
            b".",
            b"\x80",
            b"q",
            b"h\x05.",
            b"a.",
            b"u.",
            b"]K\x01u.",
            b"(t",
            b"t.",
            b"Q.",
            b"R.",
            b"\xff",
            b"\x8a\xff.",
        ] {
            assert!(run(program).is_err(), "{program:?}");
        }
    }

    #[test]
    fn long_lists_are_not_deep() {
        let mut long = b"]".to_vec();
        (0..1000).for_each(|_| long.extend(b"Na"));
        long.push(b'.');
        assert!(matches!(run(&long).unwrap(), Object::List(items) if items.len() == 1000));
    }
}
