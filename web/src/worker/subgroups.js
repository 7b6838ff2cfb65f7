// wgpu cannot ask a browser for subgroups: every device that is opened from now on gets them where its adapter has them.

let asked = false;

/** Whether devices will have subgroups. */
export async function askForSubgroups() {
  const adapter = await navigator.gpu?.requestAdapter({ powerPreference: "high-performance" });
  if (!adapter?.features.has("subgroups")) return false;
  if (!asked) {
    asked = true;
    const open = GPUAdapter.prototype.requestDevice;
    GPUAdapter.prototype.requestDevice = function (description = {}) {
      const features = [...(description.requiredFeatures ?? [])];
      if (this.features.has("subgroups")) features.push("subgroups");
      return open.call(this, { ...description, requiredFeatures: features });
    };
  }
  return true;
}
