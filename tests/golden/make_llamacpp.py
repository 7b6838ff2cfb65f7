"""Greedy texts of GGUF files that rscapret wrote, as llama.cpp continues them.

    python tests/golden/make_llamacpp.py [tiny] [demo]

Writes tests/golden/llamacpp/<name>.json. Versions: see README.md in this folder. `tiny.gguf` is made by
tests/tests/llamacpp.rs (it leaves a new one in target/tmp when the writer changed); the demo's is models/demo/llm.gguf.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
from llama_cpp import Llama

HERE = Path(__file__).parent
FILES = {"tiny": HERE / "llamacpp/tiny.gguf", "demo": HERE / "../../models/demo/llm.gguf"}
PROMPTS = ["There are many", "There is a river", "Several planes"]
TOKENS = 24
# Two nearest logits closer than this, by the spread of all: there rounding decides, and the text is cut.
MARGIN = 0.01


def greedy(llm, prompt):
    ids = [llm.token_bos()] + llm.tokenize(prompt.encode(), add_bos=False, special=False)
    llm.reset()
    read, out, margins = ids, [], []
    while len(out) < TOKENS:
        llm.eval(read)
        logits = np.array(llm.scores[llm.n_tokens - 1], dtype=np.float64)
        assert np.isfinite(logits).all()
        second, first = np.sort(logits)[-2:]
        margin = (first - second) / logits.std()
        best = int(logits.argmax())
        if margin < MARGIN:
            break
        margins.append(margin)
        out.append(best)
        if best == llm.token_eos():
            break
        read = [best]
    # To the end of the text, the token that ends it included, or far into it.
    assert len(out) >= 8, (prompt, out, margins)
    text = llm.detokenize(ids + out).decode(errors="replace")
    return {"prompt": prompt, "tokens": ids, "continuation": out, "text": text}, min(margins)


def make(name):
    file = FILES[name]
    llm = Llama(str(file), n_ctx=64, n_threads=1, n_threads_batch=1, logits_all=True, verbose=False)
    cases, margins = zip(*(greedy(llm, prompt) for prompt in PROMPTS))
    for case, margin in zip(cases, margins):
        print(name, f"margin {margin:.3f}", repr(case["text"]))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    text = json.dumps({"sha256": digest, "cases": cases}, indent=1, ensure_ascii=False)
    (HERE / "llamacpp" / f"{name}.json").write_text(text + "\n")


for name in sys.argv[1:] or [name for name, file in FILES.items() if file.exists()]:
    make(name)
