// What the benchmark orders of the other two programs. Answers land in window.answers, as in the workbench.
window.answers = [];

const fetched = async (path) => {
  const response = await fetch(path);
  if (!response.ok) throw new Error(`${path}: ${response.status}`);
  return response.blob();
};

// llama.cpp in wasm; its own timings.
async function wllama({ prompt }, model, steps) {
  const { Wllama } = await import("/node_modules/@wllama/wllama/esm/index.js");
  const wasm = "/node_modules/@wllama/wllama/esm/wasm/wllama.wasm";
  const program = new Wllama({ default: wasm }, { suppressNativeLog: true });
  const options = { n_ctx: 512, n_threads: 1, n_gpu_layers: 0, n_parallel: 1 };
  await program.loadModel([await fetched(`/models/${model}.gguf`)], options);
  const ask = () => program.createCompletion({
    prompt, max_tokens: steps + 1, temperature: 0, cache_prompt: false, ignore_eos: true,
  });
  // The first is not counted.
  await ask();
  const { timings } = await ask();
  return {
    prompt_tokens: timings.prompt_n, prefill_ms: timings.prompt_ms,
    // Its clock starts when the first token is there.
    decoded: timings.predicted_n - 1, decode_ms: timings.predicted_ms,
    version: Wllama.getLibllamaVersion(),
  };
}

// onnxruntime-web; keys and values stay on its device.
async function onnx({ ids, layers, groups, head_dim, provider }, model, steps) {
  const ort = await import("/node_modules/onnxruntime-web/dist/ort.webgpu.bundle.min.mjs");
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmPaths = "/node_modules/onnxruntime-web/dist/";
  const on_gpu = provider === "webgpu";
  const kinds = Array.from({ length: layers }, (_, i) => [`${i}.key`, `${i}.value`]).flat();
  const session = await ort.InferenceSession.create(await (await fetched(`/models/${model}.onnx`)).arrayBuffer(), {
    executionProviders: [provider],
    preferredOutputLocation: Object.fromEntries(kinds.map((k) => [`present.${k}`, on_gpu ? "gpu-buffer" : "cpu"])),
  });
  let cache;
  const step = async (tokens, seen) => {
    const feeds = {
      input_ids: new ort.Tensor("int64", BigInt64Array.from(tokens, BigInt), [1, tokens.length]),
      seqlens_k: new ort.Tensor("int32", Int32Array.of(seen + tokens.length - 1), [1]),
      total: new ort.Tensor("int32", Int32Array.of(seen + tokens.length), []),
      ...cache,
    };
    const out = await session.run(feeds);
    const logits = await out.logits.getData();
    for (const kind of kinds) {
      cache[`past.${kind}`].dispose();
      cache[`past.${kind}`] = out[`present.${kind}`];
    }
    let best = 0;
    for (let i = 1; i < logits.length; i++) if (logits[i] > logits[best]) best = i;
    if (!Number.isFinite(logits[best])) throw new Error("expected finite logits");
    return best;
  };
  const run = async () => {
    const empty = () => new ort.Tensor("float32", new Float32Array(0), [1, groups, 0, head_dim]);
    cache = Object.fromEntries(kinds.map((kind) => [`past.${kind}`, empty()]));
    const start = performance.now();
    const found = [await step(ids, 0)];
    const prefilled = performance.now();
    for (let i = 0; i < steps; i++) found.push(await step([found[i]], ids.length + i));
    return { found, prefill_ms: prefilled - start, decode_ms: performance.now() - prefilled };
  };
  await run();
  const { found, ...times } = await run();
  return { ids: found, prompt_tokens: ids.length, decoded: steps, ...times, version: ort.env.versions.web };
}

window.order = ({ program, ...order }, model, steps) =>
  ({ wllama, onnx })[program](order, model, steps)
    .then((answer) => window.answers.push(answer))
    .catch((error) => window.answers.push({ error: String(error?.stack ?? error) }));
