"""One step of RS-CapRet's training in PyTorch with transformers: the measure of `cargo xtask bench training/llama-7b-step`.

    pip install torch transformers
    python tests/golden/make_training_speed.py                      # LLaMA-2-7B's shapes in bf16, on the first GPU
    python tests/golden/make_training_speed.py '{"device": "cpu", "compute": "f32", "num_hidden_layers": 2, ...}'

The Llama is frozen, attention is PyTorch's (SDPA); the maps, [RET]'s row and the logit scale are f32 and trained by AdamW
(fused on a GPU). Weights, features and captions are hashes of names and places, the same that the benchmark computes with
(`tests/src/bench/llama_step/shape.rs`), so that the losses of all steps have to agree.

Prints rows like the benchmark's, one JSON object a line, and last what the benchmark reads: seconds a step, losses, peak.
"""

import json
import resource
import sys
import time

import torch
import torch.nn.functional as F
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

NAME = "training/llama-7b-step/pytorch"
SHAPE = dict(device="cuda", compute="bf16", hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
             num_attention_heads=32, vocab_size=32000, feature_size=1024, joint_size=256, visual_tokens=4, batch=64, tokens=40,
             micro_batch=None, steps=5)
WARM = 2
BOS, EOS = 1, 2


def seed(name):
    """FNV-1a."""
    value = 0x811C9DC5
    for byte in name.encode():
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return value


def mixed(x):
    """lowbias32 (Wellons, 2018) of 32-bit numbers in an int64 tensor."""
    x = (x ^ x >> 16) * 0x7FEB352D & 0xFFFFFFFF
    x = (x ^ x >> 15) * 0x846CA68B & 0xFFFFFFFF
    return x ^ x >> 16


def hashed(name, shape, spread, device):
    """Even between plus and minus sqrt 3, times `spread`; f32."""
    count = torch.Size(shape).numel()
    out = torch.empty(count, device=device)
    for start in range(0, count, 1 << 24):
        at = torch.arange(start, min(start + (1 << 24), count), device=device)
        scale = torch.tensor(3.0).sqrt().item() * spread
        out[start:start + len(at)] = ((mixed(at ^ seed(name)) >> 8).float() / (1 << 23) - 1.0) * scale
    return out.view(shape)


def frozen(s, dtype):
    config = LlamaConfig(hidden_size=s["hidden_size"], intermediate_size=s["intermediate_size"],
                         num_hidden_layers=s["num_hidden_layers"], num_attention_heads=s["num_attention_heads"],
                         num_key_value_heads=s["num_attention_heads"], vocab_size=s["vocab_size"], rms_norm_eps=1e-5,
                         max_position_embeddings=4096, rope_theta=10000.0, attn_implementation="sdpa", use_cache=False)
    torch.set_default_dtype(dtype)
    with torch.device(s["device"]), transformers.initialization.no_init_weights():
        llama = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for name, weight in llama.named_parameters():
            if weight.dim() == 2:
                weight.copy_(hashed(name, weight.shape, weight.shape[1] ** -0.5, s["device"]))
            else:
                weight.fill_(1.0)
    return llama.eval().requires_grad_(False)


def main():
    s = SHAPE | (json.loads(sys.argv[1]) if len(sys.argv) > 1 else {})
    device, dtype = s["device"], dict(bf16=torch.bfloat16, f32=torch.float32)[s["compute"]]
    llama = frozen(s, dtype)
    embed, (c, d, j, k) = llama.get_input_embeddings(), (s[n] for n in ("feature_size", "hidden_size", "joint_size", "visual_tokens"))
    shapes = {"caption.weight": (k * d, c), "caption.bias": (k * d,), "image.weight": (j, c), "image.bias": (j,),
              "text.weight": (j, d), "text.bias": (j,), "ret_embedding": (d,)}
    p = {name: torch.zeros(shape, device=device) if name.endswith("bias") else
         hashed(name, shape, shape[-1] ** -0.5, device) for name, shape in shapes.items()}
    p["logit_scale"] = torch.tensor([1 / 0.07], device=device).log()
    p = {name: t.requires_grad_() for name, t in p.items()}
    batch, tokens = s["batch"], s["tokens"]
    features = hashed("features", (batch, c), 1.0, device).to(dtype)
    ids = 3 + mixed(torch.arange(batch * tokens, device=device) ^ seed("ids")) % (s["vocab_size"] - 3)
    ids = torch.cat([torch.full((batch, 1), BOS, device=device), ids.view(batch, tokens)], 1)
    labels = torch.cat([ids[:, 1:], torch.full((batch, 1), EOS, device=device)], 1)
    linear = lambda x, name: F.linear(x, p[f"{name}.weight"].to(dtype), p[f"{name}.bias"].to(dtype))
    unit = lambda x: F.normalize(x.float(), dim=-1)

    def loss():
        words = embed(ids)
        # [k visual tokens][BOS text], the loss from BOS on.
        visual = linear(features, "caption").view(batch, k, d)
        hidden = llama.model(inputs_embeds=torch.cat([visual, words], 1)).last_hidden_state[:, k:]
        caption = F.cross_entropy(llama.lm_head(hidden).float().flatten(0, 1), labels.flatten())
        # [BOS text][RET], read at its end.
        asked = torch.cat([words, p["ret_embedding"].to(dtype).expand(batch, 1, d)], 1)
        text = unit(linear(llama.model(inputs_embeds=asked).last_hidden_state[:, -1], "text"))
        logits = p["logit_scale"].exp() * unit(linear(features, "image")) @ text.T
        own = torch.arange(batch, device=device)
        return caption + F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)

    optim = torch.optim.AdamW(list(p.values()), lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, fused=device == "cuda")
    losses, seconds = [], []
    for _ in range(WARM + s["steps"]):
        begun = time.perf_counter()
        optim.zero_grad()
        value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(list(p.values()), 1.0)
        optim.step()
        # What the other program logs at each step, too; it waits for the GPU.
        losses.append(value.item())
        p["logit_scale"].item()
        seconds.append(time.perf_counter() - begun)
    median = sorted(seconds[WARM:])[len(seconds[WARM:]) // 2]
    card = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    about = f"PyTorch {torch.__version__}, transformers {transformers.__version__}, SDPA, {card}"
    rows = [("", batch / median, "samples/s")]
    if device == "cuda":
        rows.append(("/allocated", torch.cuda.max_memory_allocated() / 2**20, "MiB"))
    for what, value, unit_of in rows:
        print(json.dumps(dict(name=NAME + what, value=value, unit=unit_of, note=about)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(dict(seconds=median, losses=losses, peak=peak, about=about)))


main()
