// y[i] = x[ids[i]], rows of `inner` elements.

struct Params {
    n: u32, // elements of y
    inner: u32,
}

@group(0) @binding(0) var<uniform> p: Params; // 2
@group(0) @binding(1) var<storage, read> x: array<f32>; // (rows, inner)
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // (ids, inner)
@group(0) @binding(3) var<storage, read> ids: array<u32>; // (ids)

@compute @workgroup_size(64)
fn main(at: Invocation) {
    let i = 64u * group_number(at.group, at.groups) + at.lane;
    if i >= p.n {
        return;
    }
    y[i] = x[ids[i / p.inner] * p.inner + i % p.inner];
}
