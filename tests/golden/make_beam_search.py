"""Golden files of beam search: Hugging Face's `generate` on Markov chains.

    python tests/golden/make_beam_search.py

Writes tests/golden/sampling/beam_search.json. Made with Python 3.11, transformers 5.23.0, torch 2; seed 11.
"""

import json
from pathlib import Path

import torch
from transformers import GenerationConfig, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

torch.set_num_threads(1)
EOS, BOS = 0, 1
# Beams, length penalty, most new tokens.
CASES = [(1, 1.0, 8), (2, 1.0, 8), (3, 0.0, 8), (3, 1.0, 12), (4, 2.0, 6), (5, 0.5, 16), (3, -1.0, 8)]


class MarkovConfig(PretrainedConfig):
    model_type = "markov"

    def __init__(self, vocab_size=7, **kwargs):
        super().__init__(**kwargs)
        self.vocab_size = vocab_size
        self.num_hidden_layers = 1


class Markov(PreTrainedModel, GenerationMixin):
    """What follows depends on the last token alone."""

    config_class = MarkovConfig

    def __init__(self, config):
        super().__init__(config)
        self.table = torch.nn.Parameter(torch.zeros(config.vocab_size, config.vocab_size))
        self.post_init()

    def _init_weights(self, module):
        pass

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, **kwargs):
        return {"input_ids": input_ids}

    def forward(self, input_ids, attention_mask=None, **kwargs):
        return CausalLMOutput(logits=self.table[input_ids])


def main():
    generator = torch.Generator().manual_seed(11)
    cases = []
    for chain in range(8):
        model = Markov(MarkovConfig(vocab_size=7))
        # Short binary fractions are exact in f32 and in JSON; the finer ones keep ties away.
        table = (torch.randn(7, 7, generator=generator) * 6).round() / 4
        table += torch.randint(1, 1024, (7, 7), generator=generator) / 8192
        model.table.data = table
        for beams, penalty, tokens in CASES:
            out = model.generate(
                torch.tensor([[BOS]]),
                attention_mask=torch.ones(1, 1, dtype=torch.long),
                generation_config=GenerationConfig(
                    num_beams=beams, length_penalty=penalty, max_new_tokens=tokens, eos_token_id=EOS, pad_token_id=EOS,
                    early_stopping=False, use_cache=False, do_sample=False,
                    return_dict_in_generate=True, output_scores=True,
                ),
            )
            ids = out.sequences[0, 1:].tolist()
            ended = EOS in ids
            case = {
                "chain": chain, "beams": beams, "length_penalty": penalty, "max_tokens": tokens,
                "tokens": ids[: ids.index(EOS)] if ended else ids, "ended": ended,
            }
            if beams > 1:
                case["score"] = float(out.sequences_scores[0])
            cases.append(case)
        cases[-1]["table"] = table.tolist()
    here = Path(__file__).parent / "sampling"
    here.mkdir(exist_ok=True)
    (here / "beam_search.json").write_text(json.dumps(cases) + "\n")
    print(sum(c["ended"] for c in cases), "of", len(cases), "ended")


if __name__ == "__main__":
    main()
