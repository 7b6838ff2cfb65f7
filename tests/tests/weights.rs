//! GGUF, safetensors and the block formats against files that the reference packages wrote.

use std::{cell::RefCell, collections::BTreeMap, fs, ops::Range};

use pollster::block_on;
use rscapret::{
    Error, Result,
    weights::{
        ByteSource, Dtype, RawTensor, TensorSource,
        gguf::{GgufFile, GgufHeader, GgufWriter, HfNames, Metadata, MetadataArray, MetadataValue, Parsed},
        inspect::{inspect_gguf, inspect_safetensors},
        quant::{dequantize, quantize},
        safetensors::{SafetensorsFile, ShardIndex, ShardedSafetensors, write_safetensors},
    },
};
use rscapret_tests::{shared_data, tests_dir};

const SCALARS: &str = "fixtures/gguf/dummy_v3_all_scalar_types.gguf";

fn bytes(path: &str) -> Vec<u8> {
    fs::read(tests_dir().join(path)).unwrap()
}

fn gguf(path: &str) -> GgufFile<Vec<u8>> {
    block_on(GgufFile::open(bytes(path))).unwrap()
}

fn fetch(source: &impl TensorSource, name: &str) -> RawTensor {
    block_on(source.fetch(name)).unwrap()
}

fn values(source: &impl TensorSource, name: &str) -> Vec<f32> {
    dequantize(&fetch(source, name)).unwrap()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn dense(shape: &[usize], values: &[f32]) -> RawTensor {
    RawTensor { shape: shape.to_vec(), dtype: Dtype::F32, bytes: quantize(values, Dtype::F32).unwrap() }
}

// --- block formats ------------------------------------------------------------------------------------------------

#[test]
fn every_type_dequantises_to_the_reference_bit_for_bit() {
    let file = gguf("golden/weights/quants.gguf");
    for dtype in Dtype::ALL.into_iter().filter(|d| *d != Dtype::F32) {
        let packed = fetch(&file, dtype.name());
        assert_eq!(packed.dtype, dtype);
        let expected = values(&file, &format!("{dtype}.f32"));
        let found = dequantize(&packed).unwrap();
        assert!(found.len() >= 512, "{dtype}: {}", found.len());
        assert_eq!(bits(&found), bits(&expected), "{dtype}");
    }
}

#[test]
fn quantising_gives_the_reference_bytes() {
    let file = gguf("golden/weights/quants.gguf");
    let source = values(&file, "source");
    for dtype in [Dtype::F16, Dtype::BF16, Dtype::Q8_0, Dtype::Q4_0] {
        let expected = fetch(&file, &format!("{dtype}.of_source"));
        assert_eq!(expected.shape, [8, 64]);
        assert_eq!(quantize(&source, dtype).unwrap(), expected.bytes, "{dtype}");
    }
}

// --- GGUF ---------------------------------------------------------------------------------------------------------

#[test]
fn all_scalar_types_are_read() {
    let file = gguf(SCALARS);
    let m = file.metadata();
    assert_eq!(file.header().version, 3);
    assert_eq!(m.len(), 15);
    assert_eq!(m.value("some.parameter.uint8"), Some(&MetadataValue::U8(0x12)));
    assert_eq!(m.value("some.parameter.int8"), Some(&MetadataValue::I8(-0x13)));
    assert_eq!(m.value("some.parameter.uint16"), Some(&MetadataValue::U16(0x1234)));
    assert_eq!(m.value("some.parameter.int16"), Some(&MetadataValue::I16(-0x1235)));
    assert_eq!(m.value("some.parameter.uint32"), Some(&MetadataValue::U32(0x1234_5678)));
    assert_eq!(m.value("some.parameter.int32"), Some(&MetadataValue::I32(-0x1234_5679)));
    assert_eq!(m.value("some.parameter.uint64"), Some(&MetadataValue::U64(0x1234_5678_9abc_def0)));
    assert_eq!(m.value("some.parameter.int64"), Some(&MetadataValue::I64(-0x1234_5678_9abc_def1)));
    assert_eq!(m.value("some.parameter.float32"), Some(&MetadataValue::F32(0.123_456_79)));
    assert_eq!(m.value("some.parameter.float64"), Some(&MetadataValue::F64(0.123_456_789_012_345_68)));
    assert!(m.get::<bool>("some.parameter.bool").unwrap());
    assert_eq!(m.get::<&str>("some.parameter.string").unwrap(), "hello world");
    assert_eq!(m.get::<&[i16]>("some.parameter.arr.i16").unwrap(), [1, 2, 3, 4]);
    let floats = ["3.145", "2.718", "1.414"].map(|v| v.parse::<f32>().unwrap());
    assert_eq!(m.get::<&[f32]>("some.parameter.arr.f32").unwrap(), floats);
    assert_eq!(m.get::<&[String]>("some.parameter.arr.str").unwrap(), ["hello", "world", "!"]);

    // Shapes outermost first; offsets as the reference reader reports them.
    let shapes: Vec<_> = file.tensors().iter().map(|t| t.shape.clone()).collect();
    assert_eq!(shapes[0], [4, 6, 8, 7]);
    assert_eq!(shapes[4], [2]);
    assert_eq!(file.header().offsets, [1216, 6592, 8288, 8608, 9216, 9248, 9280, 9312, 10080, 10144]);
    let all = bytes(SCALARS);
    assert_eq!(fetch(&file, "tensor_8").bytes, all[10080..10116]);
}

#[test]
fn shipped_fixture_is_the_published_file() {
    let Some(path) = shared_data("gguf/dummy_v3_all_scalar_types.gguf") else { return };
    assert_eq!(fs::read(path).unwrap(), bytes(SCALARS));
}

#[test]
fn every_metadata_type_arrives_as_written() {
    for (path, version) in [("golden/weights/metadata.gguf", 3), ("golden/weights/v2.gguf", 2)] {
        let file = gguf(path);
        let m = file.metadata();
        assert_eq!(file.header().version, version);
        assert_eq!(m.get::<&str>("general.architecture").unwrap(), "test");
        assert_eq!(m.value("max.u8"), Some(&MetadataValue::U8(u8::MAX)));
        assert_eq!(m.value("max.u16"), Some(&MetadataValue::U16(u16::MAX)));
        assert_eq!(m.value("max.u32"), Some(&MetadataValue::U32(u32::MAX)));
        assert_eq!(m.value("max.u64"), Some(&MetadataValue::U64(u64::MAX)));
        assert_eq!(m.value("min.i8"), Some(&MetadataValue::I8(i8::MIN)));
        assert_eq!(m.value("min.i16"), Some(&MetadataValue::I16(i16::MIN)));
        assert_eq!(m.value("min.i32"), Some(&MetadataValue::I32(i32::MIN)));
        assert_eq!(m.value("min.i64"), Some(&MetadataValue::I64(i64::MIN)));
        assert_eq!(m.get::<f32>("pi.f32").unwrap(), std::f32::consts::PI);
        assert_eq!(m.get::<f64>("pi.f64").unwrap(), std::f64::consts::PI);
        assert_eq!((m.get("yes").unwrap(), m.get("no").unwrap()), (true, false));
        assert_eq!(m.get::<&str>("text").unwrap(), "Grüße, 世界 🌍");
        assert_eq!(m.get::<&[String]>("array.strings").unwrap(), ["", "a", "▁the"]);
        assert_eq!(m.get::<&[i32]>("array.i32").unwrap(), [-1, 0, i32::MAX]);
        assert_eq!(m.get::<&[f32]>("array.f32").unwrap(), [0.5, -1.5]);
        assert_eq!(m.get::<&[bool]>("array.bool").unwrap(), [true, false, true]);
        assert_eq!(m.get::<&[u8]>("array.u8").unwrap(), [0, 127, 255]);
        let nested = MetadataArray::Array(vec![MetadataArray::I32(vec![1, 2]), MetadataArray::I32(vec![3])]);
        assert_eq!(m.get::<&MetadataArray>("array.nested").unwrap(), &nested);
        assert_eq!(fetch(&file, "two"), dense(&[2, 3], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]));
    }
    let file = gguf("golden/weights/metadata.gguf");
    let ramp: Vec<f32> = (0..120).map(|i| i as f32).collect();
    assert_eq!(fetch(&file, "four"), dense(&[2, 3, 4, 5], &ramp));
    assert_eq!(file.info("three").map(|t| (t.shape.as_slice(), t.dtype)), Some(([2, 3, 4].as_slice(), Dtype::F16)));
    assert_eq!(values(&file, "three"), ramp[..24]);
    assert!(matches!(block_on(file.fetch("five")), Err(Error::MissingTensor(name)) if name == "five"));
}

#[test]
fn alignment_of_the_file_is_kept() {
    let file = gguf("golden/weights/v2.gguf");
    assert_eq!(file.metadata().get::<u32>("general.alignment").unwrap(), 64);
    assert!(file.header().offsets.iter().all(|o| o % 64 == 0));
}

/// Reading a file and writing what was read gives the file: reader and writer agree with GGML's and Python's writers.
#[test]
fn rewriting_a_gguf_gives_its_bytes() {
    for path in [SCALARS, "golden/weights/metadata.gguf", "golden/weights/quants.gguf"] {
        let file = gguf(path);
        let mut writer = GgufWriter::new();
        for (key, value) in file.metadata().iter() {
            writer.metadata(key, value.clone()).unwrap();
        }
        for info in file.tensors() {
            writer.tensor(&info.name, fetch(&file, &info.name)).unwrap();
        }
        assert_eq!(writer.to_bytes().unwrap(), bytes(path), "{path}");
    }
}

#[test]
fn writer_refuses_what_would_not_load() {
    let mut writer = GgufWriter::new();
    writer.metadata("a", 1u32).unwrap();
    assert!(writer.metadata("a", 1u32).is_err());
    assert!(writer.metadata("general.alignment", 64u32).is_err());
    writer.tensor("t", dense(&[2], &[1.0, 2.0])).unwrap();
    assert!(writer.tensor("t", dense(&[2], &[1.0, 2.0])).unwrap_err().to_string().contains("`t` twice"));
    assert!(writer.tensor("u", RawTensor { shape: vec![3], ..dense(&[2], &[1.0, 2.0]) }).is_err());
    assert!(writer.tensor("x".repeat(64), dense(&[1], &[0.0])).is_err());
    assert!(writer.tensor("five", dense(&[1; 5], &[0.0])).is_err());
}

/// Remembers what was read.
struct Watched {
    bytes: Vec<u8>,
    reads: RefCell<Vec<Range<u64>>>,
}

impl ByteSource for &Watched {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    async fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        self.reads.borrow_mut().push(offset..offset + len as u64);
        self.bytes.read(offset, len).await
    }
}

#[test]
fn a_header_longer_than_the_first_read_takes_more_reads_and_no_byte_twice() {
    let tokens: Vec<String> = (0..150_000).map(|i| format!("token{i}")).collect();
    let mut writer = GgufWriter::new();
    writer.metadata("tokenizer.ggml.tokens", tokens.clone()).unwrap();
    writer.tensor("big", dense(&[3 << 20], &vec![1.5; 3 << 20])).unwrap();
    writer.tensor("last", dense(&[2], &[1.0, 2.0])).unwrap();
    let source = Watched { bytes: writer.to_bytes().unwrap(), reads: RefCell::default() };

    let file = block_on(GgufFile::open(&source)).unwrap();
    assert_eq!(file.metadata().get::<&[String]>("tokenizer.ggml.tokens").unwrap(), tokens);
    assert_eq!(*source.reads.borrow(), [0..1 << 20, 1 << 20..4 << 20]);
    assert!(source.bytes.len() > 12 << 20);

    source.reads.borrow_mut().clear();
    assert_eq!(values(&file, "last"), [1.0, 2.0]);
    let end = source.bytes.len() as u64;
    assert_eq!(source.reads.take(), vec![Range { start: end - 32, end: end - 24 }]);
}

#[test]
fn every_prefix_asks_for_more_than_it_has() {
    let all = bytes(SCALARS);
    let header_end = 1216 - 32; // the data begin at 1216
    for len in 0..all.len() {
        match GgufHeader::parse(&all[..len], all.len() as u64).unwrap() {
            Parsed::NeedBytes(n) => assert!(n > len as u64 && n <= all.len() as u64 && len < 1216, "{len}: {n}"),
            Parsed::Header(_) => assert!(len >= header_end, "{len}"),
        }
    }
}

// --- names --------------------------------------------------------------------------------------------------------

fn vision(up: &str, down: &str) -> Vec<u8> {
    let mut writer = GgufWriter::new();
    writer.tensor("v.class_embd", dense(&[2], &[0.0; 2])).unwrap();
    writer.tensor("v.blk.0.ln1.weight", dense(&[2], &[0.0; 2])).unwrap();
    writer.tensor(format!("v.blk.0.{up}.weight"), dense(&[3, 2], &[1.0; 6])).unwrap();
    writer.tensor(format!("v.blk.0.{up}.bias"), dense(&[3], &[1.0; 3])).unwrap();
    writer.tensor(format!("v.blk.0.{down}.weight"), dense(&[2, 3], &[2.0; 6])).unwrap();
    writer.tensor("mm.0.weight", dense(&[1], &[9.0])).unwrap();
    writer.to_bytes().unwrap()
}

#[test]
fn gguf_under_the_checkpoints_names() {
    // The second file has the names of old converters, which took up for down.
    for file in [vision("ffn_up", "ffn_down"), vision("ffn_down", "ffn_up")] {
        let file = HfNames::new(block_on(GgufFile::open(file)).unwrap()).unwrap();
        let names: Vec<&str> = file.tensors().iter().map(|t| t.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "vision_model.embeddings.class_embedding",
                "vision_model.encoder.layers.0.layer_norm1.weight",
                "vision_model.encoder.layers.0.mlp.fc1.weight",
                "vision_model.encoder.layers.0.mlp.fc1.bias",
                "vision_model.encoder.layers.0.mlp.fc2.weight",
                "mm.0.weight",
            ]
        );
        assert_eq!(fetch(&file, "vision_model.encoder.layers.0.mlp.fc1.weight").shape, [3, 2]);
        assert_eq!(values(&file, "vision_model.encoder.layers.0.mlp.fc2.weight"), [2.0; 6]);
        assert!(matches!(block_on(file.fetch("v.class_embd")), Err(Error::MissingTensor(_))));
    }
}

#[test]
fn two_tensors_of_one_name_are_refused() {
    let mut writer = GgufWriter::new();
    writer.tensor("token_embd.weight", dense(&[1], &[0.0])).unwrap();
    writer.tensor("model.embed_tokens.weight", dense(&[1], &[0.0])).unwrap();
    let file = block_on(GgufFile::open(writer.to_bytes().unwrap())).unwrap();
    assert!(HfNames::new(file).unwrap_err().to_string().contains("`model.embed_tokens.weight` but found two"));
}

// --- safetensors --------------------------------------------------------------------------------------------------

fn safetensors(path: &str) -> SafetensorsFile<Vec<u8>> {
    block_on(SafetensorsFile::open(bytes(path))).unwrap()
}

#[test]
fn floats_are_fetched_and_integers_listed() {
    let file = safetensors("golden/weights/single.safetensors");
    assert_eq!(fetch(&file, "a"), dense(&[2, 3], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]));
    assert_eq!(values(&file, "b.half"), [0.0, 1.0, 2.0, 3.0]);
    assert_eq!(file.tensors().len(), 2);
    let skipped = &file.header().skipped;
    assert_eq!((skipped[0].name.as_str(), skipped[0].dtype.as_str(), skipped[0].bytes), ("position_ids", "I64", 40));
    assert!(matches!(block_on(file.fetch("position_ids")), Err(Error::MissingTensor(_))));
    assert_eq!((file.metadata("note"), file.metadata("absent")), (Some("ünï"), None));
}

#[test]
fn rewriting_a_safetensors_gives_its_bytes() {
    let path = "golden/weights/shard-1.safetensors";
    let file = safetensors(path);
    let tensors = file.tensors().iter().map(|t| (t.name.clone(), fetch(&file, &t.name))).collect();
    let mut out = Vec::new();
    write_safetensors(&tensors, &BTreeMap::new(), &mut out).unwrap();
    assert_eq!(out, bytes(path));
}

#[test]
fn writer_takes_floats_only() {
    let block = RawTensor { shape: vec![32], dtype: Dtype::Q8_0, bytes: vec![0; 34] };
    let tensors = BTreeMap::from([("q".to_string(), block)]);
    assert!(write_safetensors(&tensors, &BTreeMap::new(), &mut Vec::new()).unwrap_err().to_string().contains("Q8_0"));
}

fn open_shards(index: &[u8]) -> Result<ShardedSafetensors<Vec<u8>>> {
    block_on(ShardedSafetensors::open(&ShardIndex::parse(index)?, async |name: &str| {
        Ok(bytes(&format!("golden/weights/{name}")))
    }))
}

#[test]
fn shards_are_one_source() {
    let file = open_shards(&bytes("golden/weights/model.safetensors.index.json")).unwrap();
    let names: Vec<&str> = file.tensors().iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["w", "x", "y"]);
    assert_eq!(values(&file, "w"), [10.0, 11.0, 12.0, 13.0]);
    assert_eq!(values(&file, "y"), [20.0, 21.0, 22.0, 23.0]);
    assert_eq!(file.skipped()[0].name, "ids");
}

#[test]
fn index_and_shards_must_agree() {
    let index = String::from_utf8(bytes("golden/weights/model.safetensors.index.json")).unwrap();
    let failure = |from: &str, to: &str| {
        let broken = index.replacen(from, to, 1);
        assert_ne!(broken, index);
        open_shards(broken.as_bytes()).unwrap_err().to_string()
    };
    assert_eq!(
        failure(r#""x": "shard-1"#, r#""x": "shard-2"#),
        "shard-1.safetensors: expected the index to place `x` here but found it elsewhere"
    );
    assert!(failure(r#""x":"#, r#""z": "shard-1.safetensors", "x":"#).contains("`z`"));
    assert!(failure(r#""x":"#, r#""w":"#).contains("`w` twice"));
    assert!(failure("shard-2.safetensors", "../shard-2.safetensors").contains("plain file name"));
}

// --- inspection ---------------------------------------------------------------------------------------------------

#[test]
fn inspection_shows_what_is_there() {
    let page = inspect_gguf(&gguf("golden/weights/metadata.gguf")).unwrap();
    assert_eq!((page.kind.as_str(), page.parameters, page.bytes), ("GGUF v3", 153, 564));
    let json = serde_json::to_value(&page).unwrap();
    assert_eq!(json["metadata"]["max.u64"], u64::MAX);
    assert_eq!(json["metadata"]["pi.f32"].to_string(), std::f32::consts::PI.to_string());
    assert_eq!(json["metadata"]["array.nested"], serde_json::json!([[1, 2], [3]]));
    let two = serde_json::json!({"name": "two", "shape": [2, 3], "type": "F32", "bytes": 24});
    assert_eq!(json["tensors"][1], two);
    let text = page.to_string();
    assert!(text.starts_with("GGUF v3: 4 tensors, 153 parameters, 564 B\n"), "{text}");
    assert!(text.contains("array.i32             [-1,0,2147483647]\n"), "{text}");

    let page = inspect_safetensors(&safetensors("golden/weights/single.safetensors")).unwrap();
    assert_eq!(page.metadata["note"], "ünï");
    assert_eq!(page.tensors.last().map(|t| (t.name.as_str(), t.dtype.as_str())), Some(("position_ids", "I64")));
}

#[test]
fn inspection_shortens_arrays_and_escapes_control_characters() {
    let mut writer = GgufWriter::new();
    writer.metadata("tokens", (0..1000u32).collect::<Vec<_>>()).unwrap();
    writer.metadata("evil", "\u{1b}[2J\n").unwrap();
    let page = inspect_gguf(&block_on(GgufFile::open(writer.to_bytes().unwrap())).unwrap()).unwrap();
    assert_eq!(page.metadata["tokens"], serde_json::json!({"count": 1000, "first": [0, 1, 2, 3, 4, 5]}));
    let text = page.to_string();
    assert!(text.contains("tokens  [0, 1, 2, 3, 4, 5, ... 1000 in all]\n"), "{text}");
    assert!(text.contains("evil    \\u{1b}[2J\\n\n"), "{text}");
}

#[test]
fn metadata_can_be_built_and_asked() {
    let mut m = Metadata::new();
    m.insert("llama.block_count", 4u32).unwrap();
    assert_eq!(m.get::<usize>("llama.block_count").unwrap(), 4);
    assert_eq!(m.find::<f32>("llama.rope.freq_base").unwrap(), None);
}
