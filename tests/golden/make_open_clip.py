"""Golden files of OpenCLIP's checkpoints: tiny random models of OpenCLIP's own class, and what they embed.

    python tests/golden/make_open_clip.py      # versions and seed: see README.md in this folder

open_clip/: open_clip_config.json (quick_gelu, heads 8 wide) and one model twice, as safetensors and as a `.pt` of the
state dict, as RemoteCLIP publishes its weights.
open_clip/training/checkpoint.pt: a model of half precision as open_clip's training script saves it, under `module.` and beside an
optimiser, without a configuration: heads are 64 wide, the activation is GELU.
open_clip/expected.safetensors: `<model>.pixels`, `<model>.image` and `<model>.text` (unit vectors), ids in the metadata.
"""

import json
from pathlib import Path

import torch
from open_clip.model import CLIP
from safetensors.torch import save_file

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
OUT = Path(__file__).parent / "open_clip"
SEED = 23


def build(config, generator):
    model = CLIP(**config).eval()
    for name, t in model.named_parameters():
        noise = torch.randn(t.shape, generator=generator)
        if name == "logit_scale":
            continue
        elif t.dim() == 1:
            t.data = 0.2 * noise + (1 if ".ln_" in name and name.endswith("weight") else 0)
        else:
            t.data = noise * (0.5 if "embedding" in name else 1.2 / t[0].numel() ** 0.5)
    return model


def embed(model, config, generator):
    """In f64, of the weights as they are stored."""
    size, length = config["vision_cfg"]["image_size"], config["text_cfg"]["context_length"]
    vocabulary = config["text_cfg"]["vocab_size"]
    pixels = torch.randn(3, 3, size, size, generator=generator)
    texts = [torch.randint(0, vocabulary - 2, (n,), generator=generator).tolist() for n in (2, length - 2, 1)]
    ids = [[vocabulary - 2] + text + [vocabulary - 1] for text in texts]
    padded = torch.tensor([row + [0] * (length - len(row)) for row in ids])
    model = model.double()
    with torch.no_grad():
        image = model.encode_image(pixels.double(), normalize=True)
        text = model.encode_text(padded, normalize=True)
    return ids, dict(pixels=pixels, image=image, text=text)


def main():
    generator = torch.Generator().manual_seed(SEED)
    (OUT / "training").mkdir(parents=True, exist_ok=True)
    plain = dict(
        embed_dim=12,
        quick_gelu=True,
        vision_cfg=dict(image_size=16, layers=2, width=16, head_width=8, patch_size=8, mlp_ratio=2.0),
        text_cfg=dict(context_length=8, vocab_size=30, width=24, heads=3, layers=1, mlp_ratio=2.0),
    )
    model = build(plain, generator)
    state = {name: t.contiguous() for name, t in model.state_dict().items()}
    preprocess = dict(mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25], interpolation="bicubic", resize_mode="shortest")
    config = dict(model_cfg=plain, preprocess_cfg=preprocess)
    (OUT / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(state, OUT / "open_clip_model.safetensors")
    torch.save(model.state_dict(), OUT / "plain.pt")
    ids, results = embed(model, plain, generator)
    metadata, expected = {"plain.ids": json.dumps(ids)}, {f"plain.{k}": v for k, v in results.items()}

    training = dict(
        embed_dim=20,
        vision_cfg=dict(image_size=12, layers=1, width=128, patch_size=4, mlp_ratio=0.5),
        text_cfg=dict(context_length=6, vocab_size=20, width=64, heads=1, layers=2, mlp_ratio=0.5),
    )
    model = build(training, generator).half()
    wrapped = {f"module.{name}": t for name, t in model.state_dict().items()}
    # An optimiser's state stands beside the weights; a small one, of one parameter.
    optimiser = torch.optim.AdamW([model.logit_scale])
    model.logit_scale.grad = torch.ones_like(model.logit_scale)
    stored = dict(epoch=3, name="tiny", state_dict=wrapped, optimizer=optimiser.state_dict())
    torch.save(stored, OUT / "training" / "checkpoint.pt")
    ids, results = embed(model, training, generator)
    metadata["training.ids"] = json.dumps(ids)
    expected |= {f"training.{k}": v for k, v in results.items()}

    expected = {name: t.float().contiguous() for name, t in expected.items()}
    assert all(torch.isfinite(t).all() for t in expected.values())
    save_file(expected, OUT / "expected.safetensors", metadata=metadata)
    for path in sorted(OUT.rglob("*")):
        if path.is_file():
            path.chmod(0o644)
            print(path.relative_to(OUT), path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
