// Answers as texts, `{error}`, and `null` at the end; whoever drives the page takes them out.
window.answers = [];
const worker = new Worker("worker.js", { type: "module" });
worker.onerror = (event) => window.answers.push({ error: event.message });
const awake = new Promise((resolve) => {
  worker.onmessage = ({ data }) => (data === "awake" ? resolve() : window.answers.push(data));
});
window.order = (order) => awake.then(() => {
  worker.postMessage([JSON.stringify(order), ...document.querySelector("input").files]);
});
