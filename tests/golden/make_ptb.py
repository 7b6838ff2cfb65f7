"""Makes ptb/tokens.txt from ptb/strings.txt, line by line, with the tokeniser of pycocoevalcap 1.2.
Needs Java and a UTF-8 locale: Java reads the strings in the locale's encoding.

    pip install pycocoevalcap==1.2
    python make_ptb.py
"""

import pathlib

from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

folder = pathlib.Path(__file__).parent / "ptb"
strings = (folder / "strings.txt").read_text(encoding="utf-8").splitlines()
tokens = PTBTokenizer().tokenize({i: [{"caption": string}] for i, string in enumerate(strings)})
lines = [tokens[i][0] for i in range(len(strings))]
(folder / "tokens.txt").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
