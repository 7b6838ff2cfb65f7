"""rscapret, wllama and onnxruntime-web in headless Chromium on the same models: one table.

    npm install --prefix OUT @wllama/wllama onnxruntime-web
    python make_models.py 110M OUT/models
    cargo xtask bench nothing        # builds the workbench, target/bench-page
    python compare.py OUT [110M ...] [--tokens 128] [--steps 16] [--only rscapret/gpu ...] [--json FILE]

Every program gets one thread, a prompt of as many tokens, and then takes so many tokens greedily. The GPU is SwiftShader,
the processor playing one. rscapret and onnxruntime-web must choose the same tokens. Needs chromium and chromedriver;
talks to 127.0.0.1 only.
"""

import argparse
import http.server
import json
import subprocess
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

from make_models import SHAPES

HERE = Path(__file__).resolve().parent
WORKBENCH = HERE.parent.parent / "target/bench-page"
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
PATIENCE = 3000


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files of several folders, cross-origin isolated as the page is."""

    def translate_path(self, path):
        path = path.split("?")[0].lstrip("/") or "index.html"
        for prefix, folder in [
            ("workbench/", WORKBENCH),
            ("node_modules/", self.server.other / "node_modules"),
            ("models/", self.server.other / "models"),
            ("", HERE),
        ]:
            if path.startswith(prefix):
                rest = path[len(prefix) :]
                return str(folder / (rest or "index.html"))

    def end_headers(self):
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, *_):
        pass


class Browser:
    def __init__(self):
        self.profile = tempfile.TemporaryDirectory()
        self.driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True)
        port = next(line for line in self.driver.stdout if "successfully on port" in line).rstrip(".\n").rsplit(" ", 1)[1]
        self.base = f"http://127.0.0.1:{port}"
        arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--enable-unsafe-webgpu",
            "--use-webgpu-adapter=swiftshader",
            f"--user-data-dir={self.profile.name}",
        ]
        options = {"browserName": "chrome", "goog:chromeOptions": {"args": arguments}}
        session = self.call("POST", "/session", {"capabilities": {"alwaysMatch": options}})["sessionId"]
        self.base += f"/session/{session}"

    def call(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=600) as answer:
            return json.load(answer)["value"]

    def script(self, text):
        return self.call("POST", "/execute/sync", {"script": text, "args": []})

    def answer(self):
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            found = self.script("return window.answers.length && [window.answers.shift()]")
            if found:
                return found[0]
            time.sleep(0.2)
        raise TimeoutError("expected an answer but found none")

    def close(self):
        self.call("DELETE", "")
        self.driver.kill()
        self.driver.wait()


def measure(program, model, tokens, steps, folder, url):
    """Milliseconds of the prompt and of the tokens after it, and the ids where they are known."""
    width, _, layers, heads, groups = SHAPES[model]
    # The beginning of text, "▁" (3 bytes) and letters: each is one token of its byte.
    letters = "".join(chr(97 + i * 7 % 26) for i in range(tokens - 4))
    ids = [1] + [3 + byte for byte in ("\u2581" + letters).encode()]
    browser = Browser()
    try:
        if program.startswith("rscapret"):
            browser.call("POST", "/url", {"url": f"{url}/workbench/index.html"})
            field = browser.call("POST", "/element", {"using": "css selector", "value": "input"})[ELEMENT]
            browser.call("POST", f"/element/{field}/value", {"text": str(folder / "models" / f"{model}.gguf")})
            order = {"decode": {"ids": ids, "steps": steps + 1, "gpu": program.endswith("gpu"), "timed": True}}
            browser.script(f"window.order({json.dumps(order)})")
            answer = browser.answer()
            if isinstance(answer, str):
                found = json.loads(answer)
                _, first, *_, last = found["seconds"]
                return 1e3 * first, 1e3 * (last - first), tokens, steps, found["ids"]
        else:
            browser.call("POST", "/url", {"url": f"{url}/"})
            order = {"model": model, "steps": steps}
            if program.startswith("wllama"):
                order |= {"program": "wllama", "prompt": letters, "gpu": program.endswith("gpu")}
            else:
                order |= {"program": "onnx", "provider": "webgpu" if program.endswith("gpu") else "wasm"}
                order |= {"ids": ids, "layers": layers, "groups": groups, "size": width // heads}
            browser.script(f"window.order({json.dumps(order)})")
            answer = browser.answer()
            if "error" not in answer:
                counts = answer["prompt_tokens"], answer["decoded"]
                return answer["prefill_ms"], answer["decode_ms"], *counts, answer.get("ids")
        raise RuntimeError(f"{program}: {answer['error']}")
    finally:
        browser.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("models", nargs="*", default=["110M"])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--only", nargs="*", help="rscapret/cpu, wllama/cpu, onnx/cpu, and the same with gpu")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.other = arguments.folder.resolve()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    programs = arguments.only or [f"{name}/{on}" for on in ["cpu", "gpu"] for name in ["rscapret", "wllama", "onnx"]]
    rows, chosen = [], {}
    print(f"{'model':6} {'program':14} {'prefill tokens/s':>17} {'decode tokens/s':>16}")
    for model in arguments.models:
        for program in programs:
            try:
                found = measure(program, model, arguments.tokens, arguments.steps, server.other, url)
            except RuntimeError as error:
                print(f"{model:6} {program:14} {str(error)[:200]}", flush=True)
                continue
            prefill, decode, tokens, steps, ids = found
            row = {"model": model, "program": program, "prefill": 1e3 * tokens / prefill, "decode": 1e3 * steps / decode}
            rows.append(row)
            print(f"{model:6} {program:14} {row['prefill']:17.1f} {row['decode']:16.2f}", flush=True)
            if ids:
                chosen.setdefault(model, {})[program] = ids
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    for model, by in chosen.items():
        if len({tuple(ids) for ids in by.values()}) > 1:
            raise SystemExit(f"{model}: expected the same tokens of all but found {by}")
        print(f"{model}: {', '.join(by)} chose the same tokens")


if __name__ == "__main__":
    main()
