"""One Llama of made-up weights, twice: as GGUF (Q4_0) for rscapret and wllama, as ONNX (MatMulNBits) for onnxruntime-web.

    pip install numpy gguf onnx
    python tests/golden/make_compared.py 110M target/compare/models        # or 1.1B

Writes 110M.gguf and 110M.onnx there, for `cargo xtask bench compare`. Both hold the same numbers: blocks of 32 weights in 4 bits with one scale, the
matrices of the layers and of the head; the embeddings' table is quantised in the GGUF and f32 in the ONNX graph, which
reads one row of it a token. The graph is what Microsoft's model builder makes for a Llama: GroupQueryAttention with its
rotation, SkipSimplifiedLayerNormalization, keys and values as inputs and outputs.
"""

import sys
from pathlib import Path

import gguf
import numpy as np
import onnx
from onnx import TensorProto, helper

# Width, width of the MLPs, layers, heads, key/value heads; vocabulary and context are those of LLaMA-2.
SHAPES = {"110M": (768, 2048, 12, 12, 12), "1.1B": (2048, 5632, 22, 32, 4)}
VOCABULARY, CONTEXT = 32_000, 2048
BLOCK = 32
EPS, THETA = 1e-5, 10_000.0


class Quantised:
    """A matrix (out, in) of random 4-bit blocks: quants 0..15 that stand for -8..7, and f16 scales."""

    def __init__(self, rng, rows, columns):
        self.rows, self.columns = rows, columns
        self.quants = rng.integers(0, 16, (rows, columns // BLOCK, BLOCK), dtype=np.uint8)
        self.scales = np.full((rows, columns // BLOCK), columns**-0.5 / 4.64, np.float16)

    def gguf(self):
        """ggml's block_q4_0: the scale, then byte i holds elements i (low) and i + 16 (high)."""
        packed = self.quants[..., :16] | self.quants[..., 16:] << 4
        scales = self.scales[..., None].view(np.uint8)
        return np.concatenate([scales, packed], axis=-1).reshape(self.rows, -1)

    def onnx(self):
        """MatMulNBits: byte i holds elements 2i (low) and 2i + 1 (high); 8 is zero unless told otherwise."""
        return self.quants[..., 0::2] | self.quants[..., 1::2] << 4, self.scales.astype(np.float32)

    def values(self):
        return ((self.quants.astype(np.float32) - 8) * self.scales[..., None].astype(np.float32)).reshape(self.rows, -1)


def permuted(matrix, heads):
    """Rows of q and k from the halves that ONNX rotates to the neighbours that llama.cpp rotates."""
    size = matrix.rows // heads
    order = np.arange(matrix.rows).reshape(heads, 2, size // 2).swapaxes(1, 2).reshape(-1)
    other = object.__new__(Quantised)
    other.rows, other.columns = matrix.rows, matrix.columns
    other.quants, other.scales = matrix.quants[order], matrix.scales[order]
    return other


def matrices(shape, rng):
    width, inner, layers, heads, groups = shape
    size = width // heads
    made = {"embed": Quantised(rng, VOCABULARY, width), "head": Quantised(rng, VOCABULARY, width)}
    for i in range(layers):
        for name, rows, columns in [
            ("q", width, width),
            ("k", groups * size, width),
            ("v", groups * size, width),
            ("o", width, width),
            ("gate", inner, width),
            ("up", inner, width),
            ("down", width, inner),
        ]:
            made[f"{name}.{i}"] = Quantised(rng, rows, columns)
    return made


def write_gguf(path, shape, made):
    width, inner, layers, heads, groups = shape
    out = gguf.GGUFWriter(path, "llama")
    out.add_context_length(CONTEXT)
    out.add_embedding_length(width)
    out.add_block_count(layers)
    out.add_feed_forward_length(inner)
    out.add_head_count(heads)
    out.add_head_count_kv(groups)
    out.add_rope_dimension_count(width // heads)
    out.add_rope_freq_base(THETA)
    out.add_layer_norm_rms_eps(EPS)
    out.add_vocab_size(VOCABULARY)
    # A vocabulary in SentencePiece's way: the special ones, all bytes, then words of their number.
    out.add_tokenizer_model("llama")
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    types = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL] + [gguf.TokenType.BYTE] * 256
    count = VOCABULARY - len(tokens)
    tokens += [f"\u2581w{i}" for i in range(count)]
    out.add_token_list(tokens)
    out.add_token_scores([0.0] * 259 + [-float(i) for i in range(count)])
    out.add_token_types(types + [gguf.TokenType.NORMAL] * count)
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)

    def matrix(name, quantised):
        out.add_tensor(name, quantised.gguf(), raw_dtype=gguf.GGMLQuantizationType.Q4_0)

    ones = np.ones(width, np.float32)
    matrix("token_embd.weight", made["embed"])
    matrix("output.weight", made["head"])
    out.add_tensor("output_norm.weight", ones)
    for i in range(layers):
        out.add_tensor(f"blk.{i}.attn_norm.weight", ones)
        out.add_tensor(f"blk.{i}.ffn_norm.weight", ones)
        matrix(f"blk.{i}.attn_q.weight", permuted(made[f"q.{i}"], heads))
        matrix(f"blk.{i}.attn_k.weight", permuted(made[f"k.{i}"], groups))
        for ours, theirs in [
            ("v", "attn_v"),
            ("o", "attn_output"),
            ("gate", "ffn_gate"),
            ("up", "ffn_up"),
            ("down", "ffn_down"),
        ]:
            matrix(f"blk.{i}.{theirs}.weight", made[f"{ours}.{i}"])
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def write_onnx(path, shape, made):
    width, inner, layers, heads, groups = shape
    size = width // heads
    nodes, constants = [], []

    def constant(name, values):
        constants.append(onnx.numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def product(x, name):
        matrix = made[name]
        quants, scales = matrix.onnx()
        nodes.append(
            helper.make_node(
                "MatMulNBits",
                [x, constant(f"{name}.quants", quants), constant(f"{name}.scales", scales.reshape(-1))],
                [f"{name}.y"],
                domain="com.microsoft",
                K=matrix.columns,
                N=matrix.rows,
                bits=4,
                block_size=BLOCK,
            )
        )
        return f"{name}.y"

    norm = constant("norm", np.ones(width, np.float32))
    angles = np.arange(CONTEXT)[:, None] * THETA ** (-np.arange(0, size, 2) / size)[None]
    cos = constant("cos", np.cos(angles).astype(np.float32))
    sin = constant("sin", np.sin(angles).astype(np.float32))
    nodes.append(helper.make_node("Gather", [constant("table", made["embed"].values()), "input_ids"], ["x"]))
    nodes.append(helper.make_node("SimplifiedLayerNormalization", ["x", norm], ["h"], axis=-1, epsilon=EPS))
    x, h = "x", "h"

    def added(step, y):
        """x + y, and its norm."""
        nonlocal x, h
        outputs = [f"{step}.h", "", "", f"{step}.x"]
        nodes.append(
            helper.make_node(
                "SkipSimplifiedLayerNormalization", [x, y, norm], outputs, domain="com.microsoft", epsilon=EPS
            )
        )
        x, h = outputs[3], outputs[0]

    inputs = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, "tokens"]),
        helper.make_tensor_value_info("seqlens_k", TensorProto.INT32, [1]),
        helper.make_tensor_value_info("total", TensorProto.INT32, []),
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, "tokens", VOCABULARY])]
    for i in range(layers):
        q, k, v = (product(h, f"{name}.{i}") for name in "qkv")
        cache = {}
        for kind in ["key", "value"]:
            past, present = f"past.{i}.{kind}", f"present.{i}.{kind}"
            inputs.append(helper.make_tensor_value_info(past, TensorProto.FLOAT, [1, groups, "past", size]))
            outputs.append(helper.make_tensor_value_info(present, TensorProto.FLOAT, [1, groups, "all", size]))
            cache[kind] = (past, present)
        nodes.append(
            helper.make_node(
                "GroupQueryAttention",
                [q, k, v, cache["key"][0], cache["value"][0], "seqlens_k", "total", cos, sin],
                [f"attention.{i}", cache["key"][1], cache["value"][1]],
                domain="com.microsoft",
                num_heads=heads,
                kv_num_heads=groups,
                do_rotary=1,
                rotary_interleaved=0,
            )
        )
        added(f"attended.{i}", product(f"attention.{i}", f"o.{i}"))
        gate, up = product(h, f"gate.{i}"), product(h, f"up.{i}")
        nodes.append(helper.make_node("Sigmoid", [gate], [f"sigmoid.{i}"]))
        nodes.append(helper.make_node("Mul", [gate, f"sigmoid.{i}"], [f"silu.{i}"]))
        nodes.append(helper.make_node("Mul", [f"silu.{i}", up], [f"inner.{i}"]))
        added(f"mlp.{i}", product(f"inner.{i}", f"down.{i}"))
    # The head sees the last token alone, as a decoder needs it.
    nodes.append(
        helper.make_node("Gather", [h, constant("last", np.array([-1], np.int64))], ["end"], axis=1)
    )
    nodes.append(helper.make_node("Identity", [product("end", "head")], ["logits"]))
    outputs[0] = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 1, VOCABULARY])
    graph = helper.make_graph(nodes, "llama", inputs, outputs, constants)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)], ir_version=10
    )
    onnx.save(model, path)


def main():
    name, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    made = matrices(SHAPES[name], np.random.default_rng(1))
    write_gguf(folder / f"{name}.gguf", SHAPES[name], made)
    write_onnx(folder / f"{name}.onnx", SHAPES[name], made)


if __name__ == "__main__":
    main()
