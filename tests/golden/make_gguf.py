"""Makes golden/weights: GGUF and safetensors files as the reference packages write them.

    python make_gguf.py        # gguf 0.19.0, numpy 2.4.6, safetensors 0.8.0; seed 0

quants.gguf      for every type T that the library reads: tensor `T` (random blocks) and `T.f32` (what
                 gguf.quants.dequantize makes of it); `source` and, for types that the library writes, `T.of_source`
metadata.gguf    metadata of every type, arrays and nested arrays; tensors of 1 to 4 dimensions
v2.gguf          the same header layout as version 2, aligned to 64
single.safetensors, shard-*.safetensors, model.safetensors.index.json: floats, integers, metadata, two shards
"""

import json
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T
from safetensors.numpy import save_file

OUT = Path(__file__).parent / "weights"
TYPES = [T.F16, T.BF16, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0, T.Q2_K, T.Q3_K, T.Q4_K, T.Q5_K, T.Q6_K]
# Bytes at which each block holds its scales in half precision.
SCALES = {T.F16: [0], T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0], T.Q2_K: [80, 82],
          T.Q3_K: [108], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208]}
ROWS = 2

rng = np.random.default_rng(0)


def random_blocks(kind):
    size, width = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (ROWS * max(512 // size, 1), width), dtype=np.uint8)
    # Any finite scale; infinities and NaNs have no defined product.
    for at in SCALES.get(kind, []):
        scale = blocks[:, at : at + 2].copy().view(np.uint16)
        scale[(scale & 0x7C00) == 0x7C00] &= 0xBFFF
        blocks[:, at : at + 2] = scale.view(np.uint8)
    if kind == T.BF16:
        bits = blocks.view(np.uint16)
        bits[(bits & 0x7F80) == 0x7F80] &= 0xBFFF
    return blocks.reshape(ROWS, -1)


def writer(name, arch="test"):
    return gguf.GGUFWriter(OUT / name, arch)


def finish(w):
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def quants():
    w = writer("quants.gguf")
    for kind in TYPES:
        blocks = random_blocks(kind)
        w.add_tensor(kind.name, blocks, raw_dtype=kind)
        values = gguf.quants.dequantize(blocks, kind).astype(np.float32).reshape(ROWS, -1)
        assert np.isfinite(values).all(), kind
        w.add_tensor(kind.name + ".f32", values)
    source = rng.standard_normal((8, 64)).astype(np.float32) * np.float32(10.0) ** np.arange(-4, 4).reshape(8, 1)
    source = source.astype(np.float32)
    source[0, :32] = 0  # a block without extent
    source[1, 3], source[1, 9] = -7.5, 7.5  # equal magnitudes: the first decides Q4_0's sign
    source[2, :32] = np.arange(32, dtype=np.float32) * 8 - 127  # 127 is the extreme, steps of 1: ties are exact
    source[2, 0:4] = [127, 0.5, -0.5, 2.5]
    w.add_tensor("source", source)
    for kind in [T.F16, T.BF16, T.Q8_0, T.Q4_0]:
        packed = gguf.quants.quantize(source, kind)
        if kind == T.F16:
            packed = packed.view(np.uint8)
        w.add_tensor(kind.name + ".of_source", packed, raw_dtype=kind)
    finish(w)


def add_all_metadata(w):
    for bits in (8, 16, 32, 64):
        getattr(w, f"add_uint{bits}")(f"max.u{bits}", 2**bits - 1)
        getattr(w, f"add_int{bits}")(f"min.i{bits}", -(2 ** (bits - 1)))
    w.add_float32("pi.f32", 3.1415927)
    w.add_float64("pi.f64", 3.141592653589793)
    w.add_bool("yes", True)
    w.add_bool("no", False)
    w.add_string("text", "Grüße, 世界 🌍")
    w.add_array("array.strings", ["", "a", "▁the"])
    w.add_array("array.i32", [-1, 0, 2**31 - 1])
    w.add_array("array.f32", [0.5, -1.5])
    w.add_array("array.bool", [True, False, True])
    w.add_key_value("array.u8", bytes([0, 127, 255]), gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT8)
    w.add_key_value("array.nested", [[1, 2], [3]], gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.ARRAY)


def metadata():
    w = writer("metadata.gguf")
    add_all_metadata(w)
    w.add_tensor("one", np.arange(3, dtype=np.float32))
    w.add_tensor("two", np.arange(6, dtype=np.float32).reshape(2, 3))
    w.add_tensor("three", np.arange(24, dtype=np.float16).reshape(2, 3, 4))
    w.add_tensor("four", np.arange(120, dtype=np.float32).reshape(2, 3, 4, 5))
    finish(w)

    w = writer("v2.gguf")
    w.add_custom_alignment(64)
    add_all_metadata(w)
    w.add_tensor("one", np.arange(3, dtype=np.float32))
    w.add_tensor("two", np.arange(6, dtype=np.float32).reshape(2, 3))
    finish(w)
    # Version 3 added big-endian files and changed nothing else; no writer of version 2 is left.
    path = OUT / "v2.gguf"
    data = bytearray(path.read_bytes())
    assert data[4:8] == b"\x03\0\0\0"
    data[4] = 2
    path.write_bytes(data)


def safetensors():
    arange = lambda *shape: np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    save_file({"a": arange(2, 3), "b.half": arange(4).astype(np.float16), "position_ids": np.arange(5).reshape(1, 5)},
              OUT / "single.safetensors", metadata={"note": "ünï"})
    save_file({"x": arange(3), "w": arange(2, 2) + 10}, OUT / "shard-1.safetensors")
    save_file({"y": arange(1, 4) + 20, "ids": np.arange(2)}, OUT / "shard-2.safetensors")
    index = {"metadata": {"total_size": 60}, "weight_map": {"x": "shard-1.safetensors", "w": "shard-1.safetensors",
             "y": "shard-2.safetensors", "ids": "shard-2.safetensors"}}
    (OUT / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


OUT.mkdir(exist_ok=True)
quants()
metadata()
safetensors()
