import init from "./bench.js";

await init();
