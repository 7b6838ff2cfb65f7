// Rows as JSON texts, `{error}`, and `null` at the end; the benchmark takes them out.
window.rows = [];
const worker = new Worker("worker.js", { type: "module" });
worker.onerror = (event) => window.rows.push({ error: event.message });
const awake = new Promise((resolve) => {
  worker.onmessage = ({ data }) => (data === "awake" ? resolve() : window.rows.push(data));
});
window.measure = (names) => awake.then(() => worker.postMessage(JSON.stringify(names)));
