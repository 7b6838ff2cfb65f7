//! Readers against broken and malicious bytes: an error or a consistent answer, never a panic, never an allocation that
//! the file does not justify (the counts below ask for terabytes, which would abort the test).

// What the fuzzer runs, too.
#[path = "../fuzz/readers/gguf.rs"]
mod gguf;
#[path = "../fuzz/readers/manifest.rs"]
mod manifest;
#[path = "../fuzz/readers/picture.rs"]
mod picture;
#[path = "../fuzz/readers/projections.rs"]
mod projections;
#[path = "../fuzz/readers/safetensors.rs"]
mod safetensors;

use std::{collections::BTreeMap, fs};

use pollster::block_on;
use proptest::prelude::*;
use rscapret::{
    Error, Result,
    bundle::Bundle,
    projection::ProjectionsConfig,
    weights::{
        ByteSource, Dtype, RawTensor, TensorSource,
        gguf::{GgufFile, GgufHeader, GgufWriter, MetadataArray, MetadataValue, Parsed},
        safetensors::{SafetensorsFile, SafetensorsHeader, ShardIndex, write_safetensors},
    },
};
use rscapret_tests::tests_dir;

fn golden(name: &str) -> Vec<u8> {
    fs::read(tests_dir().join("golden/weights").join(name)).unwrap()
}

// --- every file, broken -------------------------------------------------------------------------------------------

#[test]
fn no_truncated_file_opens() {
    for name in ["metadata.gguf", "v2.gguf"] {
        let bytes = golden(name);
        gguf::read(&bytes).unwrap();
        // The last tensor's padding may be absent.
        for len in 0..bytes.len() - 64 {
            let error = gguf::read(&bytes[..len]).unwrap_err();
            assert!(matches!(error.root(), Error::Malformed(_)), "{name} {len}: {error}");
        }
    }
    let bytes = golden("single.safetensors");
    safetensors::read(&bytes).unwrap();
    for len in 0..bytes.len() {
        let error = safetensors::read(&bytes[..len]).unwrap_err();
        assert!(matches!(error.root(), Error::Malformed(_)), "{len}: {error}");
    }
}

#[test]
fn every_single_flipped_bit_of_a_header_is_survived() {
    for name in ["metadata.gguf", "v2.gguf", "single.safetensors"] {
        let mut bytes = golden(name);
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            let _ = if name.ends_with(".gguf") { gguf::read(&bytes) } else { safetensors::read(&bytes) };
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

fn manifest_json() -> Vec<u8> {
    let file = |name: &str| format!(r#"{{"path": "{name}", "bytes": 9, "sha256": "{}"}}"#, "0a".repeat(32));
    format!(
        r#"{{"format_version": 1, "name": "x", "files": {{"llm": {}, "vision": {}, "projections": {}}}, "licences":
        [{{"part": "a", "terms": "b"}}], "training": {{"config": "", "data": [], "commit": "c"}}}}"#,
        file("a"),
        file("b"),
        file("c")
    )
    .into_bytes()
}

#[test]
fn broken_manifests_are_refused() {
    let bytes = manifest_json();
    Bundle::parse(&bytes).unwrap();
    for len in 0..bytes.len() {
        assert!(Bundle::parse(&bytes[..len]).is_err(), "{len}");
    }
}

/// Pictures of some kilobytes.
const PICTURES: [&str; 3] = ["photo-97x61.jpg", "grey.png", "lossless.webp"];

fn picture_file(name: &str) -> Vec<u8> {
    fs::read(tests_dir().join("golden/preprocess").join(name)).unwrap()
}

/// Projections as the reader asks for them.
fn small_projections() -> Vec<u8> {
    let sizes = ProjectionsConfig {
        feature_size: projections::FEATURES,
        hidden_size: projections::HIDDEN,
        joint_size: 2,
        visual_tokens: 2,
        ret_output: true,
    };
    let zeros = |shape: Vec<usize>| {
        let bytes = vec![0; 4 * shape.iter().product::<usize>()];
        RawTensor { shape, dtype: Dtype::F32, bytes }
    };
    let tensors = sizes.tensors().into_iter().map(|(name, shape)| (name.to_string(), zeros(shape))).collect();
    let mut out = Vec::new();
    write_safetensors(&tensors, &BTreeMap::new(), &mut out).unwrap();
    out
}

#[test]
fn whole_pictures_and_projections_are_read() {
    PICTURES.iter().for_each(|name| picture::read(&picture_file(name)).unwrap());
    projections::read(&small_projections()).unwrap();
}

/// Some bytes replaced and the end perhaps cut off.
fn broken(bytes: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let len = bytes.len();
    (prop::collection::vec((0..len, any::<u8>()), 0..8), prop_oneof![Just(len), 0..len]).prop_map(
        move |(edits, keep)| {
            let mut bytes = bytes.clone();
            edits.iter().for_each(|&(at, byte)| bytes[at] = byte);
            bytes.truncate(keep);
            bytes
        },
    )
}

/// A safetensors file around a header that need not be one.
fn around(header: &str, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..Default::default() })]

    #[test]
    fn broken_gguf_never_panics(bytes in broken(golden("metadata.gguf"))) {
        let _ = gguf::read(&bytes);
    }

    #[test]
    fn broken_safetensors_never_panics(bytes in broken(golden("single.safetensors"))) {
        let _ = safetensors::read(&bytes);
    }

    #[test]
    fn broken_manifest_never_panics(bytes in broken(manifest_json())) {
        let _ = manifest::read(&bytes);
    }

    #[test]
    fn broken_projections_never_panic(bytes in broken(small_projections())) {
        let _ = projections::read(&bytes);
    }

    #[test]
    fn broken_pictures_never_panic(bytes in prop::sample::select(PICTURES.to_vec()).prop_flat_map(|name| broken(picture_file(name)))) {
        let _ = picture::read(&bytes);
    }

    #[test]
    fn broken_shard_index_never_panics(bytes in broken(golden("model.safetensors.index.json"))) {
        let _ = ShardIndex::parse(&bytes);
    }

    #[test]
    fn noise_never_panics(noise in prop::collection::vec(any::<u8>(), 0..512)) {
        let _ = gguf::read(&noise);
        let _ = gguf::read(&[b"GGUF\x03\0\0\0", &noise[..]].concat());
        let _ = safetensors::read(&noise);
        let _ = manifest::read(&noise);
        let _ = picture::read(&noise);
        let _ = projections::read(&noise);
        let _ = ShardIndex::parse(&noise);
    }

    /// The prefix's length decides whether more is needed, never what is found.
    #[test]
    fn a_prefix_never_contradicts_the_file(bytes in broken(golden("metadata.gguf")), keep in any::<prop::sample::Index>()) {
        let len = bytes.len() as u64;
        let whole = GgufHeader::parse(&bytes, len);
        match (GgufHeader::parse(&bytes[..keep.index(bytes.len() + 1)], len), whole) {
            (Ok(Parsed::NeedBytes(n)), _) => prop_assert!(n <= len),
            (Ok(Parsed::Header(part)), Ok(Parsed::Header(whole))) => prop_assert_eq!(part.tensors, whole.tensors),
            (Err(part), Err(whole)) => prop_assert_eq!(part.to_string(), whole.to_string()),
            (part, whole) => prop_assert!(false, "{:?} against {:?}", part, whole),
        }
    }

    #[test]
    fn what_is_written_is_read(tensors in prop::collection::btree_map("[a-z.]{1,20}", tensor(), 0..6), text in ".*", ints in any::<Vec<i64>>()) {
        let mut writer = GgufWriter::new();
        writer.metadata("text", text.as_str()).unwrap().metadata("ints", ints.clone()).unwrap();
        for (name, tensor) in &tensors {
            writer.tensor(name, tensor.clone()).unwrap();
        }
        let file = block_on(GgufFile::open(writer.to_bytes().unwrap())).unwrap();
        prop_assert_eq!(file.metadata().get::<&str>("text").unwrap(), &text);
        prop_assert_eq!(file.metadata().get::<&[i64]>("ints").unwrap(), &ints);
        for (name, tensor) in &tensors {
            prop_assert_eq!(&block_on(file.fetch(name)).unwrap(), tensor);
        }

        let metadata = BTreeMap::from([("text".to_string(), text)]);
        let mut out = Vec::new();
        write_safetensors(&tensors, &metadata, &mut out).unwrap();
        let file = block_on(SafetensorsFile::open(out)).unwrap();
        prop_assert_eq!(file.metadata("text"), metadata.get("text").map(String::as_str));
        prop_assert_eq!(file.tensors().len(), tensors.len());
        for (name, tensor) in &tensors {
            prop_assert_eq!(&block_on(file.fetch(name)).unwrap(), tensor);
        }
    }
}

/// Float tensors of zero to four dimensions, empty ones among them.
fn tensor() -> impl Strategy<Value = RawTensor> {
    let dtype = prop::sample::select(vec![Dtype::F32, Dtype::F16, Dtype::BF16]);
    (prop::collection::vec(0usize..5, 0..4), dtype, any::<u8>()).prop_map(|(shape, dtype, fill)| {
        let bytes = vec![fill; dtype.bytes_of(&shape).unwrap() as usize];
        RawTensor { shape, dtype, bytes }
    })
}

// --- GGUF, on purpose ---------------------------------------------------------------------------------------------

/// Bytes of a GGUF, field by field.
#[derive(Clone)]
struct Raw(Vec<u8>);

impl Raw {
    fn new(tensors: u64, entries: u64) -> Self {
        Raw(b"GGUF".to_vec()).u32(3).u64(tensors).u64(entries)
    }
    fn u32(mut self, v: u32) -> Self {
        self.0.extend(v.to_le_bytes());
        self
    }
    fn u64(mut self, v: u64) -> Self {
        self.0.extend(v.to_le_bytes());
        self
    }
    fn name(mut self, name: &str) -> Self {
        self = self.u64(name.len() as u64);
        self.0.extend(name.as_bytes());
        self
    }
    fn tensor(mut self, name: &str, dims: &[u64], dtype: u32, offset: u64) -> Self {
        self = self.name(name).u32(dims.len() as u32);
        self = dims.iter().fold(self, |raw, &d| raw.u64(d));
        self.u32(dtype).u64(offset)
    }
    fn data(mut self, len: usize) -> Self {
        self.0.resize(self.0.len().next_multiple_of(32) + len, 0);
        self
    }
    fn refusal(self) -> String {
        gguf::read(&self.0).unwrap_err().to_string()
    }
}

const HUGE: u64 = 1 << 45;

#[test]
fn counts_beyond_the_file_are_refused() {
    for count in [1000, HUGE, u64::MAX] {
        assert!(Raw::new(count, 0).data(64).refusal().contains(&format!("expected {count} tensors")));
        assert!(Raw::new(0, count).data(64).refusal().contains(&format!("expected {count} metadata entries")));
        for element in [0, 4, 8, 9, 10] {
            let array = Raw::new(0, 1).name("k").u32(9).u32(element).u64(count).data(64);
            assert!(array.refusal().contains(&format!("expected {count} array elements")), "{count} of {element}");
        }
        let text = Raw::new(0, 1).name("k").u32(8).u64(count).data(64);
        assert!(text.refusal().contains(&format!("expected a string of {count} bytes but found")));
        assert!(
            Raw::new(0, 1).u64(count.max(1 << 16)).data(64).refusal().contains("expected a name of 1 to 65535 bytes")
        );
    }
}

#[test]
fn nested_arrays_end() {
    let raw = (0..10_000).fold(Raw::new(0, 1).name("k").u32(9), |raw, _| raw.u32(9).u64(1));
    assert!(raw.data(0).refusal().contains("nested at most"));
}

#[test]
fn other_magic_versions_and_byte_orders_are_told_apart() {
    let version = |v: u32| Raw(b"GGUF".to_vec()).u32(v).data(64).refusal();
    assert!(version(1).contains("expected GGUF version 2 or 3 but found 1\n"));
    assert!(version(4).contains("found 4\n"));
    assert!(version(3u32.swap_bytes()).contains("big-endian"));
    assert_eq!(Raw(b"PK\x03\x04".to_vec()).data(64).refusal(), r"expected magic `GGUF` but found `PK\x03\x04`");
    assert!(gguf::read(b"").is_err() && gguf::read(b"GG").is_err());
}

#[test]
fn tensors_that_do_not_fit_are_refused() {
    let one = |dims: &[u64], dtype, offset| Raw::new(1, 0).tensor("t", dims, dtype, offset).data(64).refusal();
    assert!(one(&[17], 0, 0).contains("expected tensor `t` (68 bytes at data offset 0) inside the file"));
    assert!(one(&[8], 0, 64).contains("inside the file"));
    assert!(one(&[8], 0, u64::MAX - 31).contains("inside the file"));
    assert!(one(&[8], 0, 8).contains("tensor `t`: expected an offset that 32 divides but found 8"));
    assert!(one(&[1; 5], 0, 0).contains("expected at most 4 dimensions but found 5"));
    assert!(one(&[33], 8, 0).contains("expected `t` (Q8_0) to have rows of whole blocks of 32 but found shape [33]"));
    assert!(one(&[HUGE, HUGE], 0, 0).contains("`t`"));
    assert!(one(&[1 << 62, 4], 0, 0).contains("`t`"));
    assert!(one(&[32], 20, 0).contains("found IQ4_NL"));
    assert!(one(&[32], 999, 0).contains("number 999"));

    let two = |a: &str, b: &str, offset| Raw::new(2, 0).tensor(a, &[16], 0, 0).tensor(b, &[8], 0, offset).data(128);
    assert!(gguf::read(&two("a", "b", 64).0).is_ok());
    assert!(two("a", "b", 32).refusal().contains("found `b` at"));
    assert!(two("a", "a", 64).refusal().contains("`a` twice"));
}

#[test]
fn metadata_that_does_not_fit_is_refused() {
    let entry = |key: &str, kind: u32, value: u32| Raw::new(0, 1).name(key).u32(kind).u32(value).data(32);
    for alignment in [0, 3, 48, 1 << 30] {
        assert!(entry("general.alignment", 4, alignment).refusal().contains("power of two"), "{alignment}");
    }
    assert!(entry("general.alignment", 6, 32).refusal().contains("to be integer that fits u32 but found f32"));
    assert!(entry("k", 7, 2).refusal().contains("metadata `k`: expected a bool of 0 or 1 but found 2"));
    assert!(entry("k", 13, 0).refusal().contains("expected a value type of 0 to 12 but found 13"));
    let twice = Raw::new(0, 2).name("k").u32(4).u32(1).name("k").u32(4).u32(1).data(32);
    assert!(twice.refusal().contains("`k` twice"));
    let mut latin = Raw::new(0, 1).name("k").u32(8).u64(1);
    latin.0.push(0xE9);
    assert!(latin.data(32).refusal().contains("UTF-8"));
}

/// A file that claims to be larger than it is, as a server can.
#[derive(Debug)]
struct Liar(Vec<u8>, u64);

impl ByteSource for Liar {
    fn len(&self) -> u64 {
        self.1
    }
    async fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        self.0.read(offset, len).await
    }
}

#[test]
fn a_huge_file_does_not_justify_a_huge_header() {
    let Raw(mut bytes) = Raw::new(0, 1).name("k").u32(8).u64(HUGE);
    bytes.resize(1 << 20, 0);
    let error = block_on(GgufFile::open(Liar(bytes, HUGE * 2))).unwrap_err().to_string();
    assert!(error.starts_with("expected a header of at most 268435456 bytes but found"), "{error}");
}

#[test]
fn a_packed_array_stays_packed() {
    let mut writer = GgufWriter::new();
    writer.metadata("bytes", vec![7u8; 1 << 20]).unwrap();
    let file = block_on(GgufFile::open(writer.to_bytes().unwrap())).unwrap();
    let Some(MetadataValue::Array(MetadataArray::U8(bytes))) = file.metadata().value("bytes") else { panic!() };
    assert_eq!(bytes.len(), 1 << 20);
}

// --- safetensors, on purpose --------------------------------------------------------------------------------------

#[test]
fn safetensors_headers_that_lie_are_refused() {
    let refusal = |header: &str, data: usize| safetensors::read(&around(header, data)).unwrap_err().to_string();
    let t = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}"#)
    };
    let good = t("F32", "[2]", "[0,8]");
    safetensors::read(&around(&format!(r#"{{"a":{good}}}"#), 8)).unwrap();

    let one = |dtype, shape, offsets, data| refusal(&format!(r#"{{"a":{}}}"#, t(dtype, shape, offsets)), data);
    assert!(one("F32", "[3]", "[0,8]", 8).contains("expected `a` (F32 [3]) to have 12 bytes"));
    assert!(one("F32", "[2]", "[0,8]", 9).contains("expected 8 bytes of data but found 9"));
    assert!(one("F32", "[2]", "[0,8]", 7).contains("found 7"));
    assert!(one("F32", "[2]", "[4,12]", 12).contains("expected `a` to begin at 0"));
    assert!(one("F32", "[2]", "[8,0]", 8).contains("`a`"));
    assert!(one("F32", "[4294967296,4294967296,4294967296]", "[0,8]", 8).contains("to have a shape"));
    assert!(one("F32", "[18446744073709551615,2]", "[0,8]", 8).contains("`a`"));
    assert!(one("F64", "[1]", "[0,8]", 8).contains("found F64\n"));
    assert!(one("F8_E4M3", "[8]", "[0,8]", 8).contains("F8_E4M3"));
    assert!(one("F32", "[-2]", "[0,8]", 8).contains("expected a safetensors header"));
    assert!(one("F32", &format!("[{}2]", "1,".repeat(20)), "[0,8]", 8).contains("to have a shape"));

    let overlap = format!(r#"{{"a":{good},"b":{}}}"#, t("F32", "[1]", "[4,8]"));
    assert!(refusal(&overlap, 8).contains("expected `b` to begin at 8"));
    let gap = format!(r#"{{"a":{good},"b":{}}}"#, t("F32", "[1]", "[12,16]"));
    assert!(refusal(&gap, 16).contains("expected `b` to begin at 8"));
    assert!(refusal(&format!(r#"{{"a":{good},"a":{good}}}"#), 8).contains("`a` twice"));
    assert!(refusal(r#"{"__metadata__":{"k":"1","k":"2"}}"#, 0).contains("`k` twice"));
    assert!(refusal(r#"{"__metadata__":{},"__metadata__":{}}"#, 0).contains("`__metadata__` twice"));
    assert!(refusal(&format!(r#"{{"a":{{"k":"v"}},"b":{good}}}"#), 8).contains("unknown field `k`"));
    assert!(refusal(&format!(r#"{{"__metadata__":{good}}}"#), 8).contains("expected a string"));
    assert!(refusal("[]", 0).contains("begins with `{`"));
    assert!(refusal(&"[".repeat(100_000), 0).contains("begins with `{`"));
    assert!(refusal(&format!(r#"{{"a":{}"#, "[".repeat(100_000)), 0).contains("expected a safetensors header"));
}

#[test]
fn header_lengths_beyond_the_file_are_refused() {
    for len in [0, 1, 3, 100_000_001, HUGE, u64::MAX] {
        let bytes = [&len.to_le_bytes()[..], b"{}"].concat();
        let error = safetensors::read(&bytes).unwrap_err().to_string();
        assert!(error.contains(&format!("found length {len}")), "{error}");
    }
    let empty = [&2u64.to_le_bytes()[..], b"{}"].concat();
    safetensors::read(&empty).unwrap();
    assert!(SafetensorsHeader::parse(b"", 0).is_err());
}
