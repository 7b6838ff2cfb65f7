"""Golden files of the whole models: tiny random Llamas and CLIPs, as Hugging Face transformers computes them.

    python tests/golden/make_golden.py [NAME...]      # versions and seed: see README.md in this folder

Each tests/golden/models/<name> is a folder as `save_pretrained` writes it (config.json, model.safetensors), in two of them the
same weights as `torch.save` writes them (pytorch_model.bin), and
expected.safetensors: inputs that are floats, and all results, in f32. Token ids stand in its metadata as JSON.
"""

import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel, LlamaConfig, LlamaForCausalLM

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
OUT = Path(__file__).parent / "models"
SEED = 20
PREFIX = 3  # visual tokens

LLAMA = dict(hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, vocab_size=61,
             max_position_embeddings=64, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2)
LLAMAS = {
    # Multi-head, its own head, weights in f32.
    "llama-multi-head": dict(num_key_value_heads=4, tie_word_embeddings=False),
    # Grouped queries, heads wider than hidden_size / heads, tied, weights in bf16 as models are published.
    "llama-grouped-tied": dict(num_key_value_heads=2, head_dim=12, tie_word_embeddings=True,
                               rope_parameters=dict(rope_type="default", rope_theta=500.0)),
    # Llama 3's rope: a first context so short that frequencies are kept, blended and divided.
    "llama-rope3": dict(num_attention_heads=2, num_key_value_heads=1, head_dim=16, tie_word_embeddings=False,
                        rope_parameters=dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0,
                                             high_freq_factor=4.0, original_max_position_embeddings=48)),
}

VISION = dict(hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3, image_size=24,
              patch_size=8)
TEXT = dict(hidden_size=16, intermediate_size=28, num_hidden_layers=2, num_attention_heads=2, vocab_size=50,
            max_position_embeddings=12)
CLIPS = {
    # As OpenAI published: quick_gelu, and an end of text "2" that means the largest id.
    "clip-quick-gelu": (dict(hidden_act="quick_gelu"), dict(eos_token_id=2)),
    # Exact gelu, and an end of text that is not the largest id.
    "clip-gelu": (dict(hidden_act="gelu"), dict(eos_token_id=40)),
    # Four patches a side, so that squares of several can be averaged, and a layer between the second-to-last and the first.
    "clip-patches": (dict(hidden_act="quick_gelu", image_size=32, num_hidden_layers=3), dict(eos_token_id=2)),
}
GRIDS = (1, 2, 4)  # of clip-patches


def randomize(model, generator):
    """Scales at which every layer matters: the library's own initial values are nearly a linear model."""
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if name.endswith("logit_scale"):
            continue
        elif p.dim() == 1 and name.endswith("weight"):
            p.data = 1 + 0.3 * noise
        elif p.dim() == 1:
            p.data = 0.3 * noise
        elif "embed" in name and "patch" not in name:
            p.data = noise
        else:
            p.data = noise * 1.5 / p[0].numel() ** 0.5


def save(folder, tensors, **ids):
    spread = {name: t.std().item() for name, t in tensors.items()}
    assert all(torch.isfinite(t).all() for t in tensors.values()) and min(spread.values()) > 0.1, spread
    tensors = {name: t.detach().float().contiguous() for name, t in tensors.items()}
    save_file(tensors, folder / "expected.safetensors", metadata={k: json.dumps(v) for k, v in ids.items()})
    (folder / "generation_config.json").unlink(missing_ok=True)
    for file in folder.iterdir():
        file.chmod(0o644)
    print(folder.name, sum(f.stat().st_size for f in folder.iterdir()), "bytes")


def save_old(model, folder):
    """As transformers saved until 4.31: by PyTorch, with the list of positions."""
    state = model.state_dict()
    if isinstance(model, CLIPModel):
        state["text_model.embeddings.position_ids"] = torch.arange(TEXT["max_position_embeddings"])[None]
    torch.save(state, folder / "pytorch_model.bin")


def llama(name, changes):
    generator = torch.Generator().manual_seed(SEED)
    config = LlamaConfig(**{**LLAMA, **changes}, attn_implementation="eager")
    model = LlamaForCausalLM(config).eval()
    randomize(model, generator)
    stored = torch.bfloat16 if config.tie_word_embeddings else torch.float32
    for p in model.parameters():
        p.data = p.data.to(stored).float()
    ids = torch.randint(3, config.vocab_size, (2, 40), generator=generator)
    prefix = torch.randn(2, PREFIX, config.hidden_size, generator=generator)
    with torch.no_grad():
        plain = model(input_ids=ids, output_hidden_states=True)
        embeds = torch.cat([prefix, model.get_input_embeddings()(ids)], dim=1)
        prefixed = model(inputs_embeds=embeds, output_hidden_states=True)
    folder = OUT / name
    # After the forward, for this rounds the rotary frequencies, too.
    model.to(stored).save_pretrained(folder)
    if config.tie_word_embeddings:
        save_old(model, folder)
    # Logits are one matrix away from the hidden states: some positions suffice.
    some = slice(4, None, 5)
    save(folder, {"prefix": prefix, "hidden": plain.hidden_states[-1], "logits": plain.logits[:, some],
                  "prefixed.hidden": prefixed.hidden_states[-1], "prefixed.logits": prefixed.logits[:, some]},
         ids=ids.tolist())


def clip(name, vision, text):
    generator = torch.Generator().manual_seed(SEED)
    text_config = {**TEXT, "hidden_act": vision["hidden_act"], **text, "bos_token_id": 1}
    config = CLIPConfig(vision_config={**VISION, **vision}, text_config=text_config, projection_dim=20,
                        attn_implementation="eager")
    model = CLIPModel(config).eval()
    randomize(model, generator)
    folder = OUT / name
    model.save_pretrained(folder)
    if name == "clip-gelu":
        save_old(model, folder)
    side = config.vision_config.image_size
    pixels = torch.randn(3, 3, side, side, generator=generator)
    ids = []
    for length in (3, 6, 9, 12):
        words = torch.randint(3, 40, (length - 2,), generator=generator).tolist()
        if text["eos_token_id"] == 2:
            ids.append([48] + words + [49] * (13 - length))  # padded by the end of text, as CLIP does
        else:
            words[0] = 45  # larger than the end of text, before it
            ids.append([48] + words + [40] + [0] * (12 - length))
    with torch.no_grad():
        seen = model.vision_model(pixel_values=pixels)
        read = model.text_model(input_ids=torch.tensor(ids))
    ends = torch.tensor([row.index(49 if text["eos_token_id"] == 2 else 40) for row in ids])
    assert torch.equal(read.pooler_output, read.last_hidden_state[torch.arange(len(ids)), ends])
    if name == "clip-patches":
        patches(folder, model, pixels)
        return
    save(folder, {"pixels": pixels, "vision.pooler_output": seen.pooler_output,
                  "vision.last_hidden_state": seen.last_hidden_state, "text.pooler_output": read.pooler_output,
                  "text.last_hidden_state": read.last_hidden_state}, ids=ids)


def patches(folder, model, pixels):
    """What LLaVA takes of a tower, the hidden states of its second-to-last layer without the class token, averaged to grids."""
    side = pixels.shape[-1] // model.config.vision_config.patch_size
    with torch.no_grad():
        seen = model.vision_model(pixel_values=pixels, output_hidden_states=True)
    assert len(seen.hidden_states) == model.config.vision_config.num_hidden_layers + 1
    hidden = seen.hidden_states[-2][:, 1:].transpose(1, 2).unflatten(2, (side, side))
    averaged = {f"vision.patches.{grid}": F.avg_pool2d(hidden, side // grid).flatten(2).transpose(1, 2) for grid in GRIDS}
    save(folder, {"pixels": pixels, "vision.pooler_output": seen.pooler_output, **averaged})


def main():
    chosen = lambda name: len(sys.argv) == 1 or name in sys.argv[1:]
    for name, changes in LLAMAS.items():
        if chosen(name):
            llama(name, changes)
    for name, (vision, text) in CLIPS.items():
        if chosen(name):
            clip(name, vision, text)


if __name__ == "__main__":
    main()
