// silu(gate) * up. Exponentials end before they are infinite: silu of negative infinity is that, as on the CPU.

struct Params {
    n: u32,
}

@group(0) @binding(0) var<uniform> p: Params; // 1
@group(0) @binding(1) var<storage, read> gate: array<f32>; // (n)
@group(0) @binding(2) var<storage, read> up: array<f32>; // (n)
@group(0) @binding(3) var<storage, read_write> y: array<f32>; // (n)

@compute @workgroup_size(64)
fn main(at: Invocation) {
    let i = 64u * group_number(at.group, at.groups) + at.lane;
    if i < p.n {
        y[i] = gate[i] / (1.0 + exp(min(-gate[i], 80.0))) * up[i];
    }
}
