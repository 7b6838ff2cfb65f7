// Activations element by element.

struct Params {
    n: u32,
    kind: u32, // of `activate`
}

@group(0) @binding(0) var<uniform> p: Params; // 2
@group(0) @binding(1) var<storage, read> x: array<f32>; // (n)
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // (n)

@compute @workgroup_size(64)
fn main(at: Invocation) {
    let i = 64u * group_number(at.group, at.groups) + at.lane;
    if i >= p.n {
        return;
    }
    y[i] = activate(x[i], p.kind);
}
