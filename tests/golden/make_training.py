"""Golden files of training: losses, every gradient, and the weights after five steps of AdamW, by PyTorch in f64.

    python tests/golden/make_training.py      # versions and seed: see README.md in this folder

training/bridge.safetensors: RS-CapRet's joint loss over the golden `llama-multi-head`, which stays frozen.
training/bridge-options.safetensors: the same start, trained with each option of `rscapret train`, and with all of them; names
begin with the option's.
training/bridge-patches.safetensors: the same start, whose captions see a grid of patches beside the class token.
training/clip/: a tiny CLIP as `save_pretrained` writes it; training/clip.safetensors: its contrastive loss.
training/captioned.safetensors: the same with a captioning loss beside it, through a map to the golden Llama.

In all: `features` or `pixels`, `before.*` (of what the model folders do not hold), `gradient.*` at the start, `after.*`, as f32. The metadata holds
the token ids, the settings and the losses of every step as JSON.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel, LlamaForCausalLM

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
torch.set_default_dtype(torch.float64)
HERE = Path(__file__).parent
OUT = HERE / "training"
SEED = 22
STEPS = 5


def save(path, tensors, metadata):
    tensors = {name: t.detach().float().contiguous() for name, t in tensors.items()}
    assert all(torch.isfinite(t).all() for t in tensors.values())
    save_file(tensors, path, metadata={k: json.dumps(v) for k, v in metadata.items()})
    path.chmod(0o644)
    print(path.name, path.stat().st_size, "bytes")


def contrast(image, text, scale, strings):
    """Both directions of InfoNCE. The other captions of the same string are no negatives."""
    logits = scale.exp() * image @ text.T
    n = len(strings)
    same = torch.tensor([[strings[i] == strings[j] and i != j for j in range(n)] for i in range(n)])
    logits = logits.masked_fill(same, float("-inf"))
    own = torch.arange(n)
    return F.cross_entropy(logits, own), F.cross_entropy(logits.T, own)


def adamw(parameters, settings):
    """Weight decay on matrices only, as is usual for CLIP."""
    matrices = [p for p in parameters if p.dim() > 1]
    others = [p for p in parameters if p.dim() <= 1]
    groups = [dict(params=matrices, weight_decay=settings["weight_decay"]), dict(params=others, weight_decay=0.0)]
    return torch.optim.AdamW(groups, lr=settings["lr"], betas=(settings["beta1"], settings["beta2"]), eps=settings["eps"])


class Bridge:
    """Everything that the options start from."""

    c, j, k = 10, 12, 2
    grid = 2  # of patches

    def __init__(self):
        self.llama = LlamaForCausalLM.from_pretrained(HERE / "models" / "llama-multi-head", attn_implementation="eager").double()
        self.llama.eval().requires_grad_(False)
        self.embed = self.llama.get_input_embeddings()
        c, d, j, k = self.c, self.llama.config.hidden_size, self.j, self.k
        generator = torch.Generator().manual_seed(SEED)
        draw = lambda *shape: torch.randn(*shape, generator=generator)
        shapes = {"caption.weight": (k * d, c), "caption.bias": (k * d,), "image.weight": (j, c), "image.bias": (j,),
                  "text.weight": (j, d), "text.bias": (j,), "ret_embedding": (d,)}
        p = {name: draw(*shape) * (0.4 if len(shape) > 1 else 0.2) for name, shape in shapes.items()}
        p["logit_scale"] = torch.tensor([1 / 0.07]).log()
        self.start = {name: t.float().double() for name, t in p.items()}
        self.features = draw(6, c).float().double()
        texts = [torch.randint(3, 61, (n,), generator=generator).tolist() for n in (4, 9, 1, 6)]
        # Two captions of one string, and one that only begins like it.
        self.texts = texts + [texts[1], texts[1][:5]]
        self.strings = [0, 1, 2, 3, 1, 4]
        self.ret_output = (draw(1, d) * 0.2).float().double()
        # Of another scale than the class token, as they are before the final norm.
        self.patches = (3 * draw(6, self.grid ** 2, c) - 1).float().double()

    def train(self, hidden_layer=None, rescale_ret=True, sequences=None, lambda_ret=0.0, prompt=(), label_smoothing=0.0,
              patches=False):
        """Gradients at the start, weights after the last step, settings and losses. `sequences` of examples are captioned as
        one; the hidden state is transformers' `hidden_states[hidden_layer]`."""
        llama, embed = self.llama, self.embed
        k = self.k * (self.grid ** 2 if patches else 1)
        captioned = self.patches.view(-1, self.c) if patches else self.features
        vocabulary, d = embed.weight.shape
        sequences = sequences or [[i] for i in range(len(self.texts))]
        settings = dict(lr=3e-3, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, clip=1.0, lambda_c=0.7, lambda_r=1.3, eos=2)
        options = dict(hidden_layer=hidden_layer, rescale_ret=rescale_ret, sequences=sequences, lambda_ret=lambda_ret,
                       prompt=list(prompt), label_smoothing=label_smoothing)
        start = dict(self.start)
        if lambda_ret:
            start["ret_output.weight"] = self.ret_output
        p = {name: t.clone().requires_grad_() for name, t in start.items()}
        norm = embed.weight.norm(dim=1).mean()

        def losses():
            image = F.normalize(self.features @ p["image.weight"].T + p["image.bias"], dim=-1)
            text, caption, ret, tokens = [], 0.0, 0.0, 0
            visual = (captioned @ p["caption.weight"].T + p["caption.bias"]).view(-1, k, d)
            for words in self.texts:
                asked = torch.cat([embed(torch.tensor([1] + words)), p["ret_embedding"][None]])
                out = llama(inputs_embeds=asked[None], output_hidden_states=True)
                hidden = out.hidden_states[-1 if hidden_layer is None else hidden_layer][0, -1]
                text.append(F.normalize(hidden @ p["text.weight"].T + p["text.bias"], dim=-1))
                if lambda_ret:
                    own = p["ret_output.weight"] @ out.hidden_states[-1][0, -2]
                    ret = ret + F.cross_entropy(torch.cat([out.logits[0, -2], own]), torch.tensor(vocabulary))
            for sequence in sequences:
                starts, parts, length = [], [], 0
                for i in sequence:
                    lead = [1] + list(prompt)
                    starts.append(length + k + len(lead) - 1)
                    parts += [visual[i], embed(torch.tensor(lead + self.texts[i]))]
                    length += k + len(lead) + len(self.texts[i])
                logits = llama(inputs_embeds=torch.cat(parts)[None]).logits[0]
                for i, start in zip(sequence, starts):
                    labels = torch.tensor(self.texts[i] + [settings["eos"]])
                    caption = caption + F.cross_entropy(logits[start:start + len(labels)], labels, reduction="sum",
                                                        label_smoothing=label_smoothing)
                    tokens += len(labels)
            i2t, t2i = contrast(image, torch.stack(text), p["logit_scale"], self.strings)
            return caption / tokens, i2t, t2i, ret / len(self.texts)

        optim = adamw(list(p.values()), settings)
        history, gradients = [], {}
        for step in range(STEPS):
            if rescale_ret:
                with torch.no_grad():
                    p["ret_embedding"] *= norm / p["ret_embedding"].norm()
            optim.zero_grad()
            caption, i2t, t2i, ret = losses()
            loss = settings["lambda_c"] * caption + settings["lambda_r"] * (i2t + t2i) + lambda_ret * ret
            loss.backward()
            if step == 0:
                gradients = {f"gradient.{name}": t.grad.clone() for name, t in p.items()}
            history.append(dict(loss=loss.item(), caption=caption.item(), contrast=(i2t + t2i).item() / 2))
            if lambda_ret:
                history[-1]["ret"] = ret.item()
            torch.nn.utils.clip_grad_norm_(list(p.values()), settings["clip"])
            optim.step()
        assert history[-1]["loss"] < history[0]["loss"], history
        return {**gradients, **{f"after.{name}": t for name, t in p.items()}}, settings, options, history


def bridge():
    start = Bridge()
    before = {f"before.{name}": t for name, t in start.start.items()}
    trained, settings, _, history = start.train()
    save(OUT / "bridge.safetensors", {"features": start.features, **before, **trained},
         dict(ids=[[1] + text for text in start.texts], strings=start.strings, settings=settings, history=history))

    options = {
        "hidden_layer": dict(hidden_layer=1),
        "rescale_ret": dict(rescale_ret=False),
        "concatenate": dict(sequences=[[0, 1], [2], [5, 3], [4]]),
        "lambda_ret": dict(lambda_ret=0.6),
        "prompt": dict(prompt=[3, 4, 5]),
        "label_smoothing": dict(label_smoothing=0.2),
    }
    options["all"] = {key: value for option in options.values() for key, value in option.items()}
    tensors, metadata = {"before.ret_output.weight": start.ret_output}, {}
    for name, option in options.items():
        trained, _, option, history = start.train(**option)
        tensors |= {f"{name}.{key}": t for key, t in trained.items()}
        metadata[name] = dict(options=option, history=history)
    save(OUT / "bridge-options.safetensors", tensors, metadata)

    trained, _, option, history = start.train(patches=True, sequences=[[0, 1], [2], [5, 3], [4]])
    features = torch.cat([start.features[:, None], start.patches], dim=1).flatten(1)
    trained = {f"patches.{key}": t for key, t in trained.items()}
    save(OUT / "bridge-patches.safetensors", {"features": features, **trained},
         dict(patches=dict(options=option | dict(patch_grid=start.grid), history=history)))


def clip():
    generator = torch.Generator().manual_seed(SEED)
    tower = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, hidden_act="quick_gelu")
    config = CLIPConfig(vision_config=dict(**tower, image_size=16, patch_size=8),
                        text_config=dict(**tower, vocab_size=30, max_position_embeddings=8, eos_token_id=29, bos_token_id=28),
                        projection_dim=12, attn_implementation="eager")
    model = CLIPModel(config).eval()
    for name, t in model.named_parameters():
        noise = torch.randn(t.shape, generator=generator)
        if name.endswith("logit_scale"):
            continue
        elif t.dim() == 1:
            t.data = 0.2 * noise + (1 if name.endswith("weight") else 0)
        else:
            t.data = noise * (0.5 if "embedding" in name else 1.2 / t[0].numel() ** 0.5)
        t.data = t.data.float().double()
    folder = OUT / "clip"
    # A copy, for saving in f32 must not round what is trained.
    stored = CLIPModel(config).float()
    stored.load_state_dict(model.state_dict())
    stored.float().save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    for file in folder.iterdir():
        file.chmod(0o644)
    pixels = torch.randn(6, 3, 16, 16, generator=generator).float().double()
    texts = [torch.randint(0, 28, (n,), generator=generator).tolist() for n in (3, 6, 1, 4)]
    texts += [texts[1], texts[1][:3]]
    ids = [[28] + text + [29] * (7 - len(text)) for text in texts]
    strings = [0, 1, 2, 3, 1, 4]
    settings = dict(lr=1e-3, beta1=0.9, beta2=0.98, eps=1e-6, weight_decay=0.2, clip=1.0)
    parameters = dict(model.named_parameters())
    optim = adamw(list(parameters.values()), settings)
    history, gradients, embeddings = [], {}, {}
    for step in range(STEPS):
        optim.zero_grad()
        seen = model(input_ids=torch.tensor(ids), pixel_values=pixels)
        i2t, t2i = contrast(seen.image_embeds, seen.text_embeds, model.logit_scale, strings)
        loss = (i2t + t2i) / 2
        loss.backward()
        if step == 0:
            embeddings = {"image_embeds": seen.image_embeds.clone(), "text_embeds": seen.text_embeds.clone()}
            gradients = {f"gradient.{name}": t.grad.clone() for name, t in parameters.items()}
        history.append(dict(loss=loss.item()))
        torch.nn.utils.clip_grad_norm_(list(parameters.values()), settings["clip"])
        optim.step()
    assert history[-1]["loss"] < history[0]["loss"], history
    after = {f"after.{name}": t for name, t in parameters.items()}
    save(OUT / "clip.safetensors", {"pixels": pixels, **embeddings, **gradients, **after},
         dict(ids=ids, strings=strings, settings=settings, history=history))


def captioned():
    """`pretrain-clip` with `[captioning]`: contrast + weight * caption, the language model frozen, its map trained."""
    llama = LlamaForCausalLM.from_pretrained(HERE / "models" / "llama-multi-head", attn_implementation="eager").double()
    llama.eval().requires_grad_(False)
    embed = llama.get_input_embeddings()
    model = CLIPModel.from_pretrained(OUT / "clip", attn_implementation="eager").double().eval()
    generator = torch.Generator().manual_seed(SEED + 1)
    c, d, k = model.config.vision_config.hidden_size, llama.config.hidden_size, 2
    draw = lambda *shape, size: (torch.randn(*shape, generator=generator) * size).float().double()
    head = {"caption_head.weight": draw(k * d, c, size=0.3), "caption_head.bias": draw(k * d, size=0.2)}
    before = {f"before.{name}": t.clone() for name, t in head.items()}
    pixels = torch.randn(4, 3, 16, 16, generator=generator).float().double()
    texts = [torch.randint(0, 28, (n,), generator=generator).tolist() for n in (3, 6, 1, 4)]
    ids = [[28] + text + [29] * (7 - len(text)) for text in texts]
    words = [torch.randint(3, 61, (n,), generator=generator).tolist() for n in (5, 2, 8, 4)]
    settings = dict(lr=1e-3, beta1=0.9, beta2=0.98, eps=1e-6, weight_decay=0.2, clip=1.0, weight=0.6, eos=2)
    parameters = dict(model.named_parameters()) | {name: t.requires_grad_() for name, t in head.items()}
    optim = adamw(list(parameters.values()), settings)
    history, gradients = [], {}
    for step in range(STEPS):
        optim.zero_grad()
        pooled = model.vision_model(pixel_values=pixels).pooler_output
        image = F.normalize(model.visual_projection(pooled), dim=-1)
        text = model.text_model(input_ids=torch.tensor(ids)).pooler_output
        text = F.normalize(model.text_projection(text), dim=-1)
        i2t, t2i = contrast(image, text, model.logit_scale, list(range(len(texts))))
        visual = (pooled @ head["caption_head.weight"].T + head["caption_head.bias"]).view(-1, k, d)
        caption, tokens = 0.0, 0
        for tokens_seen, own in zip(visual, words):
            logits = llama(inputs_embeds=torch.cat([tokens_seen, embed(torch.tensor([1] + own))])[None]).logits[0]
            labels = torch.tensor(own + [settings["eos"]])
            caption = caption + F.cross_entropy(logits[k:], labels, reduction="sum")
            tokens += len(labels)
        contrasted, caption = (i2t + t2i) / 2, caption / tokens
        loss = contrasted + settings["weight"] * caption
        loss.backward()
        if step == 0:
            gradients = {f"gradient.{name}": t.grad.clone() for name, t in parameters.items()}
        history.append(dict(loss=loss.item(), contrast=contrasted.item(), caption=caption.item()))
        torch.nn.utils.clip_grad_norm_(list(parameters.values()), settings["clip"])
        optim.step()
    assert all(history[-1][name] < history[0][name] for name in ("loss", "caption")), history
    after = {f"after.{name}": t for name, t in parameters.items()}
    save(OUT / "captioned.safetensors", {"pixels": pixels, **before, **gradients, **after},
         dict(ids=ids, words=words, settings=settings, history=history))


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    bridge()
    clip()
    captioned()
