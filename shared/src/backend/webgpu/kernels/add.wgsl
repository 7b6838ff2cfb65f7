// x + y, y repeated.

struct Params {
    n: u32,
    period: u32, // elements of y
}

@group(0) @binding(0) var<uniform> p: Params; // 2
@group(0) @binding(1) var<storage, read> x: array<f32>; // (n)
@group(0) @binding(2) var<storage, read> y: array<f32>; // (period)
@group(0) @binding(3) var<storage, read_write> z: array<f32>; // (n)

@compute @workgroup_size(64)
fn main(at: Invocation) {
    let i = 64u * group_number(at.group, at.groups) + at.lane;
    if i < p.n {
        z[i] = x[i] + y[i % p.period];
    }
}
